"""Commands about a run: train, plan, describe."""

from __future__ import annotations

import os
import re
import shlex
from argparse import ArgumentTypeError, Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cover.cli.command import DAY_S, argument, command, give, json_option, say_next, whole
from cover.errors import UserError

if TYPE_CHECKING:
    from cover.training.recipe import Recipe


@command(
    "train",
    "train a model as a recipe says",
    "cover train recipes/sandbox/cotrain.yaml --optimizer.lr 5e-4",
    argument(
        "recipe",
        metavar="RECIPE",
        type=Path,
        nargs="?",
        help="a YAML file; any of its fields can be set here, as in --optimizer.lr 3e-4",
    ),
    argument("--resume", action="store_true", help="continue from the run's last checkpoint"),
    argument(
        "--requeue",
        action="store_true",
        help="start the run, or continue it if it has started: for a queue that restarts jobs",
    ),
    argument("--keys", action="store_true", help="list all fields of a recipe with their defaults, and stop"),
    overrides=True,
    computes=True,
)
def train(args: Namespace) -> int:
    from cover import config
    from cover.training.recipe import RECIPE, Recipe, read_recipe

    if args.keys:
        print("\n".join(config.keys(Recipe)))
        return 0
    if args.recipe is None:
        raise UserError("which recipe? for example: cover train recipes/sandbox/cotrain.yaml (--keys lists the fields)")
    # before the slow imports below, so that a mistake in the recipe is reported at once
    resumed = args.resume or args.requeue
    recipe = read_recipe(args.recipe, args.overrides, needs_start=not resumed, resumed=resumed)
    from cover.console import say
    from cover.machine import default_workers
    from cover.training.dev_report import dev_report
    from cover.training.resume import has_started
    from cover.training.train import Interrupted, train

    try:
        run = train(recipe, args.resume or (args.requeue and has_started(Path(recipe.out))))
    except Interrupted as stopped:
        say_next("train", stopped.run / RECIPE, "--resume")
        raise
    if os.environ.get("RANK", "0") == "0":  # torchrun starts several processes; one of them prints
        for line in dev_report(run, recipe, default_workers() if recipe.workers < 0 else recipe.workers):
            say(line)
        _write_report(run)
        print(run)
        _say_how_to_evaluate(run, recipe)
    return 0


def _write_report(run: Path) -> None:
    """Write the report of a run. A file that is gone meanwhile does not make a finished run fail."""
    from cover.console import say
    from cover.experiments.run_report import write_run_report

    try:
        say(f"report: {write_run_report(run)}")
    except UserError as error:
        say(f"warning: no report: {error}")


def _say_how_to_evaluate(run: Path, recipe: Recipe) -> None:
    """Print the command that evaluates a run on the first split that a data set has, with the data sets that have it.

    Without any, it measures folds of the training samples.
    """
    from cover.datasets.catalog import load_catalog

    catalog, sets = load_catalog(recipe.data.catalog), recipe.data.sets
    for split in ("val", "test", "dev"):
        names = [name for name in sets if catalog.has_manifest(name, split)]
        if names:
            chosen = [] if split == "val" else ["--split", split]
            # Without names, every data set that the checkpoint has a head for is evaluated.
            own = [] if len(names) == len(sets) and recipe.start.heads == "drop" else names
            say_next("evaluate", run, *own, "--catalog", recipe.data.catalog, *chosen)
            return
    say_next("evaluate", run, *sets, "--catalog", recipe.data.catalog, "--folds", 5)


def _milliseconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) > 1000 * DAY_S:
        raise ArgumentTypeError(f'"{text}" is not a time; give milliseconds, as in 8')
    return float(text)


@command(
    "plan",
    "estimate the time and memory of a recipe before it runs",
    "cover plan recipes/sandbox/cotrain.yaml --gpus 8 --device h200",
    argument(
        "recipe",
        metavar="RECIPE",
        type=Path,
        help="a YAML file; any of its fields except device can be set here, as in --batch 512",
    ),
    argument("--gpus", type=whole(1), default=1, metavar="N", help="devices on all machines together (default: 1)"),
    argument("--per-machine", type=whole(1), metavar="N", help="devices in one machine (default: 8)"),
    argument(
        "--device",
        default="auto",
        help="h200, h100, h100-pcie, a100-80, a100-40, l40s, rtx4090 or cpu (default: auto, this machine's device)",
    ),
    argument(
        "--mfu",
        type=float,
        metavar="FRACTION",
        help="fraction of the device's peak FLOP/s that training reaches (default: 0.4; cpu: 0.5)",
    ),
    argument(
        "--network",
        type=float,
        default=400,
        metavar="GBIT/S",
        help="bandwidth of each device between machines (default: 400)",
    ),
    argument(
        "--cores",
        type=whole(1),
        metavar="N",
        help="CPU cores for each device (default: 12; cpu: the cores of this machine)",
    ),
    argument(
        "--decode-ms",
        default="",
        metavar="MS",
        help="time in which one core decodes a clip, or NAME=MS,... by data set (default: measured on this machine)",
    ),
    argument(
        "--image-ms",
        type=_milliseconds,
        metavar="MS",
        help="time in which one core decodes an image (default: measured on this machine)",
    ),
    argument(
        "--sizes",
        default="",
        metavar="NAME=SAMPLES,...",
        help="numbers of training samples (default: from the manifests, else the published numbers)",
    ),
    argument(
        "--classes",
        default="",
        metavar="NAME=CLASSES,...",
        help="numbers of classes (default: from the manifests, else the published numbers)",
    ),
    argument("--file-kb", default="", metavar="NAME=KB,...", help="mean size of a file (default: from the manifests)"),
    json_option("write the figures as JSON, not rounded"),
    overrides=True,
)
def plan(args: Namespace) -> int:
    from cover.hardware import find_device, make_cluster
    from cover.mixture.published import planned_mixture, read_numbers
    from cover.planning.estimate import plan
    from cover.planning.reading import read_ms, reading_costs
    from cover.planning.table import print_plan
    from cover.training.recipe import read_recipe

    recipe = read_recipe(args.recipe, args.overrides, needs_start=False)
    cluster = make_cluster(find_device(args.device), args.gpus, args.cores, args.mfu, args.network, args.per_machine)
    values = {"--sizes": args.sizes, "--classes": args.classes, "--file-kb": args.file_kb}
    mixture = planned_mixture(recipe.data, *(read_numbers(option, text) for option, text in values.items()))
    costs = reading_costs(recipe, mixture, read_ms(args.decode_ms, args.image_ms, mixture))
    facts = plan(recipe, cluster, mixture, costs)
    give(facts, args.json, lambda: print_plan(facts))
    _say_how_to_start(args)
    return 0


def _say_how_to_start(args: Namespace) -> None:
    """Print the command that starts the planned run."""
    from cover.console import say

    if args.gpus == 1:
        say_next("train", args.recipe, *args.overrides)
        return
    in_machine = min(args.gpus, args.per_machine or 8)
    machines = ["--nnodes", str(-(-args.gpus // in_machine))] if args.gpus > in_machine else []
    launcher = ["torchrun", *machines, "--nproc-per-node", str(in_machine)]
    say(f"next: {shlex.join([*launcher, '-m', 'cover', 'train', str(args.recipe), *args.overrides])}")


@command(
    "describe",
    "print the sizes and costs of a network",
    "cover describe L/16 --frames 16 --size 448 --heads k400=400,ssv2=174,mit=339,imagenet=1000",
    argument(
        "preset",
        metavar="PRESET",
        help="mini, a ViT size with its patch size, as in B/16, a published network such as dinov2_b14, a family of"
        " networks, also with a preset, as in video_swin/B, a known start, or the folder of a run or release",
    ),
    argument(
        "--frames", type=whole(1, 4096), metavar="T", help="frames in a clip (default: 8, or those of the release)"
    ),
    argument("--size", type=whole(1, 16384), metavar="S", help="image side in pixels (default: 224; mini: 32)"),
    argument(
        "--heads",
        default="",
        metavar="NAME=CLASSES,...",
        help="name and number of classes of each head (default: no head)",
    ),
    argument(
        "--attention",
        choices=["divided", "joint", "space", "late", "dot_product"],
        help="attention over space and time (default: divided, or as the preset)",
    ),
    argument(
        "--time",
        choices=["rotary", "additive", "none"],
        help="position encoding in time (default: rotary, or as the preset)",
    ),
    argument(
        "--image-temporal",
        choices=["attend", "skip"],
        help="whether images pass through the temporal branch (default: attend)",
    ),
    argument("--views", default="1x3", help="views of a sample in evaluation, TEMPORALxSPATIAL (default: 1x3)"),
    argument("--batch", type=whole(0), default=8, metavar="CLIPS", help="clips in a training step (default: 8)"),
    argument("--images", type=whole(0), default=0, metavar="N", help="images in a training step (default: 0)"),
    argument(
        "--lora", type=whole(1), metavar="RANK", help="a step trains additions of this rank to attention, and the heads"
    ),
    json_option("write the figures as JSON, not rounded"),
)
def describe(args: Namespace) -> int:
    from cover.media.sampling import Views
    from cover.model.backbones import named_config
    from cover.model.describe import describe, print_description, read_heads
    from cover.model.lora import Lora
    from cover.model.release import find_release
    from cover.model.release_config import read_config
    from cover.model.starts.known import known_start

    views, heads = Views.parse(args.views), read_heads(args.heads)
    given = {name: getattr(args, name) for name in ("frames", "size", "attention", "time", "image_temporal")}
    changes = {name: value for name, value in given.items() if value is not None}
    if start := known_start(args.preset):
        config = named_config(str(start.variant), **{"size": start.pixels, **changes})
    elif Path(args.preset).is_dir():
        release = read_config(find_release(args.preset))
        if changes.keys() - {"frames"}:
            raise UserError(f"--{min(changes.keys() - {'frames'})}: the network of {args.preset} is as it was trained")
        config = replace(release.backbone, frames=changes.get("frames", release.frames))
        heads = heads or {head.name: len(head.classes) for head in release.heads}
    else:
        config = named_config(args.preset, **changes)
    lora = Lora(args.lora) if args.lora else None
    facts = describe(config, heads, (views.temporal, views.spatial), args.batch, args.images, lora)
    give({"preset": args.preset, **facts}, args.json, lambda: print_description(args.preset, facts))
    return 0


@command(
    "starts",
    "list published weights that a run can start from",
    "cover starts --json starts.json",
    json_option("write the list as JSON"),
)
def starts(args: Namespace) -> int:
    from cover.model.starts.known import describe_starts, print_starts

    rows = describe_starts()
    give(rows, args.json, lambda: print_starts(rows))
    return 0
