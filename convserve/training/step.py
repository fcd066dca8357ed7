"""The one interface between the training loop and what computes a step.

The loop knows batches, epochs and files; a step knows the network. Whatever computes forward,
backward and update, layer by layer or compiled, is driven through this.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "StepResult", "TrainStep"]

Array = NDArray[np.float32]


class StepResult(NamedTuple):
    """Of one batch: the mean loss before the update, and how many images were classified right."""

    loss: float
    correct: int


class TrainStep(Protocol):
    """Forward, backward and update of one network, which it owns."""

    @property
    def params(self) -> Mapping[str, Array]:
        """Every parameter by "<layer>.<param>", batch norm's running statistics among them.

        The arrays are the live ones: `step` changes them, so copy what must last. They may be
        changed in place between steps (lookahead does), and the next step takes them as they are.
        """
        ...

    def step(self, x: Array, targets: Array, lr: float) -> StepResult:
        """Train on one batch: x float32 [N, C, H, W] normalised, targets float32 [N, K].

        Each row of `targets` is a distribution over the classes, times the weight of the image
        (class weights): it needs not sum to 1. The loss is -Σ targets · log softmax / N.
        """
        ...

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """All that must be kept to continue bit for bit: float32 arrays, and JSON values."""
        ...

    def load_state(self, arrays: Mapping[str, Array], values: Mapping[str, Any]) -> None:
        """Continue from a `state` of a step of the same network and settings."""
        ...
