"""An ONNX file to a model file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, ValueInfoProto

from convserve.convert.finish import Params, build_graph, left_over, lowered
from convserve.convert.layout import Layout
from convserve.convert.tensors import type_name
from convserve.convert.values import Feature, Layer, Layers, Origin, Unsupported
from convserve.convert.views import image, in_order
from convserve.convert.walk import FAULTS, Walk
from convserve.errors import (
    ConversionError,
    ConvserveError,
    ModelFileError,
    UnsupportedOperatorError,
)
from convserve.graph import Graph
from convserve.graph import layers as ops
from convserve.graph.graph import MAX_ELEMENTS
from convserve.model_file import ModelFile, Preprocessing, save

__all__ = ["convert_model", "convert_onnx", "read_onnx"]

MAX_SIDE = 1 << 20
TRIAL_BATCHES = (5, 7)  # a size that differs with them is the batch's
_CHANNELS = (1, 3, 4)  # of pictures


def convert_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    input_shape: tuple[int, int, int] | None = None,
) -> ModelFile:
    """As `convserve.convert_onnx`."""
    path = Path(source)
    model = read_onnx(path)
    model_file = convert_model(
        model, path.parent, labels=labels, preprocessing=preprocessing, input_shape=input_shape
    )
    model_file.provenance.setdefault("source", path.name)
    if target is not None:
        try:
            save(target, model_file)
        except ModelFileError as error:
            raise ConversionError(str(error)) from error
    return model_file


def read_onnx(path: Path) -> ModelProto:
    """The file as a message; ConversionError if it is none."""
    model = ModelProto()
    try:
        if not path.is_file():
            fault = "it is a folder" if path.is_dir() else "there is no such file"
            raise ConversionError(f"{path}: {fault}")
        model.ParseFromString(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: {error}") from None
    except (DecodeError, RecursionError, MemoryError) as error:
        raise ConversionError(f"{path}: it is no ONNX file, or damaged: {error}") from None
    if not model.HasField("graph") or not model.graph.node:
        raise ConversionError(f"{path}: it is no ONNX file: it has no graph")
    return model


def convert_model(
    model: ModelProto,
    folder: Path | None = None,
    *,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    input_shape: tuple[int, int, int] | None = None,
) -> ModelFile:
    """As `convert_onnx`, of a message; `folder` holds the files with its external data."""
    try:
        graph, params = _converted(model, folder, input_shape)
        said_labels, said_preprocessing, provenance = _metadata(model)
    except ConversionError:
        raise
    except FAULTS as error:  # names that are no text, and the like
        detail = " ".join(str(error).split()) or type(error).__name__
        raise ConversionError(f"the model is malformed: {detail:.300}") from error
    return ModelFile(
        graph,
        params,
        tuple(labels) if labels is not None else said_labels,
        preprocessing if preprocessing is not None else said_preprocessing,
        provenance,
    )


def _converted(
    model: ModelProto, folder: Path | None, input_shape: tuple[int, int, int] | None
) -> tuple[Graph, Params]:
    given = _the_input(model)
    shape, batch = _input_shape(given, input_shape)
    attempts = [_input_feature(shape, last) for last in _channels_last(shape, input_shape)]
    for x in attempts[:-1]:
        with suppress(UnsupportedOperatorError):
            return _convert(model, folder, given.name, x, batch, input_shape is None)
    return _convert(model, folder, given.name, attempts[-1], batch, input_shape is None)


def _convert(
    model: ModelProto,
    folder: Path | None,
    input_name: str,
    x: Feature,
    batch: tuple[int, ...],
    declared: bool,
) -> tuple[Graph, Params]:
    """The graph and its parameters, with the image in this layout."""
    build = Layers(x.layer.shape)
    walk = Walk(model, build, batch, folder)
    values = walk.run(model.graph, {input_name: Feature(build.input, x.layout)})
    outputs = []
    for output, value in zip(model.graph.output, values, strict=True):
        build.origin = None
        if not isinstance(value, Feature):
            raise ConversionError(f"the output {output.name!r} does not depend on each image alone")
        if declared:
            _check_declared(output, value.shape)
        try:
            outputs.append((output.name, _output(build, value)))
        except Unsupported as error:
            walk.add_unsupported(Origin(output.name, "output", output.name), str(error))
    for layer, why in left_over(layer for _, layer in outputs):
        walk.add_unsupported(layer.origin or Origin("", "", ""), why)
    walk.check()
    try:
        final = lowered(build, [layer for _, layer in outputs])
        names = [name for name, _ in outputs]
        return build_graph(build.input, input_name, list(zip(names, final, strict=True)))
    except ConversionError:
        raise
    except ConvserveError as error:
        raise ConversionError(str(error)) from error


def _the_input(model: ModelProto) -> ValueInfoProto:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs: list[ValueInfoProto] = [
        value for value in model.graph.input if value.name not in weights
    ]
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs)
        raise ConversionError(
            f"the model has {len(inputs)} inputs ({names:.300}); it must have one, the image"
        )
    if not model.graph.output:
        raise ConversionError("the model has no outputs")
    return inputs[0]


def _input_shape(
    value: ValueInfoProto, wanted: Sequence[int] | None
) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """The input's sizes as ONNX has them, without the batch; and the batch sizes to try."""
    name = f"the input {value.name!r:.200}"
    if not value.type.HasField("tensor_type"):
        raise ConversionError(f"{name} is no tensor")
    tensor = value.type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        raise ConversionError(f"{name} must be float32, it is {type_name(tensor.elem_type)}")
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
    if tensor.HasField("shape") and len(dims) != 4:
        raise ConversionError(f"{name} must be images with 4 axes, it has {len(dims)}")
    dims = dims or [0, 0, 0, 0]
    if any(size < -1 or size > MAX_SIDE for size in dims):
        raise ConversionError(f"{name} has an impossible shape {dims}")
    if wanted is not None:
        given = tuple(wanted)
        if len(given) != 3 or any(
            type(size) is not int or not 0 < size <= MAX_SIDE for size in given
        ):
            raise ConversionError(f"input_shape must be (channels, height, width), got {given}")
        fixed = dims[1:]
        orders = [given, (given[1], given[2], given[0])]
        fitting = [
            order
            for order in orders
            if all(size <= 0 or size == chosen for size, chosen in zip(fixed, order, strict=True))
        ]
        if not fitting:
            raise ConversionError(f"{name} has the sizes {fixed}, input_shape says {given}")
        dims[1:] = fitting[0]
    if min(dims[1:]) <= 0:
        raise ConversionError(
            f"{name} leaves its height and width open: give input_shape (--input-shape 3,224,224)"
        )
    c, h, w = dims[1:]
    if prod((c, h, w)) > MAX_ELEMENTS:
        raise ConversionError(f"{name} has an impossible shape {dims}")
    return (c, h, w), (dims[0],) if dims[0] > 0 else TRIAL_BATCHES


def _channels_last(shape: tuple[int, int, int], wanted: Sequence[int] | None) -> list[bool]:
    """Which orders of the axes to try: what the user says, or first what looks like a picture."""
    if wanted is not None:
        return [tuple(wanted) != shape]
    c, h, w = shape
    if w in _CHANNELS and min(c, h) > max(_CHANNELS):
        return [True, False]
    return [False]


def _input_feature(shape: tuple[int, int, int], last: bool) -> Feature:
    """The input as a layer [C, H, W], its channels first or last in the ONNX tensor."""
    if not last:
        return Feature.of(Layer(None, (), shape, {}))
    layer = Layer(None, (), (shape[2], shape[0], shape[1]), {})
    return Feature(layer, Layout.natural(layer.shape).transpose((1, 2, 0)))


def _output(build: Layers, value: Feature) -> Layer:
    """The layer whose value is this output as it is: an image or a row."""
    if len(value.shape) == 3:
        layer = image(build, value)
    elif len(value.shape) == 1:
        layer = in_order(build, value)
    else:
        raise Unsupported(f"it has {len(value.shape) + 1} axes: an output must have 2 or 4")
    # An output must be a layer of the graph, which the image itself is not.
    return build.add(ops.Dropout(0.0), layer) if layer is build.input else layer


def _check_declared(output: ValueInfoProto, shape: tuple[int, ...]) -> None:
    tensor = output.type.tensor_type
    if not tensor.HasField("shape"):
        return
    dims = [dim.dim_value if dim.HasField("dim_value") else 0 for dim in tensor.shape.dim]
    if len(dims) != len(shape) + 1 or any(
        size > 0 and size != found for size, found in zip(dims[1:], shape, strict=True)
    ):
        raise ConversionError(
            f"the output {output.name!r:.200} is declared as {dims}, its nodes make {('N', *shape)}"
        )


def _metadata(model: ModelProto) -> tuple[tuple[str, ...] | None, Preprocessing | None, Any]:
    """Labels, preprocessing and provenance that `export_onnx` put into the file."""
    found = {entry.key: entry.value for entry in model.metadata_props}
    try:
        said = {
            key: json.loads(found[f"convserve.{key}"])
            for key in ("labels", "preprocessing", "provenance")
            if f"convserve.{key}" in found
        }
        labels = said.get("labels")
        preprocessing = said.get("preprocessing")
        provenance = said.get("provenance", {})
        if labels is not None and not isinstance(labels, list):
            raise ValueError("labels must be a list")
        if not isinstance(provenance, dict):
            raise ValueError("provenance must be an object")
        return (
            None if labels is None else tuple(labels),
            None if preprocessing is None else Preprocessing.from_dict(preprocessing),
            provenance,
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise ConversionError(f"its metadata of convserve are malformed: {error}") from None
