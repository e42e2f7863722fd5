"""`cover push`: a release with a full model card, or a Space with its page, on the Hugging Face Hub.

cover push runs/mine me/mine --licence apache-2.0
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cover.console import say, tell
from cover.errors import UserError
from cover.evaluation.answers import Answers, read_answers
from cover.evaluation.baselines import TITLES
from cover.experiments.run_report import read_baselines, top1_of
from cover.hub import CARD, RepoKind, check_hub_id, upload
from cover.model.card import CardFacts, CardResult, card, is_edited
from cover.model.release import find_release, load_release, read_config, write_card
from cover.model.text import TEXT_FILES, has_text
from cover.serve.space import FOLDERS, copy_release, export_space
from cover.yaml_files import show


@dataclass(frozen=True)
class PushRequest:
    """What is pushed where.

    `licence`: of the weights, as the Hub spells it. `results`: a file of `cover evaluate --json` for the card.
    `space`: push a Space with the page of the model. `dry_run`: print what would be pushed, and push nothing.
    """

    checkpoint: str
    repo: str
    private: bool = False
    message: str = ""
    licence: str = ""
    results: Path | None = None
    replace_card: bool = False
    space: bool = False
    dry_run: bool = False


def push(request: PushRequest) -> str:
    """Push a release or a Space; returns its address, empty for a dry run. Raises `UserError`."""
    check_hub_id(request.repo)
    name = request.repo.rpartition("/")[2]
    with tempfile.TemporaryDirectory(prefix="cover-push-") as temporary:
        folder = Path(temporary) / name
        edited = False
        if request.space:
            export_space(request.checkpoint, folder, name)
        else:
            edited = _prepare(request, folder)
        if request.dry_run:
            _show(folder)
            return ""
        message = request.message or f"Upload a {'page' if request.space else 'release'} by cover push"
        kind: RepoKind = "space" if request.space else "model"
        keep = partial(_keep_card, request.repo, request.replace_card or edited)
        replace = [f"{each}/*" for each in FOLDERS] if request.space else TEXT_FILES
        return upload(folder, request.repo, request.private, message, kind, keep, replace)


def _keep_card(repo: str, replace: bool, text: str) -> bool:
    """Whether the card `text` of a repository stays, because someone has changed it there. `replace`: never."""
    keep = not replace and is_edited(text)
    if keep:
        say(f"{repo}: someone has changed {CARD} on the Hub, so it stays (--replace-card writes a new one)")
    return keep


def _prepare(request: PushRequest, folder: Path) -> bool:
    """Copy a release into the new folder `folder`, with a card that says all that its run knows.

    Returns whether the card is one that someone has changed.
    """
    release = find_release(request.checkpoint)
    model = load_release(release)  # also checks that the weights are not damaged
    given = results_of_file(request.results, model.metadata.get("step")) if request.results else []
    copy_release(release, folder)
    written = folder / CARD
    if written.is_file() and is_edited(written.read_text(encoding="utf-8")) and not request.replace_card:
        say(f"{release / CARD}: someone has changed it, so it is pushed as it is (--replace-card writes a new one)")
        return True
    results = _joined(results_of_run(request.checkpoint), given)
    facts = CardFacts(request.repo, request.licence, results, has_text(release))
    written.write_text(card(model, model.metadata, facts), encoding="utf-8")
    return False


def write_full_card(run: Path) -> None:
    """Write the model card of a run anew with what it has measured. A card that someone has changed stays."""
    release = find_release(run)
    model = load_release(release)
    write_card(release, card(model, model.metadata, CardFacts(results=tuple(results_of_run(run)))))


def _show(folder: Path) -> None:
    for line in (folder / CARD).read_text(encoding="utf-8").splitlines():
        tell(line)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    own = [path.relative_to(folder) for path in files]
    shown = ", ".join(str(path) for path in own[:6]) + (f" and {len(own) - 6} more" if own[6:] else "")
    say(f"would push {len(own)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB: {shown}")


# --- what a run has measured ------------------------------------------------------------------------------------------


def results_of_run(run: str | Path) -> list[CardResult]:
    """The results that lie in a run folder; none if it is a release alone.

    If its manifests are gone, they have no intervals. Raises `UserError` if there is no release.
    """
    release, baselines = read_config(find_release(run)), read_baselines(Path(run))
    return [
        _of_answers(
            answers,
            baselines.get(answers.dataset) or {},
            release.datasets.get(answers.dataset, {}),
            release.frames,
        )
        for answers in read_answers(Path(run))
        if answers.rows
    ]


def _of_answers(answers: Answers, base: Mapping[str, Any], views: Mapping[str, Any], frames: int) -> CardResult:
    try:
        top1, low, high = top1_of(answers)
    except UserError:  # its manifest was removed or indexed again, so the sources of the samples are not known
        right = sum(t == p for t, p in zip(answers.truth, answers.predicted, strict=True))
        top1, low, high = right / len(answers.rows), None, None
    media = str(views.get("media", "video"))
    return CardResult(
        dataset=answers.dataset,
        measured=answers.measured,
        media=media,
        metric="top1",
        value=top1,
        low=low,
        high=high,
        n_read=len(answers.rows),
        n_listed=answers.listed,
        frames=frames if media == "video" else 1,
        views=str(views.get("views", "")),
        baselines=_baselines(base),
        behind=tuple(TITLES.get(each, each) for each in base.get("behind") or ()),
    )


def _baselines(results: Mapping[str, Any]) -> dict[str, float]:
    """Title of a trivial method -> its top-1."""
    values = {title: results.get(key) for key, title in TITLES.items()}
    return {
        title: float(value["top1"] if isinstance(value, Mapping) else value)
        for title, value in values.items()
        if value is not None
    }


def results_of_file(path: Path, step: int | None) -> list[CardResult]:
    """The results in a file of `cover evaluate --json`.

    `step`: of the release. Raises `UserError` if the file is another one, or of another step.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise TypeError("no list")
        others = sorted({row["step"] for row in rows if row.get("step") not in (None, step)})
        results = [_of_row(row) for row in rows if row["variant"] == "plain"]
    except OSError as error:
        raise UserError(f"--results {path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"a result lacks {show(error.args[0])}" if isinstance(error, KeyError) else "it is another file"
        raise UserError(f"--results {path}: expected what `cover evaluate --json` writes; {reason}") from None
    if others:
        raise UserError(f"--results {path}: was measured at step {others[0]}, and this release is of step {step}")
    return results


def _of_row(row: Mapping[str, Any]) -> CardResult:
    metric = "map" if row["multi_label"] else "top1"
    interval = row.get("top1_interval") or {}
    base = row.get("baselines") or {}
    return CardResult(
        dataset=row["dataset"],
        measured=row["split"],
        media=row["media"],
        metric=metric,
        value=float(row[metric]),
        low=interval.get("low") if metric == "top1" else None,
        high=interval.get("high") if metric == "top1" else None,
        n_read=int(row["n_read"]),
        n_listed=int(row["n_listed"]),
        frames=int(row["frames"]),
        views=row["views"],
        baselines=_baselines(base),
        behind=tuple(TITLES.get(each, each) for each in base.get("behind") or ()),
    )


def _joined(measured: list[CardResult], given: list[CardResult]) -> tuple[CardResult, ...]:
    """All results; those of the file take the place of the run's own for the same data set and split."""
    known = {(each.dataset, each.measured) for each in given}
    return (*(each for each in measured if (each.dataset, each.measured) not in known), *given)
