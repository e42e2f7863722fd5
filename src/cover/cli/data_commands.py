"""Commands about data and this machine: sandbox, index, overlap, prepare, doctor."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from cover.cli.command import (
    DEVICE,
    ENGINE,
    NAMES,
    WORKERS,
    argument,
    command,
    count_workers,
    give,
    json_option,
    say_next,
    whole,
)
from cover.errors import UserError

_DIALS = ("clutter", "shake", "distractors", "noise")


@command(
    "sandbox",
    "write generated data sets in the real ones' layouts",
    "cover sandbox sandbox --size 0.2",
    argument("dir", metavar="DIR", type=Path, help="a new folder, or an earlier sandbox"),
    argument("--seed", type=whole(0), default=0),
    argument("--size", type=float, default=1.0, help="factor on the number of files (default: 1)"),
    *(argument(f"--{dial}", type=float, help="difficulty from 0 to 1 (default: mild)") for dial in _DIALS),
    argument(
        "--relation",
        choices=["shared", "separate", "contrary"],
        help="write a fifth data set too, images called pictures; shared: what kinetics' classes show, under the same names; separate:"
        " dark and bright skies, which teach nothing of them; contrary: as shared, but every name is wrong, which hurts where the two"
        " share a head (data.heads: {activities: [kinetics, pictures]})",
    ),
    WORKERS,
)
def sandbox(args: Namespace) -> int:
    from cover.synthetic.generate import generate
    from cover.synthetic.settings import Settings

    dials = {name: getattr(args, name) for name in _DIALS if getattr(args, name) is not None}
    catalog = generate(
        args.dir, Settings(seed=args.seed, size=args.size, relation=args.relation, **dials), count_workers(args)
    )
    print(catalog)
    say_next("index", catalog)
    return 0


@command(
    "index",
    "probe every file of a catalog once",
    "cover index sandbox/catalog.yaml",
    argument("catalog", metavar="CATALOG", type=Path),
    NAMES,
    argument("--force", action="store_true", help="probe every file again"),
    argument("--deep", action="store_true", help="decode every video to its last frame: finds damage inside; slow"),
    argument(
        "--shard", metavar="I/N", help="probe only share I of N, as in 3/16; index without it then joins all shares"
    ),
    ENGINE,
    json_option("the table as JSON"),
    WORKERS,
)
def index(args: Namespace) -> int:
    from cover.console import say
    from cover.datasets.index import index, print_index, unusable

    if args.shard is not None:
        return _index_share(args)
    results = index(args.catalog, count_workers(args), args.names or None, args.force, args.deep, args.engine)
    give(results, args.json, lambda: print_index(results))
    count = sum(map(unusable, results))
    if count:
        how = "cannot be used, or only in part" if any(row["partial"] for row in results) else "cannot be used"
        say(
            f"{count} of {sum(row['listed'] for row in results)} listed files {how}; each is in its manifest with the reason"
        )
    say_next("overlap", args.catalog)
    return 1 if count else 0


def _index_share(args: Namespace) -> int:
    """Exit code 0 whatever the files hold, so that a job array goes on: unusable files are counted when all shares are
    joined.
    """
    from cover.datasets.index import IndexShard, ProbeOptions, index_share, print_share

    how = ProbeOptions(count_workers(args), args.force, args.deep, args.engine)
    results = index_share(args.catalog, IndexShard.parse(args.shard), how, args.names or None)
    give(results, args.json, lambda: print_share(results))
    say_next("index", args.catalog, *args.names, *["--deep"] * args.deep)
    return 0


@command(
    "overlap",
    "find what is trained on and evaluated on",
    "cover overlap sandbox/catalog.yaml --frames",
    argument("catalog", metavar="CATALOG", type=Path),
    NAMES,
    argument(
        "--frames", action="store_true", help="also compare pictures: finds copies that were encoded or cropped anew"
    ),
    argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="of the list of exclusions (default: manifests, where train reads it)",
    ),
    json_option("all counts with examples, as JSON"),
    WORKERS,
)
def overlap(args: Namespace) -> int:
    from cover.datasets.overlap import overlap, print_overlap

    results = overlap(args.catalog, count_workers(args), args.names or None, args.frames, args.out)
    give(results, args.json, lambda: print_overlap(results))
    say_next("train", "RECIPE", "--data.catalog", args.catalog)
    return 0


@command(
    "prepare",
    "encode the data once, small and quick to read",
    "cover prepare sandbox/catalog.yaml --out fast",
    argument("catalog", metavar="CATALOG", type=Path, help="indexed; its files are only read"),
    NAMES,
    argument(
        "--out", type=Path, required=True, metavar="DIR", help="a folder of its own, or an earlier run's, to go on"
    ),
    argument("--short-side", type=whole(16, 16384), default=256, metavar="PX", help="never scaled up (default: 256)"),
    argument("--key-interval", type=float, default=0.5, metavar="SECONDS", help="between key frames (default: 0.5)"),
    argument("--crf", type=whole(0, 51), default=21, help="x264's quality of videos, lower is better (default: 21)"),
    argument("--quality", type=whole(1, 100), default=95, help="of JPEG images (default: 95)"),
    argument(
        "--shards", action="store_true", help="tar shards, named as WebDataset does, instead of a file for each sample"
    ),
    argument("--shard-size", type=float, default=256, metavar="MB", help="of a shard, about (default: 256)"),
    argument(
        "--url", metavar="URL", help="where DIR will be read from, as s3://bucket/folder (default: where it lies)"
    ),
    json_option("the table as JSON"),
    WORKERS,
)
def prepare(args: Namespace) -> int:
    from cover.datasets.prepare import prepare, print_prepare
    from cover.media.encode import Encoding

    encoding = Encoding(args.short_side, args.key_interval, args.crf, args.quality)
    if not 0.001 <= args.shard_size <= 1_000_000:
        raise UserError(f"--shard-size: expected megabytes from 0.001 to 1000000, got {args.shard_size:g}")
    shard_bytes = round(args.shard_size * 1_000_000) if args.shards else None
    results = prepare(args.catalog, args.out, count_workers(args), args.names or None, encoding, shard_bytes, args.url)
    give(results, args.json, lambda: print_prepare(results))
    say_next("train", "RECIPE", "--data.catalog", args.out / "catalog.yaml")
    return 1 if any(row["partial"] or row["failed"] for row in results) else 0


@command(
    "doctor",
    "say whether this machine is ready, and what to put right",
    "cover doctor --device cuda",
    argument("--quick", action="store_true", help="without the trial of reading and training, which takes ten seconds"),
    json_option("the findings as JSON"),
    WORKERS,
    DEVICE,
    computes=True,
)
def doctor(args: Namespace) -> int:
    from cover.doctor import doctor

    if not doctor(args.device, count_workers(args), args.quick, args.json):
        return 1
    say_next("demo")
    return 0
