"""ONNX models in and out; the onnx package (`pip install "convserve[onnx]"`) reads and writes them.

importer   file → layers → model file; walk visits the nodes, nodes_* map them
layout     transposes and reshapes, which move nothing until a layer needs it
patterns   operators that are written out as several nodes
fold       what is known now: weights and shapes
finish     layers → Graph
exporter   model file → ONNX
"""

from __future__ import annotations

try:
    import onnx  # noqa: F401
except ImportError as error:
    raise ImportError('ONNX models need the onnx package: pip install "convserve[onnx]"') from error

from convserve.convert.exporter import export_onnx
from convserve.convert.importer import convert_onnx
from convserve.convert.verify import Difference, verify

__all__ = ["Difference", "convert_onnx", "export_onnx", "verify"]
