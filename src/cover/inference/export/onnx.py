"""Export to ONNX through torch.export, on request with 8-bit weights, checked with onnxruntime."""

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
COMPARED = (1, 3)  # clips in a batch; a graph may be right for one and wrong for several
LARGEST_DIFFERENCE = 1e-4  # of a probability
LARGEST = 1_900_000_000  # bytes of weights in one file; ONNX files end at 2 GiB


def export_onnx(
    checkpoint: str | Path, heads: Sequence[str], out: Path, frames: int | None = None, int8: bool = False
) -> float:
    """Write the heads called `heads`, or all, as outputs of one ONNX model, with what has to be known in its metadata.

    `frames`: of a clip (default: as trained; 1 for images). `int8`: the matrices of linear layers as 8-bit integers,
    activations rounded as they come. Weights above 1.9 GB lie beside it as `OUT.data`. Returns the largest difference
    of a probability from torch, on noise. Raises `UserError`, and writes nothing, also where a probability is not
    finite or, but for `int8`, differs by more than 1e-4.
    """
    _check_packages()
    check_file(out, ".onnx")
    choice = load_heads(checkpoint, heads)
    _check_names(choice)
    length = frames or choice.model.frames
    record = text_of(metadata_of(choice, length, "int8" if int8 else "float32"))
    classifier = Classifier(choice.model, choice.heads, length)
    with quiet(), write_then_rename(out) as path:
        if int8:
            whole = path.with_name("float32.onnx")
            _save(classifier, record, whole)
            _round(whole, path)
            whole.unlink()
            data_of(whole).unlink(missing_ok=True)
        else:
            _save(classifier, record, path)
        apart = _difference(classifier, path, out)
        if not int8 and apart > LARGEST_DIFFERENCE:
            raise UserError(
                f"{out}: not written: on noise its probabilities differ from torch's by {apart:.1g}, more than {LARGEST_DIFFERENCE:g}; "
                "--format torch needs no such translation"
            )
        return apart


def _check_packages() -> None:
    absent = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        raise UserError(f"--format onnx: needs the package {absent[0]}: {install('export')}")


def _check_names(choice: ExportRequest) -> None:
    if any(head.name == INPUT for head in choice.heads):
        raise UserError(
            f'{choice.folder}: the head "{INPUT}" has the name of the input; export the others with --head, or use --format torch'
        )


def _save(classifier: Classifier, text: str, path: Path) -> None:
    program = torch.onnx.export(
        trace(classifier), dynamo=True, input_names=[INPUT], dynamic_shapes={INPUT: {0: "batch"}}, verbose=False
    )
    assert program is not None
    _name(program.model, [head.name for head in classifier.chosen])
    program.model.metadata_props[METADATA_KEY] = text
    size = sum(value.numel() * value.element_size() for value in classifier.state_dict().values())
    program.save(path, external_data=size > LARGEST)


def _name(model: Any, heads: Sequence[str]) -> None:
    """Outputs are called as their heads, and nothing else may be: a dot, which no head has, leads all other names. What
    the exporter notes of the code, paths of this machine among it, is left out.
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


def _round(whole: Path, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Weights of 7 bits: on CPUs without VNNI sums of two products of 8 bits would not fit their 16.
    quantize_dynamic(
        whole, path, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True, weight_type=QuantType.QInt8
    )


def _difference(classifier: Classifier, path: Path, out: Path) -> float:
    """The largest one of a probability. Raises `UserError`, as of `out`, where one is not finite: no comparison would
    tell.
    """
    import onnxruntime

    session, names = (
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]),
        [head.name for head in classifier.chosen],
    )
    apart = 0.0
    for count in COMPARED:
        clips = classifier.example(count)
        with torch.inference_mode():
            wanted = classifier(clips)
        for name, result in zip(names, map(torch.from_numpy, session.run(names, {INPUT: clips.numpy()})), strict=True):
            for whose, probabilities in (("the checkpoint's", wanted[name]), ("its", result)):
                if not probabilities.isfinite().all():
                    raise UserError(f"{out}: not written: on noise {whose} probabilities of {name} are not all finite")
            apart = max(apart, float((wanted[name] - result).abs().max()))
    return apart
