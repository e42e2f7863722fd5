"""Export of a checkpoint's heads to ONNX, torch.export and transformers.

cover export runs/cotrain --format onnx --out cotrain.onnx
cover export runs/cotrain --format torch --head ssv2 --out ssv2.pt2
cover export runs/cotrain --format transformers --head ssv2 --out ssv2_transformers
"""

from cover.inference.export.graph import export_torch
from cover.inference.export.onnx import export_onnx
from cover.inference.export.transformers import export_transformers

__all__ = ["export_onnx", "export_torch", "export_transformers"]
