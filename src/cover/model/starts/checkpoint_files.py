"""Reading checkpoints of other libraries: tensors, and the JSON files beside them.

Pickle files are read with PyTorch's restricted unpickler, which loads tensors and plain containers and refuses
everything else.
"""

from __future__ import annotations

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cover.errors import UserError
from cover.model.hub import fetch, is_hub_id

# The keys for a nested state dict: in TimeSformer's release, in many training scripts, in DeiT's release, in VideoMAE's
# and UMT's, in V-JEPA's.
WRAPPINGS = ("model_state", "state_dict", "model", "module", "target_encoder", "encoder")
ENDINGS = (".safetensors", ".bin", ".pth", ".pyth", ".pt")
# Both in the order in which transformers searches for these files.
PIXELS = ("video_preprocessor_config.json", "preprocessor_config.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class ForeignCheckpoint:
    """The content of a checkpoint of another library.

    `path`: its file or folder. `name`: a short name. `wrapping`: the key of the pickled dictionary that contains the
    tensors. `recipe`: the YAML text under `cfg` in TimeSformer's release. `config`: `config.json`. `preprocessing`: the
    first file of `PIXELS`. Absent parts are empty.
    """

    path: Path
    name: str
    tensors: dict[str, Tensor]
    wrapping: str = ""
    recipe: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)


def read_source(name: str) -> ForeignCheckpoint:
    """Read a checkpoint from a file, a folder or a Hub id.

    Raises `UserError` if it is no checkpoint, or if the file contains more than tensors and plain containers.
    """
    path = Path(name)
    if path.is_file():
        tensors, wrapping, recipe = _read_weights(path)
        return ForeignCheckpoint(path, path.stem, tensors, wrapping, recipe)
    folder = path if path.is_dir() else _from_hub(name)
    files = _weight_files(folder)
    tensors, wrapping, recipe = _read_weights(files[0])
    for shard in files[1:]:
        tensors |= _read_weights(shard)[0]
    short = path.resolve().name if path.is_dir() else name
    pixels = next((record for file in PIXELS if (record := _read_json(folder / file))), {})
    return ForeignCheckpoint(folder, short, tensors, wrapping, recipe, _read_json(folder / "config.json"), pixels)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file of weights. Raises `UserError` as `read_source`."""
    return _read_weights(path)[0]


def _from_hub(name: str) -> Path:
    if not is_hub_id(name) or name.endswith(ENDINGS):
        raise UserError(f"{name}: does not exist; give a file, a folder or a Hub id such as owner/name")
    folder = fetch(name, ["*.json", "*.safetensors"])
    if any(folder.glob("*.safetensors")):  # pickled weights are downloaded only if there are no others
        return folder
    return fetch(name, ["*.json", *(f"*{ending}" for ending in ENDINGS)])


def _weight_files(folder: Path) -> list[Path]:
    """The weight files of a folder: those with a name in `WEIGHTS`, or else its only file with one of `ENDINGS`."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return _shards(folder / name) if name.endswith(".json") else [folder / name]
    files = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS and path.is_file())
    if len(files) != 1:
        names = ", ".join(path.name for path in files[:3])
        which = f"{len(files)} files of weights ({names}, ...); name one" if files else "no weights"
        raise UserError(
            f"{folder}: has {which}; looked for {', '.join(WEIGHTS)} or one file ending in {', '.join(ENDINGS)}"
        )
    return files


def _shards(index: Path) -> list[Path]:
    """The files of a sharded checkpoint, from its index. They must be in the folder of the index."""
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: has no weight_map")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"{index}: names {name}, which is not beside it")
    return [index.parent / name for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object")
    return content


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str, str]:
    """The tensors of one file, their wrapping key and their recipe (see `ForeignCheckpoint`)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        try:
            return load_file(str(path)), "", ""
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
    content = _unpickle(path)
    keys = WRAPPINGS if isinstance(content, Mapping) else ()
    wrapping = next((key for key in keys if isinstance(content.get(key), Mapping)), "")
    inner = content[wrapping] if wrapping else content
    if not isinstance(inner, Mapping) or not all(isinstance(key, str) for key in inner):
        raise UserError(f"{path}: has no dictionary of tensors, neither bare nor under one of {', '.join(WRAPPINGS)}")
    for key, value in inner.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {key} is no tensor but {type(value).__name__}")
    recipe = content.get("cfg") if wrapping else None
    return dict(inner), wrapping, recipe if isinstance(recipe, str) else ""


def _unpickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise UserError(
                f"{path}: refused: it asks for {wanted[1]}, and a pickle file with more than tensors could run code"
            ) from None
        raise UserError(f"{path}: cannot be read: it has no tensors saved by PyTorch") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is empty or truncated"
        raise UserError(f"{path}: cannot be read: {reason}") from None
