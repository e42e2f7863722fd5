"""How does a trained model come into a Python program, and how does it leave for a folder or the Hub?"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cover.model.hub import fetch, is_hub_id, upload
from cover.model.timesformer import Head, ModelConfig, TimeSformer
from cover.model.weights import CARD, CONFIG, WEIGHTS, find_release, load_as, save_release


def release_folder(source: str | Path, revision: str | None = None) -> Path:
    """The folder of a run's last checkpoint, a checkpoint, a release, or what the Hub has under an id. Raises `UserError`."""
    here = Path(source).exists() or not is_hub_id(str(source))
    return find_release(source) if here else fetch(str(source), [WEIGHTS, CONFIG, CARD], revision)


class CoVeR(TimeSformer):
    """A network with what is known of it: `config`, `head_list` (names and classes) and `about` (frames, data sets, views, step).

    >>> model = CoVeR.from_pretrained("runs/cotrain")
    >>> logits = model(model.normalize(frames), ((1, 8),))["ssv2"]
    """

    def __init__(self, config: ModelConfig, heads: tuple[Head, ...] = (), about: Mapping[str, Any] | None = None) -> None:
        super().__init__(config, heads)
        self.about: dict[str, Any] = dict(about or {})

    @classmethod
    def from_pretrained(cls, source: str | Path, revision: str | None = None) -> CoVeR:
        """From a run, checkpoint or release folder, or a Hub id (`revision`: a branch, tag or commit), in evaluation mode on the CPU.

        Nothing is unpickled. Raises `UserError` where there is no release, or where the Hub cannot be reached and it is not cached.
        """
        model, about = load_as(cls, release_folder(source, revision))
        model.about = about
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a release: weights, configuration and a model card (one that is there already stays)."""
        save_release(Path(folder), self, self.about)

    def push_to_hub(self, repo_id: str, private: bool = False, message: str = "Upload a CoVeR release") -> str:
        """Upload a release to the Hub, into a repository that is made where it is new; returns its address.

        The model card says nothing of a licence: state it there. A card that the repository has already stays. Raises `UserError`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(Path(folder), repo_id, private, message)
