"""Muon: updates of matrices made orthogonal by Newton and Schulz's iteration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from math import sqrt

import numpy as np

from convserve import kernels
from convserve.errors import ShapeError
from convserve.training.groups import Setting
from convserve.training.optimisers import Fused
from convserve.training.step import Array

__all__ = ["Muon", "orthogonalised"]

# An odd polynomial a x + b x³ + c x⁵ whose iterates bring singular values from (0, 1] to about 1
# (0.7 to 1.2): it rises steeply at 0, so that three rounds are enough for training.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 3
EPS = 1e-7


@dataclass(eq=False)
class Muon(Fused):
    """Muon (Jordan et al. 2024) for filters and matrices, and SGD with Nesterov for the rest.

    Of a filter or matrix [O, …] of O rows: v ← momentum · v + g, and the update g + momentum · v
    is replaced by the nearest matrix with orthonormal rows (or columns); the weights are first
    scaled to the norm √O, so the learning rate is a rotation a step, and they need no decay.

    head: names that are left to SGD although they are matrices, as a network's last layer is.
    sgd_momentum and sgd_lr (times the learning rate): of what SGD updates.
    """

    slots = ("velocity",)

    momentum: float = 0.6
    _: KW_ONLY
    sgd_momentum: float = 0.9
    sgd_lr: float = 1.0
    head: Iterable[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.head = frozenset(self.head)
        self._muon: dict[str, tuple[Setting, Array]] = {}  # and its velocity

    def update(self, params: Mapping[str, Array], grads: Mapping[str, Array], lr: float) -> None:
        step, scale = self.steps, 1.0
        if self._muon and self.clip is not None:
            self._arena.bind(tuple(grads[name] for name in self._settings))
            scale = self._scale(grads)
        super().update(params, grads, lr * self.sgd_lr)
        for name, (setting, velocity) in self._muon.items():
            param, grad = params[name], grads[name]
            rate = lr if setting.schedule is None else setting.schedule(step)
            velocity *= self.momentum
            velocity += scale * grad
            update = scale * grad + self.momentum * velocity
            rows = len(param)
            # Not by BLAS, whose sums may depend on its threads.
            norm = sqrt(float(np.square(param, dtype=np.float64).sum()))
            if norm > 0:
                param *= np.float32(sqrt(rows) / norm)
            turned = orthogonalised(update.reshape(rows, -1)).reshape(param.shape)
            param -= np.float32(rate * setting.lr) * turned

    def state(self) -> dict[str, Array]:
        turned = {f"velocity.{name}": velocity for name, (_, velocity) in self._muon.items()}
        return super().state() | turned

    def _matrices(self, params: Mapping[str, Array]) -> Iterable[str]:
        return [name for name, p in params.items() if p.ndim > 1 and name not in self.head]

    def _divide(self, settings: dict[str, Setting]) -> None:
        by_muon = [name for name, setting in settings.items() if setting.rule == "muon"]
        for name in by_muon:
            if self._params[name].ndim < 2:
                raise ShapeError(f"muon updates filters and matrices, {name!r} has one axis")
        self._muon = {
            name: (settings.pop(name), np.zeros_like(self._params[name])) for name in by_muon
        }
        super()._divide(settings)

    def _apply(self, rates: Array, scale: float) -> None:
        self._arena.sgd(rates, self._decays, self.sgd_momentum, True, self.decoupled, scale)

    def _rates(self, lr: float) -> Array:
        rates = super()._rates(lr)
        for i, _ in self._resting:  # the others have it in `lr`
            rates[i] *= np.float32(self.sgd_lr)
        return rates

    def _squared_norm(self, grads: Mapping[str, Array]) -> float:
        total = super()._squared_norm(grads)
        for name in self._muon:
            total += float(np.square(grads[name], dtype=np.float64).sum())
        return total


def orthogonalised(x: Array, rounds: int = ROUNDS) -> Array:
    """U Vᵀ of x = U S Vᵀ, roughly: float32 [rows, columns] -> new float32 of that shape.

    Products run on our own kernel: its bits don't depend on the number of threads.
    """
    wide = x if x.shape[0] <= x.shape[1] else x.T  # the products are of the shorter side
    norm = sqrt(float(np.square(wide, dtype=np.float64).sum()))
    y = np.ascontiguousarray(wide) * np.float32(1.0 / (norm + EPS))
    for _ in range(rounds):
        gram = kernels.affine(y, y)  # y yᵀ
        # Symmetric, so that `affine`, which multiplies by a transpose, multiplies by it.
        weights = np.float32(B) * gram + np.float32(C) * kernels.affine(gram, gram)
        y = np.float32(A) * y + kernels.affine(weights, np.ascontiguousarray(y.T))
    return y if wide is x else np.ascontiguousarray(y.T)
