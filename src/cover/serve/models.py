"""The models of a server: each has its heads with their views, its model thread, and its text network if it has one."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch

from cover.errors import UserError
from cover.evaluation.protocol import ViewPlan
from cover.inference.predictor import Prediction, Predictor
from cover.inference.views import WINDOW_S
from cover.media.sampling import Sampling, Views
from cover.model.heads import NOT_FINITE, Head
from cover.model.text import PROMPT, ZERO_SHOT, TextClassifier, TextEncoder, check_width, texts_of
from cover.serve.batching import Batcher, Observe
from cover.serve.middleware import Batching, Refused
from cover.serve.responses import HeadDescription, ModelDescription

CACHED_CLASSIFIERS = 16  # lists of typed classes whose embeddings stay in memory


class ServedModel:
    """A checkpoint that a server predicts with.

    `name`: that clients use. `encoder`: its text network, for class names that clients type. Raises `UserError` if
    there is nothing to predict, or if the views of a head are not known.
    """

    def __init__(
        self, name: str, predictor: Predictor, batching: Batching, observe: Observe, encoder: TextEncoder | None = None
    ) -> None:
        self.name, self.predictor = name, predictor
        self.heads = {head.name: head for head in predictor.model.head_list}
        if not self.heads and encoder is None:
            raise UserError(
                "the checkpoint has no head, so there is nothing to predict; train one with start.checkpoint"
            )
        self.default_heads = tuple(head.name for head in predictor.model.default_heads)
        self.plans = {name: predictor.plan(name) for name in self.heads}
        self.classes = {name: frozenset(head.classes) for name, head in self.heads.items()}
        self.typed = TypedClasses(name, predictor, encoder) if encoder else None
        self.batcher = Batcher(predictor, batching, observe)

    def describe(self) -> ModelDescription:
        """The model for clients, without its class names."""
        model, metadata = self.predictor.model, self.predictor.metadata
        sets, step = metadata.get("datasets", {}), metadata.get("step")
        heads = {
            name: HeadDescription(
                len(head.classes),
                {each: sets.get(each, {}).get("train_samples") for each in head.datasets},
                head.loss == "sigmoid",
            )
            for name, head in self.heads.items()
        }
        return ModelDescription(
            self.name,
            model.config.family,
            model.backbone.pixels.size,
            metadata["frames"],
            step if isinstance(step, int) else None,
            self.predictor.engine,
            heads,
            list(self.default_heads),
            self.typed is not None,
            round(max(map(self.predictor.window, self.default_heads), default=WINDOW_S), 2),
        )


class TypedClasses:
    """Predictions of class names that clients type, with the text network of the release.

    It is used in the thread of the model only, by one call at a time.
    """

    def __init__(self, name: str, predictor: Predictor, encoder: TextEncoder) -> None:
        check_width(name, predictor.model, encoder)
        self._predictor, self._encoder = predictor, encoder
        size = predictor.model.backbone.pixels.size
        self.plan = ViewPlan(Sampling("segments"), Views(1, 1), predictor.metadata["frames"], size)
        self._classifiers: OrderedDict[tuple[tuple[str, ...], str], TextClassifier] = OrderedDict()

    def scores(
        self, classes: tuple[str, ...], prompt: str, clips: Sequence[np.ndarray], check: Callable[[], None]
    ) -> list[Prediction]:
        """The prediction for each of `clips`, uint8 `(views, T, 3, size, size)`.

        `check` is called before each forward pass and may raise. Raises `Refused` if scores are not finite.
        """
        classifier = self._classifier(classes, prompt)
        head, results = Head(ZERO_SHOT, classes, self._encoder.network.config.loss), list[Prediction]()
        for views in clips:
            check()
            with torch.inference_mode():
                count, frames = views.shape[:2]
                pixels = torch.from_numpy(views).flatten(0, 1)
                features = self._predictor.pack_features(pixels, ((count, frames),))
                scores = head.probabilities(classifier(features.float())).mean(0).cpu().numpy()
            if not np.isfinite(scores).all():
                raise Refused(422, f"no prediction of the file: {NOT_FINITE}")
            results.append(Prediction(ZERO_SHOT, classes, scores))
        return results

    def _classifier(self, classes: tuple[str, ...], prompt: str) -> TextClassifier:
        key = (classes, prompt)
        if key in self._classifiers:
            self._classifiers.move_to_end(key)
            return self._classifiers[key]
        embeddings = self._encoder(texts_of(classes, prompt or PROMPT))
        # A copy, because the text network stays on the CPU, where the texts are.
        classifier = copy.deepcopy(TextClassifier(self._encoder.network, embeddings)).to(self._predictor.device).eval()
        self._classifiers[key] = classifier
        if len(self._classifiers) > CACHED_CLASSIFIERS:
            self._classifiers.popitem(last=False)
        return classifier
