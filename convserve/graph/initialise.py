"""Fresh parameters for training."""

from __future__ import annotations

from math import prod, sqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from convserve.graph.layers import (
    ELU,
    GELU,
    Add,
    AvgPool2d,
    BatchNorm,
    Clip,
    Dropout,
    HardSwish,
    LayerNorm,
    LeakyReLU,
    MaxPool2d,
    PReLU,
    ReLU,
    ScaleShift,
    SiLU,
)

if TYPE_CHECKING:
    from convserve.graph.graph import Graph

__all__ = ["initialise"]

# Where a parameter of one value a channel starts, if not at zero.
_START = {"running_var": 1.0, "weight": 1.0, "scale": 1.0, "slope": 0.25}
# They pass what is above zero, or most of it, and little of the rest.
_RECTIFIERS = (ReLU, LeakyReLU, PReLU, Clip, HardSwish, SiLU, GELU, ELU)
# Between a layer and its rectifier: these keep the scale of what passes, or set it anew.
_TRANSPARENT = (Add, AvgPool2d, BatchNorm, Dropout, LayerNorm, MaxPool2d, ScaleShift)


def initialise(graph: Graph, rng: np.random.Generator | int) -> dict[str, npt.NDArray[np.float32]]:
    """Parameters for every layer; the arrays are C-contiguous float32 and the same for a seed."""
    rng = np.random.default_rng(rng)
    params: dict[str, npt.NDArray[np.float32]] = {}
    for node in graph.nodes:
        for parameter, spec in node.op.parameters(graph.input_shapes(node)).items():
            if len(spec.shape) > 1:
                # A ReLU halves the variance; He et al. 2015 (arXiv:1502.01852) double it again.
                gain = 2.0 if _leads_to_rectifier(graph, node.name) else 1.0
                scale = sqrt(gain / prod(spec.shape[1:]))
                value = rng.standard_normal(spec.shape, dtype=np.float32) * np.float32(scale)
            else:
                value = np.full(spec.shape, _START.get(parameter, 0.0), np.float32)
            params[f"{node.name}.{parameter}"] = value
    return params


def _leads_to_rectifier(graph: Graph, name: str) -> bool:
    seen, pending = {name}, [name]
    while pending:
        for consumer in graph.consumers(pending.pop()):
            op = graph.node(consumer).op
            if isinstance(op, _RECTIFIERS):
                return True
            if isinstance(op, _TRANSPARENT) and consumer not in seen:
                seen.add(consumer)
                pending.append(consumer)
    return False
