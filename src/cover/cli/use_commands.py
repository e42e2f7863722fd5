"""Commands about a checkpoint: evaluate, predict, explain, serve, import-weights, export."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cover.cli.command import (
    CATALOG,
    COMPUTE_ENGINES,
    DAY_S,
    DECODER,
    DEVICE,
    ONE_HEAD,
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
    workers_option,
)
from cover.errors import UserError

if TYPE_CHECKING:
    from cover.inference.segments import SegmentRule


@command(
    "evaluate",
    "measure every head of a checkpoint",
    "cover evaluate runs/cotrain --catalog sandbox/catalog.yaml",
    checkpoint("checkpoint"),
    argument("names", metavar="NAME", nargs="*", help="only these data sets (default: all that have a head)"),
    checkpoint("--also", action="append", default=[], help="another checkpoint to evaluate (may be repeated)"),
    CATALOG,
    argument("--split", choices=["train", "dev", "val", "test"], help="split to evaluate on (default: val)"),
    argument(
        "--folds",
        type=whole(2),
        metavar="K",
        help="join all splits of the named data sets, train the recipe of the run K more times, each time without one"
        " fold of whole groups, and measure the folds; CHECKPOINT is the folder of a run",
    ),
    argument("--views", help="views of a sample, TEMPORALxSPATIAL, as in 1x3 (default: as each data set says)"),
    argument(
        "--by-names",
        metavar="DATASET=HEAD",
        action="append",
        default=[],
        help="evaluate a data set with the head of another one; class names match the two (may be repeated)",
    ),
    argument(
        "--shuffle-frames", action="store_true", help="also evaluate with the frames of every clip in random order"
    ),
    argument("--reverse", action="store_true", help="also evaluate with the frames in reverse order"),
    argument("--single-frame", action="store_true", help="also evaluate with the middle frame only"),
    argument(
        "--seed",
        type=whole(0),
        default=0,
        help="seed of random frame orders and of folds (default: 0)",
    ),
    DECODER,
    argument(
        "--per-class",
        metavar="N",
        type=whole(1),
        help="also print the N classes with the lowest accuracy and the N most frequent confusions",
    ),
    argument("--scores", metavar="FILE", type=Path, help="write the scores of every sample and view to an Arrow file"),
    argument(
        "--cache",
        action="store_true",
        help="keep the outputs of the stages that the run kept in its cache, and reuse them (cache of its recipe)",
    ),
    argument("--cache-folder", metavar="FOLDER", help="where they are kept (default: beside the manifests)"),
    argument(
        "--no-baselines",
        action="store_true",
        help="leave out what trivial methods reach on the same samples (docs/baselines.md)",
    ),
    json_option("write the results as JSON"),
    WORKERS,
    DEVICE,
    computes=True,
)
def evaluate(args: Namespace) -> int:
    from cover.distributed import process_group
    from cover.evaluation.evaluate import evaluate_release, print_classes, print_results
    from cover.training.recipe import Distributed

    others = ["shuffled"] * args.shuffle_frames + ["reversed"] * args.reverse + ["single"] * args.single_frame
    variants: list[Any] = ["plain", *others]
    if args.scores and args.also:
        raise UserError("--scores: the file holds the scores of one checkpoint; leave --also out")
    if args.folds:
        return _evaluate_folds(args)
    heads = read_pairs("--by-names", args.by_names, "DATASET=HEAD")
    with process_group(Distributed().timeout, args.device) as group:
        results = [
            result
            for release in (args.checkpoint, *args.also)
            for result in evaluate_release(
                release,
                args.catalog,
                args.split or "val",
                args.names,
                args.views,
                variants,
                str(group.device),
                count_workers(args),
                args.seed,
                args.decoder,
                heads,
                args.scores,
                group,
                args.cache_folder or ("" if args.cache else None),
                not args.no_baselines,
            )
        ]

    def show() -> None:
        print_results(results)
        if args.per_class:
            print_classes(results, args.per_class)

    if group.rank == 0:
        give(results, args.json, show)
    return 1 if any(row["n_read"] < row["n_listed"] for row in results) else 0


def _evaluate_folds(args: Namespace) -> int:
    from cover.experiments.folds import FoldRequest, folds_of_run, print_folds

    options = ("also", "split", "by_names", "shuffle_frames", "reverse", "single_frame", "per_class", "scores")
    for name in options:
        if getattr(args, name):
            raise UserError(f"--folds: cannot go with --{name.replace('_', '-')}")
    request = FoldRequest(
        tuple(args.names),
        args.folds,
        args.seed,
        args.views,
        args.decoder,
        args.device,
        count_workers(args),
        not args.no_baselines,
    )
    results = folds_of_run(Path(args.checkpoint), args.catalog, request)
    give(results, args.json, lambda: print_folds(results))
    return 1 if any(row["n_read"] < row["n_listed"] for row in results) else 0


def _probability(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ArgumentTypeError(f"expected a probability such as 0.5, got {text}; write files before it") from None


@command(
    "predict",
    "predict the classes of videos and images",
    "cover predict runs/cotrain clip.mp4 photos/ --top 3",
    checkpoint("checkpoint"),
    argument(
        "names",
        metavar="FILE",
        nargs="*",
        help="videos, images, folders, patterns or URLs; - reads a list of them from stdin",
    ),
    argument(
        "--live",
        metavar="SOURCE",
        help="predict a video while it plays: a camera (0), an rtsp:// address, or a file at its own rate",
    ),
    argument(
        "--top", type=whole(1), default=5, metavar="K", help="number of classes to give for each head (default: 5)"
    ),
    ONE_HEAD,
    argument(
        "--classes",
        metavar="NAMES",
        help="predict these classes in place of the heads, with the text network of a CLIP or SigLIP 2: names between"
        " commas, or a file with one per line",
    ),
    argument("--prompt", metavar="TEXT", help='text of a class (default: "This is a photo of {}.")'),
    argument("--views", help="views of a file, TEMPORALxSPATIAL (default: as each head says)"),
    argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="cut each video into windows of this length and predict each window",
    ),
    argument(
        "--stride",
        type=float,
        metavar="SECONDS",
        help="time from the start of one window to the start of the next (default: the value of --window; with --live"
        " from one prediction to the next, 1)",
    ),
    DECODER,
    argument(
        "--format",
        choices=["pretty", "jsonl", "csv"],
        help="format of the rows (default: pretty; for --out, its file ending)",
    ),
    argument(
        "--segments",
        type=_probability,
        nargs="?",
        const=0.5,
        metavar="P",
        help="the stretches of a video in which a class has this probability, in place of a row for each window"
        " (default of P: 0.5; of --window: the length of the training clips, at most 10 s)",
    ),
    argument("--leave", type=float, metavar="P", help="a segment ends below this probability (default: 0.6 of P)"),
    argument("--gap", type=float, default=0.0, metavar="S", help="join segments of a class so many seconds apart"),
    argument("--shortest", type=float, default=0.0, metavar="S", help="leave out segments shorter than this"),
    argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write the rows to a .jsonl or .csv file; an interrupted run continues with the rows that it lacks;"
        " .srt or .vtt: the segments of one video as subtitles",
    ),
    argument(
        "--embed",
        type=Path,
        metavar="FILE",
        help="write the features to a .npy file, with the file names in a .csv beside it, or to a .arrow file",
    ),
    argument(
        "--engine",
        choices=[*COMPUTE_ENGINES, "pool", "ray"],
        default="eager",
        help="eager: torch; compiled: torch's compiler; onnx, onnx-int8: onnxruntime on the CPU, in float32 or 8-bit"
        " integers; ray: eager on a Ray cluster (pool is an old name of eager; default: eager)",
    ),
    json_option("write all rows as one JSON list"),
    WORKERS,
    DEVICE,
    computes=True,
)
def predict(args: Namespace) -> int:
    from cover.inference.predict import PredictOptions, PredictOutputs, PredictRequest, find_inputs, predict
    from cover.inference.views import Windows

    if args.live:
        return _predict_live(args)
    files = find_inputs(args.names, sys.stdin.buffer)
    if args.stride is not None and args.window is None:
        raise UserError("--stride: goes with --window SECONDS")
    windows = None if args.window is None else Windows(args.window, args.window if args.stride is None else args.stride)
    heads = tuple(args.head) if args.head else None
    rule, (classes, prompt) = _segment_rule(args), _classes(args)
    request = PredictRequest(args.top, heads, args.views, windows, args.decoder, rule, classes, prompt)
    outputs = PredictOutputs(args.format, args.out, args.embed, args.json)
    engine: Any = "eager" if args.engine == "pool" else args.engine
    options = PredictOptions(args.device, None if args.workers < 0 else args.workers, engine)
    return 1 if predict(args.checkpoint, files, request, outputs, options) else 0


def _classes(args: Namespace) -> tuple[tuple[str, ...], str | None]:
    """The classes of `--classes`, none without it, and the prompt. Raises `UserError`."""
    if args.classes is None:
        if args.prompt is not None:
            raise UserError("--prompt: goes with --classes")
        return (), None
    try:
        is_file = Path(args.classes).is_file()
        text = Path(args.classes).read_text(encoding="utf-8") if is_file else args.classes
    except (OSError, ValueError) as error:
        raise UserError(f"--classes {args.classes}: cannot be read: {error}") from None
    names = [name.strip() for name in (text.splitlines() if is_file else text.split(","))]
    if not any(names):
        raise UserError("--classes: names no class; write names between commas, or name a file with one per line")
    return tuple(filter(None, names)), args.prompt


def _segment_rule(args: Namespace) -> SegmentRule | None:
    from cover.inference.records import subtitles_of
    from cover.inference.segments import LEAVE, SegmentRule

    enter = args.segments
    if enter is None and args.out and subtitles_of(args.out):
        enter = 0.5
    if enter is None:
        for name in ("leave", "gap", "shortest"):
            if getattr(args, name):
                raise UserError(f"--{name}: goes with --segments")
        return None
    return SegmentRule(enter, enter * LEAVE if args.leave is None else args.leave, args.gap, args.shortest)


def _predict_live(args: Namespace) -> int:
    from cover.inference.live import LiveRequest, predict_live
    from cover.inference.predict import check_heads
    from cover.inference.predictor import Predictor

    if args.names:
        raise UserError(f"--live: plays one source; leave {args.names[0]} out")
    for name in ("views", "segments", "out", "embed", "json"):
        if getattr(args, name):
            raise UserError(f"--live: cannot go with --{name}")
    if args.format == "csv" or args.engine not in ("eager", "pool") or args.decoder != "pyav":
        raise UserError("--live: has --format pretty or jsonl, --engine eager and --decoder pyav only")
    predictor = Predictor.load(args.checkpoint, args.device, "eager", *_classes(args))
    check_heads(predictor, args.checkpoint, False)
    stride = 1.0 if args.stride is None else args.stride
    request = LiveRequest(args.top, tuple(args.head) if args.head else None, stride, args.window)
    return predict_live(predictor, args.live, request, args.format or "pretty")


@command(
    "filter",
    "choose web clips and images by a teacher's confidence in the class they were searched for",
    "cover filter runs/teacher web_clips web_images --catalog catalog.yaml --threshold 0.5 --window 10 --out filtered",
    checkpoint("teacher"),
    argument("names", metavar="NAME", nargs="*", help="web data sets, whose labels are the classes of their queries"),
    CATALOG,
    argument(
        "--head",
        metavar="NAME",
        help="the teacher's head (default: its only one, or the one that cover fit or cover add made)",
    ),
    argument("--threshold", type=float, default=0.5, metavar="P", help="lowest probability to keep (default: 0.5)"),
    argument(
        "--class-threshold",
        action="append",
        default=[],
        metavar="CLASS=P",
        help="the threshold of one class (may be repeated)",
    ),
    argument("--most", type=whole(0), default=0, metavar="N", help="keep the N best of each class (default: all)"),
    argument("--window", type=float, metavar="S", help="cut longer videos to windows of S seconds (default: no cut)"),
    argument("--stride", type=float, metavar="S", help="seconds from one window to the next (default: --window)"),
    argument("--per-video", type=whole(0), default=0, metavar="N", help="keep N windows of a video (default: all)"),
    argument("--views", metavar="TxS", help="views of a sample or window (default: those of the head)"),
    argument(
        "--duplicates",
        choices=["drop", "keep"],
        default="drop",
        help="samples that cover overlap has found in an evaluation split (default: drop)",
    ),
    argument("--out", type=Path, required=True, metavar="DIR", help="folder for manifests, catalog and scores"),
    DECODER,
    DEVICE,
    WORKERS,
    json_option("write the counts as JSON"),
    computes=True,
)
def filter_(args: Namespace) -> int:
    from cover.inference.views import Windows
    from cover.inference.web_filter import FilterOptions, filter_web, print_filter

    if args.window is None and (args.stride is not None or args.per_video):
        raise UserError("--stride and --per-video: only with --window")
    windows = None if args.window is None else Windows(args.window, args.stride or args.window)
    pairs = read_pairs("--class-threshold", args.class_threshold, "CLASS=P")
    try:
        thresholds = {name: float(text) for name, text in pairs.items()}
    except ValueError:
        raise UserError("--class-threshold: write a probability behind the class, as in archery=0.7") from None
    options = FilterOptions(
        head=args.head,
        threshold=args.threshold,
        class_thresholds=thresholds,
        most=args.most,
        windows=windows,
        per_video=args.per_video,
        views=args.views,
        duplicates=args.duplicates,
        decoder=args.decoder,
        device=args.device,
        workers=count_workers(args),
    )
    results = filter_web(args.teacher, args.catalog, args.names, args.out.absolute(), options)
    give(results, args.json, lambda: print_filter(results, args.out.absolute()))
    return 1 if any(result["unreadable"] for result in results) else 0


@command(
    "explain",
    "show which parts of a video or image a prediction depends on",
    "cover explain runs/cotrain clip.mp4 --head ssv2",
    checkpoint("checkpoint"),
    argument("file", metavar="FILE", help="a video, an image or a URL"),
    ONE_HEAD,
    argument(
        "--class",
        dest="class_name",
        metavar="NAME",
        help="explain the score of this class (default: the most likely class of each head)",
    ),
    argument(
        "--method",
        choices=["gradient", "rollout"],
        default="gradient",
        help="gradient: attention weighted by its effect on the class; rollout: all attention, whichever the class"
        " (default: gradient)",
    ),
    argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder for the pictures and clips (default: explained/, then the file's name)",
    ),
    DEVICE,
    computes=True,
)
def explain(args: Namespace) -> int:
    from cover.console import tell_path
    from cover.inference.explain import ExplainOptions, default_folder, explain

    options = ExplainOptions(tuple(args.head) if args.head else None, args.class_name, args.method)
    for path in explain(args.checkpoint, args.file, options, args.out or default_folder(args.file), args.device):
        tell_path(path)
    say_next("serve", args.checkpoint, "--page")
    return 0


def _address(text: str) -> str:
    if not text.strip():  # an empty address would listen on every address of this machine
        raise ArgumentTypeError("expected an address, as in 127.0.0.1 or 0.0.0.0")
    return text


@command(
    "serve",
    "predict the classes of uploaded files over HTTP",
    "cover serve runs/cotrain --page --port 8000\n  cover serve runs/first runs/second --page",
    checkpoint("names", nargs="+", help="the models, each as in cover predict; the page compares two or more"),
    argument(
        "--host",
        type=_address,
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, which only this machine reaches)",
    ),
    argument("--port", type=whole(0, 65535), default=8000, help="port; 0 takes any free one (default: 8000)"),
    argument("--page", action="store_true", help="also serve a web page at / for uploads"),
    argument(
        "--frame",
        action="append",
        default=[],
        metavar="SITE",
        help="a site that may show the page in a frame, as in https://huggingface.co (may be repeated)",
    ),
    argument(
        "--key-file",
        type=Path,
        metavar="FILE",
        help="file with the key that clients must send (default: no key is needed)",
    ),
    argument(
        "--spool",
        type=Path,
        metavar="DIR",
        help="folder for uploads until they are decoded (default: the system's temporary folder)",
    ),
    argument(
        "--queue",
        type=whole(1, 10_000),
        default=64,
        metavar="N",
        help="largest number of predictions in progress at once (default: 64)",
    ),
    argument(
        "--pack-frames",
        type=whole(1, 65_536),
        default=64,
        metavar="N",
        help="largest number of frames in a forward pass (default: 64)",
    ),
    argument(
        "--wait-ms",
        type=whole(0, 60_000),
        default=5,
        metavar="MS",
        help="time that a file waits for others to share a forward pass (default: 5)",
    ),
    argument(
        "--max-mb", type=whole(1, 1_000_000), default=64, metavar="MB", help="largest size of an upload (default: 64)"
    ),
    argument("--max-seconds", type=whole(1, DAY_S), default=600, metavar="S", help="longest video (default: 600)"),
    argument("--max-megapixels", type=whole(1, 100), default=64, metavar="MP", help="largest picture (default: 64)"),
    argument(
        "--upload-seconds",
        type=whole(1, DAY_S),
        default=30,
        metavar="S",
        help="time limit for an upload to arrive (default: 30)",
    ),
    argument(
        "--decode-seconds",
        type=whole(1, DAY_S),
        default=10,
        metavar="S",
        help="time limit for decoding a file (default: 10)",
    ),
    argument(
        "--deadline",
        type=whole(1, DAY_S),
        default=30,
        metavar="S",
        help="time limit from upload to answer (default: 30)",
    ),
    argument(
        "--engine",
        choices=COMPUTE_ENGINES,
        default="eager",
        help="eager: torch; compiled: torch's compiler; onnx, onnx-int8: onnxruntime on the CPU, in float32 or 8-bit"
        " integers (default: eager)",
    ),
    argument(
        "--calibration",
        nargs="+",
        default=[],
        metavar="FILE",
        help="videos and images on which a new engine is compared with eager (default: generated clips)",
    ),
    workers_option(whole(-1, 1024)),
    DEVICE,
    computes=True,
)
def serve(args: Namespace) -> int:
    from cover.inference.predict import find_inputs
    from cover.serve.middleware import MEGABYTE, Batching, Limits
    from cover.serve.server import ServerOptions, serve

    limits = Limits(
        body=args.max_mb * MEGABYTE,
        upload_s=args.upload_seconds,
        seconds=args.max_seconds,
        pixels=args.max_megapixels * 1_000_000,
        decode_s=args.decode_seconds,
        deadline_s=args.deadline,
        queue=args.queue,
    )
    options = ServerOptions(args.host, args.port, args.page, args.key_file, args.spool, tuple(args.frame))
    files = find_inputs(args.calibration, sys.stdin.buffer) if args.calibration else []
    serve(
        args.names,
        options,
        limits,
        Batching(args.pack_frames, args.wait_ms / 1000),
        max(1, count_workers(args)),
        args.device,
        args.engine,
        files,
    )
    return 0


@command(
    "import-weights",
    "convert a checkpoint of another library into a release",
    "cover import-weights facebook/timesformer-base-finetuned-k400 --out k400 --head kinetics400",
    argument("source", metavar="SOURCE", help="weights of another library: a file, folder or Hub id (cover starts)"),
    argument("--out", type=Path, required=True, metavar="DIR", help="a new folder for the release"),
    argument(
        "--backbone",
        choices=["timesformer", "vit"],
        help="family that an image ViT becomes, which both can be (default: timesformer)",
    ),
    argument("--size", type=whole(1, 16384), metavar="S", help="resize the position embedding for images of S px"),
    argument("--frames", type=whole(1, 4096), metavar="T", help="resize the time embedding for clips of T frames"),
    argument(
        "--attention",
        choices=["divided", "joint", "space", "late", "dot_product"],
        help="attention over time that an image network gets (default: divided for timesformer, space for vit)",
    ),
    argument(
        "--attention-heads",
        type=whole(1),
        metavar="N",
        help="number of attention heads, if the source has no configuration (default: width / 64)",
    ),
    argument(
        "--time",
        choices=["additive", "rotary", "none"],
        help="position encoding in time (default: rotary where an image network gets divided attention, additive for"
        " TimeSformers)",
    ),
    argument(
        "--resize",
        choices=["bicubic", "nearest"],
        help="interpolation of embeddings (default: bicubic for image ViTs, nearest for TimeSformers)",
    ),
    argument("--head", metavar="NAME", help="name for its classifier; none leaves it out (default: the source's name)"),
    argument("--classes", type=Path, metavar="FILE", help="file with the class names, one per line"),
    argument("--text", action="store_true", help="also import the text network of a CLIP or SigLIP 2"),
    argument("--sampling", metavar="HOW", help="clip sampling: dense@0.27 (interval in seconds), segments or whole"),
    argument(
        "--unused",
        action="append",
        default=[],
        metavar="TENSOR",
        help="leave out this tensor, or all tensors whose names begin so (may be repeated)",
    ),
    argument(
        "--key",
        metavar="KEY",
        help="key of the weights in a pickled file, as in state_dict or student.backbone (default: the known keys, an"
        " average of the weights first)",
    ),
    json_option("write what became of every tensor as JSON"),
)
def import_weights(args: Namespace) -> int:
    from cover.model.starts.conventions import ImportOptions
    from cover.model.starts.importing import import_weights, print_report

    sizes = ("size", "frames", "attention", "attention_heads", "time", "resize", "head", "classes", "sampling", "key")
    names = ("backbone", "text", *sizes)
    options = ImportOptions(**{name: getattr(args, name) for name in names}, unused=tuple(args.unused))
    report = import_weights(args.source, args.out, options)

    def show() -> None:
        print_report(report)
        print(args.out)

    give(report, args.json, show)
    if report["head"]:
        say_next("predict", args.out, "clip.mp4")
    elif args.text:
        say_next("predict", args.out, "clip.mp4", "--classes", "archery, bowling")
    else:
        say_next("train", "RECIPE", "--start.checkpoint", args.out)
    return 0


@command(
    "export",
    "convert a checkpoint for another library",
    "cover export runs/cotrain --format onnx --out cotrain.onnx\n"
    "  cover export runs/cotrain --format transformers --head ssv2 --out ssv2_transformers",
    checkpoint("checkpoint"),
    argument(
        "--format",
        choices=["onnx", "torch", "transformers", "space"],
        required=True,
        help="onnx: one model for onnxruntime; torch: a .pt2 file for torch.export.load; transformers: a folder for"
        " TimesformerForVideoClassification; space: a folder for a Space of the Hub, a container with the page",
    ),
    argument(
        "--head",
        metavar="NAME",
        action="append",
        default=[],
        help="only this head; may be repeated, except for transformers (default: the one that cover fit or"
        " cover add made, else all; transformers: the only head)",
    ),
    argument(
        "--out",
        type=Path,
        required=True,
        metavar="PATH",
        help="a new file NAME.onnx or NAME.pt2, or a new folder for transformers or space",
    ),
    argument(
        "--frames",
        type=whole(1, 4096),
        metavar="T",
        help="onnx, torch: frames in a clip; 1 for images (default: as in training)",
    ),
    argument("--int8", action="store_true", help="onnx: weight matrices in 8-bit integers, a quarter of the size"),
)
def export(args: Namespace) -> int:
    from cover.console import say
    from cover.inference.export import export_onnx, export_torch, export_transformers

    if args.int8 and args.format != "onnx":
        raise UserError(f"--int8: goes with --format onnx, not {args.format}")
    if args.format == "space":
        return _export_space(args)
    if args.format == "transformers":
        _check_for_transformers(args)
        export_transformers(args.checkpoint, args.head[0] if args.head else None, args.out)
        usage = f'transformers.TimesformerForVideoClassification.from_pretrained("{args.out}")'
    elif args.format == "torch":
        export_torch(args.checkpoint, args.head, args.out, args.frames)
        usage = f'torch.export.load("{args.out}").module()'
    else:
        difference = export_onnx(args.checkpoint, args.head, args.out, args.frames, args.int8)
        say(f"on clips of noise its probabilities differ from torch's by at most {difference:.1g}")
        usage = f'onnxruntime.InferenceSession("{args.out}")'
    print(args.out)
    say(f"next, in Python: {usage}")
    return 0


def _export_space(args: Namespace) -> int:
    from cover.serve.space import export_space

    for name in ("head", "frames"):
        if getattr(args, name):
            raise UserError(f"--{name}: cannot go with --format space, which serves the whole model")
    export_space(args.checkpoint, args.out)
    print(args.out)
    say_next("push", args.checkpoint, "OWNER/NAME", "--space")
    return 0


def _check_for_transformers(args: Namespace) -> None:
    if len(args.head) > 1:
        raise UserError("--head: transformers takes one head; export each into a folder of its own")
    if args.frames:
        raise UserError("--frames: goes with --format onnx or torch; transformers takes clips as trained")
