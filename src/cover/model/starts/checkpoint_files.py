"""A foreign checkpoint on disk: its tensors, and the files beside them that describe its network and its pixels.

Pickle files are read by PyTorch's restricted unpickler, which makes tensors and plain containers and refuses everything
else.
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

WRAPPINGS = ("model_state", "state_dict", "model")  # TimeSformer's release; many training scripts; DeiT's release
ENDINGS = (".safetensors", ".bin", ".pth", ".pyth", ".pt")
# Each in the order in which transformers itself looks for them.
PIXELS = ("video_preprocessor_config.json", "preprocessor_config.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class ForeignCheckpoint:
    """A foreign checkpoint: where it lies, a short name, its tensors, `config.json` and the first of `PIXELS` (empty:
    absent).

    `wrapping` is the key of the pickled dictionary that held the tensors, `recipe` the YAML text that TimeSformer's
    release keeps beside them under `cfg`.
    """

    path: Path
    name: str
    tensors: dict[str, Tensor]
    wrapping: str = ""
    recipe: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)


def read_source(name: str) -> ForeignCheckpoint:
    """From a file, a folder or a Hub id. Raises `UserError` for anything that is no checkpoint, or that needs more than
    tensors.
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


def _from_hub(name: str) -> Path:
    if not is_hub_id(name) or name.endswith(ENDINGS):
        raise UserError(f"{name}: does not exist; give a file, a folder or a Hub id such as owner/name")
    folder = fetch(name, ["*.json", "*.safetensors"])
    # Pickled weights only where there are no others.
    return (
        folder if any(folder.glob("*.safetensors")) else fetch(name, ["*.json", *(f"*{ending}" for ending in ENDINGS)])
    )


def _weight_files(folder: Path) -> list[Path]:
    """The weights of a folder: the libraries' own file names, else its only file that can be weights."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return _shards(folder / name) if name.endswith(".json") else [folder / name]
    results = sorted(path for path in folder.iterdir() if path.suffix in ENDINGS and path.is_file())
    if len(results) != 1:
        which = (
            f"{len(results)} files of weights ({', '.join(path.name for path in results[:3])}, ...); name one"
            if results
            else "no weights"
        )
        raise UserError(
            f"{folder}: has {which}; looked for {', '.join(WEIGHTS)} or one file ending in {', '.join(ENDINGS)}"
        )
    return results


def _shards(index: Path) -> list[Path]:
    present = _read_json(index).get("weight_map")
    if not isinstance(present, dict) or not present:
        raise UserError(f"{index}: has no weight_map")
    names = sorted(set(map(str, present.values())))
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"{index}: names {name}, which is not beside it")
    return [index.parent / name for name in names]


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no file."""
    try:
        present = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(present, dict):
        raise UserError(f"{path}: is no JSON object")
    return present


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str, str]:
    """The tensors of one file, the key that wrapped them and the recipe beside them (both often empty)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        try:
            return load_file(str(path)), "", ""
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read: {error}") from None
    present = _unpickle(path)
    wrapping = next(
        (key for key in WRAPPINGS if isinstance(present, Mapping) and isinstance(present.get(key), Mapping)), ""
    )
    inner = present[wrapping] if wrapping else present
    if not isinstance(inner, Mapping) or not all(isinstance(key, str) for key in inner):
        raise UserError(f"{path}: holds no dictionary of tensors, bare or under one of {', '.join(WRAPPINGS)}")
    for key, value in inner.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {key} is no tensor but {type(value).__name__}")
    recipe = present.get("cfg") if wrapping else None
    return dict(inner), wrapping, recipe if isinstance(recipe, str) else ""


def _unpickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted:
            raise UserError(
                f"{path}: refused: it asks for {wanted[1]}, and what is more than tensors could run code"
            ) from None
        raise UserError(f"{path}: cannot be read: it holds no tensors saved by PyTorch") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it is empty or cut short"
        raise UserError(f"{path}: cannot be read: {reason}") from None
