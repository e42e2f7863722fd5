"""In which other libraries can a model be used? A checkpoint's heads, written in their own formats.

cover export runs/cotrain --format onnx --out cotrain.onnx
cover export runs/cotrain --format torch --head ssv2 --out ssv2.pt2
cover export runs/cotrain --format transformers --head ssv2 --out ssv2_transformers
"""

from cover.inference.export.onnx_file import export_onnx
from cover.inference.export.torch_file import export_torch
from cover.inference.export.transformers_folder import export_transformers

__all__ = ["export_onnx", "export_torch", "export_transformers"]
