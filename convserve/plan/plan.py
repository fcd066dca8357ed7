"""An executable plan, and what each of its steps is and should cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import numpy.typing as npt

from convserve.graph.layers import Shape
from convserve.kernels._core import block
from convserve.kernels._executor import Executor
from convserve.plan.cost import Kernel, Moving
from convserve.plan.lower import Step, Steps

__all__ = ["Plan", "PlanStep"]

Array = npt.NDArray[np.float32]
Input = npt.NDArray[np.float32] | npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PlanStep:
    """What a plan does at a time: one layer, and those that are fused with it."""

    name: str  # of the value that it makes
    layers: tuple[str, ...]
    kernel: Kernel
    layout: str  # of its input and its output
    group: int  # images at a time
    macs: int  # an image
    input_bytes: int  # an image, its halo not counted
    output_bytes: int
    operations: range  # of the executor

    @classmethod
    def of(
        cls,
        step: Step,
        shapes: Mapping[str, Shape],
        macs: int,
        kernel: Kernel,
        layout: tuple[bool, bool],
        group: int,
        operations: range,
    ) -> PlanStep:
        """A step of the plan; layout: whether it reads and makes NCHW."""
        names = [*step.inputs, *([step.residual] if step.residual else [])]
        read = 4 * sum(prod(shapes[name]) for name in names)
        made = 4 * prod(step.shape)
        return cls(
            step.name,
            tuple(step.nodes),
            kernel,
            _layout(*layout),
            group,
            macs,
            read,
            made,
            operations,
        )

    @classmethod
    def of_copy(
        cls, name: str, floats: int, layout: tuple[bool, bool], group: int, operations: range
    ) -> PlanStep:
        """An input into the arena, or a value to a result; layout: whether they are planar."""
        kernel = Moving("copy", 8 * floats, vectors=ceil(floats / block()))
        size = 4 * floats
        return cls(name, (), kernel, _layout(*layout), group, 0, size, size, operations)

    def nanoseconds(self, images: int) -> float:
        """The cost model's time for a thread's `images` images."""
        groups, rest = divmod(images, self.group)
        time = groups * self.kernel.nanoseconds(self.group) if groups else 0.0
        return time + (self.kernel.nanoseconds(rest) if rest else 0.0)

    def estimate(self, images: int, threads: int = 1) -> float:
        """Seconds in a call with so many images, by the cost model."""
        each = ceil(images / threads)
        share = threads if images == 1 else 1  # the threads share a single image
        return self.nanoseconds(each) / share * 1e-9


def _layout(*planar: bool) -> str:
    before, after = ("NCHW" if each else f"NCHW{block()}c" for each in planar)
    return before if before == after else f"{before} → {after}"


class Plan:
    """An executable network; `run` may be called by several threads at a time."""

    def __init__(
        self, executor: Executor, steps: Steps, parts: Sequence[PlanStep], reads_bytes: bool
    ) -> None:
        self._executor = executor
        self.reads_bytes = reads_bytes  # not if an input is an output as well
        self.steps = steps
        self.parts = tuple(parts)
        self._estimates: dict[tuple[int, int], float] = {}  # by what a thread computes

    @property
    def arena_bytes(self) -> int:
        """Memory for the values between the layers, a thread."""
        return int(self._executor.arena_bytes)

    def run(
        self, x: Input | Sequence[Input], threads: int = 1, table: Array | None = None
    ) -> list[Array]:
        """x: float32[N, C, H, W], C-contiguous; with several inputs, one such array for each.

        Where the plan `reads_bytes`, x may also be uint8, each byte standing for its value in the
        table, float32[C, 256]. Returns new arrays, one for each output.
        """
        return self._executor.run([x] if isinstance(x, np.ndarray) else x, threads, None, table)

    def profile(
        self, x: Array | Sequence[Array], threads: int = 1, runs: int = 9
    ) -> npt.NDArray[np.float64]:
        """Seconds of each of `parts` in a call: float64[runs, parts], one row a call.

        Where threads work on different images, the mean of theirs.
        """
        seconds = np.empty((runs, len(self.parts)))
        for run in range(runs):
            spent = np.zeros((threads, self._executor.operations), np.int64)
            self._executor.run([x] if isinstance(x, np.ndarray) else x, threads, spent)
            busy = max(1, np.count_nonzero(spent.sum(axis=1)))
            for i, part in enumerate(self.parts):
                seconds[run, i] = (
                    spent[:, part.operations.start : part.operations.stop].sum() / busy * 1e-9
                )
        return seconds

    def estimate(self, images: int, threads: int = 1) -> float:
        """Seconds that a call with so many images should take, by the cost model."""
        key = (ceil(images / threads), threads if images == 1 else 1)
        seconds = self._estimates.get(key)
        if seconds is None:
            seconds = sum(part.estimate(images, threads) for part in self.parts)
            self._estimates[key] = seconds
        return seconds
