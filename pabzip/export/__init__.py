"""Export to ONNX: one dense file that any ONNX runtime reads, checked against torch first."""

from __future__ import annotations

from pabzip.export.build import BuiltModel, ExportReport, OnnxOptions, build_onnx
from pabzip.export.onnx import export_onnx, export_ticket

__all__ = [
    "BuiltModel",
    "ExportReport",
    "OnnxOptions",
    "build_onnx",
    "export_onnx",
    "export_ticket",
]
