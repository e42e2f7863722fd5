"""Reading checkpoints of other libraries: tensors, and the JSON files beside them.

Pickle files are read with PyTorch's restricted unpickler, which loads tensors and plain containers and refuses
everything else.
"""

from __future__ import annotations

import errno
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cover.errors import UserError
from cover.hub import fetch, is_hub_id
from cover.model.json_values import parse_json
from cover.model.weight_files import read_safetensors

# Keys of a nested state dict. An average of the weights comes first, as in timm: it is what the results are those of.
AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "target_encoder")
RAW = ("model_state", "state_dict", "model_state_dict", "model", "module", "network", "net", "encoder")
WRAPPINGS = (*AVERAGES, *RAW)
MOST_SHOWN = 8  # keys that a message lists
CUT_SHORT = "it is empty, cut short or damaged, or has no tensors saved by PyTorch"
ENDINGS = (".safetensors", ".bin", ".pth", ".pyth", ".pt")
# Both in the order in which transformers searches for these files.
PIXELS = ("video_preprocessor_config.json", "preprocessor_config.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class ForeignCheckpoint:
    """The content of a checkpoint of another library.

    `path`: its file or folder. `name`: a short name. `wrapping`: the dotted key of the pickled dictionary that contains
    the tensors. `others`: keys beside it with other weights. `recipe`: the YAML text under `cfg` in TimeSformer's
    release. `config`: `config.json`. `preprocessing`: the first file of `PIXELS`. Absent parts are empty.
    """

    path: Path
    name: str
    tensors: dict[str, Tensor]
    wrapping: str = ""
    others: tuple[str, ...] = ()
    recipe: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    preprocessing: dict[str, Any] = field(default_factory=dict)


def read_source(name: str, key: str | None = None) -> ForeignCheckpoint:
    """Read a checkpoint from a file, a folder or a Hub id.

    `key`: the dotted key of the pickled dictionary that contains the tensors; None tries those of `WRAPPINGS`. Raises
    `UserError` if it is no checkpoint, or if the file contains more than tensors and plain containers.
    """
    path = Path(name)
    if path.is_file():
        return replace(_read_weights(path, key), name=path.stem)
    folder = path if path.is_dir() else _from_hub(name)
    first, *rest = [_read_weights(file, key) for file in _weight_files(folder)]
    tensors = first.tensors | {name: value for shard in rest for name, value in shard.tensors.items()}
    short = path.resolve().name if path.is_dir() else name
    pixels = next((record for file in PIXELS if (record := _read_json(folder / file))), {})
    config = _read_json(folder / "config.json")
    return replace(first, path=folder, name=short, tensors=tensors, config=config, preprocessing=pixels)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file of weights. Raises `UserError` as `read_source`."""
    return _read_weights(path).tensors


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
        content = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: is not a JSON object")
    return content


def _read_weights(path: Path, key: str | None = None) -> ForeignCheckpoint:
    """The content of one file, without those of the files beside it."""
    if path.suffix == ".safetensors":
        if key:
            raise UserError(f"--key {key}: a safetensors file has no keys above its tensors")
        return ForeignCheckpoint(path, "", read_safetensors(path))
    content = _unpickle(path)
    keys, inner = _named(content, key, path) if key else _unwrapped(content)
    others = _wrappings(content)
    problem = _problem(inner)
    if problem:
        tried = f"under {key}" if key else f"bare or under one of {', '.join(WRAPPINGS)}"
        raise UserError(f"{path}: no dictionary of tensors {tried}: {problem}{_key_hint(content, key)}")
    recipe = content.get("cfg") if keys else None
    return ForeignCheckpoint(
        path,
        "",
        dict(inner),
        ".".join(keys),
        tuple(other for other in others if other != keys[0]) if keys else (),
        recipe if isinstance(recipe, str) else "",
    )


def _unwrapped(content: Any) -> tuple[list[str], Any]:
    """The innermost dictionary under known keys, and these keys."""
    keys: list[str] = []
    while below := _wrappings(content):
        keys.append(below[0])
        content = content[below[0]]
    return keys, content


def _wrappings(content: Any) -> list[str]:
    """The known keys of other dictionaries in a dictionary, the preferred one first."""
    return [key for key in WRAPPINGS if isinstance(content.get(key), Mapping)] if isinstance(content, Mapping) else []


def _named(content: Any, key: str, path: Path) -> tuple[list[str], Any]:
    """The dictionary under a dotted key that the user names."""
    keys = [key] if isinstance(content, Mapping) and key in content else key.split(".")
    for part in keys:
        if not isinstance(content, Mapping) or part not in content:
            raise UserError(f"--key {key}: {path} has no {part}{_key_hint(content, None)}")
        content = content[part]
    return keys, content


def _problem(inner: Any) -> str:
    """Why an object is no dictionary of tensors; empty if it is one."""
    if not isinstance(inner, Mapping):
        return f"it is {type(inner).__name__}"
    if not inner:
        return "it is empty"
    for key, value in inner.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            return f"{key} is no tensor but {type(value).__name__}"
    return ""


def _key_hint(content: Any, key: str | None) -> str:
    """The keys of dictionaries that `--key` can name."""
    if not isinstance(content, Mapping):
        return ""
    usable = [str(name) for name, value in content.items() if isinstance(value, Mapping) and name != key]
    more = f" and {len(usable) - MOST_SHOWN} more" if len(usable) > MOST_SHOWN else ""
    return f"; --key can name {', '.join(usable[:MOST_SHOWN])}{more}" if usable else ""


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
        raise UserError(f"{path}: cannot be read: {CUT_SHORT}") from None
    except OSError as error:
        # PyTorch seeks before the beginning of a file that is cut short, which is an invalid argument.
        reason = CUT_SHORT if error.errno in (None, errno.EINVAL) else error.strerror
        raise UserError(f"{path}: cannot be read: {reason}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        reason = "not enough memory" if "allocate memory" in str(error) else CUT_SHORT
        raise UserError(f"{path}: cannot be read: {reason}") from None
