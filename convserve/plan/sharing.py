"""Which values lie in one tensor, so that nothing has to be copied.

    concat(a, b)     a and b are made in its tensor, each from the first channel of a block on
    slice of a       a part of a's tensor, from the first channel of a block on
    relu(a)          in a's place, where nothing else reads a any more

Whoever makes a value zeroes the halo around it, and may write arbitrary values to the surplus
channels of its last block: a concatenation copies what belongs there when all parts are made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from convserve.graph import layers
from convserve.plan.activations import activation_of
from convserve.plan.lower import Step, Steps
from convserve.plan.moves import Run

__all__ = ["NO_HALO", "Halo", "Value", "share"]

Halo = tuple[int, int, int, int]
NO_HALO: Halo = (0, 0, 0, 0)
# What one tensor may take that holds more images because of what else lies in it, in floats.
MAX_SHARED = 1 << 20


@dataclass
class Value:
    """Where a step's result, or a copy of the network's input, lies."""

    shape: tuple[int, int, int]
    made_at: int  # level of the step that makes it
    first: int  # the steps between which it is alive
    last: int
    halo: Halo = NO_HALO
    planar: bool = False
    result: int = -1  # which one it is, where it is stored as NCHW at once: then in no tensor
    level: int = 0  # the highest of the steps that make or read it
    inside: str | None = None  # the value in whose tensor it lies, if it has none of its own
    block: int = 0  # its first block there
    tensor: int = -1


def share(steps: Steps, values: dict[str, Value], groups: Sequence[int], block: int) -> None:
    """Sets `inside` and `block`, and what each step that moves channels still has to copy.

    The outer values get the halo, level and life that the inner ones need.
    """
    sharing = _Sharing(values, groups, block)
    for now, step in enumerate(steps.steps, 1):
        if step.origins is not None:
            sharing.move(step, step.origins.runs())
        elif _is_elementwise(step.op):
            sharing.replace(step, now)
    for step in steps.steps:
        if step.origins is not None:
            step.copied = sharing.copied(step.name, step.origins.runs())
    sharing.flatten()


def _is_elementwise(op: layers.Operator) -> bool:
    """Whether a pixel's results depend on that pixel alone, and its kernel may store over it."""
    return activation_of(op) is not None or isinstance(
        op,
        layers.Add | layers.Sub | layers.Mul | layers.PReLU | layers.BatchNorm | layers.ScaleShift
        | layers.LayerNorm | layers.Softmax | layers.LogSoftmax,
    )  # fmt: skip


class _Sharing:
    def __init__(self, values: dict[str, Value], groups: Sequence[int], block: int) -> None:
        self.values, self.groups, self.block = values, groups, block
        self.inner: dict[str, list[str]] = {}

    def move(self, step: Step, runs: list[Run]) -> None:
        if len(runs) == 1 and runs[0].first % self.block == 0 and runs[0].source in self.values:
            self.put(step.name, runs[0].source, runs[0].first // self.block)
            return
        for run in runs:
            part = self.values.get(run.source)
            if part is None or run.start % self.block:
                continue
            if (run.first, run.channels) == (0, part.shape[0]):
                self.put(run.source, step.name, run.start // self.block)

    def replace(self, step: Step, now: int) -> None:
        shape = self.values[step.name].shape
        for name in step.inputs:
            value = self.values.get(name)
            if value is None or value.shape != shape or self.dead_after(name) > now:
                continue
            if self.put(name, step.name, 0):
                return

    def put(self, name: str, outer: str, block: int) -> bool:
        """Has one value lie in another one's tensor; False where it can't."""
        value, whole = self.values[name], self.values[outer]
        if value.inside is not None or max(value.result, whole.result) >= 0:
            return False
        # The kernels of flat values write a row, with no halo between the blocks.
        if value.shape[1:] == (1, 1) and (value.halo, whole.halo) != (NO_HALO, NO_HALO):
            return False
        top = self.values[self.outermost(outer)]
        if value.level != top.level:
            channels, height, width = top.shape
            group = self.groups[max(value.level, top.level)]
            if channels * height * width * group > MAX_SHARED:
                return False
        value.inside, value.block = outer, block
        self.inner.setdefault(outer, []).append(name)
        top.level = max(top.level, value.level)
        return True

    def dead_after(self, name: str) -> int:
        return max(self.values[each].last for each in self.within(name))

    def within(self, name: str) -> Iterator[str]:
        waiting = [name]
        while waiting:
            name = waiting.pop()
            yield name
            waiting += self.inner.get(name, [])

    def outermost(self, name: str) -> str:
        while (outer := self.values[name].inside) is not None:
            name = outer
        return name

    def copied(self, name: str, runs: list[Run]) -> list[Run]:
        if len(runs) == 1 and self.values[name].inside == runs[0].source:
            return []
        return [run for run in runs if not self.in_place(name, run)]

    def in_place(self, name: str, run: Run) -> bool:
        part = self.values.get(run.source)
        return (
            part is not None
            and (part.inside, part.block * self.block) == (name, run.start)
            and (run.first, run.channels) == (0, part.shape[0])
        )

    def flatten(self) -> None:
        """Lets each inner value name the outermost one, and counts its blocks from there."""
        flat: set[str] = set()
        for name in self.values:
            path = []
            while self.values[name].inside is not None and name not in flat:
                path.append(name)
                name = str(self.values[name].inside)
            for name in reversed(path):
                value = self.values[name]
                outer = self.values[str(value.inside)]
                if outer.inside is not None:
                    value.inside, value.block = outer.inside, value.block + outer.block
                flat.add(name)
                self.join(value, self.values[str(value.inside)])

    def join(self, value: Value, outer: Value) -> None:
        outer.halo = tuple(map(max, outer.halo, value.halo))  # type: ignore[assignment]
        outer.level = max(outer.level, value.level)
        outer.made_at = min(outer.made_at, value.made_at)
        outer.first, outer.last = min(outer.first, value.first), max(outer.last, value.last)
