"""The model CoVeR: a backbone with its classifiers, how it normalises pixels, and how it is saved and loaded."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cover.model.backbone import BackboneConfig, Groups, Heat, Intermediates, no_check
from cover.model.heads import Head
from cover.model.layers import initialise_by_width

HEAD_STD = 0.02  # standard deviation of the initial weights of a classifier on a random backbone
BACKBONE = "backbone."  # prefix of the names of the backbone's parameters


class CoVeR(nn.Module):
    """A backbone with one linear classifier for each head.

    `config`: of the backbone. `head_dropout`: dropout rate before the classifiers. `metadata`: plain JSON values that a
    release stores (frames of a clip, data sets, views, step, the head that answers by default).

    The initial scale of matrices and kernels follows the width of their input. Heads start small, not at zero, because
    a random backbone would get no gradient through zeros at the first step. On a pretrained backbone they start at zero
    (`zero_head`). The biases of a sigmoid head of C classes start at -log(C - 1), so that every class has a probability
    of about 1 / C at first, as with a softmax.

    >>> model = CoVeR.from_pretrained("runs/cotrain")
    >>> logits = model(model.normalize(frames), ((1, 8),))["ssv2"]
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        config: BackboneConfig,
        heads: tuple[Head, ...] = (),
        head_dropout: float = 0.0,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.head_list, self.metadata = heads, dict(metadata or {})
        self.backbone = config.build()
        self.head_drop = nn.Dropout(head_dropout)
        self.heads = nn.ModuleDict({head.name: nn.Linear(self.backbone.width, len(head.classes)) for head in heads})
        self.set_pixel_statistics()
        if next(self.parameters()).device.type != "meta":  # tensors on the meta device have no values
            self._initialise()

    @property
    def config(self) -> BackboneConfig:
        """The configuration of the backbone."""
        return self.backbone.config

    @property
    def frames(self) -> int:
        """Frames of a clip, from the metadata, or else from the configuration."""
        return int(self.metadata.get("frames", self.config.frames))

    @property
    def default_heads(self) -> tuple[Head, ...]:
        """The heads that answer where none is named: the one that the metadata state as `default_head`, else all."""
        own = tuple(head for head in self.head_list if head.name == self.metadata.get("default_head"))
        return own or self.head_list

    def set_pixel_statistics(self) -> None:
        """Set the buffers `mean` and `std`, each `(3, 1, 1)`, from the configuration.

        They are not saved with the weights, because the configuration has them.
        """
        pixels = self.backbone.pixels
        self.register_buffer("mean", torch.tensor(pixels.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(pixels.std).view(3, 1, 1), persistent=False)

    def _initialise(self) -> None:
        initialise_by_width(self)
        self.backbone.initialise()
        for head, linear in zip(self.head_list, self.heads.values(), strict=True):
            nn.init.normal_(linear.weight, std=HEAD_STD)  # type: ignore[arg-type]
            if head.loss == "sigmoid":
                nn.init.constant_(linear.bias, -math.log(max(1, len(head.classes) - 1)))  # type: ignore[arg-type]

    def zero_head(self, name: str) -> None:
        """Set the weights of a classifier to zero, for a new one on a pretrained backbone. Its bias does not change."""
        nn.init.zeros_(self.heads[name].weight)  # type: ignore[arg-type]

    @torch.no_grad()
    def divide_logits(self, name: str, temperature: float) -> None:
        """Divide the weights and the bias of a classifier, and so its logits, by a temperature."""
        for parameter in self.heads[name].parameters():
            parameter.div_(temperature)

    # --- the function -------------------------------------------------------------------------------------------------

    def normalize(self, frames: Tensor) -> Tensor:
        """Normalise RGB frames `(F, 3, H, W)`, uint8 or float from 0 to 1, to the floats that `forward` expects."""
        x = frames.to(self.mean.dtype)
        return ((x if frames.is_floating_point() else x / 255) - self.mean) / self.std

    def forward(
        self,
        frames: Tensor,
        groups: Groups,
        drop: Tensor | None = None,
        *,
        stages: int = 0,
        tubes: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Logits of every head for every sample of a Pack.

        `frames`: float `(F, 3, H, W)` from `normalize`, clips first. `groups`: `(samples, frames of each sample)`; the
        images (one-frame samples) are one group at the end. `drop`: drop-path factors `(layers, branches, S)`
        (`Backbone.drop_shape`), None in evaluation. `stages`: above 0, `frames` is the output of this many stages
        (`forward_prefix`) and only the rest of the network runs. `tubes`: as in `Backbone.forward`. Returns head name
        -> float `(S, classes)`. Raises ValueError if shapes do not fit.
        """
        return self.forward_head(self.forward_features(frames, groups, drop, stages=stages, tubes=tubes))

    def forward_features(
        self,
        frames: Tensor,
        groups: Groups,
        drop: Tensor | None = None,
        intermediates: Intermediates | None = None,
        *,
        stages: int = 0,
        tubes: Tensor | None = None,
    ) -> Tensor:
        """The feature of every sample, float `(S, D)`. Arguments are those of `Backbone.forward` and of `forward`."""
        if stages:
            return self.backbone.forward_suffix(frames, groups, stages, drop, intermediates)
        chosen = {} if tubes is None else {"tubes": tubes}  # families without `drop_tubes` do not take it
        features: Tensor = self.backbone(frames, groups, drop, intermediates, **chosen)
        return features

    @torch.no_grad()
    def forward_prefix(self, frames: Tensor, groups: Groups, stages: int) -> Tensor:
        """The output of the first `stages` stages, without a gradient (`Backbone.forward_prefix`)."""
        return self.backbone.forward_prefix(frames, groups, stages)

    def forward_head(self, features: Tensor) -> dict[str, Tensor]:
        """Logits of every head, head name -> float `(S, classes)`, from features `(S, D)`."""
        features = self.head_drop(features)
        return {name: head(features) for name, head in self.heads.items()}

    def heat(
        self, frames: Tensor, head: str | None = None, place: int = 0, check: Callable[[], None] = no_check
    ) -> Heat:
        """A map of the places and frames of one clip or image that the logit of a class depends on.

        `frames`: float `(T, 3, H, W)` from `normalize`. `place`: index of the class in the head. Without a head, the
        map shows the attention of the network for no particular class. `check` is called between layers; an exception
        from it ends the work. Raises `UserError` if the backbone has no such map (`Backbone.heat`).
        """

        def score(features: Tensor) -> Tensor:
            return self.forward_head(features)[str(head)][0, place]

        return self.backbone.heat(frames, score if head else None, check)

    # --- parameters, by their names in this module --------------------------------------------------------------------

    def temporal_parameters(self) -> frozenset[str]:
        """The names of the parameters that an image model does not have. No parameter of a head is among them."""
        return frozenset(f"{BACKBONE}{name}" for name in self.backbone.temporal_parameters())

    def no_decay_parameters(self) -> frozenset[str]:
        """The names of the parameters without weight decay: biases, norms, scales and embeddings."""
        biases = {
            f"heads.{head}.{name}"
            for head, linear in self.heads.items()
            for name, p in linear.named_parameters()
            if p.ndim < 2
        }
        return frozenset(f"{BACKBONE}{name}" for name in self.backbone.no_decay_parameters()) | biases

    def layers_above(self) -> dict[str, int]:
        """Parameter -> the number of layer groups above it, for layer-wise rates: 0 for the heads and the last norm."""
        top = len(self.backbone.stages()) + 1
        above = {f"{BACKBONE}{name}": top - layer for name, layer in self.backbone.layer_numbers().items()}
        return {name: above.get(name, 0) for name, _ in self.named_parameters()}

    # --- how it runs --------------------------------------------------------------------------------------------------

    def set_checkpointing(self, on: bool = True) -> None:
        """As `Backbone.set_checkpointing`."""
        self.backbone.set_checkpointing(on)

    def compile_stages(self, **options: object) -> None:
        """As `Backbone.compile_stages`."""
        self.backbone.compile_stages(**options)

    # --- folders and the Hub ------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> CoVeR:
        """Load a model in evaluation mode on the CPU.

        `source`: a run, checkpoint or release folder, or a Hub id. `revision`: a branch, tag or commit on the Hub. No
        file is unpickled. Raises `UserError` if there is no release, or if the Hub cannot be reached and the release is
        not in the cache.
        """
        from cover.model.release import find_release, load_release

        return load_release(find_release(source, revision))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a release: weights, configuration and a model card. A card that someone has changed stays."""
        from cover.model.release import save_release

        save_release(Path(folder), self, self.metadata)

    def push_to_hub(self, repo_id: str, private: bool = False, commit_message: str = "Upload a CoVeR release") -> str:
        """Upload a release to the Hub; returns its address.

        The repository is created if it does not exist. The model card states no licence, so please add one. A card that
        its owner has changed is not replaced. `cover push` writes a fuller card. Raises `UserError` if the upload
        fails.
        """
        from cover.hub import upload
        from cover.model.card import is_edited
        from cover.model.text import TEXT_FILES

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            # A text network of an earlier upload is removed: it would not go with these weights.
            return upload(Path(folder), repo_id, private, commit_message, keep_card=is_edited, replace=TEXT_FILES)
