"""Update rules: SGD with momentum, Adam and AdamW. All change the parameters in place.

Every rule is one fused pass over all parameters (`kernels/_optimiser.pyx`), views into one flat
array or arrays of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from math import sqrt
from typing import ClassVar, Protocol

import numpy as np

from convserve.errors import ShapeError
from convserve.kernels._optimiser import Arena
from convserve.training.groups import Group, Setting, settings_for
from convserve.training.step import Array

__all__ = ["SGD", "Adam", "Fused", "Optimiser", "ScheduleOf"]

ScheduleOf = Callable[[float], Callable[[int], float]]


class Optimiser(Protocol):
    """What a step needs of an optimiser."""

    steps: int  # updates so far
    learning: frozenset[str]  # the parameters that it updates, once it is prepared

    def prepare(self, params: Mapping[str, Array]) -> None:
        """Make the state for these parameters, all zeros. They are the arrays that are updated."""
        ...

    def update(self, params: Mapping[str, Array], grads: Mapping[str, Array], lr: float) -> None:
        """One update in place of every parameter that learns. `params` as `prepare` had it.

        grads: by the names of those parameters, at least. The same mapping object stands for the
        same arrays: a step that writes its gradients into arrays of its own passes one mapping each
        time.
        """
        ...

    def state(self) -> dict[str, Array]:
        """The live state arrays by name; with `steps` they are all there is."""
        ...


@dataclass(eq=False)
class Fused:
    """What the rules share: settings of each parameter, clipping, one arena and its slots.

    weight_decay: of weights, not of biases or batch norm (one axis). decoupled: it shrinks the
    parameter itself (Loshchilov and Hutter 2017), in place of joining the gradient. clip: scale
    the gradients down where their norm, all together, is above. groups: what differs for some
    parameters; schedule: epochs to a schedule of that length, for groups that rest earlier.
    """

    slots: ClassVar[tuple[str, ...]] = ()

    _: KW_ONLY
    weight_decay: float = 0.0
    decoupled: bool = False
    clip: float | None = None
    groups: Sequence[Group] = ()
    schedule: ScheduleOf | None = None

    def __post_init__(self) -> None:
        self.steps = 0
        self.learning: frozenset[str] = frozenset()
        self._params: Mapping[str, Array] = {}
        self._grads: Mapping[str, Array] | None = None

    def prepare(self, params: Mapping[str, Array]) -> None:
        self._params, self._grads = params, None
        settings = settings_for(
            params,
            self.groups,
            weight_decay=self.weight_decay,
            schedule=self.schedule,
            matrices=self._matrices(params),
        )
        self.learning = frozenset(settings)
        self._divide(settings)

    def update(self, params: Mapping[str, Array], grads: Mapping[str, Array], lr: float) -> None:
        if params is not self._params and any(
            params.get(name) is not value for name, value in self._params.items()
        ):
            raise ShapeError("update needs the parameters that prepare was given")
        if grads is not self._grads:
            self._bound = tuple(grads[name] for name in self._settings)
            self._grads = grads
        self._arena.bind(self._bound)
        self._apply(self._rates(lr), self._scale(grads))
        self.steps += 1

    def state(self) -> dict[str, Array]:
        return {
            f"{slot}.{name}": view
            for number, slot in enumerate(self.slots)
            for name, view in zip(self._settings, self._arena.slots(number), strict=True)
        }

    def _matrices(self, params: Mapping[str, Array]) -> Iterable[str]:
        return ()

    def _divide(self, settings: dict[str, Setting]) -> None:
        """Give the fused pass its parameters."""
        self._settings = settings
        self.__dict__.pop("_arena", None)
        self._factors = np.array([setting.lr for setting in settings.values()], np.float64)
        self._resting = [  # early, on schedules of their own
            (i, setting.schedule)
            for i, setting in enumerate(settings.values())
            if setting.schedule is not None
        ]
        decays = [setting.weight_decay for setting in settings.values()]
        self._decays = np.array(decays, np.float32)

    @cached_property
    def _arena(self) -> Arena:
        """Made when it is needed first: who only asks for gradients may do so in float64."""
        return Arena([self._params[name] for name in self._settings], len(self.slots))

    def _apply(self, rates: Array, scale: float) -> None:
        raise AssertionError("each rule has its own")

    def _rates(self, lr: float) -> Array:
        """The learning rate of each parameter of the fused pass, float32."""
        rates = lr * self._factors
        for i, schedule in self._resting:
            rates[i] = schedule(self.steps) * self._factors[i]
        return rates.astype(np.float32)

    def _scale(self, grads: Mapping[str, Array]) -> float:
        if self.clip is None:
            return 1.0
        norm = sqrt(self._squared_norm(grads))
        return self.clip / norm if norm > self.clip else 1.0

    def _squared_norm(self, grads: Mapping[str, Array]) -> float:
        return self._arena.squared_norm()


@dataclass(eq=False)
class SGD(Fused):
    """v ← momentum · v + g;  p ← p - lr · v,  or with Nesterov  p ← p - lr · (g + momentum · v).

    g includes weight_decay · p unless decoupled, as in Sutskever et al. 2013 and PyTorch.
    """

    slots = ("velocity",)

    momentum: float = 0.9
    _: KW_ONLY
    nesterov: bool = True

    def _apply(self, rates: Array, scale: float) -> None:
        self._arena.sgd(rates, self._decays, self.momentum, self.nesterov, self.decoupled, scale)


@dataclass(eq=False)
class Adam(Fused):
    """Adam (Kingma and Ba 2014): steps scaled by running means of the gradient and its square.

    decoupled: AdamW.
    """

    slots = ("mean", "square")

    beta1: float = 0.9
    beta2: float = 0.999
    _: KW_ONLY
    eps: float = 1e-8
    decoupled: bool = True

    def _apply(self, rates: Array, scale: float) -> None:
        self._arena.adam(
            rates,
            self._decays,
            self.beta1,
            self.beta2,
            self.eps,
            self.decoupled,
            scale,
            self.steps + 1,
        )
