"""Export to ONNX through torch.export, optionally with 8-bit weights, and a comparison with onnxruntime."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cover.errors import UserError, install
from cover.inference.export.graph import (
    INPUT,
    METADATA_KEY,
    Classifier,
    ExportRequest,
    FeatureGraph,
    check_file,
    data_of,
    load_heads,
    metadata_of,
    quiet,
    text_of,
    trace,
    write_then_rename,
)

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
COMPARED = (1, 3)  # clips in a batch; a graph may be right for one clip and wrong for several
LARGEST_DIFFERENCE = 1e-4  # of a probability
LARGEST = 1_900_000_000  # bytes of weights in one file; the limit of an ONNX file is 2 GiB


def export_onnx(
    checkpoint: str | Path, heads: Sequence[str], out: Path, frames: int | None = None, int8: bool = False
) -> float:
    """Write `heads` (empty: as `load_heads`) as outputs of one ONNX model, with its metadata.

    `frames`: frames of a clip (default: as in training; 1 for images). `int8`: the matrices of linear layers become
    8-bit integers, and activations are rounded at run time. Weights of more than 1.9 GB go to a second file,
    `OUT.data`.

    Returns the largest difference of a probability from torch on random clips. Raises `UserError`, and writes nothing,
    if a probability is not finite or, without `int8`, if the difference is more than 1e-4.
    """
    check_packages("--format onnx")
    check_file(out, ".onnx")
    request = load_heads(checkpoint, heads)
    _check_names(request)
    length = frames or request.model.frames
    metadata = text_of(metadata_of(request, length, "int8" if int8 else "float32"))
    classifier = Classifier(request.model, request.heads, length)
    with quiet(), write_then_rename(out) as path:
        if int8:
            save_rounded(classifier, path, metadata)
        else:
            save_graph(classifier, path, metadata)
        difference = _difference(classifier, path, out)
        if not int8 and difference > LARGEST_DIFFERENCE:
            raise UserError(
                f"{out}: not written: on noise its probabilities differ from torch's by {difference:.1g},"
                f" more than {LARGEST_DIFFERENCE:g}; --format torch does not need this conversion"
            )
        return difference


def check_packages(option: str) -> None:
    """Raise `UserError`, which begins with `option`, if a package of the extra `export` is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{option}: needs the package {missing[0]}: {install('export')}")


def _check_names(request: ExportRequest) -> None:
    if any(head.name == INPUT for head in request.heads):
        raise UserError(
            f'{request.folder}: the head "{INPUT}" has the name of the input;'
            " export the others with --head, or use --format torch"
        )


def save_graph(graph: FeatureGraph, path: Path, metadata: str | None = None, opset: int | None = None) -> None:
    """Write an ONNX model of a graph, with `metadata`. `opset`: the version of ONNX's operators (None: torch's)."""
    program = torch.onnx.export(
        trace(graph),
        dynamo=True,
        input_names=[INPUT],
        dynamic_shapes={INPUT: {0: "batch"}},
        verbose=False,
        opset_version=opset,
    )
    assert program is not None
    _rename(program.model, graph.outputs)
    if metadata is not None:
        program.model.metadata_props[METADATA_KEY] = metadata
    size = sum(value.numel() * value.element_size() for value in graph.state_dict().values())
    program.save(path, external_data=size > LARGEST)


def save_rounded(
    graph: FeatureGraph, path: Path, metadata: str | None = None, opset: int | None = None, bits: int = 7
) -> None:
    """As `save_graph`, with matrices of 8-bit integers, of which `bits` are used.

    With 7 bits, the sum of two products fits into 16 bits, as CPUs without VNNI need it.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    float32 = path.with_name(f"float32-{path.name}")
    save_graph(graph, float32, metadata, opset)
    matrices = ["MatMul"]
    quantize_dynamic(float32, path, matrices, per_channel=True, reduce_range=bits < 8, weight_type=QuantType.QInt8)
    for file in (float32, data_of(float32)):
        file.unlink(missing_ok=True)


def _rename(model: Any, heads: Sequence[str]) -> None:
    """Give the outputs the names of their heads.

    All other values get a dot before their names, because no head's name begins with a dot. The exporter's notes on the
    code are removed, because they contain paths of this machine.
    """
    outputs = model.graph.outputs
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.name = f".{value.name}"
    for value in list(model.graph.initializers.values()):
        value.name = f".{value.name}"
    for value, head in zip(outputs, heads, strict=True):
        value.name = head


def _difference(classifier: Classifier, path: Path, out: Path) -> float:
    """The largest difference of a probability between torch and the ONNX model in `path`, on random clips.

    Raises `UserError`, with the name `out`, if a probability is not finite, because NaN hides a difference.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = list(classifier.outputs)
    difference = 0.0
    for count in COMPARED:
        clips = classifier.example(count)
        with torch.inference_mode():
            expected = classifier(clips)
        for name, array in zip(names, session.run(names, {INPUT: clips.numpy()}), strict=True):
            result = torch.from_numpy(array)
            for owner, probabilities in (("the checkpoint's", expected[name]), ("its", result)):
                if not probabilities.isfinite().all():
                    raise UserError(f"{out}: not written: on noise {owner} probabilities of {name} are not all finite")
            difference = max(difference, float((expected[name] - result).abs().max()))
    return difference
