"""Update rules: SGD with momentum, and Adam. All change the parameters in place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from convserve.training.config import TrainConfig
from convserve.training.step import Array

__all__ = ["SGD", "Adam", "Optimiser", "make_optimiser"]


class Optimiser(Protocol):
    """What a step needs of an optimiser."""

    steps: int  # updates so far

    def prepare(self, params: Mapping[str, Array]) -> None:
        """Make the state for these parameters, all zeros."""
        ...

    def update(self, params: Mapping[str, Array], grads: Mapping[str, Array], lr: float) -> None:
        """One update of every parameter in place."""
        ...

    def state(self) -> dict[str, Array]:
        """The live state arrays by name; with `steps` they are all there is."""
        ...


def decays(param: Array) -> bool:
    """Whether weight decay applies: to weights, not to biases or batch norm (one axis)."""
    return param.ndim > 1


class SGD:
    """v ← momentum · v + g;  p ← p - lr · v,  or with Nesterov  p ← p - lr · (g + momentum · v).

    g includes weight_decay · p, as in Sutskever et al. 2013 and PyTorch.
    """

    def __init__(
        self, momentum: float = 0.9, *, nesterov: bool = True, weight_decay: float = 0.0
    ) -> None:
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay
        self.steps = 0
        self._velocity: dict[str, Array] = {}

    def prepare(self, params: Mapping[str, Array]) -> None:
        self._velocity = {name: np.zeros_like(value) for name, value in params.items()}

    def update(self, params: Mapping[str, Array], grads: Mapping[str, Array], lr: float) -> None:
        for name, param in params.items():
            grad, velocity = grads[name], self._velocity[name]
            if self.weight_decay and decays(param):
                grad = grad + self.weight_decay * param
            velocity *= self.momentum
            velocity += grad
            param -= lr * (grad + self.momentum * velocity if self.nesterov else velocity)
        self.steps += 1

    def state(self) -> dict[str, Array]:
        return {f"velocity.{name}": value for name, value in self._velocity.items()}


class Adam:
    """Adam (Kingma and Ba 2014): steps scaled by running means of the gradient and its square.

    decoupled: weight decay shrinks the parameter itself (AdamW, Loshchilov and Hutter 2017), in
    place of joining the gradient.
    """

    def __init__(
        self,
        beta1: float = 0.9,
        beta2: float = 0.999,
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = True,
    ) -> None:
        self.beta1, self.beta2, self.eps = beta1, beta2, eps
        self.weight_decay, self.decoupled = weight_decay, decoupled
        self.steps = 0
        self._mean: dict[str, Array] = {}
        self._square: dict[str, Array] = {}

    def prepare(self, params: Mapping[str, Array]) -> None:
        self._mean = {name: np.zeros_like(value) for name, value in params.items()}
        self._square = {name: np.zeros_like(value) for name, value in params.items()}

    def update(self, params: Mapping[str, Array], grads: Mapping[str, Array], lr: float) -> None:
        self.steps += 1
        # The means start at zero: these undo the pull towards it.
        correction1 = 1.0 - self.beta1**self.steps
        correction2 = 1.0 - self.beta2**self.steps
        for name, param in params.items():
            grad, mean, square = grads[name], self._mean[name], self._square[name]
            if self.weight_decay and decays(param):
                if self.decoupled:
                    param *= 1.0 - lr * self.weight_decay
                else:
                    grad = grad + self.weight_decay * param
            mean += (1.0 - self.beta1) * (grad - mean)
            square += (1.0 - self.beta2) * (grad * grad - square)
            param -= (lr / correction1) * mean / (np.sqrt(square / correction2) + self.eps)

    def state(self) -> dict[str, Array]:
        means = {f"mean.{name}": value for name, value in self._mean.items()}
        return means | {f"square.{name}": value for name, value in self._square.items()}


def make_optimiser(config: TrainConfig) -> Optimiser:
    """The optimiser that a configuration names; Adam decays weights apart from the gradient."""
    if config.optimiser == "adam":
        return Adam(weight_decay=config.weight_decay)
    return SGD(config.momentum, nesterov=config.nesterov, weight_decay=config.weight_decay)
