"""Averages of the weights along the run: EMA, and lookahead.

Both take every parameter, batch norm's running statistics too: an average of weights goes with the
average of the statistics that belonged to them, and nothing needs to be computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping

from convserve.kernels._optimiser import Arena
from convserve.training.config import TrainConfig
from convserve.training.step import Array

__all__ = ["EMA", "Averages", "Lookahead"]


class EMA:
    """average ← average + (1 - d) (weights - average) after each step.

    d is `decay`, but at most (1 + step) / (10 + step), so that the beginning is forgotten.
    """

    def __init__(self, params: Mapping[str, Array], decay: float) -> None:
        self.params = {name: value.copy() for name, value in params.items()}
        self._decay = decay
        self._arena = Arena(list(self.params.values()))
        self._live = tuple(params.values())

    def update(self, step: int) -> None:
        """After the step of that number, from 1."""
        decay = min(self._decay, (1 + step) / (10 + step))
        self._arena.bind(self._live)
        self._arena.lerp(1.0 - decay)


class Lookahead:
    """Every `every` steps slow ← slow + (1 - a) (weights - slow), and the weights become slow.

    Zhang et al. 2019, with a that grows, a = decay^every · (step / total)³, so that early weights
    are forgotten; after the last step the weights become the slow ones (Jordan 2024).
    """

    def __init__(self, params: Mapping[str, Array], every: int, decay: float, total: int) -> None:
        self.slow = {name: value.copy() for name, value in params.items()}
        self._every, self._decay, self._total = every, decay, total
        self._live = tuple(params.values())
        self._slow_arena = Arena(list(self.slow.values()))
        self._live_arena = Arena(list(self._live))

    def update(self, step: int) -> None:
        """After the step of that number, from 1: changes the weights in place."""
        if step % self._every == 0:
            kept = self._decay**self._every * (step / self._total) ** 3
            self._slow_arena.bind(self._live)
            self._slow_arena.lerp(1.0 - kept)
        elif step < self._total:
            return
        self._live_arena.bind(tuple(self.slow.values()))
        self._live_arena.lerp(1.0)


class Averages:
    """What a configuration asks for of them, over the live parameters of a step."""

    def __init__(self, params: Mapping[str, Array], config: TrainConfig, total: int) -> None:
        self._live = params
        self._ema = EMA(params, config.ema) if config.ema else None
        self._lookahead = (
            Lookahead(params, config.lookahead, config.lookahead_decay, total)
            if config.lookahead
            else None
        )

    @property
    def params(self) -> Mapping[str, Array]:
        """What is validated and exported: the EMA if there is one, else the weights."""
        return self._live if self._ema is None else self._ema.params

    def update(self, step: int) -> None:
        """After the step of that number, from 1; lookahead changes the live weights."""
        if self._lookahead is not None:
            self._lookahead.update(step)
        if self._ema is not None:
            self._ema.update(step)

    def state(self) -> dict[str, Array]:
        """The live arrays by name."""
        arrays: dict[str, Array] = {}
        if self._ema is not None:
            arrays |= {f"ema.{name}": value for name, value in self._ema.params.items()}
        if self._lookahead is not None:
            arrays |= {f"slow.{name}": value for name, value in self._lookahead.slow.items()}
        return arrays

    def load_state(self, arrays: Mapping[str, Array]) -> None:
        for name, value in self.state().items():
            value[...] = arrays[name]
