"""Steps that only move channels: concatenation, slice and shuffle as one kind of step.

    concat -> shuffle -> slice     one step, which reads what was concatenated
    concat(a, b, c)                concat(ab, c) where ab = concat(a, b) is there: it grows
    slice of all that b gave       b

`Origins` says for each channel where it comes from; plan/join.py simplifies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from convserve.graph import layers
from convserve.graph.layers import Shape

__all__ = ["Origins", "Run", "origins_of"]

Indices = npt.NDArray[np.int64]


class Run(NamedTuple):
    """`channels` channels of a result from `start` on: those of an input from `first` on."""

    start: int
    source: str
    first: int
    channels: int


@dataclass
class Origins:
    """Channel c of a result is channel `channel[c]` of `names[source[c]]`."""

    names: list[str]
    source: Indices
    channel: Indices

    def runs(self) -> list[Run]:
        """As few as there can be."""
        breaks = (np.diff(self.source) != 0) | (np.diff(self.channel) != 1)
        starts = [0, *(np.flatnonzero(breaks) + 1).tolist()]
        ends = [*starts[1:], len(self.source)]
        return [
            Run(start, self.names[self.source[start]], int(self.channel[start]), end - start)
            for start, end in zip(starts, ends, strict=True)
        ]

    def through(self, before: Mapping[str, Origins]) -> Origins:
        """With the channels of the inputs named in `before` taken from where those have them."""
        names, source, channel = list(self.names), self.source.copy(), self.channel.copy()
        for own, name in enumerate(self.names):
            if name in before:
                moved = self.source == own
                source[moved] = len(names) + before[name].source[self.channel[moved]]
                channel[moved] = before[name].channel[self.channel[moved]]
                names += before[name].names
        return _gathered(names, source, channel)

    def beginning_with(self, name: str, channels: int) -> Origins:
        """With the first channels read from `name`, which begins with the same ones."""
        source, channel = self.source + 1, self.channel.copy()
        source[:channels], channel[:channels] = 0, np.arange(channels)
        return _gathered([name, *self.names], source, channel)


def _gathered(names: list[str], source: Indices, channel: Indices) -> Origins:
    """The same with each input once, in the order of their first channels."""
    used = list(dict.fromkeys(names[i] for i in dict.fromkeys(source.tolist())))
    number = {name: i for i, name in enumerate(used)}
    renumbered = np.array([number.get(name, 0) for name in names], np.int64)
    return Origins(used, renumbered[source], channel)


def origins_of(op: layers.Operator, inputs: Sequence[str], shapes: Sequence[Shape]) -> Origins:
    """Where the channels of a concatenation, slice or shuffle come from."""
    channels = [shape[0] for shape in shapes]
    match op:
        case layers.Slice(start=start, stop=stop):
            order = np.arange(start, stop)
        case layers.ChannelShuffle(groups=groups):
            order = np.arange(channels[0]).reshape(groups, -1).T.ravel()
        case layers.Concat():
            source = np.repeat(np.arange(len(channels)), channels)
            starts = np.cumsum([0, *channels[:-1]])
            return _gathered(list(inputs), source, np.arange(sum(channels)) - starts[source])
        case _:
            raise TypeError(f"{op.op} does more than moving channels")
    return Origins([inputs[0]], np.zeros(len(order), np.int64), order.astype(np.int64))
