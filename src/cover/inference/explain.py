"""Explanation of predictions, `cover explain`: for every head, the patches and frames that speak for a class."""

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
from cover.inference.in_memory import Media, read_media
from cover.inference.predictor import Prediction, Predictor
from cover.inference.views import FileViews, ViewRequest
from cover.media.decode import FileProblem, MediaError
from cover.media.sampling import Views, view_times
from cover.media.source import is_url
from cover.model.backbone import Heat
from cover.model.cover import CoVeR
from cover.model.heads import NOT_FINITE, Head

Method = Literal["gradient", "rollout"]
ONE_VIEW = Views(1, 1)
TOP = 5
DIGITS = 6
EXPLANATION_FILE = "explanation.json"


@dataclass(frozen=True)
class ExplainOptions:
    """The heads (None: all), the class (None: the most likely class of each head) and the method.

    `gradient`: attention weighted by its effect on the class. `rollout`: all attention, whichever the class.
    """

    heads: tuple[str, ...] | None = None
    class_name: str | None = None
    method: Method = "gradient"


@dataclass(frozen=True)
class Explanation:
    """The prediction of a head for a file, and its explanation for the class `class_name`.

    `prediction`: that of `cover predict`, over all views of the head.
    `frames`: uint8 `(T, 3, size, size)`, the middle view. `times`: when they are shown, in seconds.
    `heat`: of the patches of these frames, float32 `(T, h, w)` with the sum 1, computed by `method`.
    """

    prediction: Prediction
    class_name: str
    frames: np.ndarray
    times: tuple[float, ...]
    heat: np.ndarray
    method: str
    plan: ViewPlan

    @property
    def weights(self) -> list[float]:
        """The sum of the heat of each frame."""
        return [float(weight) for weight in self.heat.sum((1, 2))]

    @property
    def probability(self) -> float:
        """The probability of the class that is explained."""
        return float(self.prediction.scores[self.prediction.classes.index(self.class_name)])


def default_folder(file: str) -> Path:
    """The default folder for the explanation of a file. It has the name of the file, with its ending."""
    return Path("explained") / Path(urlsplit(file).path if is_url(file) else file).name


def explain(checkpoint: str, file: str, options: ExplainOptions, out: Path, device: str = "auto") -> list[Path]:
    """Explain the predictions for a file and write the results into the folder `out`.

    For every head there is a contact sheet `HEAD.png` and, for a video, `HEAD.mp4`. `explanation.json` holds the
    numbers. An earlier explanation of the same file in `out` is replaced. Returns the paths of the files.

    Raises `UserError`, also if the file cannot be read, and if `out` holds the explanation of another file.
    """
    with _folder(out, file):
        return _explain(checkpoint, file, options, out, device)


def _explain(checkpoint: str, file: str, options: ExplainOptions, out: Path, device: str) -> list[Path]:
    predictor = Predictor.load(checkpoint, device)
    if not predictor.model.head_list:
        raise UserError(
            f"{checkpoint}: has no head, so there is nothing to explain; train one with start.checkpoint={checkpoint}"
        )
    try:
        part, results = explanations(predictor, file, options)
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
        "method": options.method,
    }
    try:
        _remove_old(out)
        return _write(results, facts, out)
    except OSError as error:
        raise _unwritable(out, error) from None


def explanations(
    predictor: Predictor, media: Media, options: ExplainOptions, fps: float | None = None
) -> tuple[FileViews, list[Explanation]]:
    """The views of a file, and an explanation for each of its heads. The file is decoded once.

    `media` and `fps`: as in `Predictor.__call__`.

    Raises `UserError` for a wrong head or class, and `MediaError` if the file cannot be read or the outputs are not
    finite.
    """
    heads = _heads(predictor, options)
    plans = predictor.plans([head.name for head in heads])
    single = {name: replace(plan, views=ONE_VIEW) for name, plan in plans.items()}
    request = ViewRequest(tuple(dict.fromkeys([*plans.values(), *single.values()])))
    part = read_media(media, request, fps)
    clips = dict(zip(request.plans, part.clips[0], strict=True))
    ((_, seconds),) = part.spans
    results = []
    for head in heads:
        plan, (frames,) = plans[head.name], clips[single[head.name]]
        output = predictor.run([clips[plan]])[0].checked()
        prediction = Prediction(head.name, head.classes, output.scores[head.name])
        class_name = options.class_name or prediction.top(1)[0][0]
        heat = heat_of(predictor.model, frames, head, class_name, options.method)
        times = frame_times(plan, len(frames), seconds)
        results.append(Explanation(prediction, class_name, frames, times, heat.heat.numpy(), heat.method, plan))
    return part, results


def heat_of(
    model: CoVeR,
    frames: np.ndarray,
    head: Head,
    class_name: str,
    method: Method = "gradient",
    check: Callable[[], None] = lambda: None,
) -> Heat:
    """The heat of one view, uint8 `(T, 3, size, size)`, for a class of a head. The result is on the CPU.

    `check` is called before every layer. If it raises, the work ends. Raises `MediaError` if the heat is not finite.
    """
    pixels = model.normalize(torch.from_numpy(np.ascontiguousarray(frames)).to(model.mean.device))
    (place,) = head.places([class_name])
    result = model.heat(pixels, None if method == "rollout" else head.name, place, check)
    if not result.heat.isfinite().all():
        raise MediaError(NOT_FINITE)
    return replace(result, heat=result.heat.cpu())


def frame_times(plan: ViewPlan, frames: int, seconds: float) -> tuple[float, ...]:
    """The times of the frames of the middle view, in seconds. The time of an image is 0."""
    times = view_times(plan.sampling, frames, seconds, 1)[0]
    return tuple(round(float(time), 3) for time in times)


def _heads(predictor: Predictor, options: ExplainOptions) -> list[Head]:
    """The requested heads, else those that answer by default. If a class is given, only the heads that have it."""
    known = {head.name: head for head in predictor.model.head_list}
    names = options.heads or tuple(head.name for head in predictor.model.default_heads)
    predictor.plans(names)  # raises for an unknown head
    heads = [known[name] for name in dict.fromkeys(names)]
    class_name = options.class_name
    if class_name is None:
        return heads
    having = [head for head in heads if class_name in head.classes]
    if not having:
        others = [head.name for head in known.values() if class_name in head.classes]
        hint = nearest(class_name, [name for head in heads for name in head.classes])
        hint = f"; --head {others[0]} has it" if others else hint
        raise UserError(f'--class: {", ".join(head.name for head in heads)} has no class "{class_name}"{hint}')
    return having


# --- output files -----------------------------------------------------------------------------------------------------


@contextmanager
def _folder(out: Path, file: str) -> Iterator[None]:
    """Create `out` before the block. If the block fails and the folder is new, remove it again."""
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
        with contextlib.suppress(OSError):  # a folder is not empty
            for folder in new:
                folder.rmdir()
        raise


def _old(out: Path) -> dict[str, Any] | None:
    """The contents of `explanation.json` in a folder; None if there is no such file.

    Raises `UserError` if `cover explain` did not write the file.
    """
    try:
        record = json.loads((out / EXPLANATION_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        record = None
    if not _is_explanation(record):
        raise UserError(
            f"--out {out}: {EXPLANATION_FILE} in it was not written by cover explain;"
            " name another folder, or remove the file"
        )
    return record


def _is_explanation(record: Any) -> bool:
    heads = record.get("heads") if isinstance(record, dict) and isinstance(record.get("file"), str) else None
    return isinstance(heads, dict) and all(
        isinstance(head, dict) and isinstance(head.get("sheet"), str) for head in heads.values()
    )


def _remove_old(out: Path) -> None:
    """Remove an earlier explanation in `out` and the pictures that it lists.

    Without this, pictures of heads that are not requested now would stay.
    """
    for item in (_old(out) or {"heads": {}})["heads"].values():
        for name in filter(None, (item["sheet"], item.get("clip"))):
            (out / Path(name).name).unlink(missing_ok=True)  # only the last part of the name, so never outside `out`
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
    """A file name for each head. They differ also on file systems that do not distinguish upper and lower case."""
    stems: list[str] = []
    used: set[str] = set()
    for head in heads:
        plain = re.sub(r"[^\w.-]", "_", head)
        numbered = (f"{plain}-{number}" for number in itertools.count(2))
        stems.append(next(stem for stem in itertools.chain([plain], numbered) if stem.casefold() not in used))
        used.add(stems[-1].casefold())
    return stems


def _caption(each: Explanation, facts: dict[str, Any]) -> heatmaps.Caption:
    method = f"{each.method}, effect on the class" if facts["method"] == "gradient" else f"{each.method}, of any class"
    views = f"scores: mean of {each.plan.views} views; heat: the middle view"
    if str(each.plan.views) == "1x1":
        views = "one view"
    return heatmaps.Caption(
        Path(facts["file"]).name,
        each.prediction.head,
        each.class_name,
        each.probability,
        tuple(each.prediction.top(TOP)),
        f"{method}. {views}.",
    )


def _as_dict(each: Explanation) -> dict[str, Any]:
    """An explanation in `explanation.json`."""
    return {
        "class": each.class_name,
        "probability": round(each.probability, DIGITS),
        "top": [[name, round(score, DIGITS)] for name, score in each.prediction.top(TOP)],
        "views": str(each.plan.views),
        "sampling": str(each.plan.sampling),
        "frames": [
            {"time": time, "weight": round(weight, DIGITS)}
            for time, weight in zip(each.times, each.weights, strict=True)
        ],
        "heat": [[[round(float(cell), DIGITS) for cell in row] for row in frame] for frame in each.heat],
    }
