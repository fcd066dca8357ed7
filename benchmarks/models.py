"""The networks, each written once as an ONNX file that every contestant reads.

Weights are seeded He weights. The last normalisation of a residual branch is scaled down, as
training does, and the last affine as well, so that the outputs are of the size of a trained
network's: a softmax that saturates would hide every difference between two engines. The small
networks end in softmax, those for ImageNet in their logits, as they are published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.shapes import Layer

OPSET = 17
IR_VERSION = 8  # that every peer reads
BRANCH_SCALE = 0.3
CHAIN = 4


@dataclass(frozen=True)
class Network:
    """One model of the table: its (C, H, W) and multiply-adds an image, and where its ONNX is."""

    name: str
    input_shape: tuple[int, int, int]
    macs: int
    path: Path


class Builder:
    """Writes an ONNX graph of single-output nodes; `x` is always the tensor made last."""

    def __init__(self, shape: tuple[int, int, int], seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.input_shape = shape
        self.shape: tuple[int, ...] = shape  # of `x`, without the batch
        self.x = "input"
        self.macs = 0
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def conv(
        self, filters: int, size: int, stride: int = 1, padding: int = 0, groups: int = 1,
        bias: bool = True,
    ) -> str:  # fmt: skip
        channels, height, width = self.shape
        weight = self._he((filters, channels // groups, size, size))
        inputs = [self._weight("weight", weight)]
        if bias:
            inputs.append(self._weight("bias", 0.1 * self._normal(filters)))
        out = [(n + 2 * padding - size) // stride + 1 for n in (height, width)]
        self.shape = (filters, *out)
        self.macs += weight.size * prod(out)
        return self._node(
            "Conv", inputs, kernel_shape=[size] * 2, strides=[stride] * 2, pads=[padding] * 4,
            group=groups,
        )  # fmt: skip

    def batch_norm(self, scale: float = 1.0) -> str:
        channels = self.shape[0]
        values = {
            "scale": scale * self.rng.uniform(0.8, 1.2, channels),
            "shift": 0.1 * self._normal(channels),
            "mean": 0.1 * self._normal(channels),
            "var": self.rng.uniform(0.8, 1.2, channels),
        }
        inputs = [self._weight(name, value) for name, value in values.items()]
        return self._node("BatchNormalization", inputs, epsilon=1e-5)

    def relu(self) -> str:
        return self._node("Relu")

    def relu6(self) -> str:
        bounds = [self._weight("bound", np.array(value)) for value in (0.0, 6.0)]
        return self._node("Clip", bounds)

    def max_pool(self, size: int, stride: int | None = None, padding: int = 0) -> str:
        stride = stride or size
        self.shape = (
            self.shape[0],
            *((n + 2 * padding - size) // stride + 1 for n in self.shape[1:]),
        )
        return self._node(
            "MaxPool", kernel_shape=[size] * 2, strides=[stride] * 2, pads=[padding] * 4
        )

    def global_average(self) -> str:
        self.shape = (self.shape[0], 1, 1)
        return self._node("GlobalAveragePool")

    def add(self, a: str, b: str) -> str:
        self.x = a
        return self._node("Add", [b])

    def flatten(self) -> str:
        self.shape = (prod(self.shape),)
        return self._node("Flatten", axis=1)

    def affine(self, features: int, scale: float = 1.0) -> str:
        weight = scale * self._he((features, self.shape[0]))
        inputs = [self._weight("weight", weight)]
        inputs.append(self._weight("bias", 0.1 * self._normal(features)))
        self.shape = (features,)
        self.macs += weight.size
        return self._node("Gemm", inputs, transB=1)

    def softmax(self) -> str:
        return self._node("Softmax", axis=1)

    def save(self, name: str, path: Path) -> None:
        self._nodes[-1].output[0] = "output"
        graph = helper.make_graph(
            self._nodes, name,
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", *self.input_shape])],
            [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", *self.shape])],
            self._weights,
        )  # fmt: skip
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
        onnx.checker.check_model(model)
        onnx.save(model, path)

    def _node(self, op: str, extra: list[str] | None = None, **attributes: Any) -> str:
        output = f"{op.lower()}{len(self._nodes) + 1}"
        inputs = [self.x, *(extra or [])]
        self._nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        self.x = output
        return output

    def _weight(self, kind: str, value: np.ndarray) -> str:
        name = f"{kind}{len(self._weights) + 1}"
        self._weights.append(numpy_helper.from_array(value.astype(np.float32), name))
        return name

    def _normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape, dtype=np.float32)

    def _he(self, shape: tuple[int, ...]) -> np.ndarray:
        values: np.ndarray = self._normal(*shape) * np.float32((2 / prod(shape[1:])) ** 0.5)
        return values


def _conv_relu(b: Builder, filters: int, size: int, padding: int = 0) -> None:
    b.conv(filters, size, padding=padding)
    b.relu()


def _conv_bn(b: Builder, filters: int, size: int, stride: int = 1, scale: float = 1.0) -> str:
    b.conv(filters, size, stride, size // 2, bias=False)
    return b.batch_norm(scale)


def _affine_relu(b: Builder, features: int) -> None:
    b.affine(features)
    b.relu()


def _classifier(b: Builder, classes: int = 10) -> None:
    b.affine(classes, scale=0.4)
    b.softmax()


def _lenet(b: Builder) -> None:
    _conv_relu(b, 6, 5, padding=2)
    b.max_pool(2)
    _conv_relu(b, 16, 5)
    b.max_pool(2)
    b.flatten()
    _affine_relu(b, 120)
    _affine_relu(b, 84)
    _classifier(b)


def _simple_convnet(b: Builder) -> None:
    _conv_relu(b, 30, 5)
    b.max_pool(2)
    b.flatten()
    _affine_relu(b, 100)
    _classifier(b)


def _deep_convnet(b: Builder) -> None:
    for width, paddings in ((16, (1, 1)), (32, (1, 2)), (64, (1, 1))):
        for padding in paddings:
            _conv_relu(b, width, 3, padding)
        b.max_pool(2)
    b.flatten()
    _affine_relu(b, 50)
    _classifier(b)


def _cifar_vgg(b: Builder) -> None:
    for width in (64, 128, 256):
        _conv_relu(b, width, 3, 1)
        _conv_relu(b, width, 3, 1)
        b.max_pool(2)
    b.flatten()
    _affine_relu(b, 512)
    _classifier(b)


def _basic_block(b: Builder, width: int, stride: int) -> None:
    x, shape = b.x, b.shape
    _conv_bn(b, width, 3, stride)
    b.relu()
    y = _conv_bn(b, width, 3, scale=BRANCH_SCALE)
    _join(b, x, shape, y, stride)


def _bottleneck(b: Builder, width: int, stride: int) -> None:
    x, shape = b.x, b.shape
    _conv_bn(b, width, 1)
    b.relu()
    _conv_bn(b, width, 3, stride)
    b.relu()
    y = _conv_bn(b, 4 * width, 1, scale=BRANCH_SCALE)
    _join(b, x, shape, y, stride)


def _join(b: Builder, x: str, shape: tuple[int, ...], y: str, stride: int) -> None:
    """Adds the shortcut, projected where the shapes differ, and activates."""
    out = b.shape
    if shape != out:
        b.x, b.shape = x, shape
        x = _conv_bn(b, out[0], 1, stride)
    b.add(y, x)
    b.relu()


def _resnet20(b: Builder) -> None:
    _conv_bn(b, 16, 3)
    b.relu()
    for stage, width in enumerate((16, 32, 64)):
        for block in range(3):
            _basic_block(b, width, 2 if stage and not block else 1)
    b.global_average()
    b.flatten()
    _classifier(b)


def _resnet(
    b: Builder, block: Callable[[Builder, int, int], None], depths: tuple[int, ...]
) -> None:
    b.conv(64, 7, 2, 3, bias=False)
    b.batch_norm()
    b.relu()
    b.max_pool(3, 2, 1)
    for stage, depth in enumerate(depths):
        for i in range(depth):
            block(b, 64 << stage, 2 if stage and not i else 1)
    b.global_average()
    b.flatten()
    b.affine(1000, scale=0.7)


def _vgg16(b: Builder) -> None:
    for width, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            _conv_relu(b, width, 3, 1)
        b.max_pool(2)
    b.flatten()
    _affine_relu(b, 4096)
    _affine_relu(b, 4096)
    b.affine(1000, scale=0.7)


def _mobilenet_v2(b: Builder) -> None:
    _conv_bn(b, 32, 3, 2)
    b.relu6()
    plan = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
            (6, 160, 3, 2), (6, 320, 1, 1))  # fmt: skip
    for expansion, width, depth, stride in plan:
        for i in range(depth):
            _inverted_residual(b, expansion, width, 1 if i else stride)
    _conv_bn(b, 1280, 1)
    b.relu6()
    b.global_average()
    b.flatten()
    b.affine(1000, scale=0.7)


def _inverted_residual(b: Builder, expansion: int, width: int, stride: int) -> None:
    x, shape = b.x, b.shape
    hidden = expansion * b.shape[0]
    if expansion > 1:
        _conv_bn(b, hidden, 1)
        b.relu6()
    b.conv(hidden, 3, stride, 1, groups=hidden, bias=False)
    b.batch_norm()
    b.relu6()
    y = _conv_bn(b, width, 1)
    if shape == b.shape:
        b.add(x, y)


MNIST, CIFAR, IMAGENET = (1, 28, 28), (3, 32, 32), (3, 224, 224)
NETWORKS: dict[str, tuple[tuple[int, int, int], Callable[[Builder], None]]] = {
    "lenet": (MNIST, _lenet),
    "simple_convnet": (MNIST, _simple_convnet),
    "deep_convnet": (MNIST, _deep_convnet),
    "resnet20": (CIFAR, _resnet20),
    "cifar_vgg": (CIFAR, _cifar_vgg),
    "resnet18": (IMAGENET, lambda b: _resnet(b, _basic_block, (2, 2, 2, 2))),
    "resnet50": (IMAGENET, lambda b: _resnet(b, _bottleneck, (3, 4, 6, 3))),
    "vgg16": (IMAGENET, _vgg16),
    "mobilenet_v2": (IMAGENET, _mobilenet_v2),
}


def write_network(name: str, folder: Path) -> Network:
    """Writes folder/<name>.onnx, the same bytes each time."""
    shape, body = NETWORKS[name]
    builder = Builder(shape, crc32(name.encode()))
    body(builder)
    path = folder / f"{name}.onnx"
    builder.save(name, path)
    return Network(name, shape, builder.macs, path)


def write_layer(layer: Layer, folder: Path) -> Network:
    """Writes one convolution with ReLU; where the shapes allow, four of them in a row.

    In a network the layout of the values is changed at its borders only. Four layers bring a
    single one nearer to that than one alone.
    """
    builder = Builder(layer.input_shape, crc32(layer.file_name.encode()))
    for _ in range(CHAIN if layer.input_shape == layer.output_shape else 1):
        builder.conv(layer.filters, layer.kernel, layer.stride, layer.padding, layer.groups)
        builder.relu()
    path = folder / f"{layer.file_name}.onnx"
    builder.save(layer.file_name, path)
    return Network(str(layer), layer.input_shape, builder.macs, path)
