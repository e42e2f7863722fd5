"""What does a recipe make of its data sets: for how many steps, with which augmentation of each, and what is mixed with what?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cover.media.randaugment import RandAugment
from cover.mixture.loader import Augmentation, Member, SampleReader
from cover.mixture.mixing import Mixing
from cover.mixture.schedule import rates_by, steps_for
from cover.training.heads import make_heads
from cover.training.recipe import Recipe


def with_steps(recipe: Recipe, members: Sequence[Member]) -> Recipe:
    """The recipe with a number of steps, also where it leaves that to the wanted epochs of its data sets."""
    if recipe.steps:
        return recipe
    sizes = {member.spec.name: len(member.manifest.usable) for member in members}
    rates_by(sizes, epochs=recipe.data.epochs)  # complains about a data set without
    return replace(recipe, steps=steps_for(sizes, recipe.data.epochs, recipe.batch))


def make_reader(recipe: Recipe, members: Sequence[Member]) -> SampleReader:
    """What reads the samples, each data set's with its own augmentation."""
    of = {member.spec.name: recipe.augment.of(member.spec.name) for member in members}
    erasing = any(each.erase for each in of.values())
    own = {
        name: Augmentation(
            recipe.model.size, each.flip, each.colour, RandAugment.parse(each.randaugment), each.erase if erasing else None
        )
        for name, each in of.items()
    }  # fmt: skip
    return SampleReader(members, Augmentation(recipe.model.size), recipe.data.decoder, own)


def make_mixing(recipe: Recipe, members: Sequence[Member]) -> Mixing | None:
    """Which samples are mixed with which: those of one head."""
    if not (recipe.augment.mixup or recipe.augment.cutmix):
        return None
    heads = make_heads({member.spec.name: member.manifest.classes for member in members}, recipe.data.heads)
    head_of = {name: head.name for head in heads for name in head.datasets}
    chance = {name: recipe.augment.of(name).mix for name in head_of}
    return Mixing(head_of, recipe.augment.mixup, recipe.augment.cutmix, chance)
