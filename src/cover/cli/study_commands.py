"""Commands that run whole experiments: fit, report, add, transfer, study, demo."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path

from cover.cli.command import (
    CATALOG,
    DEVICE,
    WORKERS,
    argument,
    checkpoint,
    command,
    count_workers,
    give,
    json_option,
    read_pairs,
    say_next,
    whole,
)
from cover.errors import UserError

_JOBS = argument(
    "--jobs", type=whole(1), metavar="N", help="runs at the same time (default: one per core on a CPU, else one)"
)


_HEADS = argument(
    "--heads",
    metavar="KIND",
    nargs="+",
    choices=["linear", "quarters", "attentive", "late_block"],
    help="heads to try on the fixed network: linear, quarters, attentive, late_block (default: all for videos,"
    " linear and late_block for images; over folds without late_block, and in fit without attentive; late_block only"
    " where it could be kept)",
)


@command(
    "fit",
    "make a model of your own files: a folder of classes, a csv file or a list",
    "cover fit clips/ --out runs/mine",
    argument(
        "data",
        metavar="DATA",
        type=Path,
        help="a folder with a subfolder for each class, videos and pictures mixed or not; or a list of files, .csv or"
        " .txt",
    ),
    checkpoint("--start", default="efficientnet_lite0", help="weights to start from (default: efficientnet_lite0)"),
    argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the run (default: runs/ and the name of the folder, with that of a list behind it)",
    ),
    argument(
        "--group",
        metavar="COLUMN_OR_PATTERN",
        help="what stays on one side of a split, such as a scene or a person: a column of the list, or a pattern on the"
        r" path, as in '(scene\d+)'; none for no groups (default: found in columns, folders and names, and said)",
    ),
    argument("--media", choices=["video", "image"], help="only files of this kind (default: both)"),
    argument(
        "--columns",
        metavar="OURS=THEIRS",
        nargs="+",
        default=[],
        help="columns of a csv file, as in path=file label=activity (default: found by names and contents, and said)",
    ),
    argument(
        "--folds",
        type=whole(0),
        metavar="K",
        help="measure by K folds, each trained without one part of whole groups; 0 for one split (default: by the"
        " number of samples, and said)",
    ),
    argument(
        "--with",
        dest="beside",
        metavar="CATALOG:SET",
        nargs="+",
        default=[],
        help="train all weights on these data sets too, and compare with the files alone",
    ),
    _HEADS,
    argument(
        "--epochs", type=float, metavar="N", help="epochs of the files, where weights are trained (default: by size)"
    ),
    argument("--seed", type=whole(0), default=0, help="seed of the training and of the folds (default: 0)"),
    json_option("write the results as JSON"),
    WORKERS,
    DEVICE,
    computes=True,
    goes_on=True,
)
def fit(args: Namespace) -> int:
    from cover.experiments.own_files import OwnRequest, default_run

    if args.folds == 1:
        raise UserError("--folds: 1 is no division; give 2 or more, or 0 for one split")
    columns = read_pairs("--columns", args.columns, "OURS=THEIRS")
    own = OwnRequest(args.data, args.group, args.media, columns)
    from cover.experiments.add.best_head import is_fitted
    from cover.experiments.fit import FitRequest, fit, print_fitted

    request = FitRequest(
        own,
        args.out or Path("runs") / default_run(args.data),
        args.start,
        args.folds,
        tuple(args.heads or ()),
        tuple(args.beside),
        args.epochs,
        args.seed,
        args.device,
        args.workers,
    )
    fitted = fit(request)

    def show() -> None:
        print_fitted(fitted)
        print(fitted.report)

    give(fitted.results, args.json, show)
    say_next("predict", request.out, "FILE")
    say_next("serve", request.out, "--page")
    if not is_fitted(fitted.results):
        say_next("train", fitted.results["recipe"], "--out", request.out.with_name(f"{request.out.name}_2"))
    new = fitted.results["new"]
    return 1 if new["n_read"] < new["n_listed"] else 0


@command(
    "add",
    "train a head for one more data set of a catalog, and evaluate it and the old heads",
    "cover add runs/cotrain --data mine --catalog catalog.yaml",
    checkpoint("checkpoint"),
    argument(
        "--data",
        required=True,
        metavar="NAME",
        help="name of the new data set in the catalog (cover fit is for a folder or a list without a catalog)",
    ),
    CATALOG,
    argument(
        "--how",
        choices=["best", "probe", "replay", "alone"],
        help="best: try several heads on the fixed network and keep the best; probe: train one head step by step;"
        " replay: train all weights on the old and the new data sets; alone: train all weights on the new data set"
        " (default: best for a network that pools frames, as the known starts do, else probe)",
    ),
    _HEADS,
    argument("--epochs", type=float, metavar="N", help="epochs of the new data set (default: by its size, 10 to 50)"),
    argument(
        "--compare", action="store_true", help="also train the same network on the new data set from other weights"
    ),
    checkpoint("--baseline", help="the weights that --compare starts from (default: random weights)"),
    argument(
        "--split", choices=["val", "dev", "test"], help="split to evaluate on (default: val, else dev, else test)"
    ),
    argument(
        "--folds",
        type=whole(2),
        metavar="K",
        help="measure by K folds: join all splits, train K more heads, each without one fold of whole groups; the final"
        " head is trained on all samples",
    ),
    argument(
        "--out",
        type=Path,
        help="folder of the run (default: runs/NAME_HOW); fields of its recipe can be set, as in --optimizer.lr 1e-3",
    ),
    argument(
        "--only-recipe", action="store_true", help="write the recipe and stop; cover train can run it on any machine"
    ),
    argument(
        "--seed",
        type=whole(0),
        default=0,
        help="seed of the training (default: 0)",
    ),
    json_option("write the results as JSON"),
    WORKERS,
    DEVICE,
    overrides=True,
    computes=True,
    goes_on=True,
)
def add(args: Namespace) -> int:
    from cover.experiments.add.add_recipe import AddRequest
    from cover.experiments.add.run import BESIDE, AddOptions, add, default_method, print_added
    from cover.experiments.run_report import write_run_report
    from cover.model.release import find_release

    if args.epochs is not None and not 0 < args.epochs < 10**6:
        raise UserError(f"--epochs: {args.epochs:g} is no number of epochs; give one above 0, as in 30")
    if not args.catalog.is_file() and Path(args.data).exists():
        fit_command = shlex.join(["cover", "fit", args.data, "--start", args.checkpoint])
        raise UserError(f"--data: {args.data}: is no data set of a catalog; try {fit_command}")
    release = find_release(args.checkpoint)
    how = args.how or default_method(release)
    if args.heads and how != "best":
        raise UserError(f"--heads: for --how best, and this is --how {how}")
    out = args.out or Path("runs") / f"{args.data}_{how}"
    request = AddRequest(release, args.data, args.catalog, how, out, args.epochs, args.seed, args.device, args.workers)
    kinds = tuple(args.heads or ())
    options = AddOptions(args.compare, args.baseline, args.split, args.only_recipe, args.overrides, args.folds, kinds)
    results = add(request, options)
    if results is None:  # --only-recipe
        print(out / BESIDE / "recipe.yaml")
        say_next("train", out / BESIDE / "recipe.yaml")
        return 0

    def show() -> None:
        print_added(results)
        print(write_run_report(out))

    give(results, args.json, show)
    say_next("predict", out, "clip.mp4")
    evaluated = [row for row in [results["new"], *results["old"]] if "n_read" in row]
    return 1 if any(row["n_read"] < row["n_listed"] for row in evaluated) else 0


@command(
    "transfer",
    "train fresh heads on checkpoints for other data sets, and compare them",
    "cover transfer --source ssv2=runs/single_ssv2 --target moments --catalog sandbox/catalog.yaml --epochs 5",
    argument(
        "--source",
        metavar="NAME=CHECKPOINT",
        action="append",
        required=True,
        help="a checkpoint, and a name for it in the report (may be repeated)",
    ),
    argument(
        "--target",
        metavar="NAME",
        action="append",
        required=True,
        help="a video data set of the catalog (may be repeated)",
    ),
    CATALOG,
    argument("--epochs", type=float, required=True, metavar="N", help="epochs of the target's training clips"),
    argument("--part", type=float, default=1.0, help="fraction of the target's training clips to use (default: 1)"),
    argument(
        "--how",
        choices=["finetune", "probe", "both"],
        default="both",
        help="finetune: train all weights; probe: train the head only (default: both)",
    ),
    argument(
        "--seeds", type=whole(1), default=3, metavar="N", help="runs of each pair, each with its seed (default: 3)"
    ),
    argument(
        "--lr",
        type=float,
        action="append",
        metavar="LR",
        help="learning rate to try; may be repeated, and the best on the split dev is used (default: 1e-3)",
    ),
    argument("--batch", type=whole(1), default=32, help="clips in a training step (default: 32)"),
    argument("--split", default="val", choices=["val", "test"], help="split of the reported numbers (default: val)"),
    argument("--margin", type=float, default=0.02, help="loss of top-1 that still counts as not worse (default: 0.02)"),
    argument("--out", type=Path, default=Path("transfers"), help="folder for all results (default: transfers)"),
    json_option("write the results as JSON"),
    _JOBS,
    DEVICE,
    computes=True,
    goes_on=True,
)
def transfer(args: Namespace) -> int:
    from cover.console import print_table
    from cover.experiments.study.run_study import REPORT, run_study
    from cover.experiments.study.study_file import HOW, Size
    from cover.experiments.transfer import rows_of, transfer_study

    sources = read_pairs("--source", args.source, "NAME=CHECKPOINT")
    study = transfer_study(
        sources,
        args.target,
        args.catalog,
        args.out,
        Size(args.epochs, args.part),
        HOW if args.how == "both" else (args.how,),
        args.seeds,
        args.lr or (1e-3,),
        args.batch,
        args.split,
        args.margin,
        args.device,
    )
    summary = run_study(study, _count_jobs(args.jobs, args.device))
    assert summary is not None

    def show() -> None:
        print_table(["source", "how", "target", "top-1 %", "95 % interval", "read"], rows_of(summary))
        print(args.out / REPORT)

    give(summary, args.json, show)
    return 0


@command(
    "study",
    "train and compare the models of a study, and write its report",
    "cover study recipes/studies/sandbox.yaml",
    argument(
        "study",
        metavar="STUDY",
        nargs="?",
        type=Path,
        help="a YAML file; any of its fields can be set here, as in --seeds '[0, 1]'",
    ),
    argument("--keys", action="store_true", help="list all fields of a study with their defaults, and stop"),
    argument(
        "--dry-run",
        action="store_true",
        help="check the study, print the number of runs and the smallest difference that they can detect, and stop",
    ),
    argument(
        "--worth",
        metavar="TARGET",
        default="",
        help="ask instead how much each other data set of the study is worth to TARGET: the full mixture without it,"
        " and TARGET with it alone; the results are in OUT/worth/TARGET",
    ),
    argument(
        "--recompute",
        type=Path,
        metavar="DIR",
        help="run nothing: judge the study in DIR again with the statistics of this version",
    ),
    json_option("write the results as JSON"),
    _JOBS,
    overrides=True,
    computes=True,
    goes_on=True,
)
def study(args: Namespace) -> int:
    from cover import config
    from cover.experiments.study.run_study import REPORT, report_folder, run_study
    from cover.experiments.study.study_file import Study

    if args.keys:
        print("\n".join(config.keys(Study)))
        return 0
    if args.recompute is not None:
        return _recompute(args)
    if args.study is None:
        raise UserError("which study? for example: cover study recipes/studies/sandbox.yaml (--keys lists the fields)")
    study = config.load(Study, args.study, args.overrides)
    summary = run_study(study, _count_jobs(args.jobs), args.dry_run, args.worth)
    if summary is None:
        worth = ["--worth", args.worth] if args.worth else []
        jobs = ["--jobs", args.jobs] if args.jobs else []
        say_next("study", args.study, *worth, *jobs, *args.overrides)
        return 0
    give(summary, args.json, lambda: print(report_folder(study, args.worth) / REPORT))
    return 0


def _recompute(args: Namespace) -> int:
    from cover.console import print_table
    from cover.experiments.study.comparisons import comparison_lines
    from cover.experiments.study.recompute import recompute

    rows = recompute(args.recompute)
    columns = ["claim", "target", "ours", "theirs", "size", "points", "95 % interval", "p, Holm", "before", "now"]
    give({"comparisons": rows}, args.json, lambda: print_table(columns, comparison_lines(rows)))
    return 0


@command(
    "report",
    "write the report of a run again, or the published accuracies with your own",
    "cover report runs/mine\n  cover report --benchmarks results.json",
    argument(
        "names",
        metavar="NAME",
        nargs="*",
        type=Path,
        help="folders of runs of cover train, cover fit or cover add; with --benchmarks: files of evaluate --json",
    ),
    argument(
        "--benchmarks", action="store_true", help="the accuracies on the article's data sets, published and yours"
    ),
    argument("--pretrain", default="", metavar="TEXT", help="--benchmarks: what your models were pre-trained on"),
    argument("--out", type=Path, metavar="FILE", help="--benchmarks: a Markdown file (default: stdout)"),
)
def report(args: Namespace) -> int:
    if args.benchmarks:
        return _benchmark_report(args)
    for option in ("pretrain", "out"):
        if getattr(args, option):
            raise UserError(f"--{option}: goes with --benchmarks")
    if not args.names:
        raise UserError("give the folder of a run, as in cover report runs/mine, or --benchmarks")
    from cover.experiments.run_report import write_run_report

    for run in args.names:
        print(write_run_report(run))
    return 0


def _benchmark_report(args: Namespace) -> int:
    from cover.experiments.benchmarks import benchmark_page, read_measured
    from cover.experiments.report import write_text

    page = benchmark_page(read_measured(args.names), args.pretrain)
    if args.out is None:
        print(page, end="")
    else:
        print(write_text(page, args.out))
    return 0


def _count_jobs(jobs: int | None, device: str = "auto") -> int:
    from cover.hardware import pick_device
    from cover.machine import cores

    on_cpu = pick_device(device).type == "cpu"
    return jobs or (cores() if on_cpu else 1)


@command(
    "demo",
    "show everything once: generate data, index, train, compare, report",
    "cover demo --out demo",
    argument("--out", type=Path, default=Path("demo"), help="folder for all results (default: demo)"),
    argument(
        "--scale",
        type=float,
        default=1.0,
        help="factor on the data and the training; below 1 the demo is faster, but its numbers say little (default: 1)",
    ),
    argument("--seed", type=whole(0), default=0, help="seed of the data and the training (default: 0)"),
    argument(
        "--difficulty",
        choices=["easy", "medium", "hard"],
        default="medium",
        help="difficulty of the data, as in cover sandbox (default: medium)",
    ),
    argument(
        "--own",
        type=Path,
        metavar="DIR",
        help="your own files, one subfolder for each class: a second page shows what the start efficientnet_lite0 "
        "makes of them (default: generated clips, where its weights are installed)",
    ),
    WORKERS,
    DEVICE,
    computes=True,
    goes_on=True,
)
def demo(args: Namespace) -> int:
    from cover.experiments.demo import demo

    demo(args.out, args.scale, args.seed, args.difficulty, args.device, count_workers(args), args.own)
    return 0
