"""A model file to an ONNX file: opset 17, any batch size, what the file says in its metadata.

ONNX has no rounding "error": a size that divides is the same with "floor". Inference alone is
exported, so a dropout is left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from convserve._npz import NpzFault, atomic_file
from convserve.convert.values import Array
from convserve.errors import ConversionError
from convserve.graph import Graph, Node, layers
from convserve.graph.layers import Shape
from convserve.kernels._arguments import Sides, padding_sides
from convserve.model_file import ModelFile

__all__ = ["OPSET", "export_onnx", "to_onnx"]

OPSET = 17
MAX_BYTES = 2**31 - 1  # of one protobuf message


def export_onnx(model_file: ModelFile, target: str | os.PathLike[str]) -> None:
    """As `convserve.export_onnx`."""
    model = to_onnx(model_file)
    path = Path(target)
    try:
        with atomic_file(path) as file:
            file.write(model.SerializeToString())
    except (OSError, NpzFault) as error:
        raise ConversionError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def to_onnx(model_file: ModelFile) -> ModelProto:
    """The model as an ONNX message that the checker accepts."""
    size = sum(array.nbytes for array in model_file.params.values())
    if size > MAX_BYTES - (16 << 20):
        raise ConversionError(f"its weights have {size} bytes, over ONNX's limit of 2 GB a file")
    graph = _Export(model_file.graph, model_file.params).run()
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
        producer_name="convserve",
    )
    said: dict[str, Any] = {
        "labels": None if model_file.labels is None else list(model_file.labels),
        "preprocessing": model_file.preprocessing and model_file.preprocessing.to_dict(),
        "provenance": model_file.provenance or None,
    }
    for key, value in said.items():
        if value is not None:
            text = json.dumps(value, ensure_ascii=False)
            model.metadata_props.add(key=f"convserve.{key}", value=text)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ConversionError(f"the ONNX checker refuses the model: {error}") from error
    return model


class _Export:
    """Nodes and tensors of one graph. An ONNX value has its layer's name, an output its own."""

    def __init__(self, graph: Graph, params: dict[str, Any]) -> None:
        self.graph, self.params = graph, params
        self.nodes: list[NodeProto] = []
        self.tensors: list[TensorProto] = []
        self.names = {name: name for name in graph.inputs}
        self.taken = {*graph.inputs, *graph.outputs, *params}

    def run(self) -> Any:
        for node in self.graph.nodes:
            self.names[node.name] = self.free(node.name)
            _LAYERS[type(node.op)](self, node)
        for wire_name, layer in self.graph.outputs.items():
            self.node("Identity", [self.names[layer]], wire_name, self.free("output"))
        outputs = {name: self.graph.shape(layer) for name, layer in self.graph.outputs.items()}
        return helper.make_graph(
            self.nodes,
            "convserve",
            [_tensor(name, shape) for name, shape in self.graph.inputs.items()],
            [_tensor(name, shape) for name, shape in outputs.items()],
            self.tensors,
        )

    def free(self, wanted: str) -> str:
        name, count = wanted, 1
        while name in self.taken:
            count += 1
            name = f"{wanted}_{count}"
        self.taken.add(name)
        return name

    def node(self, op: str, inputs: list[str], output: str, name: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))

    def add(self, node: Node, op: str, *more: str, **attributes: Any) -> None:
        """The ONNX node of a layer; `more` are inputs after the layer's own."""
        inputs = [self.names[source] for source in node.inputs]
        self.node(op, [*inputs, *more], self.names[node.name], node.name, **attributes)

    def param(self, node: Node, name: str, shape: tuple[int, ...] | None = None) -> str:
        key = f"{node.name}.{name}"
        value = self.params[key]
        return self.tensor(key, value if shape is None else value.reshape(shape))

    def tensor(self, name: str, value: Array) -> str:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def constant(self, node: Node, what: str, value: Any, dtype: Any = np.float32) -> str:
        return self.tensor(self.free(f"{node.name}.{what}"), np.asarray(value, dtype))

    def middle(self, node: Node, op: str, inputs: list[str], **attributes: Any) -> str:
        """A node on the way to a layer's value."""
        output = self.free(f"{node.name}.{op}")
        self.node(op, inputs, output, output, **attributes)
        return output

    def per_channel(self, node: Node) -> tuple[int, ...]:
        """The shape of one value a channel beside the layer's value."""
        return (node.shape[0],) + (1,) * (len(node.shape) - 1)


def _tensor(name: str, shape: tuple[int, ...]) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])


def _window(op: Any) -> dict[str, Any]:
    (top, bottom), (left, right) = padding_sides(op.padding)
    return {"strides": list(op.stride), "pads": [top, left, bottom, right]}


def _conv(e: _Export, node: Node) -> None:
    op: Any = node.op
    params = [e.param(node, name) for name in ("weight", "bias") if name == "weight" or op.bias]
    e.add(
        node, "Conv", *params, kernel_shape=list(op.kernel_size), group=op.groups,
        dilations=list(op.dilation), **_window(op),
    )  # fmt: skip


def _pool(e: _Export, node: Node) -> None:
    op: Any = node.op
    padding, rounding = _pool_window(op, e.graph.input_shapes(node)[0], node.shape)
    attributes = {"kernel_shape": list(op.size), "ceil_mode": int(rounding == "ceil")}
    if isinstance(op, layers.AvgPool2d):
        attributes["count_include_pad"] = int(op.count_include_pad)
    kind = "MaxPool" if isinstance(op, layers.MaxPool2d) else "AveragePool"
    e.add(node, kind, **attributes, **_window(replace(op, padding=padding)))


def _pool_window(op: Any, shape: Shape, made: Shape) -> tuple[Sides, str]:
    """Padding and rounding that give the size by ONNX's plain formula too.

    Runtimes leave out a last window that would begin in the far padding, as we do, but their
    shape inference at this opset counts it, and then the model does not load.
    """
    sides, floor = [], True
    axes = zip(shape[1:], op.size, op.stride, op.padding, made[1:], strict=True)
    for size, window, stride, (before, after), count in axes:
        spare = size + before + after - window
        floor = floor and spare // stride + 1 == count
        if -(-spare // stride) + 1 > count:
            after = max(0, (count - 1) * stride + window - size - before)
        sides.append((before, after))
    if op.rounding == "ceil" and not floor:
        return (sides[0], sides[1]), "ceil"
    return op.padding, "floor"


def _affine(e: _Export, node: Node) -> None:
    op: Any = node.op
    params = [e.param(node, name) for name in ("weight", "bias") if name == "weight" or op.bias]
    e.add(node, "Gemm", *params, transB=1)


def _batch_norm(e: _Export, node: Node) -> None:
    op: Any = node.op
    names = ("weight", "bias", "running_mean", "running_var")
    e.add(node, "BatchNormalization", *(e.param(node, name) for name in names), epsilon=op.eps)


def _layer_norm(e: _Export, node: Node) -> None:
    """ONNX's is over the last axes, so an image's channels go there and back."""
    op: Any = node.op
    params = [e.param(node, "weight"), e.param(node, "bias")]
    if len(node.shape) == 1:
        e.add(node, "LayerNormalization", *params, axis=-1, epsilon=op.eps)
        return
    last = e.middle(node, "Transpose", [e.names[node.inputs[0]]], perm=[0, 2, 3, 1])
    norm = e.middle(node, "LayerNormalization", [last, *params], axis=-1, epsilon=op.eps)
    e.node("Transpose", [norm], e.names[node.name], node.name, perm=[0, 3, 1, 2])


def _scale_shift(e: _Export, node: Node) -> None:
    shape = e.per_channel(node)
    scale, shift = e.param(node, "scale", shape), e.param(node, "shift", shape)
    scaled = e.middle(node, "Mul", [e.names[node.inputs[0]], scale])
    e.node("Add", [scaled, shift], e.names[node.name], node.name)


def _silu(e: _Export, node: Node) -> None:
    x = e.names[node.inputs[0]]
    gate = e.middle(node, "Sigmoid", [x])
    e.node("Mul", [x, gate], e.names[node.name], node.name)


def _gelu(e: _Export, node: Node) -> None:
    """As opset 17 writes it: x · 0.5 · (1 + erf(x / √2)), or its tanh form."""
    op: Any = node.op
    x = e.names[node.inputs[0]]
    if op.approximate == "none":
        scaled = e.middle(node, "Mul", [x, e.constant(node, "sqrt_half", np.sqrt(0.5))])
        curve = e.middle(node, "Erf", [scaled])
    else:
        cube = e.middle(node, "Pow", [x, e.constant(node, "three", 3.0)])
        term = e.middle(node, "Mul", [cube, e.constant(node, "cubic", 0.044715)])
        inner = e.middle(node, "Add", [x, term])
        scaled = e.middle(node, "Mul", [inner, e.constant(node, "scale", np.sqrt(2 / np.pi))])
        curve = e.middle(node, "Tanh", [scaled])
    gate = e.middle(node, "Add", [curve, e.constant(node, "one", 1.0)])
    half = e.middle(node, "Mul", [x, e.constant(node, "half", 0.5)])
    e.node("Mul", [half, gate], e.names[node.name], node.name)


def _clip(e: _Export, node: Node) -> None:
    op: Any = node.op
    bounds = [
        "" if bound is None else e.constant(node, what, bound)
        for what, bound in (("low", op.low), ("high", op.high))
    ]
    while bounds and not bounds[-1]:
        bounds.pop()
    e.add(node, "Clip", *bounds)


def _slice(e: _Export, node: Node) -> None:
    op: Any = node.op
    limits = {"starts": [op.start], "ends": [op.stop], "axes": [1]}
    e.add(node, "Slice", *(e.constant(node, k, v, np.int64) for k, v in limits.items()))


def _shuffle(e: _Export, node: Node) -> None:
    op: Any = node.op
    c, h, w = node.shape
    apart = e.constant(node, "apart", [0, op.groups, c // op.groups, h, w], np.int64)
    together = e.constant(node, "together", [0, c, h, w], np.int64)
    split = e.middle(node, "Reshape", [e.names[node.inputs[0]], apart])
    turned = e.middle(node, "Transpose", [split], perm=[0, 2, 1, 3, 4])
    e.node("Reshape", [turned, together], e.names[node.name], node.name)


def _pad(e: _Export, node: Node) -> None:
    op: Any = node.op
    (top, bottom), (left, right) = padding_sides(op.padding)
    sign, value = (1, op.value) if isinstance(op, layers.Pad) else (-1, 0.0)
    pads = [sign * side for side in (0, 0, top, left, 0, 0, bottom, right)]
    e.add(node, "Pad", e.constant(node, "pads", pads, np.int64), e.constant(node, "value", value))


def _lrn(e: _Export, node: Node) -> None:
    op: Any = node.op
    e.add(node, "LRN", size=op.size, alpha=op.alpha, beta=op.beta, bias=op.bias)


def _simple(op_type: str, *fields: str, **fixed: Any) -> Callable[[_Export, Node], None]:
    """A layer that is one ONNX node; `fields` are "ours=theirs" attributes."""

    def add(e: _Export, node: Node) -> None:
        named = (entry.partition("=") for entry in fields)
        attributes = {theirs: getattr(node.op, ours) for ours, _, theirs in named}
        e.add(node, op_type, **attributes, **fixed)

    return add


def _prelu(e: _Export, node: Node) -> None:
    e.add(node, "PRelu", e.param(node, "slope", e.per_channel(node)))


_Layer: TypeAlias = "Callable[[_Export, Node], None]"
_LAYERS: dict[type[layers.Operator], _Layer] = {
    layers.Conv2d: _conv,
    layers.MaxPool2d: _pool,
    layers.AvgPool2d: _pool,
    layers.GlobalAvgPool2d: _simple("GlobalAveragePool"),
    layers.GlobalMaxPool2d: _simple("GlobalMaxPool"),
    layers.Affine: _affine,
    layers.Flatten: _simple("Flatten", axis=1),
    layers.ReLU: _simple("Relu"),
    layers.LeakyReLU: _simple("LeakyRelu", "slope=alpha"),
    layers.PReLU: _prelu,
    layers.Clip: _clip,
    layers.Sigmoid: _simple("Sigmoid"),
    layers.HardSigmoid: _simple("HardSigmoid", "alpha=alpha", "beta=beta"),
    layers.HardSwish: _simple("HardSwish"),
    layers.SiLU: _silu,
    layers.GELU: _gelu,
    layers.Tanh: _simple("Tanh"),
    layers.ELU: _simple("Elu", "alpha=alpha"),
    layers.Softmax: _simple("Softmax", axis=1),
    layers.LogSoftmax: _simple("LogSoftmax", axis=1),
    layers.BatchNorm: _batch_norm,
    layers.LayerNorm: _layer_norm,
    layers.ScaleShift: _scale_shift,
    layers.LRN: _lrn,
    layers.Dropout: _simple("Identity"),
    layers.Add: _simple("Add"),
    layers.Sub: _simple("Sub"),
    layers.Mul: _simple("Mul"),
    layers.Concat: _simple("Concat", axis=1),
    layers.Slice: _slice,
    layers.ChannelShuffle: _shuffle,
    layers.Pad: _pad,
    layers.Crop: _pad,
}
