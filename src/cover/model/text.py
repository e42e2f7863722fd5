"""The text network of CLIP and SigLIP 2: class names become embeddings, to which images are compared.

It lies beside the weights of a release: `text.safetensors`, `text.json` and `tokenizer.json`. Sources: Radford et al.,
2021 (CLIP); Zhai et al., 2023, and Tschannen et al., 2025 (SigLIP, SigLIP 2).

Letters in shapes: N texts, L tokens, W width of the text network, E width of the common embedding, S samples, D width
of a feature.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as fn
from torch import Tensor, nn

from cover.errors import UserError, install
from cover.model.backbones.vit_blocks import BlockSettings, ViTMlp
from cover.model.cover import CoVeR
from cover.model.heads import Head
from cover.model.json_values import parse_json, typed
from cover.model.weight_files import read_checked

TEXT_WEIGHTS, TEXT_CONFIG, TOKENIZER = "text.safetensors", "text.json", "tokenizer.json"
TEXT_FILES = (TEXT_WEIGHTS, TEXT_CONFIG, TOKENIZER)
PROMPT = "This is a photo of {}."
ZERO_SHOT = "classes"  # the name of a head that is made of class names
BATCH = 256  # texts in a forward pass
PROBES = 8  # pictures of noise that show the usual length of an embedding


@dataclass(frozen=True)
class TextConfig:
    """The sizes and the function of a text network.

    `context`: the largest number of tokens. `pad`: the token behind a short text. `image_width`: D. `projected`:
    whether features pass a matrix before they are compared.
    """

    family: Literal["clip", "siglip"]
    width: int
    depth: int
    attention_heads: int
    hidden: int
    vocabulary: int
    context: int
    embedding: int
    image_width: int
    projected: bool
    mlp: Literal["gelu", "gelu_tanh", "gelu_quick"]
    norm_eps: float
    pad: int = 0

    @property
    def loss(self) -> Literal["softmax", "sigmoid"]:
        """How logits become probabilities: CLIP compares classes with each other, SigLIP judges each alone."""
        return "softmax" if self.family == "clip" else "sigmoid"


class TextBlock(nn.Module):
    """Attention and MLP, each a residual branch after a norm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, self.heads, self.causal = config.width, config.attention_heads, config.family == "clip"
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = ViTMlp(BlockSettings(width, config.attention_heads, config.hidden, config.norm_eps, mlp=config.mlp))

    def forward(self, x_NLW: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(x_NLW)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = fn.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=self.causal)
        x_NLW = x_NLW + self.proj(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x_NLW + self.mlp(self.norm2(x_NLW))
        return out


class TextNetwork(nn.Module):
    """A text network, with the projection of image features and the scale of the comparison."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Parameter(torch.zeros(config.context, config.width))
        self.blocks = nn.ModuleList(TextBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.proj = nn.Linear(config.width, config.embedding, bias=config.family == "siglip")
        self.image_proj = nn.Linear(config.image_width, config.embedding, bias=False) if config.projected else None
        self.log_scale, self.shift = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, tokens_NL: Tensor, last_N: Tensor) -> Tensor:
        """Texts to embeddings of length 1, `(N, E)`. `last_N`: the place of the token that stands for the text."""
        x_NLW = self.tokens(tokens_NL) + self.positions[: tokens_NL.shape[1]]
        for block in self.blocks:
            x_NLW = block(x_NLW)
        x_NW = self.norm(x_NLW)[torch.arange(len(tokens_NL), device=tokens_NL.device), last_N]
        return fn.normalize(self.proj(x_NW), dim=-1)

    def embedded_images(self, features_SD: Tensor) -> Tensor:
        """Features of images or clips in the common space, `(S, E)`, not normalised."""
        return features_SD if self.image_proj is None else self.image_proj(features_SD)


class TextClassifier(nn.Module):
    """Logits of classes from the angle between an image and the texts of the classes, `(S, D)` to `(S, N)`."""

    def __init__(self, network: TextNetwork, embeddings_NE: Tensor) -> None:
        super().__init__()
        self.image_proj, self.embeddings = network.image_proj, nn.Parameter(embeddings_NE)
        self.log_scale, self.shift = network.log_scale, network.shift

    def forward(self, features_SD: Tensor) -> Tensor:
        x_SE = features_SD if self.image_proj is None else self.image_proj(features_SD)
        return self.log_scale.exp() * fn.normalize(x_SE, dim=-1) @ self.embeddings.T + self.shift


# --- class names ------------------------------------------------------------------------------------------------------


class TextEncoder:
    """The text network of a release with its tokenizer. Raises `UserError` if the release has none."""

    def __init__(self, folder: Path) -> None:
        if not (folder / TEXT_CONFIG).is_file():
            raise UserError(
                f"{folder}: has no text network, so class names mean nothing to it; import a CLIP or SigLIP 2 with its"
                " text: cover import-weights openai/clip-vit-base-patch16 --text --out FOLDER"
            )
        self.network, self._tokenizer = load_text(folder), _tokenizer_of(folder / TOKENIZER)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """The embeddings of texts, float32 `(N, E)`, of length 1. A text that is too long is cut."""
        return torch.cat([self._batch(texts[at : at + BATCH]) for at in range(0, len(texts), BATCH)])

    def _batch(self, texts: Sequence[str]) -> Tensor:
        config = self.network.config
        clip = config.family == "clip"
        self._tokenizer.enable_truncation(config.context)
        # SigLIP has seen lower case only, and texts that are filled up to the same length.
        rows = [each.ids for each in self._tokenizer.encode_batch([text if clip else text.lower() for text in texts])]
        if (largest := max(token for row in rows for token in row)) >= config.vocabulary:
            raise UserError(f"{TOKENIZER}: has the token {largest}, and the text network knows {config.vocabulary}")
        length = max(map(len, rows)) if clip else config.context
        last = [len(row) - 1 if clip else length - 1 for row in rows]
        padded = torch.tensor([row + [config.pad] * (length - len(row)) for row in rows])
        result: Tensor = self.network(padded, torch.tensor(last))
        return result


def texts_of(classes: Sequence[str], prompt: str) -> list[str]:
    """A text for each class. `prompt`: with `{}` where the name goes. Raises `UserError`."""
    if prompt.count("{}") != 1:
        raise UserError(f'prompt "{prompt}": write {{}} once, where the name of a class goes, as in "a photo of {{}}"')
    return [prompt.replace("{}", name.replace("_", " ")) for name in classes]


def with_classes(model: CoVeR, folder: Path, classes: Sequence[str], prompt: str = PROMPT) -> CoVeR:
    """The model of the release `folder` with one head, for `classes`, that no training has seen.

    Raises `UserError` if the release has no text network, or if there are no classes or one of them twice.
    """
    if not classes or len(set(classes)) < len(classes):
        raise UserError("classes: give names, each once, as in --classes 'archery, bowling'")
    encoder = TextEncoder(folder)
    check_width(folder, model, encoder)
    config = encoder.network.config
    model.head_list = (Head(ZERO_SHOT, tuple(classes), config.loss),)
    model.heads = nn.ModuleDict({ZERO_SHOT: TextClassifier(encoder.network, encoder(texts_of(classes, prompt)))})
    sets = {ZERO_SHOT: {"media": "image", "sampling": "segments", "views": "1x1"}}
    model.metadata = {**model.metadata, "datasets": sets, "default_head": ZERO_SHOT}
    return model.eval()


@torch.no_grad()
def start_heads(model: CoVeR, folder: Path, names: Sequence[str], prompt: str) -> None:
    """Set the weights of the heads `names` from the texts of their classes.

    A head is linear, so an image has the logits of `with_classes`, without their common part, if its embedding has the
    usual length. This is measured on pictures of noise: norms before the projection make it nearly constant.
    """
    encoder = TextEncoder(folder)
    check_width(folder, model, encoder)
    network = encoder.network
    size, training = model.backbone.pixels.size, model.training
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(PROBES, 3, size, size, generator=generator)
    features = model.eval().forward_features(model.normalize(noise), ((PROBES, 1),))
    model.train(training)
    usual = network.embedded_images(features.float()).norm(dim=-1).mean()
    for head in model.head_list:
        if head.name in names:
            texts_NE = encoder(texts_of(head.classes, prompt))
            weight_NE = network.log_scale.exp() * (texts_NE - texts_NE.mean(0)) / usual
            weight = weight_NE if network.image_proj is None else weight_NE @ network.image_proj.weight
            cast(nn.Linear, model.heads[head.name]).weight.copy_(weight)


def check_width(name: str | Path, model: CoVeR, encoder: TextEncoder) -> None:
    """Raise `UserError` if the text network of the release `name` is for images of another network."""
    width = encoder.network.config.image_width
    if model.backbone.width != width:
        raise UserError(
            f"{name}: its text network compares features of {width} numbers, and those of this network have"
            f" {model.backbone.width}; import the weights again with --text"
        )


def _tokenizer_of(path: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(f"class names need the package tokenizers: {install('text')}") from None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain exceptions
        raise UserError(f"{path}: cannot be read: {error}") from None
    tokenizer.no_padding()
    return tokenizer


# --- files ------------------------------------------------------------------------------------------------------------


def save_text(folder: Path, network: TextNetwork, tokenizer: Path) -> None:
    """Write a text network and its tokenizer into a release folder."""
    from safetensors.torch import save_file

    state = {name: value.detach().contiguous() for name, value in network.state_dict().items()}
    save_file(state, str(folder / TEXT_WEIGHTS))
    shutil.copymode(folder / "config.json", folder / TEXT_WEIGHTS)
    text = json.dumps(dataclasses.asdict(network.config), indent=2)
    (folder / TEXT_CONFIG).write_text(text + "\n", encoding="utf-8")
    shutil.copyfile(tokenizer, folder / TOKENIZER)


def has_text(folder: Path) -> bool:
    """Whether a release has a text network."""
    return all((folder / file).is_file() for file in TEXT_FILES)


def load_text(folder: Path) -> TextNetwork:
    """The text network of a release folder, in evaluation mode. Raises `UserError` if its files are damaged."""
    path = folder / TEXT_CONFIG
    try:
        config = typed(TextConfig, parse_json(path.read_text(encoding="utf-8")), "text")
        with torch.device("meta"):
            network = TextNetwork(config)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path}: {error}") from None
    weights, wanted = read_checked(folder / TEXT_WEIGHTS, None), network.state_dict()
    for name in sorted(wanted.keys() | weights.keys()):
        if name not in weights or name not in wanted or weights[name].shape != wanted[name].shape:
            raise UserError(f"{folder / TEXT_WEIGHTS}: {name} does not fit {TEXT_CONFIG}; import the weights again")
    network.load_state_dict(weights, assign=True)
    return network.eval()
