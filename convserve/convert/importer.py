"""An ONNX file to a model file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from onnx import ModelProto, ValueInfoProto

from convserve.convert.finish import Params, build_graph, left_over, lowered
from convserve.convert.inputs import Input, InputShape, read_inputs
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
from convserve.model_file import ModelFile, Preprocessing, save
from convserve.presets import OPTIONS, preprocessing_for

__all__ = ["convert_model", "convert_onnx", "read_onnx"]


def convert_onnx(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    labels: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
    preset: str | None = None,
    input_shape: InputShape | None = None,
    layout: str | None = None,
    **options: Any,
) -> ModelFile:
    """As `convserve.convert_onnx`."""
    unknown = [name for name in options if name not in OPTIONS]
    if unknown:
        raise TypeError(f"convert_onnx has no option {unknown[0]!r}; it has: {', '.join(OPTIONS)}")
    path = Path(source)
    model = read_onnx(path)
    model_file = convert_model(
        model, path.parent, labels=labels, preprocessing=preprocessing, input_shape=input_shape,
        layout=layout,
    )  # fmt: skip
    model_file.provenance.setdefault("source", path.name)
    if preset is not None or any(value is not None for value in options.values()):
        if len(model_file.graph.inputs) > 1:
            raise ConversionError("the model has several inputs: preprocessing fits none alone")
        try:
            shape = model_file.graph.input_shape
            model_file.preprocessing = preprocessing_for(shape, preset, options)
        except (ConvserveError, TypeError) as error:
            raise ConversionError(f"the preprocessing does not fit: {error}") from error
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
    input_shape: InputShape | None = None,
    layout: str | None = None,
) -> ModelFile:
    """As `convert_onnx`, of a message; `folder` holds the files with its external data."""
    try:
        graph, params, inputs = _converted(model, folder, input_shape, layout)
        said_labels, said_preprocessing, provenance = _metadata(model)
        if last := {given.name: "nhwc" for given in inputs if given.last}:
            provenance["source_layout"] = last
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
    model: ModelProto, folder: Path | None, input_shape: InputShape | None, layout: str | None
) -> tuple[Graph, Params, list[Input]]:
    inputs, batch = read_inputs(model, input_shape, layout)
    if not model.graph.output:
        raise ConversionError("the model has no outputs")
    declared = input_shape is None
    try:
        return *_convert(model, folder, inputs, batch, declared), inputs
    except UnsupportedOperatorError:
        other = [replace(i, last=not i.last) if i.unsure else i for i in inputs]
        if other == inputs:
            raise
        # Where neither layout can be had, what the likelier one lacks is what counts.
        with suppress(ConversionError):
            return *_convert(model, folder, other, batch, declared), other
        raise


def _convert(
    model: ModelProto,
    folder: Path | None,
    inputs: Sequence[Input],
    batch: tuple[int, ...],
    declared: bool,
) -> tuple[Graph, Params]:
    """The graph and its parameters, with the images in this layout."""
    build = Layers([given.our_shape for given in inputs])
    walk = Walk(model, build, batch, folder)
    given = zip(inputs, build.inputs, strict=True)
    values = walk.run(model.graph, {i.name: i.feature(layer) for i, layer in given})
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
        images = {i.name: layer for i, layer in zip(inputs, build.inputs, strict=True)}
        return build_graph(images, list(zip(names, final, strict=True)))
    except ConversionError:
        raise
    except ConvserveError as error:
        raise ConversionError(str(error)) from error


def _output(build: Layers, value: Feature) -> Layer:
    """The layer whose value is this output as it is: an image or a row."""
    if len(value.shape) == 3:
        layer = image(build, value)
    elif len(value.shape) == 1:
        layer = in_order(build, value)
    else:
        raise Unsupported(f"it has {len(value.shape) + 1} axes: an output must have 2 or 4")
    # An output must be a layer of the graph, which an input itself is not.
    return build.add(ops.Dropout(0.0), layer) if layer.op is None else layer


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
