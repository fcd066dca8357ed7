"""ONNX models in and out; the onnx package (`pip install "convserve[onnx]"`) reads and writes them.

    importer   file → layers → model file; walk visits the nodes, nodes_* map them
    inputs     sizes, batch and layout of the inputs
    layout     transposes and reshapes, which move nothing until a layer needs it
    patterns   operators that are written out as several nodes
    fold       what is known now: weights and shapes
    finish     layers → Graph
    exporter   model file → ONNX

This module can be imported without onnx; its functions say what is missing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from convserve.convert.verify import Difference, verify
from convserve.errors import ConversionError
from convserve.model_file import ModelFile, Preprocessing

__all__ = ["Difference", "convert_onnx", "export_onnx", "verify"]


def convert_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    preset: str | None = None,
    input_shape: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
    layout: str | None = None,
    **options: Any,
) -> ModelFile:
    """Converts an ONNX image classifier, and writes it to `target` (an .npz) if that is given.

    labels: one name a class. preprocessing: how pictures become the input; both override what the
    file itself says (as one that `export_onnx` wrote does). preset and options: the preprocessing
    by the name of a recipe (docs/preprocessing.md) and by size, resize, interpolation, exif,
    colour, scale, mean, std, as `Preprocessing` has them. input_shape: (channels, height, width),
    for a model that leaves its height and width open; of several inputs a dict of them by name.
    layout: "nchw" or "nhwc", how the ONNX model has its images, where that can't be told by itself.

    The model takes float32 [N, C, H, W] with any N, also where the ONNX model has a fixed batch or
    takes [N, H, W, C]. Of several inputs each is images or rows [N, F], images first. Inputs and
    outputs keep their ONNX names.

    Errors: ConversionError for a file that is malformed or does not fit, naming the node;
    UnsupportedOperatorError lists every node that has no equivalent. Nothing is written then.
    """
    _need_onnx()
    from convserve.convert import importer

    return importer.convert_onnx(
        source,
        target,
        labels=labels,
        preprocessing=preprocessing,
        preset=preset,
        input_shape=input_shape,
        layout=layout,
        **options,
    )


def export_onnx(model_file: ModelFile, target: str | os.PathLike[str]) -> None:
    """Writes the model as ONNX, atomically; any runtime of opset 17 runs it.

    Errors: ConversionError where it is too large for one ONNX file (2 GB) or can't be written.
    """
    _need_onnx()
    from convserve.convert import exporter

    exporter.export_onnx(model_file, target)


def _need_onnx() -> None:
    if find_spec("onnx") is None:
        raise ConversionError('ONNX models need the onnx package: pip install "convserve[onnx]"')
