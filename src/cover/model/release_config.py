"""The configuration of a release, `config.json`: what it says, and the checks before a network is built from it.

Every message names the file and the field, in one line.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cover.errors import UserError
from cover.model.backbone import MOST_FRAMES
from cover.model.backbones import Config, config_from
from cover.model.cover import BACKBONE
from cover.model.heads import PREFIX, Head, check_head
from cover.model.json_values import parse_json, show, typed
from cover.model.weight_files import shapes_in

WEIGHTS, CONFIG = "model.safetensors", "config.json"
COMPLETE = "complete.json"  # in a checkpoint: the size and the digest of its files
FORMAT = 2  # version of `config.json`
FOREIGN = frozenset(["model_type", "architectures", "architecture"])  # in `config.json` of transformers and timm
T = TypeVar("T")


@dataclass(frozen=True)
class ReleaseConfig:
    """The content of `config.json` in a release. `metadata`: plain JSON values (frames of a clip, data sets, step)."""

    backbone: Config
    heads: tuple[Head, ...]
    head_dropout: float
    metadata: dict[str, Any]

    @property
    def frames(self) -> int:
        """Frames of a training clip."""
        return int(self.metadata.get("frames", self.backbone.frames))

    @property
    def datasets(self) -> dict[str, Any]:
        """Data set -> its metadata: media, clip sampling, views and so on."""
        return dict(self.metadata.get("datasets", {}))


def read_config(folder: Path) -> ReleaseConfig:
    """The configuration of a release folder, without its weights. Raises `UserError` if it is absent or damaged."""
    path = folder / CONFIG
    values = _config_values(folder)
    for name in ("backbone", "heads", "head_dropout", "metadata"):
        if name not in values:
            raise UserError(f"{path}: {name} is missing")
    try:
        _check_format(values)
        shapes = shapes_in(folder / WEIGHTS)
        backbone = config_from(values["backbone"], "backbone", of_backbone(shapes))
        heads = _heads_from(values["heads"], shapes)
        return ReleaseConfig(backbone, heads, _dropout_from(values), _metadata_from(values["metadata"], heads))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _config_values(folder: Path) -> dict[str, Any]:
    """The fields of `config.json`, not checked. Raises `UserError` if it is no configuration of a release."""
    path = folder / CONFIG
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder}: not a checkpoint or a release: {CONFIG}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: damaged: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: damaged: it is no JSON object")
    if "model" in values and "heads" in values and "backbone" not in values:
        raise UserError(
            f"{path}: was written by an earlier version of cover, which this version does not read; "
            "train or import again"
        )
    if not {"heads", "metadata"} & values.keys() and ("backbone" not in values or FOREIGN & values.keys()):
        raise UserError(f"{folder}: {import_advice(str(folder))}")
    return values


def import_advice(source: str) -> str:
    """Why a checkpoint of another library is no release, and what to do."""
    return f"is no cover release; {import_command(source)}"


def import_command(source: str) -> str:
    """The advice to make a release of a checkpoint of another library."""
    return f"import it: {shlex.join(['cover', 'import-weights', source, '--out', 'FOLDER'])}"


def _check_format(values: dict[str, Any]) -> None:
    if values.get("format", FORMAT) != FORMAT:
        raise ValueError(f"format: {show(values['format'])}: this version of cover reads format {FORMAT}")


def _heads_from(values: Any, shapes: Mapping[str, tuple[int, ...]]) -> tuple[Head, ...]:
    """The heads. `shapes`: of the tensors of the release; empty if they are not known. Raises ValueError."""
    if not isinstance(values, list):
        raise ValueError(f"heads: expected a list, got {show(values)}")
    heads = tuple(typed(Head, head, f"heads[{number}]") for number, head in enumerate(values))
    names: set[str] = set()
    for number, head in enumerate(heads):
        check_head(head, f"heads[{number}]")
        if head.name in names:
            raise ValueError(f'heads[{number}].name: "{head.name}" is the name of two heads')
        names.add(head.name)
        outputs = shapes.get(f"{PREFIX}{head.name}.weight", (0,))[:1] if shapes else (len(head.classes),)
        if outputs != (len(head.classes),):
            count = f"{len(head.classes)} classes, but the tensors of the file say {outputs[0] if outputs else 0}"
            raise ValueError(f"heads[{number}].classes: {count}")
    return heads


def _dropout_from(values: dict[str, Any]) -> float:
    rate = values["head_dropout"]
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ValueError(f"head_dropout: expected a number in [0, 1), got {show(rate)}")
    return float(rate)


def _metadata_from(values: Any, heads: tuple[Head, ...]) -> dict[str, Any]:
    """The metadata, of which only the parts that are used are checked. Raises ValueError."""
    from cover.media.sampling import Sampling, Views

    if not isinstance(values, dict):
        raise ValueError(f"metadata: expected an object, got {show(values)}")
    frames, datasets = values.get("frames", 1), values.get("datasets", {})
    if type(frames) is not int or not 1 <= frames <= MOST_FRAMES:
        raise ValueError(f"metadata.frames: expected a whole number in [1, {MOST_FRAMES}], got {show(frames)}")
    default = values.get("default_head")
    if default is not None and default not in [head.name for head in heads]:
        raise ValueError(f"metadata.default_head: the model has no head {show(default)}")
    if not isinstance(datasets, dict) or not all(isinstance(record, dict) for record in datasets.values()):
        raise ValueError("metadata.datasets: expected an object for each data set")
    for name, record in datasets.items():
        for field, parse in (("sampling", Sampling.parse), ("views", Views.parse)):
            if field in record:
                try:
                    parse(record[field])
                except ValueError as error:
                    raise ValueError(f"metadata.datasets.{name}.{field}: {error}") from None
        seconds = record.get("seconds", 1.0)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
            raise ValueError(f"metadata.datasets.{name}.seconds: expected a number above 0, got {show(seconds)}")
    return values


def written_digest(folder: Path) -> str | None:
    """The SHA-256 that the weights had when they were written; None if no file beside them says it."""
    places = ((CONFIG, ("weights_sha256",)), (COMPLETE, ("files", WEIGHTS, "sha256")))
    for file, keys in places:
        try:
            value: Any = parse_json((folder / file).read_text(encoding="utf-8"))
            for key in keys:
                value = value[key]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if isinstance(value, str):
            return value.lower()
    return None


def of_backbone(weights: Mapping[str, T]) -> dict[str, T]:
    """The values of the backbone's tensors, under their names in the backbone."""
    return {name.removeprefix(BACKBONE): value for name, value in weights.items() if name.startswith(BACKBONE)}
