"""Ready-made architectures by name; all end in affine and softmax.

    graph = architectures.build("lenet")                            # 1×28×28, 10 classes
    graph = architectures.build("mlp", (3, 32, 32), hidden=(512,))

The pattern is Conv - ReLU - (Pool) … Affine - ReLU … Affine - Softmax. Other input sizes than the
default work wherever the layers' sizes divide.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

from convserve.errors import ShapeError, UnknownNameError
from convserve.graph.graph import Graph
from convserve.graph.layers import (
    GELU,
    Add,
    Affine,
    BatchNorm,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    MaxPool2d,
    ReLU,
    Softmax,
)

__all__ = ["build", "default_input_shape", "names"]

_MNIST = (1, 28, 28)
_CIFAR = (3, 32, 32)


def names() -> list[str]:
    """The names that `build` knows, sorted."""
    return sorted(_ARCHITECTURES)


def default_input_shape(name: str) -> tuple[int, int, int]:
    """The (C, H, W) that `build` takes for this architecture unless told otherwise."""
    return _lookup(name)[1]


def build(
    name: str,
    input_shape: tuple[int, int, int] | None = None,
    classes: int = 10,
    **options: Any,
) -> Graph:
    """The graph of an architecture for images of `input_shape` (C, H, W).

    Options: deep_convnet dropout=0.5; cifar_vgg hidden=512, dropout=0.0; resnet20 blocks=3,
    widths=(16, 32, 64); mlp hidden=(128,), dropout=0.0; bn_convnet widths=(16, 32, 64, 64, 128);
    airbench widths=(64, 256, 256), whitening=24. Errors: UnknownNameError for a name or an
    option that does not exist, ShapeError for an option's value that it can't have and for an
    input that does not fit, naming the layer.
    """
    body, default = _lookup(name)
    allowed = list(inspect.signature(body).parameters.values())[2:]
    defaults = {parameter.name: parameter.default for parameter in allowed}
    for option, value in options.items():
        if option not in defaults:
            raise UnknownNameError(
                f"{name} has no option {option!r}; it has: {', '.join(defaults) or 'none'}"
            )
        if fault := _fault(value, defaults[option]):
            raise ShapeError(f"{option} of {name} must be {fault}, not {value!r:.80}")
    graph = Graph(default if input_shape is None else input_shape)
    try:
        body(graph, classes, **options)
    except ShapeError as error:
        channels, height, width = graph.input_shape
        of = f"{channels} channel{'s' * (channels > 1)} of {height}×{width} pixels"
        raise ShapeError(f"{name} for images of {of}: {error}") from None
    return graph


def _fault(value: object, default: object) -> str:
    """What an option with such a default must be instead; empty if it is."""
    if isinstance(default, int):
        return "" if _is_count(value) else "an integer from 1"
    if isinstance(default, float):
        is_rate = isinstance(value, Real) and not isinstance(value, bool) and 0 <= float(value) < 1
        return "" if is_rate else "a number from 0 to below 1"
    are_widths = isinstance(value, (list, tuple)) and all(map(_is_count, value))
    return "" if are_widths else "a list of integers from 1"


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def _lenet(g: Graph, classes: int) -> None:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, as it is taught today."""
    _conv_relu(g, 6, 5, padding=2)
    g.add(MaxPool2d(2))
    _conv_relu(g, 16, 5)
    g.add(MaxPool2d(2))
    g.add(Flatten())
    _affine_relu(g, 120)
    _affine_relu(g, 84)
    _classifier(g, classes)


def _simple_convnet(g: Graph, classes: int) -> None:
    """The smallest network with every part: one convolution, one pooling, two affine layers."""
    _conv_relu(g, 30, 5)
    g.add(MaxPool2d(2))
    g.add(Flatten())
    _affine_relu(g, 100)
    _classifier(g, classes)


def _deep_convnet(g: Graph, classes: int, dropout: float = 0.5) -> None:
    """Pairs of 3×3 convolutions; the fourth pads by 2, so that 28 → 14 → 8 → 4 divides."""
    for width, paddings in ((16, (1, 1)), (32, (1, 2)), (64, (1, 1))):
        for padding in paddings:
            _conv_relu(g, width, 3, padding=padding)
        g.add(MaxPool2d(2))
    g.add(Flatten())
    _affine_relu(g, 50)
    _dropout(g, dropout)
    g.add(Affine(classes))
    _dropout(g, dropout)
    g.add(Softmax())


def _cifar_vgg(g: Graph, classes: int, hidden: int = 512, dropout: float = 0.0) -> None:
    """The plan of VGG (Simonyan and Zisserman 2014) cut to three stages for small images."""
    for width in (64, 128, 256):
        for _ in range(2):
            _conv_relu(g, width, 3, padding=1)
        g.add(MaxPool2d(2))
    g.add(Flatten())
    _affine_relu(g, hidden)
    _dropout(g, dropout)
    _classifier(g, classes)


def _resnet20(
    g: Graph, classes: int, blocks: int = 3, widths: Sequence[int] = (16, 32, 64)
) -> None:
    """ResNet for CIFAR (He et al. 2015, §4.2): 6 · blocks + 2 layers, projection shortcuts."""
    if not widths:
        raise ShapeError("widths must have a number for one stage or more")
    x = g.add(ReLU(), _conv_bn(g, g.input_name, widths[0], 3))
    for stage, width in enumerate(widths):
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            y = g.add(ReLU(), _conv_bn(g, x, width, 3, stride))
            y = _conv_bn(g, y, width, 3)
            if stride > 1 or g.shape(x) != g.shape(y):
                x = _conv_bn(g, x, width, 1, stride)
            x = g.add(ReLU(), g.add(Add(), y, x))
    g.add(GlobalAvgPool2d(), x)
    g.add(Flatten())
    _classifier(g, classes)


def _bn_convnet(g: Graph, classes: int, widths: Sequence[int] = (16, 32, 64, 64, 128)) -> None:
    """3×3 convolutions with batch norm, two a stage; the mean of each map goes to the classes."""
    for place, width in enumerate(widths):
        if place in (2, 4):
            g.add(MaxPool2d(2))
        g.add(Conv2d(width, 3, padding=1, bias=False))
        g.add(BatchNorm())
        g.add(ReLU())
    g.add(GlobalAvgPool2d())
    g.add(Flatten())
    _classifier(g, classes)


def _airbench(
    g: Graph, classes: int, widths: Sequence[int] = (64, 256, 256), whitening: int = 24
) -> None:
    """Jordan 2024 (arXiv:2404.00498): a 2×2 layer for whitening, three stages of two convolutions.

    Its batch norm has no scale there: freeze "bn*.weight".
    """
    g.add(Conv2d(whitening, 2))
    g.add(GELU())
    for width in widths:
        for place in range(2):
            g.add(Conv2d(width, 3, padding=1, bias=False))
            if place == 0:
                g.add(MaxPool2d(2, rounding="floor"))
            g.add(BatchNorm(eps=1e-12, momentum=0.4))
            g.add(GELU())
    g.add(MaxPool2d(3))
    g.add(Flatten())
    g.add(Affine(classes, bias=False))
    g.add(Softmax())


def _mlp(g: Graph, classes: int, hidden: Sequence[int] = (128,), dropout: float = 0.0) -> None:
    """Fully connected: it sees no neighbourhoods, which is what to compare a CNN with."""
    g.add(Flatten())
    for width in hidden:
        _affine_relu(g, width)
        _dropout(g, dropout)
    _classifier(g, classes)


_ARCHITECTURES: dict[str, tuple[Callable[..., None], tuple[int, int, int]]] = {
    "airbench": (_airbench, _CIFAR),
    "bn_convnet": (_bn_convnet, _MNIST),
    "cifar_vgg": (_cifar_vgg, _CIFAR),
    "deep_convnet": (_deep_convnet, _MNIST),
    "lenet": (_lenet, _MNIST),
    "mlp": (_mlp, _MNIST),
    "resnet20": (_resnet20, _CIFAR),
    "simple_convnet": (_simple_convnet, _MNIST),
}


def _lookup(name: str) -> tuple[Callable[..., None], tuple[int, int, int]]:
    try:
        return _ARCHITECTURES[name]
    except (KeyError, TypeError):
        raise UnknownNameError(
            f"no architecture is named {name!r}; there are: {', '.join(names())}"
        ) from None


def _conv_relu(g: Graph, width: int, size: int, padding: int = 0) -> None:
    g.add(Conv2d(width, size, padding=padding))
    g.add(ReLU())


def _conv_bn(g: Graph, x: str, width: int, size: int, stride: int = 1) -> str:
    """Batch norm has a bias of its own. A stride of 2 halves even sizes only with "floor"."""
    conv = Conv2d(width, size, stride, padding=size // 2, bias=False, rounding="floor")
    return g.add(BatchNorm(), g.add(conv, x))


def _affine_relu(g: Graph, width: int) -> None:
    g.add(Affine(width))
    g.add(ReLU())


def _classifier(g: Graph, classes: int) -> None:
    g.add(Affine(classes))
    g.add(Softmax())


def _dropout(g: Graph, rate: float) -> None:
    if rate:
        g.add(Dropout(rate))
