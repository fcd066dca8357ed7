"""Update rules: SGD with momentum, Adam and AdamW, Muon. All change the parameters in place.

Every rule is one fused pass over all parameters (`kernels/_optimiser.pyx`), views into one flat
array or arrays of their own; only Muon's matrices are multiplied one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from math import sqrt
from typing import ClassVar, Protocol

import numpy as np

from convserve.errors import ShapeError
from convserve.graph import Graph
from convserve.graph.layers import Affine
from convserve.kernels._optimiser import Arena
from convserve.training.config import TrainConfig
from convserve.training.groups import Group, Setting, settings_for
from convserve.training.muon import orthogonalised
from convserve.training.step import Array

__all__ = ["SGD", "Adam", "Muon", "Optimiser", "make_optimiser"]

ScheduleOf = Callable[[float], Callable[[int], float]]


class Optimiser(Protocol):
    """What a step needs of an optimiser."""

    steps: int  # updates so far

    def prepare(self, params: Mapping[str, Array]) -> None:
        """Make the state for these parameters, all zeros. They are the arrays that are updated."""
        ...

    def update(self, params: Mapping[str, Array], grads: Mapping[str, Array], lr: float) -> None:
        """One update in place of every parameter that learns. `params` as `prepare` had it.

        grads: by the names of the parameters. The same mapping object stands for the same arrays:
        a step that writes its gradients into arrays of its own passes one mapping each time.
        """
        ...

    def state(self) -> dict[str, Array]:
        """The live state arrays by name; with `steps` they are all there is."""
        ...


class _Fused:
    """What the rules share: settings of each parameter, clipping, one arena and its slots.

    weight_decay: of weights, not of biases or batch norm (one axis). decoupled: it shrinks the
    parameter itself (Loshchilov and Hutter 2017), in place of joining the gradient. clip: scale
    the gradients down where their norm, all together, is above. groups: what differs for some
    parameters; schedule: epochs to a schedule of that length, for groups that rest earlier.
    """

    slots: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        clip: float | None = None,
        groups: Iterable[Group] = (),
        schedule: ScheduleOf | None = None,
    ) -> None:
        self.weight_decay, self.decoupled, self.clip = weight_decay, decoupled, clip
        self.groups, self._schedule = tuple(groups), schedule
        self.steps = 0
        self._params: Mapping[str, Array] = {}
        self._grads: Mapping[str, Array] | None = None

    def prepare(self, params: Mapping[str, Array]) -> None:
        self._params, self._grads = params, None
        settings = settings_for(
            params,
            self.groups,
            weight_decay=self.weight_decay,
            schedule=self._schedule,
            matrices=self._matrices(params),
        )
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


class SGD(_Fused):
    """v ← momentum · v + g;  p ← p - lr · v,  or with Nesterov  p ← p - lr · (g + momentum · v).

    g includes weight_decay · p unless decoupled, as in Sutskever et al. 2013 and PyTorch.
    """

    slots = ("velocity",)

    def __init__(
        self,
        momentum: float = 0.9,
        *,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        clip: float | None = None,
        groups: Iterable[Group] = (),
        schedule: ScheduleOf | None = None,
    ) -> None:
        super().__init__(
            weight_decay=weight_decay,
            decoupled=decoupled,
            clip=clip,
            groups=groups,
            schedule=schedule,
        )
        self.momentum, self.nesterov = momentum, nesterov

    def _apply(self, rates: Array, scale: float) -> None:
        self._arena.sgd(rates, self._decays, self.momentum, self.nesterov, self.decoupled, scale)


class Adam(_Fused):
    """Adam (Kingma and Ba 2014): steps scaled by running means of the gradient and its square.

    decoupled: AdamW.
    """

    slots = ("mean", "square")

    def __init__(
        self,
        beta1: float = 0.9,
        beta2: float = 0.999,
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled: bool = True,
        clip: float | None = None,
        groups: Iterable[Group] = (),
        schedule: ScheduleOf | None = None,
    ) -> None:
        super().__init__(
            weight_decay=weight_decay,
            decoupled=decoupled,
            clip=clip,
            groups=groups,
            schedule=schedule,
        )
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

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


class Muon(SGD):
    """Muon (Jordan et al. 2024) for filters and matrices, and SGD with Nesterov for the rest.

    Of a filter or matrix [O, …] of O rows: v ← momentum · v + g, and the update g + momentum · v
    is replaced by the nearest matrix with orthonormal rows (or columns); the weights are first
    scaled to the norm √O, so the learning rate is a rotation a step, and they need no decay.

    head: names that are left to SGD although they are matrices, as a network's last layer is.
    sgd_momentum and sgd_lr (times the learning rate): of what SGD updates.
    """

    def __init__(
        self,
        momentum: float = 0.6,
        *,
        sgd_momentum: float = 0.9,
        sgd_lr: float = 1.0,
        head: Iterable[str] = (),
        weight_decay: float = 0.0,
        decoupled: bool = False,
        clip: float | None = None,
        groups: Iterable[Group] = (),
        schedule: ScheduleOf | None = None,
    ) -> None:
        super().__init__(
            sgd_momentum,
            weight_decay=weight_decay,
            decoupled=decoupled,
            clip=clip,
            groups=groups,
            schedule=schedule,
        )
        self.muon_momentum, self.sgd_lr, self.head = momentum, sgd_lr, frozenset(head)
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
            velocity *= self.muon_momentum
            velocity += scale * grad
            update = scale * grad + self.muon_momentum * velocity
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


def make_optimiser(
    config: TrainConfig, graph: Graph | None = None, schedule: ScheduleOf | None = None
) -> Optimiser:
    """The optimiser that a configuration names.

    graph: tells muon which layer is the last. schedule: for groups that rest before the end.
    """
    frozen = [Group(pattern, lr=0.0) for pattern in config.freeze]
    groups = [*config.groups, *frozen]
    if config.optimiser in ("adam", "adamw"):
        return Adam(
            weight_decay=config.weight_decay,
            decoupled=config.optimiser == "adamw",
            clip=config.clip,
            groups=groups,
            schedule=schedule,
        )
    if config.optimiser == "muon":
        lr = config.lr or 1.0  # never None or 0: the configuration sees to it
        return Muon(
            config.muon_momentum,
            sgd_momentum=config.momentum,
            sgd_lr=config.sgd_lr / lr,
            head=() if graph is None else _head(graph),
            weight_decay=config.weight_decay,
            decoupled=config.decoupled_decay,
            clip=config.clip,
            groups=groups,
            schedule=schedule,
        )
    return SGD(
        config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        clip=config.clip,
        groups=groups,
        schedule=schedule,
    )


def _head(graph: Graph) -> list[str]:
    """The weight of the last affine layer."""
    affine = [node.name for node in graph.nodes if isinstance(node.op, Affine)]
    return [f"{affine[-1]}.weight"] if affine else []
