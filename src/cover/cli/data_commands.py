"""Commands about data and this machine: sandbox, index, overlap, labels, prepare, doctor."""

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

_DIALS = {
    "clutter": "blobs and lines in the background",
    "shake": "random movement of the camera",
    "distractors": "small objects in the background",
    "noise": "noise of the pixels",
    "low_contrast": "objects nearly as bright as the background",
    "small_objects": "small objects",
    "tilt": "rotated objects",
    "occlusion": "posts before the object",
    "pan": "steady movement of the camera",
    "uneven_speed": "different and changing speeds of the object",
}


@command(
    "sandbox",
    "write small generated data sets in the layouts of real ones",
    "cover sandbox sandbox --size 0.2",
    argument("dir", metavar="DIR", type=Path, help="a new folder, or an earlier sandbox to complete"),
    argument("--seed", type=whole(0), default=0, help="another seed gives other files (default: 0)"),
    argument("--size", type=float, default=1.0, help="factor on the number of files (default: 1)"),
    argument(
        "--val",
        type=whole(1),
        metavar="N",
        help="validation files of each class of every data set, whatever the size (default: 25 to 40 at size 1)",
    ),
    argument(
        "--difficulty",
        choices=["easy", "medium", "hard"],
        default="medium",
        help="values of the options below that are not given (default: medium)",
    ),
    *(
        argument(f"--{name.replace('_', '-')}", type=float, metavar="X", help=f"{text}, from 0 (none) to 1 (hard)")
        for name, text in _DIALS.items()
    ),
    argument(
        "--relation",
        choices=["shared", "separate", "contrary"],
        help="also write a fifth data set, of images, with the name pictures. shared: it shows the classes of kinetics"
        " under the same names. separate: it shows dark and bright skies, which do not help with other classes."
        " contrary: like shared, but every class name is wrong, which does harm if the two sets share a head"
        " (data.heads: {activities: [kinetics, pictures]})",
    ),
    WORKERS,
)
def sandbox(args: Namespace) -> int:
    from cover.synthetic.generate import generate
    from cover.synthetic.settings import Settings, dials

    difficulty = dials(args.difficulty, **{name: getattr(args, name) for name in _DIALS})
    settings = Settings(seed=args.seed, size=args.size, val=args.val, relation=args.relation, **difficulty)
    catalog = generate(args.dir, settings, count_workers(args))
    print(catalog)
    say_next("index", catalog)
    return 0


@command(
    "index",
    "probe every file of a catalog and write manifests",
    "cover index sandbox/catalog.yaml",
    argument("catalog", metavar="CATALOG", type=Path, help="a YAML file that names the data sets"),
    NAMES,
    argument("--force", action="store_true", help="probe every file again (default: only new and changed files)"),
    argument(
        "--deep",
        action="store_true",
        help="decode every video to its last frame; this finds damage inside, but is slow",
    ),
    argument(
        "--shard",
        metavar="I/N",
        help="probe only part I of N, as in 3/16; when all parts are done, index without --shard joins them",
    ),
    argument("--update", action="store_true", help="take the newest version of data sets on the Hub (hf://)"),
    ENGINE,
    json_option("write the table as JSON"),
    WORKERS,
    goes_on=True,
)
def index(args: Namespace) -> int:
    from cover.console import say
    from cover.datasets.index import index, print_index, unusable

    if args.shard is not None:
        return _index_share(args)
    names = args.names or None
    results = index(args.catalog, count_workers(args), names, args.force, args.deep, args.engine, args.update)
    give(results, args.json, lambda: print_index(results))
    count = sum(map(unusable, results))
    if count:
        how = "cannot be used, or only in part" if any(row["partial"] for row in results) else "cannot be used"
        listed = sum(row["listed"] for row in results)
        say(f"{count} of {listed} listed files {how}; each is in its manifest with the reason")
    say_next("overlap", args.catalog)
    return 1 if count else 0


def _index_share(args: Namespace) -> int:
    """Probe one part of the files.

    The exit code is 0 even if files are unusable, so that an array of jobs continues. They are counted when the parts
    are joined.
    """
    from cover.datasets.index import IndexShard, ProbeOptions, index_share, print_share

    if args.update:
        raise UserError(
            "--update: cannot go with --shard; name the version in the catalog, as in root: hf://...@COMMIT"
        )
    how = ProbeOptions(count_workers(args), args.force, args.deep, args.engine)
    results = index_share(args.catalog, IndexShard.parse(args.shard), how, args.names or None)
    give(results, args.json, lambda: print_share(results))
    say_next("index", args.catalog, *args.names, *["--deep"] * args.deep)
    return 0


@command(
    "overlap",
    "find samples that are in a training split and in an evaluation split",
    "cover overlap sandbox/catalog.yaml --frames",
    argument("catalog", metavar="CATALOG", type=Path, help="a catalog whose data sets are indexed"),
    NAMES,
    argument(
        "--frames",
        action="store_true",
        help="also compare the pictures; this finds copies that were encoded or cropped again",
    ),
    argument(
        "--out",
        metavar="FOLDER",
        type=Path,
        help="folder for the list of exclusions (default: manifests, where train reads it)",
    ),
    json_option("write all counts, with examples, as JSON"),
    WORKERS,
)
def overlap(args: Namespace) -> int:
    from cover.datasets.overlap import overlap, print_overlap

    results = overlap(args.catalog, count_workers(args), args.names or None, args.frames, args.out)
    give(results, args.json, lambda: print_overlap(results))
    say_next("train", "RECIPE", "--data.catalog", args.catalog)
    return 0


@command(
    "labels",
    "relate the classes of data sets by their names, and propose shared heads",
    "cover labels sandbox/catalog.yaml",
    argument("catalog", metavar="CATALOG", type=Path, help="a catalog whose data sets are indexed"),
    NAMES,
    argument(
        "--near",
        type=float,
        default=0.85,
        metavar="S",
        help="similarity, from 0 to 1, from which two names are near (default: 0.85)",
    ),
    json_option("write all pairs as JSON"),
)
def labels(args: Namespace) -> int:
    from cover.datasets.labels import as_json, print_labels, related_sets

    if not 0 < args.near <= 1:
        raise UserError(f"--near {args.near:g}: expected a similarity above 0 and at most 1")
    relations = related_sets(args.catalog, args.names or None, args.near)
    give(as_json(relations), args.json, lambda: print_labels(relations))
    return 0


@command(
    "prepare",
    "encode data sets again, so that training reads them faster",
    "cover prepare sandbox/catalog.yaml --out fast",
    argument(
        "catalog", metavar="CATALOG", type=Path, help="a catalog whose data sets are indexed; its files do not change"
    ),
    NAMES,
    argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="a new folder, or the folder of an earlier run, which then continues",
    ),
    argument(
        "--short-side",
        type=whole(16, 16384),
        default=256,
        metavar="PX",
        help="the shorter side of videos and images; smaller ones are not scaled up (default: 256)",
    ),
    argument(
        "--key-interval", type=float, default=0.5, metavar="SECONDS", help="time between key frames (default: 0.5)"
    ),
    argument("--crf", type=whole(0, 51), default=21, help="x264's quality of videos; lower is better (default: 21)"),
    argument("--quality", type=whole(1, 100), default=95, help="quality of JPEG images (default: 95)"),
    argument(
        "--shards",
        action="store_true",
        help="write tar shards with the names of WebDataset (default: one file per sample)",
    ),
    argument("--shard-size", type=float, default=256, metavar="MB", help="approximate size of a shard (default: 256)"),
    argument(
        "--url",
        metavar="URL",
        help="address from which DIR will be read, as in s3://bucket/folder (default: the path of DIR)",
    ),
    json_option("write the table as JSON"),
    WORKERS,
    goes_on=True,
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
    "check that this machine is ready, and say how to fix what is not",
    "cover doctor --device cuda",
    argument("--quick", action="store_true", help="skip the ten-second trial of reading and training"),
    json_option("write the results as JSON"),
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
