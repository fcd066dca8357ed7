"""Steps to an Executor: tensors with their layouts and halos, operations, one arena.

Between the layers images lie blocked, 16 (8, 4) channels together. A convolution's padding is a
halo of zeros around its input, and whoever makes the input leaves room for it. The network's own
input is read as NCHW where a convolution of few channels or an affine layer comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from convserve.graph import Graph, layers
from convserve.graph.layers import Shape
from convserve.kernels._executor import Executor
from convserve.kernels._packed import PLANAR_CHANNELS, PackedConv
from convserve.plan.lower import Step, Steps, image_shape, is_depthwise, lower
from convserve.plan.memory import Extent, place

__all__ = ["Plan", "compile_plan"]

Array = npt.NDArray[np.float32]
# Images that a thread takes through the plan at a time: enough to reuse an affine layer's weights,
# few enough for what they hand on to stay in the second-level cache.
MAX_CHUNK = 32
CHUNK_FLOATS = 1 << 16

Halo = tuple[int, int, int, int]
NO_HALO: Halo = (0, 0, 0, 0)


class Plan:
    """An executable network; `run` may be called by several threads at a time."""

    def __init__(self, executor: Executor, steps: Steps) -> None:
        self._executor = executor
        self.steps = steps

    @property
    def arena_bytes(self) -> int:
        """Memory for the values between the layers, a thread."""
        return int(self._executor.arena_bytes)

    def run(self, x: Array, threads: int = 1) -> list[Array]:
        """x: float32[N, C, H, W], C-contiguous. Returns new arrays, one for each output."""
        return self._executor.run(x, threads)


def compile_plan(
    graph: Graph, params: Mapping[str, Array], outputs: Sequence[str] | None = None
) -> Plan:
    """Compiles the plan that computes the named layers; by default the graph's outputs.

    Raises UnknownNameError for a layer that does not exist.
    """
    names = list(graph.outputs.values()) if outputs is None else list(outputs)
    asked = [graph.resolve(name) for name in names]
    steps = lower(graph, params, list(dict.fromkeys(asked)))
    return Plan(_Compiler(graph, steps, asked).run(), steps)


@dataclass
class _Value:
    """Where a step's result, or a copy of the network's input, lies."""

    shape: tuple[int, int, int]
    halo: Halo = NO_HALO
    planar: bool = False
    first: int = 0  # the steps between which it is alive
    last: int = 0
    chunk: bool = False  # holds all images of a chunk
    tensor: int = -1
    phase: int = 0


class _Compiler:
    def __init__(self, graph: Graph, steps: Steps, asked: list[str]) -> None:
        self.graph, self.steps, self.asked = graph, steps, asked
        self.values: dict[str, _Value] = {}
        self.order: list[tuple[int, Step]] = []  # (phase, step)
        # The input as the layers that read it want it: "planar" with a halo, or "blocked".
        self.copies: dict[str, _Value] = {}

    def run(self) -> Executor:
        self.order_by_phase()
        self.lay_out()
        chunk_floats = sum(
            prod(v.shape) for v in [*self.values.values(), *self.copies.values()] if v.chunk
        )
        chunk = max(1, min(MAX_CHUNK, CHUNK_FLOATS // max(1, chunk_floats)))
        nodes = {name for step in self.steps.steps for name in step.nodes}
        macs = sum(
            node.op.macs(self.graph.input_shapes(node))
            for node in self.graph.nodes
            if node.name in nodes
        )
        # Layers without multiply-accumulates cost something too.
        work = macs + 4 * sum(prod(v.shape) for v in self.values.values())
        executor = Executor(chunk, float(work))
        self.external = executor.input(*self.graph.input_shape)
        every = [*self.copies.values(), *self.values.values()]
        for value in every:
            value.tensor = executor.tensor(*value.shape, value.halo, value.planar, value.chunk)
        extents = {v.tensor: Extent(executor.floats(v.tensor), v.first, v.last) for v in every}
        for tensor, offset in place(extents).items():
            executor.place(tensor, offset)
        for copy in self.copies.values():
            executor.stage(0, self.external, copy.tensor)
        for phase, step in self.order:
            self.emit(executor, phase, step)
        for name in self.asked:
            value = self.values.get(self.steps.outputs[name])
            tensor, phase = (value.tensor, value.phase) if value else (self.external, 0)
            executor.output(phase, tensor, self.graph.shape(name))
        return executor

    # -- what runs when -----------------------------------------------------------------------

    def order_by_phase(self) -> None:
        """An affine layer and all that depends on it run for a whole chunk of images."""
        late: set[str] = set()
        for step in self.steps.steps:
            sources = [*step.inputs, *([step.residual] if step.residual else [])]
            if isinstance(step.op, layers.Affine) or any(source in late for source in sources):
                late.add(step.name)
        early = [step for step in self.steps.steps if step.name not in late]
        self.order = [(0, s) for s in early]
        self.order += [(1, s) for s in self.steps.steps if s.name in late]

    # -- where it lies ------------------------------------------------------------------------

    def lay_out(self) -> None:
        """Each value's halo, lifetime and number of images. Time 0 is the staging of the input."""
        end = len(self.order) + 1
        for now, (phase, step) in enumerate(self.order, 1):
            self.values[step.name] = _Value(
                image_shape(step.shape), first=now, last=now, phase=phase, chunk=phase == 1
            )
            for source in step.inputs:
                self.read(self.source(source, step), step, phase, now)
            if step.residual:
                self.read(self.values[step.residual], None, phase, now)
        for name in self.asked:
            asked = self.values.get(self.steps.outputs[name])
            if asked is not None:
                asked.last = end
        for value in [*self.values.values(), *self.copies.values()]:
            if value.chunk and value.phase == 0:
                value.first = 0  # it is filled over all images of the chunk
                value.last = max(value.last, len([p for p, _ in self.order if p == 0]))

    def source(self, name: str, step: Step) -> _Value | None:
        """The value that a step reads; None for the network's input read in place."""
        if name != self.graph.input_name:
            return self.values[name]
        planar = isinstance(step.op, layers.Affine) or (
            isinstance(step.op, layers.Conv2d) and self.graph.input_shape[0] < PLANAR_CHANNELS
        )
        if planar and (isinstance(step.op, layers.Affine) or self.halo(step) == NO_HALO):
            return None
        form = "planar" if planar else "blocked"
        return self.copies.setdefault(form, _Value(self.graph.input_shape, planar=planar))

    def read(self, value: _Value | None, step: Step | None, phase: int, now: int) -> None:
        if value is None:
            return
        value.last = max(value.last, now)
        value.chunk = value.chunk or phase == 1
        if step is not None:
            halo = self.halo(step)
            value.halo = tuple(map(max, value.halo, halo))  # type: ignore[assignment]

    def halo(self, step: Step) -> Halo:
        if not isinstance(step.op, layers.Conv2d):
            return NO_HALO
        window = step.op.window([self.shape(step.inputs[0])])
        return window.pt, window.pb, window.pl, window.pr

    def shape(self, name: str) -> Shape:
        return self.steps.shapes[name]

    # -- what it does -------------------------------------------------------------------------

    def emit(self, executor: Executor, phase: int, step: Step) -> None:
        op = step.op
        sources = [self.source(name, step) for name in step.inputs]
        x = [self.external if source is None else source.tensor for source in sources]
        y = self.values[step.name].tensor
        shape = self.shape(step.inputs[0])
        match op:
            case layers.Conv2d():
                self.emit_conv(executor, phase, step, sources[0], x[0], y)
            case layers.Affine():
                assert step.weight is not None
                c, h, w = image_shape(shape)
                weight = step.weight.reshape(-1, c, h, w)
                packed = PackedConv(
                    weight, step.bias, h, w, relu=step.relu, planar=sources[0] is None
                )
                executor.affine(phase, x[0], y, packed)
            case layers.MaxPool2d():
                executor.pool(phase, x[0], y, op.window([shape]), True, False)
            case layers.AvgPool2d():
                executor.pool(phase, x[0], y, op.window([shape]), False, op.count_include_pad)
            case layers.GlobalAvgPool2d():
                executor.global_avg_pool(phase, x[0], y)
            case layers.BatchNorm():
                executor.scale_shift(phase, x[0], y, step.scale, step.shift, step.relu)
            case layers.ReLU():
                ones, zeros = np.ones(shape[0], np.float32), np.zeros(shape[0], np.float32)
                executor.scale_shift(phase, x[0], y, ones, zeros, True)
            case layers.Add():
                executor.add(phase, x[0], x[1], y, step.relu)
            case layers.Concat():
                channel = 0
                for source, tensor in zip(step.inputs, x, strict=True):
                    executor.concat(phase, tensor, y, channel)
                    channel += self.shape(source)[0]
            case layers.Softmax():
                executor.softmax(phase, x[0], y)
            case layers.Flatten():
                executor.flatten(phase, x[0], y)
            case _:
                raise TypeError(f"layer {step.name!r}: no kernel for {op.op}")

    def emit_conv(
        self, executor: Executor, phase: int, step: Step, source: _Value | None, x: int, y: int
    ) -> None:
        op, shape = step.op, image_shape(self.shape(step.inputs[0]))
        assert isinstance(op, layers.Conv2d) and step.weight is not None
        window = op.window([shape])
        if is_depthwise(op, shape) and not (source is None or source.planar):
            bias = np.zeros(shape[0], np.float32) if step.bias is None else step.bias
            executor.depthwise(phase, x, y, step.weight[:, 0], bias, window, step.relu)
            return
        packed = PackedConv(
            step.weight,
            step.bias,
            *shape[1:],
            op.stride,
            op.padding,
            op.dilation,
            op.groups,
            relu=step.relu,
            planar=source is None or source.planar,
        )
        residual = self.values[step.residual].tensor if step.residual else None
        executor.conv(phase, x, y, packed, window, residual)
