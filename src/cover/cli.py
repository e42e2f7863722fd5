"""What can be typed: the subcommands, each a thin door to its room."""

from __future__ import annotations

import argparse
import io
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cover import __version__
from cover.errors import UserError
from cover.machine import reuse_memory

COMPUTING = ("train", "evaluate", "predict", "demo")
Command = Callable[[argparse.Namespace, list[str]], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 done but not all input was usable, 2 wrong use, 130/143 interrupted."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be valid text
    parser, doors = _parser()
    known, rest = parser.parse_known_args(arguments)
    if hasattr(known, "names"):  # argparse ends a list of names at the first option; what stands behind it is a name too
        known.names = [*known.names, *(word for word in rest if not word.startswith("-"))]
        rest = [word for word in rest if word.startswith("-")]
    if rest and known.command != "train":
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
    _add_describe(
        add(
            _describe, "describe", "sizes and costs of a network",
            "cover describe L/16 --frames 16 --size 448 --heads k400=400,ssv2=174,mit=339,imagenet=1000",
        )
    )  # fmt: skip
    _add_evaluate(
        add(_evaluate, "evaluate", "measure every head of a checkpoint", "cover evaluate runs/cotrain --catalog sandbox/catalog.yaml")
    )
    _add_predict(add(_predict, "predict", "name what is seen in files", "cover predict runs/cotrain clip.mp4 photo.jpg --top 3"))
    _add_import(
        add(
            _import_weights, "import-weights", "make a release of another library's checkpoint",
            "cover import-weights facebook/timesformer-base-finetuned-k400 --out k400 --head kinetics400",
        )
    )  # fmt: skip
    _add_export(
        add(
            _export, "export", "write one head for another library",
            "cover export runs/cotrain --format transformers --head ssv2 --out ssv2_transformers",
        )
    )  # fmt: skip
    _add_demo(add(_demo, "demo", "the whole story: generate, index, train, compare, report", "cover demo --out demo"))
    return parser, doors


def _machine_options(parser: argparse.ArgumentParser, device: bool = True) -> None:
    parser.add_argument("--workers", type=int, default=-1, metavar="N", help="reading processes (default: one per core)")
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
    _machine_options(parser, device=False)


def _sandbox(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.sandbox.generate import generate
    from cover.sandbox.settings import Settings

    dials = {name: getattr(args, name) for name in ("clutter", "shake", "distractors", "noise") if getattr(args, name) is not None}
    catalog = generate(args.dir, Settings(seed=args.seed, size=args.size, **dials), _workers(args))
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

    if args.shard:
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
    from cover.training.train import train

    run = train(recipe, args.resume)
    print(run)
    _next("evaluate", run, "--catalog", recipe.data.catalog)
    return 0


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
    parser.add_argument("--catalog", type=Path, default=Path("catalog.yaml"), help="default: catalog.yaml")
    parser.add_argument("--split", default="val", choices=["train", "dev", "val", "test"])
    parser.add_argument("--views", help="TEMPORALxSPATIAL, as in 1x3 (default: each data set's own)")
    parser.add_argument("--shuffle-frames", action="store_true", help="also with the frames of every clip in random order")
    parser.add_argument("--single-frame", action="store_true", help="also with the middle frame alone")
    parser.add_argument("--seed", type=_from(0), default=0, help="of the random orders")
    parser.add_argument("--decoder", default="pyav", choices=["pyav", "torchcodec", "torchcodec_cuda"], help="of videos (default: pyav)")
    parser.add_argument("--json", metavar="FILE", help="the results as JSON (- for stdout)")
    _machine_options(parser)


def _evaluate(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.console import write_json
    from cover.evaluation.evaluate import evaluate_release, print_results

    variants: list[Any] = ["plain", *["shuffled"] * args.shuffle_frames, *["single"] * args.single_frame]
    results = evaluate_release(
        args.checkpoint,
        args.catalog,
        args.split,
        args.names,
        args.views,
        variants,
        args.device,
        _workers(args),
        args.seed,
        args.decoder,
    )
    if args.json:
        write_json(results, args.json)
    if args.json != "-":
        print_results(results)
    return 1 if any(row["n_read"] < row["n_listed"] for row in results) else 0


# --- predict --------------------------------------------------------------------------------------------------------------------


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a run, a checkpoint or a release folder")
    parser.add_argument("files", metavar="FILE", nargs="+", help="videos and images")
    parser.add_argument("--top", type=_from(1), default=5, metavar="K", help="classes of each head (default: 5)")
    parser.add_argument("--head", action="append", help="only this head (may be given again)")
    parser.add_argument("--views", help="TEMPORALxSPATIAL (default: each head's own)")
    parser.add_argument("--json", metavar="FILE", help="the predictions as JSON (- for stdout)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")


def _predict(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.inference.predictor import predict_files

    failed = predict_files(args.checkpoint, args.files, args.top, args.head, args.views, args.json, args.device)
    return 1 if failed else 0


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
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a run, a checkpoint or a release folder")
    parser.add_argument("--format", choices=["transformers"], required=True, help="transformers: TimesformerForVideoClassification")
    parser.add_argument("--head", metavar="NAME", help="which head (default: its only one)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")


def _export(args: argparse.Namespace, rest: list[str]) -> int:
    from cover.console import say
    from cover.inference.export import export_transformers

    export_transformers(args.checkpoint, args.head, args.out)
    print(args.out)
    say(f'next, in Python: transformers.TimesformerForVideoClassification.from_pretrained("{args.out}")')
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
