"""A foreign checkpoint as a network of this package: what the converter of a family returns.

A converter is one file in this folder with a function `(checkpoint, state, options) -> Conversion | None`. It returns
None for checkpoints of other families. `importing.CONVERTERS` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from cover.errors import UserError
from cover.model.backbone import BackboneConfig
from cover.model.starts.checkpoint_files import ForeignCheckpoint
from cover.model.starts.conventions import ImportOptions, PixelStatistics
from cover.model.starts.formats import ForeignFormat, Names, Translation

NO_HEAD = "none"  # the option `--head` that leaves the classifier out
FAMILY_OPTIONS = ("attention", "attention_heads", "time", "resize")  # of an import; they are for some families only


@dataclass(frozen=True)
class Conversion:
    """A checkpoint under the names of a backbone of this package.

    `translation`: our names of the backbone and `head.weight`, `head.bias` -> tensors. They must be all tensors of the
    network of `config`. `wanted`: our name -> the names that the checkpoint should have. `changes`: our name -> how the
    tensor was changed. `unused`: names in the file -> why they are left out. `sampling`, `views`: for the data set of
    the head. `notes`: lines for the report. `new`: our names that the checkpoint lacks and the network initialises ->
    what becomes of them. `labels`: the format in whose way the checkpoint names its classes, `form` if None.
    """

    form: ForeignFormat
    translation: Translation
    config: BackboneConfig
    wanted: Mapping[str, Names]
    pixels: PixelStatistics
    sampling: str
    views: str
    changes: Mapping[str, str] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    new: Mapping[str, str] = field(default_factory=dict)
    labels: ForeignFormat | None = None


Converter = Callable[[ForeignCheckpoint, Mapping[str, Tensor], ImportOptions], Conversion | None]


def named_format(title: str, video: bool) -> ForeignFormat:
    """A format whose names a converter knows, for the report."""
    return ForeignFormat(title, "", video, prefixes=(), tensors={}, layers={})


def refuse_options(options: ImportOptions, title: str, allowed: tuple[str, ...] = ()) -> None:
    """Raises `UserError` if an option is given that has no meaning for this network."""
    for name in FAMILY_OPTIONS:
        if name not in allowed and getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: {title} has no such setting")


def without_prefixes(state: Mapping[str, Tensor], prefixes: Names) -> dict[str, str]:
    """Name without any of the prefixes -> name in the file. Raises `UserError` if two names become one."""
    files: dict[str, str] = {}
    for name in state:
        bare = name
        while prefix := next((prefix for prefix in prefixes if bare.startswith(prefix)), ""):
            bare = bare.removeprefix(prefix)
        if bare in files:
            raise UserError(f"{files[bare]} and {name} are the same tensor twice")
        files[bare] = name
    return files


def check_strangers(files: Mapping[str, str], known: set[str], title: str) -> None:
    """Raises `UserError` if the file has a name that the network does not have. `files`: as in `without_prefixes`."""
    strangers = [name for bare, name in files.items() if bare not in known]
    if strangers:
        more = f" (and {len(strangers) - 1} more)" if strangers[1:] else ""
        unexpected = f'unexpected tensor {strangers[0]}{more}: no part of the format "{title}"'
        raise UserError(f"{unexpected}; to leave it out: --unused {strangers[0]}")
