"""Weights in files: reading safetensors, and the checks that every load makes of digests and numbers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from cover.errors import UserError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)  # that weights may have


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file on the CPU, as views of the file. Raises `UserError` if it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or _first_line(error)}") from None
    except (SafetensorError, KeyError, AttributeError) as error:  # the last two: dtypes that torch lacks
        raise UserError(f"{path}: cannot be read: it is cut short or damaged ({_first_line(error)})") from None


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, from the header of a safetensors file; empty if it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return {}


def read_checked(path: Path, sha256: str | None) -> dict[str, Tensor]:
    """The weights in a safetensors file as finite float32 tensors, which are copies.

    `sha256`: the digest of the file when it was written; None if nothing says it. It is computed in another thread
    while the tensors are copied, once for each file. Raises `UserError` if the file is damaged, or as `finite_floats`.
    """
    tensors = read_safetensors(path)
    with ThreadPoolExecutor(1) as thread:
        digest = thread.submit(digest_of, path) if sha256 else None
        try:
            copies = finite_floats(tensors, path)
        except UserError:
            if digest and digest.result() != sha256:
                raise _damaged(path) from None
            raise
        if digest and digest.result() != sha256:
            raise _damaged(path)
    return copies


def finite_floats(tensors: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """Copies of the tensors in float32. Raises `UserError` if one has no floating-point numbers, a NaN or an infinity.

    `where`: the file, for the message.
    """
    copies = {}
    for name, value in tensors.items():
        if value.dtype not in FLOATS:
            raise UserError(f"{where}: {name} {wrong_dtype(value)}")
        copies[name] = value.to(torch.float32, copy=True)
        if problem := not_finite(copies[name]):
            raise UserError(f"{where}: {name} {problem}")
    return copies


def wrong_dtype(value: Tensor) -> str:
    """What a tensor holds that is none of `FLOATS`, for a message."""
    return f"holds {str(value.dtype).removeprefix('torch.')}, no floating-point numbers of 16, 32 or 64 bits"


def not_finite(value: Tensor) -> str:
    """How many numbers of a tensor are NaN or infinite, for a message; empty if none is."""
    if not value.numel():
        return ""
    # One pass without a mask, ten times as fast as `isfinite`. NaN is the smallest and the largest of any numbers.
    low, high = value.aminmax()
    if low.isfinite() and high.isfinite():
        return ""
    count = int(value.numel() - value.isfinite().sum())
    return f"has NaN or infinity in {count} of {value.numel()} numbers; these weights cannot be used"


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits, computed once for each file. Raises OSError."""
    state = path.stat()
    return _digest(os.path.realpath(path), state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=64)
def _digest(path: str, *version: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path) -> UserError:
    return UserError(
        f"{path}: damaged: its SHA-256 is not the one that was written beside it; copy it again or use another "
        "checkpoint"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
