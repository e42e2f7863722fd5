"""The section `cache` of a recipe: how many stages it keeps, and what it does not go together with."""

from __future__ import annotations

from torch import nn

from cover.distributed import ProcessGroup
from cover.errors import UserError
from cover.mixture.prefix_cache import PrefixCache
from cover.model.cover import BACKBONE, CoVeR
from cover.training.recipe import Recipe


def open_cache(recipe: Recipe, model: CoVeR, frozen: CoVeR, group: ProcessGroup) -> PrefixCache | None:
    """The cache of a run, None without `cache.stages`.

    `model`: the network that is trained, with its frozen parameters marked. `frozen`: a network with the weights that
    the first stages have throughout the run, often the same. Raises `UserError`, which names the key, if the first
    stages are not frozen or do not always compute the same.
    """
    stages = recipe.cache.stages
    if not stages:
        return None
    most = frozen_stages(model)
    if stages < 0 and not most:
        raise UserError(f"cache.stages: -1 is all frozen stages, and {_first_trained(model, 1)}; {_ADVICE}")
    stages = most if stages < 0 else stages
    cache = PrefixCache(frozen, stages, group, recipe.cache.dtype, recipe.cache.folder)
    if stages > most:
        raise UserError(f"cache.stages: {stages}, but {_first_trained(model, stages)}; {_ADVICE}")
    # The rate of the first layer is 0, so drop-path begins with the second.
    if recipe.model.drop_path and model.backbone.drop_layers_within(stages) > 1:
        raise UserError(
            f"model.drop_path: {recipe.model.drop_path:g} drops branches in the {stages} stages of cache.stages;"
            " set it to 0, or cache.stages to a smaller number"
        )
    if getattr(recipe.model, "drop_tubes", 0.0):
        raise UserError(
            "model.drop_tubes: leaves out places of the stages that cache.stages keeps; set one of them to 0"
        )
    if _drops_out(model, stages):
        raise UserError(
            "model.dropout: it drops values in the stages that cache.stages keeps; set it to 0, or cache.stages to 0"
        )
    return cache


_ADVICE = "freeze it (adapt.frozen_stages), or set cache.stages to 0 or to the number of frozen first stages"


def frozen_stages(model: CoVeR) -> int:
    """The number of first stages whose outputs training does not change: they and all before them are frozen."""
    backbone = model.backbone
    layers = backbone.layer_numbers()
    trained = [layers[name] for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    first = min(trained, default=len(backbone.stages()) + 1)  # 0: the embedding
    return max(0, first - 1)


def _first_trained(model: CoVeR, stages: int) -> str:
    backbone, layers = model.backbone, model.backbone.layer_numbers()
    name = next(
        name for name, parameter in backbone.named_parameters() if parameter.requires_grad and layers[name] <= stages
    )
    return f"{BACKBONE}{name} is trained"


def _drops_out(model: CoVeR, stages: int) -> bool:
    """Whether the first stages have dropout."""
    later = {id(module) for stage in model.backbone.stages()[stages:] for module in stage.modules()}
    return any(
        isinstance(module, nn.Dropout) and module.p > 0 and id(module) not in later
        for module in model.backbone.modules()
    )
