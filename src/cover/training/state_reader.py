"""Reading the training state of a checkpoint (torch.distributed.checkpoint) without running code in its files.

The metadata of that format is a pickle file, and every value that is no tensor is one too. Here both are read by
unpicklers that know only the few classes of such a state and refuse everything else.
"""

from __future__ import annotations

import io
import pathlib
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, filesystem, metadata
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import ReadItem
from torch.distributed.checkpoint.state_dict_loader import load

from cover.errors import UserError

METADATA = ".metadata"
_SHARD = re.compile(r"[\w.-]+\.distcp", re.ASCII)  # a file beside the metadata, never one in another folder
_CLASSES: dict[tuple[str, str], Any] = {
    **{
        (metadata.__name__, name): getattr(metadata, name)
        for name in (
            "Metadata",
            "MetadataIndex",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    },
    (filesystem.__name__, "_StorageInfo"): filesystem._StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,  # looks a text up in a dictionary
    # The folder that the state was written to, which nothing reads. A path of another system cannot be built here.
    **{(module, name): pathlib.PurePath for module in ("pathlib", "pathlib._local") for name in pathlib.__all__},
}


def load_state(state: dict[str, Any], folder: Path, group: Any, single: bool) -> None:
    """Load the training state in `folder` into the tensors of `state`, and replace its other values.

    `group`: the process group of all ranks; every rank must call this, unless `single`. Raises `UserError` if the files
    ask for anything but tensors and plain values, or if they do not fit `state`.
    """
    try:
        load(state, storage_reader=_Reader(folder), planner=_Planner(), process_group=group, no_dist=single)
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        if isinstance(first, UserError):
            raise first from None
        reason = (str(first).splitlines() or [type(first).__name__])[0]
        raise UserError(f"{folder}: does not fit this run: {reason}") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _CLASSES.get((module, name))
        if known is None and module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            known = getattr(torch, name)
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return known


class _Reader(FileSystemReader):
    """`FileSystemReader` whose metadata may hold only the classes of this format."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        path = Path(self.path) / METADATA
        try:
            with path.open("rb") as file:
                found = _Unpickler(file).load()
            if not isinstance(found, metadata.Metadata):
                raise TypeError("it holds no metadata")
            for info in dict(found.storage_data).values():
                if not _SHARD.fullmatch(info.relative_path):
                    raise ValueError(f"it names the file {info.relative_path!r}")
        except Exception as error:  # a damaged pickle raises exceptions of any kind
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{path}: refused: {reason}; a training state holds tensors and plain values, and nothing was run"
            ) from None
        found.storage_meta = metadata.StorageMeta(load_id=self.load_id)
        return found


class _Planner(DefaultLoadPlanner):
    """`DefaultLoadPlanner` that reads values which are no tensors with PyTorch's restricted unpickler."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        try:
            loaded = torch.load(value, weights_only=True)
        except pickle.UnpicklingError:
            raise UserError(
                f"{read_item.dest_index.fqn}: refused: it is no plain value in the training state; nothing was run"
            ) from None
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], loaded)
