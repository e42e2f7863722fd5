"""`cover explain`: for every head, the places and frames of a file that speak for its class."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import torch

from cover.console import say, write_json
from cover.errors import UserError, nearest
from cover.evaluation.protocol import ViewPlan
from cover.inference import heatmaps
from cover.inference.predictor import Prediction, Predictor
from cover.inference.views import FileViews, ViewRequest, read_file
from cover.media.decode import FileProblem, MediaError
from cover.media.sampling import Views, view_times
from cover.media.source import is_url
from cover.model.backbone import Heat
from cover.model.cover import CoVeR
from cover.model.heads import Head

Method = Literal["gradient", "rollout"]
ONE_VIEW = Views(1, 1)
TOP = 5
DIGITS = 6
EXPLANATION_FILE = "explanation.json"


@dataclass(frozen=True)
class ExplainOptions:
    """Of which heads (None: all), for which class (None: each head's likeliest), and how the heat is made: `gradient`
    for what speaks for the class, `rollout` for where attention went at all.
    """

    heads: tuple[str, ...] | None = None
    named: str | None = None
    method: Method = "gradient"


@dataclass(frozen=True)
class Explanation:
    """What a head said of a file and what it rests on.

    `prediction`: of the head's own views, as `cover predict` has it. `frames`: uint8 `(T, 3, size, size)`, the middle
    view, whose heat is in `heat`, float32 `(T, h, w)`, 1 in all, for the class `named`, computed by `method`. `times`:
    of the frames, seconds from the first.
    """

    prediction: Prediction
    named: str
    frames: np.ndarray
    times: tuple[float, ...]
    heat: np.ndarray
    method: str
    plan: ViewPlan

    @property
    def weights(self) -> list[float]:
        """Each frame's part of the heat."""
        return [float(weight) for weight in self.heat.sum((1, 2))]

    @property
    def probability(self) -> float:
        """Of the class that is explained."""
        return float(self.prediction.scores[self.prediction.classes.index(self.named)])


def default_folder(file: str) -> Path:
    """Where the explanation of a file lies unless another place is named: called as the file is, ending included."""
    return Path("explained") / Path(urlsplit(file).path if is_url(file) else file).name


def explain(checkpoint: str, file: str, question: ExplainOptions, out: Path, device: str = "auto") -> list[Path]:
    """Write for every head a contact sheet `HEAD.png` and, of a video, `HEAD.mp4` into `out`, with `explanation.json`
    beside them.

    The pictures of an explanation of the same file that lies there go. Returns what was written. Raises `UserError`,
    also for a file that cannot be read, and where `out` holds the explanation of another.
    """
    with _folder(out, file):
        return _explain(checkpoint, file, question, out, device)


def _explain(checkpoint: str, file: str, question: ExplainOptions, out: Path, device: str) -> list[Path]:
    predictor = Predictor.load(checkpoint, device)
    if not predictor.model.head_list:
        raise UserError(
            f"{checkpoint}: has no head, so there is no answer to explain; train one with start.checkpoint={checkpoint}"
        )
    try:
        part, result = explanations(predictor, file, question)
    except MediaError as error:
        raise UserError(str(FileProblem(file, "unreadable", str(error)))) from None
    if part.problem:
        say(str(part.problem))
    facts = {
        "file": file,
        "media": part.media,
        "checkpoint": checkpoint,
        "step": predictor.metadata.get("step"),
        "partial": part.partial,
        "method": question.method,
    }
    try:
        _remove_old(out)
        return _write(result, facts, out)
    except OSError as error:
        raise _unwritable(out, error) from None


def explanations(predictor: Predictor, file: str, question: ExplainOptions) -> tuple[FileViews, list[Explanation]]:
    """What was read of a file, and the explanation of every head asked for, from one decode. Raises `UserError`,
    `MediaError`.
    """
    heads = _heads(predictor, question)
    plans = predictor.plans([head.name for head in heads])
    single = {name: replace(plan, views=ONE_VIEW) for name, plan in plans.items()}
    request = ViewRequest(tuple(dict.fromkeys([*plans.values(), *single.values()])))
    part = read_file(file, request)
    clips = dict(zip(request.plans, part.clips[0], strict=True))
    ((_, seconds),) = part.spans
    results = []
    for head in heads:
        (visited,) = predictor.run([clips[plans[head.name]]])
        prediction = Prediction(head.name, head.classes, visited.scores[head.name])
        named, (frames,) = question.named or prediction.top(1)[0][0], clips[single[head.name]]
        heat = heat_of(predictor.model, frames, head, named, question.method)
        times = frame_times(plans[head.name], len(frames), seconds)
        results.append(Explanation(prediction, named, frames, times, heat.heat.numpy(), heat.method, plans[head.name]))
    return part, results


def heat_of(
    model: CoVeR,
    frames: np.ndarray,
    head: Head,
    named: str,
    method: Method = "gradient",
    check: Callable[[], None] = lambda: None,
) -> Heat:
    """The heat of one view, uint8 `(T, 3, size, size)`, on the CPU. What `check` raises before a layer ends the work."""
    pixels = model.normalize(torch.from_numpy(np.ascontiguousarray(frames)).to(model.mean.device))
    (place,) = head.places([named])
    result = model.heat(pixels, None if method == "rollout" else head.name, place, check)
    return replace(result, heat=result.heat.cpu())


def frame_times(plan: ViewPlan, frames: int, seconds: float) -> tuple[float, ...]:
    """When the frames of the middle view are shown, in seconds; an image is at 0."""
    times = view_times(plan.sampling, frames, seconds, 1)[0]
    return tuple(round(float(time), 3) for time in times)


def _heads(predictor: Predictor, question: ExplainOptions) -> list[Head]:
    """Those asked for; where a class is named, those of them that have it."""
    known = {head.name: head for head in predictor.model.head_list}
    names = question.heads or tuple(known)
    predictor.plans(names)
    heads = [known[name] for name in dict.fromkeys(names)]
    if question.named is None:
        return heads
    having = [head for head in heads if question.named in head.classes]
    if not having:
        classes = [name for head in heads for name in head.classes]
        raise UserError(
            f'--class: {", ".join(head.name for head in heads)} has no class "{question.named}"'
            f"{nearest(question.named, classes)}"
        )
    return having


# --- what is written --------------------------------------------------------------------------------------------------


@contextmanager
def _folder(out: Path, file: str) -> Iterator[None]:
    """`out` is there, before any work is done for it, and goes again where nothing came of the work."""
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        old = _old(out)
    except OSError as error:
        raise _unwritable(out, error) from None
    if old is not None and os.path.realpath(old["file"]) != os.path.realpath(file):
        raise UserError(
            f"--out {out}: holds the explanation of {old['file']}; name another folder with --out, or remove this one"
        )
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # something lies in it
            for folder in new:
                folder.rmdir()
        raise


def _old(out: Path) -> dict[str, Any] | None:
    """What `explanation.json` in a folder tells, None where there is none. Raises `UserError` where it is not one of
    ours.
    """
    try:
        record = json.loads((out / EXPLANATION_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        record = None
    if not _is_explanation(record):
        raise UserError(
            f"--out {out}: {EXPLANATION_FILE} in it was not written by cover explain; name another folder, or remove the file"
        )
    return record


def _is_explanation(text: Any) -> bool:
    heads = text.get("heads") if isinstance(text, dict) and isinstance(text.get("file"), str) else None
    return isinstance(heads, dict) and all(
        isinstance(head, dict) and isinstance(head.get("sheet"), str) for head in heads.values()
    )


def _remove_old(out: Path) -> None:
    """The pictures that an explanation in `out` lists, and itself: heads that are not asked for now would look as if
    they belonged.
    """
    for item in (_old(out) or {"heads": {}})["heads"].values():
        for name in filter(None, (item["sheet"], item.get("clip"))):
            (out / Path(name).name).unlink(missing_ok=True)  # below `out`, whatever stands there
    (out / EXPLANATION_FILE).unlink(missing_ok=True)


def _unwritable(out: Path, error: OSError) -> UserError:
    return UserError(f"--out {out}: cannot be written: {error.strerror or error}")


def _write(results: Sequence[Explanation], facts: dict[str, Any], out: Path) -> list[Path]:
    paths, record = [], {}
    heads = [each.prediction.head for each in results]
    for each, head, stem in zip(results, heads, _file_stems(heads), strict=True):
        sheet, clip = out / f"{stem}.png", out / f"{stem}.mp4" if len(each.frames) > 1 else None
        heatmaps.contact_sheet(_caption(each, facts), each.frames, each.heat, each.times).save(sheet)
        if clip:
            heatmaps.write_clip(clip, _caption(each, facts), each.frames, each.heat, each.times)
        paths += [sheet, clip] if clip else [sheet]
        record[head] = {**_as_dict(each), "sheet": sheet.name, "clip": clip.name if clip else None}
    write_json({**facts, "heads": record}, str(out / EXPLANATION_FILE))
    return [*paths, out / EXPLANATION_FILE]


def _file_stems(heads: Sequence[str]) -> list[str]:
    """A file name for each head, all different, also where upper and lower case are one."""
    stems: list[str] = []
    chosen: set[str] = set()
    for head in heads:
        plain = re.sub(r"[^\w.-]", "_", head)
        numbered = (f"{plain}-{number}" for number in itertools.count(2))
        stems.append(next(stem for stem in itertools.chain([plain], numbered) if stem.casefold() not in chosen))
        chosen.add(stems[-1].casefold())
    return stems


def _caption(each: Explanation, facts: dict[str, Any]) -> heatmaps.Caption:
    method = (
        f"{each.method}: what speaks for the class" if facts["method"] == "gradient" else f"{each.method}, of any class"
    )
    views = (
        f"scores: mean of {each.plan.views} views; heat: the middle one"
        if str(each.plan.views) != "1x1"
        else "one view"
    )
    return heatmaps.Caption(
        Path(facts["file"]).name,
        each.prediction.head,
        each.named,
        each.probability,
        tuple(each.prediction.top(TOP)),
        f"{method}. {views}.",
    )


def _as_dict(each: Explanation) -> dict[str, Any]:
    return {
        "class": each.named,
        "probability": round(each.probability, DIGITS),
        "top": [[name, round(fraction, DIGITS)] for name, fraction in each.prediction.top(TOP)],
        "views": str(each.plan.views),
        "sampling": str(each.plan.sampling),
        "frames": [
            {"time": time, "weight": round(weight, DIGITS)}
            for time, weight in zip(each.times, each.weights, strict=True)
        ],
        "heat": [[[round(float(cell), DIGITS) for cell in row] for row in frame] for frame in each.heat],
    }
