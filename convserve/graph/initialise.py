"""Fresh parameters for training."""

from __future__ import annotations

from math import prod, sqrt
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from convserve.graph.layers import Add, AvgPool2d, BatchNorm, Dropout, MaxPool2d, ReLU

if TYPE_CHECKING:
    from convserve.graph.graph import Graph

__all__ = ["initialise"]

# Between a layer and its ReLU: these keep the scale of what passes, or set it anew.
_TRANSPARENT = (Add, AvgPool2d, BatchNorm, Dropout, MaxPool2d)


def initialise(graph: Graph, rng: np.random.Generator | int) -> dict[str, npt.NDArray[np.float32]]:
    """Parameters for every layer; the arrays are C-contiguous float32 and the same for a seed."""
    rng = np.random.default_rng(rng)
    params: dict[str, npt.NDArray[np.float32]] = {}
    for node in graph.nodes:
        for parameter, spec in node.op.parameters(graph.input_shapes(node)).items():
            if len(spec.shape) > 1:
                # A ReLU halves the variance; He et al. 2015 (arXiv:1502.01852) double it again.
                gain = 2.0 if _leads_to_relu(graph, node.name) else 1.0
                scale = sqrt(gain / prod(spec.shape[1:]))
                value = rng.standard_normal(spec.shape, dtype=np.float32) * np.float32(scale)
            elif parameter == "running_var" or parameter == "weight":
                value = np.ones(spec.shape, np.float32)
            else:
                value = np.zeros(spec.shape, np.float32)
            params[f"{node.name}.{parameter}"] = value
    return params


def _leads_to_relu(graph: Graph, name: str) -> bool:
    seen, pending = {name}, [name]
    while pending:
        for consumer in graph.consumers(pending.pop()):
            op = graph.node(consumer).op
            if isinstance(op, ReLU):
                return True
            if isinstance(op, _TRANSPARENT) and consumer not in seen:
                seen.add(consumer)
                pending.append(consumer)
    return False
