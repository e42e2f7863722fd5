"""What can be typed: the subcommands, each a thin door to its room."""

from __future__ import annotations

import argparse
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cover import __version__
from cover.errors import UserError
from cover.machine import reuse_memory

COMPUTING = ("train", "add", "evaluate", "study", "transfer", "predict", "explain", "serve", "doctor", "demo")
DAY_S = 86_400  # the longest time that an option takes: what the system can wait for has its bounds too
Command = Callable[[argparse.Namespace, list[str]], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 done but not all input was usable, 2 wrong use, 130/143 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be valid text
    parser, doors = _parser()
    known, rest = parser.parse_known_args(arguments)
    if hasattr(known, "names"):  # argparse ends a list of names at the first option; what stands behind it is a name too
        known.names = [*known.names, *(word for word in rest if _is_name(word))]
        rest = [word for word in rest if not _is_name(word)]
    if rest and known.command not in ("train", "add", "plan", "study"):
        parser.error(f"{known.command}: unknown argument {rest[0]} (see cover {known.command} --help)")
    if known.command in COMPUTING:
        reuse_memory()
    try:
        return doors[known.command](known, rest)
    except UserError as error:
        print(f"cover {known.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"cover {known.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _is_name(word: str) -> bool:
    return word == "-" or not word.startswith("-")


class _OneLineParser(argparse.ArgumentParser):
    """argparse, with wrong use told in one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> tuple[argparse.ArgumentParser, dict[str, Command]]:
    parser = _OneLineParser(prog="cover", description="Co-train one video transformer on several video and image data sets.")
    parser.add_argument("--version", action="version", version=f"cover {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    doors: dict[str, Command] = {}

    def add(door: Command, name: str, text: str, example: str) -> argparse.ArgumentParser:
        doors[name] = door
        layout = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(name, help=text, description=text, epilog=f"example:\n  {example}", formatter_class=layout)

    _add_sandbox(add(_sandbox, "sandbox", "write generated data sets in the real ones' layouts", "cover sandbox sandbox --size 0.2"))
    _add_index(add(_index, "index", "probe every file of a catalog once", "cover index sandbox/catalog.yaml"))
    _add_overlap(add(_overlap, "overlap", "find what is trained on and evaluated on", "cover overlap sandbox/catalog.yaml --frames"))
    _add_prepare(add(_prepare, "prepare", "encode the data once, small and quick to read", "cover prepare sandbox/catalog.yaml --out fast"))
    _add_train(add(_train, "train", "run a recipe", "cover train recipes/sandbox/cotrain.yaml --optimizer.lr 5e-4"))
    _add_add(
        add(
            _add, "add", "teach a released model one more data set, and measure old and new",
            "cover add runs/cotrain --data mine --catalog catalog.yaml --how probe --compare",
        )
    )  # fmt: skip
    _add_plan(
        add(_plan, "plan", "say what a recipe will take, before it runs", "cover plan recipes/sandbox/cotrain.yaml --gpus 8 --device h200")
    )
    _add_describe(
        add(
            _describe, "describe", "sizes and costs of a network",
            "cover describe L/16 --frames 16 --size 448 --heads k400=400,ssv2=174,mit=339,imagenet=1000",
        )
    )  # fmt: skip
    _add_evaluate(
        add(_evaluate, "evaluate", "measure every head of a checkpoint", "cover evaluate runs/cotrain --catalog sandbox/catalog.yaml")
    )
    _add_transfer(
        add(
            _transfer, "transfer", "give checkpoints a fresh head for other data sets, and compare them",
            "cover transfer --source ssv2=runs/single_ssv2 --target moments --catalog sandbox/catalog.yaml --epochs 5",
        )
    )  # fmt: skip
    _add_study(add(_study, "study", "run the grid behind a claim, as far as it is missing", "cover study recipes/studies/sandbox.yaml"))
    _add_predict(add(_predict, "predict", "name what is seen in files", "cover predict runs/cotrain clip.mp4 photos/ --top 3"))
    _add_explain(add(_explain, "explain", "show what an answer rests on", "cover explain runs/cotrain clip.mp4 --head ssv2"))
    _add_serve(add(_serve, "serve", "name what is seen in uploads, over HTTP", "cover serve runs/cotrain --page --port 8000"))
    _add_import(
        add(
            _import_weights, "import-weights", "make a release of another library's checkpoint",
            "cover import-weights facebook/timesformer-base-finetuned-k400 --out k400 --head kinetics400",
        )
    )  # fmt: skip
    _add_export(
        add(
            _export, "export", "write heads for another library",
            "cover export runs/cotrain --format onnx --out cotrain.onnx\n"
            "  cover export runs/cotrain --format transformers --head ssv2 --out ssv2_transformers",
        )
    )  # fmt: skip
    _add_doctor(add(_doctor, "doctor", "say whether this machine is ready, and what to put right", "cover doctor --device cuda"))
    _add_demo(add(_demo, "demo", "the whole story: generate, index, train, compare, report", "cover demo --out demo"))
    return parser, doors


def _machine_options(parser: argparse.ArgumentParser, device: bool = True, workers: Callable[[str], int] = int) -> None:
    parser.add_argument("--workers", type=workers, default=-1, metavar="N", help="reading processes (default: one per core)")
    if device:
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")


def _from(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    """Reads a whole number that is not below `lowest` nor above `highest`; argparse names the function in its message."""

    def number(text: str) -> int:
        if int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text} is below {lowest}")
        if highest is not None and int(text) > highest:
            raise argparse.ArgumentTypeError(f"{text} is above {highest}")
        return int(text)

    return number


def _workers(args: argparse.Namespace) -> int:
    from cover.machine import default_workers

    return default_workers() if args.workers < 0 else args.workers


# --- sandbox --------------------------------------------------------------------------------------------------------------------


def _add_sandbox(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", metavar="DIR", type=Path, help="a new folder, or an earlier sandbox")
    parser.add_argument("--seed", type=_from(0), default=0)
    parser.add_argument("--size", type=float, default=1.0, help="factor on the number of files (default: 1)")
    for dial in ("clutter", "shake", "distractors", "noise"):
        parser.add_argument(f"--{dial}", type=float, help="difficulty from 0 to 1 (default: mild)")
    parser.add_argument(
        "--relation",
        choices=["shared", "separate", "contrary"],
        help="write a fifth data set too, images called pictures; shared: what kinetics' classes show, under the same names; separate:"
        " dark and bright skies, which teach nothing of them; contrary: as shared, but every name is wrong, which hurts where the two"
        " share a head (data.heads: {activities: [kinetics, pictures]})",
    )
    _machine_options(parser, device=False)


def _sandbox(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.sandbox.generate import generate
    from cover.sandbox.settings import Settings

    dials = {name: getattr(args, name) for name in ("clutter", "shake", "distractors", "noise") if getattr(args, name) is not None}
    catalog = generate(args.dir, Settings(seed=args.seed, size=args.size, relation=args.relation, **dials), _workers(args))
    print(catalog)
    _next("index", catalog)
    return 0


# --- index ----------------------------------------------------------------------------------------------------------------------


def _add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("catalog", metavar="CATALOG", type=Path)
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these data sets")
    parser.add_argument("--force", action="store_true", help="probe every file again")
    parser.add_argument("--deep", action="store_true", help="decode every video to its last frame: finds damage inside; slow")
    parser.add_argument("--shard", metavar="I/N", help="probe only share I of N, as in 3/16; index without it then joins all shares")
    parser.add_argument("--engine", choices=["pool", "ray"], default="pool", help="processes of this machine, or a Ray cluster")
    parser.add_argument("--json", metavar="FILE", help="the table as JSON (- for stdout)")
    _machine_options(parser, device=False)


def _index(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.console import say, write_json
    from cover.datasets.index import index, print_index, unusable

    if args.shard is not None:
        return _index_share(args)
    results = index(args.catalog, _workers(args), args.names or None, args.force, args.deep, args.engine)
    if args.json:
        write_json(results, args.json)
    if args.json != "-":
        print_index(results)
    count = sum(map(unusable, results))
    if count:
        how = "cannot be used, or only in part" if any(row["partial"] for row in results) else "cannot be used"
        say(f"{count} of {sum(row['listed'] for row in results)} listed files {how}; each is in its manifest with the reason")
    _next("overlap", args.catalog)
    return 1 if count else 0


def _index_share(args: argparse.Namespace) -> int:
    """Exit code 0 whatever the files hold, so that a job array goes on: what cannot be used is told when all shares are joined."""
    from cover.console import write_json
    from cover.datasets.index import How, index_share, print_share
    from cover.datasets.shares import Share

    how = How(_workers(args), args.force, args.deep, args.engine)
    results = index_share(args.catalog, Share.parse(args.shard), how, args.names or None)
    if args.json:
        write_json(results, args.json)
    if args.json != "-":
        print_share(results)
    _next("index", args.catalog, *args.names, *["--deep"] * args.deep)
    return 0


# --- overlap --------------------------------------------------------------------------------------------------------------------


def _add_overlap(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("catalog", metavar="CATALOG", type=Path)
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these data sets")
    parser.add_argument("--frames", action="store_true", help="also compare pictures: finds copies that were encoded or cropped anew")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="of the list of exclusions (default: manifests, where train reads it)")
    parser.add_argument("--json", metavar="FILE", help="all counts with examples, as JSON (- for stdout)")
    _machine_options(parser, device=False)


def _overlap(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.console import write_json
    from cover.datasets.overlap import overlap, print_overlap

    results = overlap(args.catalog, _workers(args), args.names or None, args.frames, args.out)
    if args.json:
        write_json(results, args.json)
    if args.json != "-":
        print_overlap(results)
    _next("train", "RECIPE", "--data.catalog", args.catalog)
    return 0


# --- prepare --------------------------------------------------------------------------------------------------------------------


def _add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("catalog", metavar="CATALOG", type=Path, help="indexed; its files are only read")
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these data sets")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder of its own, or an earlier run's, to go on")
    parser.add_argument("--short-side", type=_from(16, 16384), default=256, metavar="PX", help="never scaled up (default: 256)")
    parser.add_argument("--key-interval", type=float, default=0.5, metavar="SECONDS", help="between key frames (default: 0.5)")
    parser.add_argument("--crf", type=_from(0, 51), default=21, help="x264's quality of videos, lower is better (default: 21)")
    parser.add_argument("--quality", type=_from(1, 100), default=95, help="of JPEG images (default: 95)")
    parser.add_argument("--shards", action="store_true", help="tar shards, named as WebDataset does, instead of a file for each sample")
    parser.add_argument("--shard-size", type=float, default=256, metavar="MB", help="of a shard, about (default: 256)")
    parser.add_argument("--url", metavar="URL", help="where DIR will be read from, as s3://bucket/folder (default: where it lies)")
    parser.add_argument("--json", metavar="FILE", help="the table as JSON (- for stdout)")
    _machine_options(parser, device=False)


def _prepare(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.console import write_json
    from cover.datasets.prepare import prepare, print_prepare
    from cover.media.encode import Encoding

    encoding = Encoding(args.short_side, args.key_interval, args.crf, args.quality)
    if not 0.001 <= args.shard_size <= 1_000_000:
        raise UserError(f"--shard-size: expected megabytes from 0.001 to 1000000, got {args.shard_size:g}")
    shard_bytes = round(args.shard_size * 1_000_000) if args.shards else None
    results = prepare(args.catalog, args.out, _workers(args), args.names or None, encoding, shard_bytes, args.url)
    if args.json:
        write_json(results, args.json)
    if args.json != "-":
        print_prepare(results)
    _next("train", "RECIPE", "--data.catalog", args.out / "catalog.yaml")
    return 1 if any(row["partial"] or row["failed"] for row in results) else 0


# --- train ----------------------------------------------------------------------------------------------------------------------


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", type=Path, nargs="?", help="a YAML file; any field is overridden as --optimizer.lr 3e-4"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    parser.add_argument("--requeue", action="store_true", help="begin, or go on where the run was begun: for a queue that restarts jobs")
    parser.add_argument("--keys", action="store_true", help="list every field of a recipe with its default")


def _train(args: argparse.Namespace, rest: list[str]) -> int:
    from cover import config
    from cover.training.recipe import Recipe

    if args.keys:
        print("\n".join(config.keys(Recipe)))
        return 0
    if args.recipe is None:
        raise UserError("which recipe? for example: cover train recipes/sandbox/cotrain.yaml (--keys lists the fields)")
    recipe = config.load(Recipe, args.recipe, rest)
    from cover.training.folder import is_begun
    from cover.training.train import train

    run = train(recipe, args.resume or (args.requeue and is_begun(Path(recipe.out))))
    if os.environ.get("RANK", "0") == "0":  # of all that torchrun started, one speaks
        print(run)
        _next("evaluate", run, "--catalog", recipe.data.catalog)
    return 0


# --- add ------------------------------------------------------------------------------------------------------------------------


def _add_add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a run, a checkpoint or a release folder")
    parser.add_argument("--data", required=True, metavar="NAME", help="the new data set, from the catalog")
    parser.add_argument("--catalog", type=Path, default=Path("catalog.yaml"), help="default: catalog.yaml")
    parser.add_argument("--how", choices=["probe", "replay", "alone"], default="probe", help="train the new head alone; all weights, going"
                        " over the old data sets too; all weights on the new set (default: probe)")  # fmt: skip
    parser.add_argument("--epochs", type=float, metavar="N", help="of the new set (default: by its size, 10 to 50)")
    parser.add_argument("--compare", action="store_true", help="also train the same network on the new set without the checkpoint")
    parser.add_argument("--baseline", metavar="CHECKPOINT", type=Path, help="what --compare starts from (default: random weights)")
    parser.add_argument("--split", choices=["val", "dev", "test"], help="to measure on (default: val, else dev, else test)")
    parser.add_argument("--out", type=Path, help="the run's folder (default: runs/NAME_HOW); any field of its recipe: --optimizer.lr 1e-3")
    parser.add_argument("--only-recipe", action="store_true", help="write the recipe and stop, to run it with cover train elsewhere")
    parser.add_argument("--seed", type=_from(0), default=0, help="of the training and of the intervals' resamples")
    parser.add_argument("--json", metavar="FILE", help="the results as JSON (- for stdout)")
    _machine_options(parser)


def _add(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.console import write_json
    from cover.studies.add.recipe import Wish
    from cover.studies.add.run import BESIDE, Extras, add
    from cover.studies.add.table import print_added

    if args.epochs is not None and not 0 < args.epochs < 10**6:
        raise UserError(f"--epochs: {args.epochs:g} is no number of epochs; give one above 0, as in 30")
    out = args.out or Path("runs") / f"{args.data}_{args.how}"
    wish = Wish(args.checkpoint, args.data, args.catalog, args.how, out, args.epochs, args.seed, args.device, args.workers)
    results = add(wish, Extras(args.compare, args.baseline, args.split, args.only_recipe, rest))
    if results is None:
        print(out / BESIDE / "recipe.yaml")
        _next("train", out / BESIDE / "recipe.yaml")
        return 0
    if args.json:
        write_json(results, args.json)
    if args.json != "-":
        print_added(results)
        print(out)
    _next("predict", out, "clip.mp4")
    return 1 if any(row["n_read"] < row["n_listed"] for row in [results["new"], *results["old"]] if "n_read" in row) else 0


# --- plan -----------------------------------------------------------------------------------------------------------------------


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", type=Path, help="a YAML file; any field is overridden as --batch 512, but for device")
    parser.add_argument("--gpus", type=_from(1), default=1, metavar="N", help="devices, over all machines (default: 1)")
    parser.add_argument("--per-machine", type=_from(1), metavar="N", help="devices in a machine (default: 8)")
    parser.add_argument(
        "--device", default="auto", help="h200, h100, h100-pcie, a100-80, a100-40, l40s, rtx4090, cpu (default: auto, what is here)"
    )
    parser.add_argument("--mfu", type=float, metavar="SHARE", help="of its peak arithmetic that training reaches (default: 0.4; cpu: 0.5)")
    parser.add_argument("--network", type=float, default=400, metavar="GBIT/S", help="of each device, between machines (default: 400)")
    parser.add_argument("--cores", type=_from(1), metavar="N", help="CPU cores for each device (default: 12; cpu: what is here)")
    parser.add_argument("--decode-ms", default="", metavar="MS", help="of a core for a clip, or NAME=MS,... (default: measured here)")
    parser.add_argument("--image-ms", type=_milliseconds, metavar="MS", help="of a core for an image (default: measured here)")
    parser.add_argument("--sizes", default="", metavar="NAME=SAMPLES,...", help="of data sets (default: manifests, else published)")
    parser.add_argument("--classes", default="", metavar="NAME=CLASSES,...", help="of data sets (default: the same)")
    parser.add_argument("--file-kb", default="", metavar="NAME=KB,...", help="kB of a file (default: manifests)")
    parser.add_argument("--json", metavar="FILE", help="the figures as JSON, not rounded (- for stdout)")


def _milliseconds(text: str) -> float:
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) > 1000 * DAY_S:
        raise argparse.ArgumentTypeError(f'"{text}" is no time; give milliseconds, as in 8')
    return float(text)


def _plan(args: argparse.Namespace, rest: list[str]) -> int:
    from cover import config
    from cover.console import write_json
    from cover.mixture.published import planned_mixture, read_numbers
    from cover.training.devices import find_device
    from cover.training.plan import make_cluster, plan
    from cover.training.plan_table import print_plan
    from cover.training.reading_cost import read_ms, reading_costs
    from cover.training.recipe import Recipe

    recipe = config.load(Recipe, args.recipe, rest)
    cluster = make_cluster(find_device(args.device), args.gpus, args.cores, args.mfu, args.network, args.per_machine)
    told = {"--sizes": args.sizes, "--classes": args.classes, "--file-kb": args.file_kb}
    mixture = planned_mixture(recipe.data, *(read_numbers(option, text) for option, text in told.items()))
    costs = reading_costs(recipe, mixture, read_ms(args.decode_ms, args.image_ms, mixture))
    facts = plan(recipe, cluster, mixture, costs)
    if args.json:
        write_json(facts, args.json)
    if args.json != "-":
        print_plan(facts)
    _next_run(args, rest)
    return 0


def _next_run(args: argparse.Namespace, rest: list[str]) -> None:
    """How the planned run is begun."""
    from cover.console import say

    if args.gpus == 1:
        return _next("train", args.recipe, *rest)
    beside = min(args.gpus, args.per_machine or 8)
    machines = ["--nnodes", str(-(-args.gpus // beside))] if args.gpus > beside else []
    words = ["torchrun", *machines, "--nproc-per-node", str(beside), "-m", "cover", "train", str(args.recipe), *rest]
    say(f"next: {shlex.join(words)}")
    return None


# --- describe -------------------------------------------------------------------------------------------------------------------


def _add_describe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("preset", metavar="PRESET", help="mini, or a ViT size with its patch, as in B/16")
    parser.add_argument("--frames", type=_from(1, 4096), default=8, metavar="T", help="frames of a clip (default: 8)")
    parser.add_argument("--size", type=_from(1, 16384), metavar="S", help="image side in pixels (default: 224; mini: 32)")
    parser.add_argument("--heads", default="", metavar="NAME=CLASSES,...", help="one classifier for each data set (default: none)")
    parser.add_argument("--attention", default="divided", choices=["divided", "joint", "space"], help="default: divided")
    parser.add_argument("--time", default="rotary", choices=["rotary", "additive"], help="how frames are told apart (default: rotary)")
    parser.add_argument(
        "--image-temporal", default="attend", choices=["attend", "skip"], help="whether images pass the temporal branch (default: attend)"
    )
    parser.add_argument("--views", default="1x3", help="of the protocol, TEMPORALxSPATIAL (default: 1x3)")
    parser.add_argument("--batch", type=_from(0), default=8, metavar="CLIPS", help="clips of a training step (default: 8)")
    parser.add_argument("--images", type=_from(0), default=0, metavar="N", help="images of a training step (default: 0)")
    parser.add_argument("--json", metavar="FILE", help="the figures as JSON, not rounded (- for stdout)")


def _describe(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.console import write_json
    from cover.media.clips import Views
    from cover.model.describe import describe, print_description, read_heads
    from cover.model.presets import model_config

    views, heads = Views.parse(args.views), read_heads(args.heads)
    changes = {name: getattr(args, name) for name in ("frames", "size", "attention", "time", "image_temporal")}
    config = model_config(args.preset, **{name: value for name, value in changes.items() if value is not None})
    facts = describe(config, heads, (views.temporal, views.spatial), args.batch, args.images)
    if args.json:
        write_json({"preset": args.preset, **facts}, args.json)
    if args.json != "-":
        print_description(args.preset, facts)
    return 0


# --- evaluate -------------------------------------------------------------------------------------------------------------------


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a run, a checkpoint or a release folder")
    parser.add_argument("names", metavar="NAME", nargs="*", help="only these data sets (default: all that have a head)")
    parser.add_argument("--also", metavar="CHECKPOINT", type=Path, action="append", default=[], help="another one (may be given again)")
    parser.add_argument("--catalog", type=Path, default=Path("catalog.yaml"), help="default: catalog.yaml")
    parser.add_argument("--split", default="val", choices=["train", "dev", "val", "test"])
    parser.add_argument("--views", help="TEMPORALxSPATIAL, as in 1x3 (default: each data set's own)")
    parser.add_argument("--by-names", metavar="DATASET=HEAD", action="append", default=[], help="score a data set by another's head,"
                        " through the class names that both have (may be given again)")  # fmt: skip
    parser.add_argument("--shuffle-frames", action="store_true", help="also with the frames of every clip in random order")
    parser.add_argument("--reverse", action="store_true", help="also with the frames backwards")
    parser.add_argument("--single-frame", action="store_true", help="also with the middle frame alone")
    parser.add_argument("--seed", type=_from(0), default=0, help="of random orders and of the intervals' resamples")
    parser.add_argument("--decoder", default="pyav", choices=["pyav", "torchcodec", "torchcodec_cuda"], help="of videos (default: pyav)")
    parser.add_argument("--per-class", metavar="N", type=_from(1), help="also the N weakest classes and commonest wrong answers")
    parser.add_argument("--scores", metavar="FILE", type=Path, help="the scores of every sample and view, as an Arrow file")
    parser.add_argument("--json", metavar="FILE", help="the results as JSON (- for stdout)")
    _machine_options(parser)


def _evaluate(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.console import write_json
    from cover.evaluation.evaluate import evaluate_release
    from cover.evaluation.table import print_classes, print_results
    from cover.training.distributed import team
    from cover.training.recipe import Distributed

    others = ["shuffled"] * args.shuffle_frames + ["reversed"] * args.reverse + ["single"] * args.single_frame
    variants: list[Any] = ["plain", *others]
    checkpoints = [args.checkpoint, *args.also]
    if args.scores and args.also:
        raise UserError("--scores: the file is of one checkpoint; leave --also out")
    heads = _pairs("--by-names", args.by_names, "DATASET=HEAD")
    with team(Distributed(), args.device) as among:
        results = [
            result
            for checkpoint in checkpoints
            for result in evaluate_release(
                checkpoint, args.catalog, args.split, args.names, args.views, variants, str(among.device), _workers(args), args.seed,
                args.decoder, heads, args.scores, among,
            )
        ]  # fmt: skip
    if among.rank == 0:
        if args.json:
            write_json(results, args.json)
        if args.json != "-":
            print_results(results)
            if args.per_class:
                print_classes(results, args.per_class)
    return 1 if any(row["n_read"] < row["n_listed"] for row in results) else 0


def _pairs(option: str, texts: Sequence[str], form: str) -> dict[str, str]:
    """What an option that may be given again says of each name."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UserError(f'{option} "{text}": write {form}')
        if name in found:
            raise UserError(f'{option} "{text}": {name} is given twice')
        found[name] = value
    return found


# --- transfer, study ------------------------------------------------------------------------------------------------------------


def _add_transfer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", metavar="NAME=CHECKPOINT", action="append", required=True, help="may be given again")
    parser.add_argument("--target", metavar="NAME", action="append", required=True, help="a video set of the catalog (may be given again)")
    parser.add_argument("--catalog", type=Path, default=Path("catalog.yaml"), help="default: catalog.yaml")
    parser.add_argument("--epochs", type=float, required=True, metavar="N", help="how often each source sees a target's training clips")
    parser.add_argument("--part", type=float, default=1.0, help="share of the target's training clips (default: 1)")
    parser.add_argument("--how", choices=["finetune", "probe", "both"], default="both", help="all weights, the head alone (default: both)")
    parser.add_argument("--seeds", type=_from(1), default=3, metavar="N", help="runs of each (default: 3)")
    parser.add_argument("--lr", type=float, action="append", metavar="LR", help="tried for every source, dev chooses (default: 1e-3)")
    parser.add_argument("--batch", type=_from(1), default=32, help="clips of a step (default: 32)")
    parser.add_argument("--split", default="val", choices=["val", "test"], help="that is reported (default: val)")
    parser.add_argument("--margin", type=float, default=0.02, help="loss of top-1 that still counts as not worse (default: 0.02)")
    parser.add_argument("--out", type=Path, default=Path("transfers"), help="folder of everything it makes (default: transfers)")
    parser.add_argument("--json", metavar="FILE", help="the results as JSON (- for stdout)")
    _side_by_side(parser)


def _transfer(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.console import print_table, write_json
    from cover.studies.grid.file import HOW, Size
    from cover.studies.grid.study import REPORT, run_study
    from cover.studies.grid.transfer import rows_of, transfer_study

    sources = _pairs("--source", args.source, "NAME=CHECKPOINT")
    study = transfer_study(
        sources, args.target, args.catalog, args.out, Size(args.epochs, args.part), HOW if args.how == "both" else (args.how,), args.seeds,
        args.lr or (1e-3,), args.batch, args.split, args.margin, args.device,
    )  # fmt: skip
    summary = run_study(study, _jobs(args))
    assert summary is not None
    if args.json:
        write_json(summary, args.json)
    if args.json != "-":
        print_table(["source", "how", "target", "top-1 %", "95 % interval", "read"], rows_of(summary))
        print(args.out / REPORT)
    return 0


def _add_study(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("study", metavar="STUDY", nargs="?", type=Path, help="a YAML file; its keys can be set as --seeds '[0, 1]'")
    parser.add_argument("--keys", action="store_true", help="show every key of a study with its default")
    parser.add_argument("--dry-run", action="store_true", help="check it, say how many runs and what could be detected, and stop")
    parser.add_argument("--json", metavar="FILE", help="the results as JSON (- for stdout)")
    _side_by_side(parser, device=False)


def _study(args: argparse.Namespace, rest: list[str]) -> int:
    from cover import config
    from cover.console import write_json
    from cover.studies.grid.file import Study
    from cover.studies.grid.study import REPORT, run_study

    if args.keys:
        print("\n".join(config.keys(Study)))
        return 0
    if args.study is None:
        raise UserError("which study? cover study STUDY.yaml, or --keys for what one may hold")
    study = config.load(Study, args.study, rest)
    summary = run_study(study, _jobs(args), args.dry_run)
    if summary is None:
        _next("study", args.study, *rest)
        return 0
    if args.json:
        write_json(summary, args.json)
    if args.json != "-":
        print(Path(study.out) / REPORT)
    return 0


def _side_by_side(parser: argparse.ArgumentParser, device: bool = True) -> None:
    parser.add_argument("--jobs", type=_from(1), metavar="N", help="runs side by side (default: one per core on a CPU, else one)")
    if device:
        parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")


def _jobs(args: argparse.Namespace) -> int:
    from cover.machine import cores
    from cover.model.device import pick_device

    on_cpu = pick_device(getattr(args, "device", "auto")).type == "cpu"
    return int(args.jobs or (cores() if on_cpu else 1))


# --- predict --------------------------------------------------------------------------------------------------------------------


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run, a checkpoint, a release folder or a Hub id (owner/name)")
    parser.add_argument("names", metavar="FILE", nargs="+", help="videos, images, folders, patterns, URLs; - for a list of them on stdin")
    parser.add_argument("--top", type=_from(1), default=5, metavar="K", help="classes of each head (default: 5)")
    parser.add_argument("--head", action="append", help="only this head (may be given again)")
    parser.add_argument("--views", help="TEMPORALxSPATIAL (default: each head's own)")
    parser.add_argument("--window", type=float, metavar="SECONDS", help="a timeline: predict every stretch of so many seconds of a video")
    parser.add_argument("--stride", type=float, metavar="SECONDS", help="from one window's start to the next (default: --window)")
    parser.add_argument("--decoder", default="pyav", choices=["pyav", "torchcodec", "torchcodec_cuda"], help="of videos (default: pyav)")
    parser.add_argument("--format", choices=["pretty", "jsonl", "csv"], help="of the rows (default: pretty; of --out: by its ending)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="rows to a .jsonl or .csv; a run that was interrupted goes on from there")
    parser.add_argument("--embed", type=Path, metavar="FILE", help="features to a .npy (names beside it in a .csv) or a .arrow")
    parser.add_argument("--engine", choices=["pool", "ray"], default="pool", help="processes of this machine, or a Ray cluster")
    parser.add_argument("--json", metavar="FILE", help="all rows as one JSON list (- for stdout)")
    _machine_options(parser)


def _predict(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.inference.inputs import find_inputs

    files = find_inputs(args.names, sys.stdin.buffer)
    from cover.inference.looking import Windows
    from cover.inference.predict import Means, Targets, Wishes, predict

    if args.stride is not None and args.window is None:
        raise UserError("--stride: goes with --window SECONDS")
    windows = None if args.window is None else Windows(args.window, args.window if args.stride is None else args.stride)
    wishes = Wishes(args.top, tuple(args.head) if args.head else None, args.views, windows, args.decoder)
    targets = Targets(args.format, args.out, args.embed, args.json)
    means = Means(args.device, None if args.workers < 0 else args.workers, args.engine)
    return 1 if predict(args.checkpoint, files, wishes, targets, means) else 0


# --- explain --------------------------------------------------------------------------------------------------------------------


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run, a checkpoint, a release folder or a Hub id (owner/name)")
    parser.add_argument("file", metavar="FILE", help="a video, an image or a URL")
    parser.add_argument("--head", action="append", help="only this head (may be given again)")
    parser.add_argument("--class", dest="named", metavar="NAME", help="what speaks for this class (default: each head's likeliest)")
    parser.add_argument(
        "--method", choices=["gradient", "rollout"], default="gradient",
        help="gradient: attention that speaks for the class; rollout: all attention, whatever the class (default: gradient)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of pictures and clips (default: explained/NAME OF THE FILE)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")


def _explain(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.inference.explain import Question, default_folder, explain

    question = Question(tuple(args.head) if args.head else None, args.named, args.method)
    out = args.out or default_folder(args.file)
    for path in explain(args.checkpoint, args.file, question, out, args.device):
        print(path)
    _next("serve", args.checkpoint, "--page")
    return 0


# --- serve ----------------------------------------------------------------------------------------------------------------------


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a run, a checkpoint or a release folder")
    parser.add_argument("--host", type=_address, default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine alone)")
    parser.add_argument("--port", type=_from(0, 65535), default=8000, help="0 for any that is free (default: 8000)")
    parser.add_argument("--page", action="store_true", help="also a page at / to drop files on")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="holds the key that clients have to send (default: none needed)")
    parser.add_argument("--spool", type=Path, metavar="DIR", help="where uploads lie until they are decoded (default: the system's)")
    parser.add_argument("--queue", type=_from(1, 10_000), default=64, metavar="N", help="predictions under way at once (default: 64)")
    parser.add_argument("--pack-frames", type=_from(1, 65_536), default=64, metavar="N", help="of a forward pass, at most (default: 64)")
    parser.add_argument(
        "--wait-ms", type=_from(0, 60_000), default=5, metavar="MS", help="a file waits for others to share one (default: 5)"
    )
    parser.add_argument("--max-mb", type=_from(1, 1_000_000), default=64, metavar="MB", help="size of an upload (default: 64)")
    parser.add_argument("--max-seconds", type=_from(1, DAY_S), default=600, metavar="S", help="length of a video (default: 600)")
    parser.add_argument("--max-megapixels", type=_from(1, 100), default=64, metavar="MP", help="of a picture (default: 64)")
    parser.add_argument("--upload-seconds", type=_from(1, DAY_S), default=30, metavar="S", help="for an upload to arrive (default: 30)")
    parser.add_argument("--decode-seconds", type=_from(1, DAY_S), default=10, metavar="S", help="for a file to be decoded (default: 10)")
    parser.add_argument("--deadline", type=_from(1, DAY_S), default=30, metavar="S", help="from upload to answer (default: 30)")
    _machine_options(parser, workers=_from(-1, 1024))


def _address(text: str) -> str:
    if not text.strip():  # which would be every address of this machine
        raise argparse.ArgumentTypeError("expected an address, as in 127.0.0.1 or 0.0.0.0")
    return text


def _serve(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.inference.serve.limits import MEGABYTE, Batching, Limits
    from cover.inference.serve.server import Place, serve

    limits = Limits(
        body=args.max_mb * MEGABYTE, upload_s=args.upload_seconds, seconds=args.max_seconds, pixels=args.max_megapixels * 1_000_000,
        decode_s=args.decode_seconds, deadline_s=args.deadline, queue=args.queue,
    )  # fmt: skip
    place = Place(args.host, args.port, args.page, args.key_file, args.spool)
    serve(args.checkpoint, place, limits, Batching(args.pack_frames, args.wait_ms / 1000), max(1, _workers(args)), args.device)
    return 0


# --- import-weights, export -----------------------------------------------------------------------------------------------------


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a TimeSformer or an image ViT: a file, a folder or a Hub id")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the release, a new folder")
    parser.add_argument("--size", type=_from(1, 16384), metavar="S", help="resize the position embedding for images of S px")
    parser.add_argument("--frames", type=_from(1, 4096), metavar="T", help="resize the time embedding for clips of T frames")
    parser.add_argument("--attention", choices=["divided", "joint", "space"], help="of an image ViT (default: divided)")
    parser.add_argument("--attention-heads", type=_from(1), metavar="N", help="where no configuration says it (default: width / 64)")
    parser.add_argument("--time", choices=["additive", "rotary"], help="default: rotary for image ViTs, additive for TimeSformers")
    parser.add_argument("--resize", choices=["bicubic", "nearest"], help="default: bicubic for image ViTs, nearest for TimeSformers")
    parser.add_argument("--head", metavar="NAME", help="name of its classifier, none to leave it out (default: the source's name)")
    parser.add_argument("--classes", type=Path, metavar="FILE", help="its class names, one per line")
    parser.add_argument("--sampling", metavar="HOW", help="how clips are taken: dense@0.27 (seconds), segments or whole")
    parser.add_argument("--unused", action="append", default=[], metavar="TENSOR", help="a tensor to leave out, or the beginning of names")
    parser.add_argument("--json", metavar="FILE", help="what became of every tensor, as JSON (- for stdout)")


def _import_weights(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.console import write_json
    from cover.model.foreign_config import Wishes
    from cover.model.importing import import_weights, print_report

    names = ("size", "frames", "attention", "attention_heads", "time", "resize", "head", "classes", "sampling")
    wishes = Wishes(**{name: getattr(args, name) for name in names}, unused=tuple(args.unused))
    report = import_weights(args.source, args.out, wishes)
    if args.json:
        write_json(report, args.json)
    if args.json != "-":
        print_report(report)
        print(args.out)
    if report["head"]:
        _next("predict", args.out, "clip.mp4")
    else:
        _next("train", "RECIPE", "--start.checkpoint", args.out)
    return 0


def _add_export(parser: argparse.ArgumentParser) -> None:
    formats = "onnx: one model for onnxruntime; torch: a .pt2 for torch.export.load; transformers: TimesformerForVideoClassification"
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a run, a checkpoint or a release folder")
    parser.add_argument("--format", choices=["onnx", "torch", "transformers"], required=True, help=formats)
    parser.add_argument("--head", metavar="NAME", action="append", default=[], help="which head, may be given again (default: all;"
                        " transformers: the only one)")  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="PATH", help="a new NAME.onnx, NAME.pt2, or folder for transformers")
    parser.add_argument("--frames", type=_from(1, 4096), metavar="T", help="onnx, torch: of a clip; 1 for images (default: as trained)")
    parser.add_argument("--int8", action="store_true", help="onnx: matrices of 8-bit integers, a quarter of the size")


def _export(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.console import say
    from cover.inference.export import export_onnx, export_torch, export_transformers

    if args.int8 and args.format != "onnx":
        raise UserError(f"--int8: goes with --format onnx, not {args.format}")
    if args.format == "transformers":
        _check_for_transformers(args)
        export_transformers(args.checkpoint, args.head[0] if args.head else None, args.out)
        then = f'transformers.TimesformerForVideoClassification.from_pretrained("{args.out}")'
    elif args.format == "torch":
        export_torch(args.checkpoint, args.head, args.out, args.frames)
        then = f'torch.export.load("{args.out}").module()'
    else:
        apart = export_onnx(args.checkpoint, args.head, args.out, args.frames, args.int8)
        say(f"on clips of noise its probabilities differ from torch's by {apart:.1g} at most")
        then = f'onnxruntime.InferenceSession("{args.out}")'
    print(args.out)
    say(f"next, in Python: {then}")
    return 0


def _check_for_transformers(args: argparse.Namespace) -> None:
    if len(args.head) > 1:
        raise UserError("--head: transformers takes one head; export each into a folder of its own")
    if args.frames:
        raise UserError("--frames: goes with --format onnx or torch; transformers takes clips as trained")


# --- doctor ---------------------------------------------------------------------------------------------------------------------


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quick", action="store_true", help="without the trial of reading and training, which takes ten seconds")
    parser.add_argument("--json", metavar="FILE", help="the findings as JSON (- for stdout)")
    _machine_options(parser)


def _doctor(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.doctor.examine import doctor

    if not doctor(args.device, _workers(args), args.quick, args.json):
        return 1
    _next("demo")
    return 0


# --- demo -----------------------------------------------------------------------------------------------------------------------


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of everything it makes (default: demo)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on data and training; below 1 it shows the way, not the numbers")
    parser.add_argument("--seed", type=_from(0), default=0)
    _machine_options(parser)


def _demo(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.studies.demo import demo

    demo(args.out, args.scale, args.seed, args.device, _workers(args))
    return 0


def _next(*words: object) -> None:
    from cover.console import say

    say(f"next: {shlex.join(['cover', *map(str, words)])}")


if __name__ == "__main__":
    sys.exit(main())
