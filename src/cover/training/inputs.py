"""The mixture of a recipe: its steps, the reader of its samples, and the pairs that are mixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cover.mixture.loader import Member, SampleReader
from cover.mixture.schedule import Pairing, rates_by, steps_for
from cover.training.heads import make_heads
from cover.training.recipe import Recipe
from cover.transforms.mixup import Mixup


def with_steps(recipe: Recipe, members: Sequence[Member]) -> Recipe:
    """The recipe with a number of steps, also where it leaves that to the wanted epochs of its data sets."""
    if recipe.steps:
        return recipe
    sizes = {member.spec.name: len(member.manifest.usable) for member in members}
    rates_by(sizes, epochs=recipe.data.epochs)  # complains about a data set without
    return replace(recipe, steps=steps_for(sizes, recipe.data.epochs, recipe.batch))


def make_reader(recipe: Recipe, members: Sequence[Member]) -> SampleReader:
    """The reader of the samples, each data set's with its own augmentation."""
    own = recipe.augment.transforms([member.spec.name for member in members])
    return SampleReader(members, recipe.model.size, own=own, flip=recipe.augment.flip, decoder=recipe.data.decoder)


def make_pairing(recipe: Recipe, members: Sequence[Member]) -> Pairing | None:
    """The pairs that are mixed, samples of one head; None without mixup and cutmix."""
    if not (recipe.augment.mixup or recipe.augment.cutmix):
        return None
    heads = make_heads({member.spec.name: member.manifest.classes for member in members}, recipe.data.heads)
    head_of = {name: head.name for head in heads for name in head.datasets}
    chance = {name: recipe.augment.of(name).mix for name in head_of}
    return Pairing(head_of, Mixup(recipe.augment.mixup, recipe.augment.cutmix), chance)
