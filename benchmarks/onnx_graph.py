"""The benchmark's own ONNX files as model files, where `convserve.convert_onnx` is not there yet.

It knows no more than the nodes that `benchmarks.models` writes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from convserve import layers, model_file
from convserve.graph import Graph

Weights = list[NDArray[np.float32]]


def convert(source: Path, target: Path) -> None:
    onnx_graph = onnx.load(source).graph
    weights = {w.name: numpy_helper.to_array(w) for w in onnx_graph.initializer}
    channels, height, width = (
        d.dim_value for d in onnx_graph.input[0].type.tensor_type.shape.dim[1:]
    )
    graph = Graph((channels, height, width))
    values, params = {"input": graph.input_name}, {}
    for node in onnx_graph.node:
        given = [weights[name] for name in node.input if name in weights]
        inputs = [values[name] for name in node.input if name in values]
        name = graph.add(_operator(node, given), *inputs, name=node.name)
        values[node.output[0]] = name
        if node.op_type != "Clip":
            keys = ("weight", "bias", "running_mean", "running_var")
            params.update({f"{name}.{key}": w.copy() for key, w in zip(keys, given, strict=False)})
    model_file.save(target, model_file.ModelFile(graph, params))


def _operator(node: onnx.NodeProto, weights: Weights) -> layers.Operator:
    a = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    padding = a["pads"][0] if "pads" in a else 0
    match node.op_type:
        case "Conv":
            return layers.Conv2d(
                len(weights[0]), a["kernel_shape"][0], a["strides"][0], padding,
                groups=a["group"], bias=len(weights) > 1, rounding="floor",
            )  # fmt: skip
        case "Gemm":
            return layers.Affine(len(weights[0]))
        case "BatchNormalization":
            return layers.BatchNorm(eps=float(np.float32(a["epsilon"])))
        case "MaxPool":
            return layers.MaxPool2d(
                a["kernel_shape"][0], a["strides"][0], padding, rounding="floor"
            )
        case "Relu":
            return layers.ReLU()
        case "Clip":
            return layers.Clip(*(float(bound) for bound in weights))
        case "GlobalAveragePool":
            return layers.GlobalAvgPool2d()
        case "Add":
            return layers.Add()
        case "Flatten":
            return layers.Flatten()
        case "Softmax":
            return layers.Softmax()
        case other:
            raise ValueError(f"{node.name}: no operator for {other}")
