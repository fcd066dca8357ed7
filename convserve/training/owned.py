"""What every training step owns: the parameters, their optimiser, and how both are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convserve.training.optimisers import Optimiser
from convserve.training.step import Array

__all__ = ["OwnedState"]


class OwnedState:
    """The part of a `TrainStep` that does not depend on how gradients are computed.

    params: every parameter by "<layer>.<param>"; trainable: those of them that the optimiser
    updates, the same arrays. The seed and the number of updates decide what dropout draws.
    """

    def __init__(
        self,
        params: dict[str, Array],
        trainable: dict[str, Array],
        optimiser: Optimiser,
        seed: int,
    ) -> None:
        self._params, self._trainable, self._optimiser = params, trainable, optimiser
        optimiser.prepare(trainable)
        self._seed = seed
        self._steps = 0

    @property
    def params(self) -> Mapping[str, Array]:
        return self._params

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        arrays = {f"params.{name}": value for name, value in self._params.items()}
        arrays |= {f"optimiser.{n}": value for n, value in self._optimiser.state().items()}
        return arrays, {"steps": self._steps}

    def load_state(self, arrays: Mapping[str, Array], values: Mapping[str, Any]) -> None:
        own, _ = self.state()
        for name, array in own.items():
            array[...] = arrays[name]
        self._steps = values["steps"]
        self._optimiser.steps = self._steps

    def _update(self, grads: Mapping[str, Array], lr: float) -> None:
        self._optimiser.update(self._trainable, grads, lr)
        self._steps += 1
