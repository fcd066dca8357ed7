"""The operators of a graph: frozen dataclasses that hold their attributes and shape rules.

    conv = layers.Conv2d(16, 3, padding=1)
    conv.infer([(3, 32, 32)])          # (16, 32, 32)
    conv.parameters([(3, 32, 32)])     # {"weight": (16, 3, 3, 3), "bias": (16,)}
    conv.macs([(3, 32, 32)])           # 442368

Shapes are those of one image: (channels, height, width), or (features,) once flat. A wrong type is
a TypeError, a size that does not fit a ShapeError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from convserve.errors import ShapeError, UnknownNameError
from convserve.graph._activations import (
    ELU,
    GELU,
    Clip,
    HardSigmoid,
    HardSwish,
    LeakyReLU,
    LogSoftmax,
    PReLU,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from convserve.graph._arithmetic import (
    Add,
    Mul,
    Sub,
)
from convserve.graph._normalisation import (
    LRN,
    BatchNorm,
    Dropout,
    LayerNorm,
    ScaleShift,
)
from convserve.graph._operator import Operator, ParameterSpec, Shape
from convserve.graph._rearrangement import (
    ChannelShuffle,
    Concat,
    Crop,
    Flatten,
    Pad,
    Slice,
)
from convserve.graph._windows import (
    Affine,
    AvgPool2d,
    Conv2d,
    GlobalAvgPool2d,
    GlobalMaxPool2d,
    MaxPool2d,
)

__all__ = [
    "ELU",
    "GELU",
    "LRN",
    "Add",
    "Affine",
    "AvgPool2d",
    "BatchNorm",
    "ChannelShuffle",
    "Clip",
    "Concat",
    "Conv2d",
    "Crop",
    "Dropout",
    "Flatten",
    "GlobalAvgPool2d",
    "GlobalMaxPool2d",
    "HardSigmoid",
    "HardSwish",
    "LayerNorm",
    "LeakyReLU",
    "LogSoftmax",
    "MaxPool2d",
    "Mul",
    "Operator",
    "PReLU",
    "Pad",
    "ParameterSpec",
    "ReLU",
    "ScaleShift",
    "Shape",
    "SiLU",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Sub",
    "Tanh",
    "from_attributes",
    "operators",
]

_OPERATORS: dict[str, type[Operator]] = {
    cls.op: cls
    for cls in (
        Conv2d,
        MaxPool2d,
        AvgPool2d,
        GlobalAvgPool2d,
        GlobalMaxPool2d,
        Affine,
        Flatten,
        ReLU,
        LeakyReLU,
        PReLU,
        Clip,
        Sigmoid,
        HardSigmoid,
        HardSwish,
        SiLU,
        GELU,
        Tanh,
        ELU,
        Softmax,
        LogSoftmax,
        BatchNorm,
        ScaleShift,
        LayerNorm,
        LRN,
        Dropout,
        Add,
        Sub,
        Mul,
        Concat,
        Slice,
        ChannelShuffle,
        Pad,
        Crop,
    )
}


def operators() -> dict[str, type[Operator]]:
    """Every operator class by its name in files."""
    return dict(_OPERATORS)


def from_attributes(op: str, attributes: Mapping[str, Any]) -> Operator:
    """The operator of that name; the inverse of `attributes()`.

    An attribute with a default may be absent (an older file), an unknown one may not be there.
    Errors: UnknownNameError, ShapeError, TypeError.
    """
    cls = _OPERATORS.get(op)
    if cls is None:
        raise UnknownNameError(f"unknown operator {op!r:.80}; known: {', '.join(_OPERATORS)}")
    known = {f.name: f.default is MISSING for f in fields(cls)}
    for name in attributes:
        if name not in known:
            allowed = ", ".join(known) or "none"
            raise UnknownNameError(f"{op} has no attribute {name!r:.80}; it has: {allowed}")
    for name, required in known.items():
        if required and name not in attributes:
            raise ShapeError(f"{op} lacks the attribute {name!r}")
    return cls(**attributes)
