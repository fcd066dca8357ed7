"""Steps to an Executor: tensors with their layouts and halos, operations, one arena.

Between the layers images lie blocked, 16 (8, 4) channels together. A convolution's padding is a
halo of zeros around its input, and whoever makes the input leaves room for it. The network's own
inputs are read as NCHW where a convolution of few channels or an affine layer comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from convserve.errors import ShapeError, UnknownNameError
from convserve.graph import Graph, layers
from convserve.graph.graph import MAX_ELEMENTS
from convserve.kernels._arguments import float32_shaped, padding_sides
from convserve.kernels._executor import Executor
from convserve.kernels._packed import PLANAR_CHANNELS, PackedConv
from convserve.kernels._winograd import PackedWinograd
from convserve.plan.abilities import can_store
from convserve.plan.activations import activation_of
from convserve.plan.choose import Choice, choose
from convserve.plan.cost import Depthwise, Kernel, Winograd
from convserve.plan.join import join_moves
from convserve.plan.lower import Step, Steps, image_shape, lower
from convserve.plan.memory import Extent, place
from convserve.plan.plan import Plan, PlanStep
from convserve.plan.sharing import NO_HALO, Halo, Value, share

__all__ = ["Packed", "compile_plan"]

Array = npt.NDArray[np.float32]
# What a group's inputs and outputs of a layer may take, for the second-level cache to hold them.
GROUP_FLOATS = 96 * 1024
# Pixels of all images of a group at the least, to reuse the weights of deep layers.
MIN_PIXELS = 400
# What a group's inputs and outputs of an affine layer may take: beyond, memory for no more speed.
AFFINE_FLOATS = 4096 * 1024

INVARIANT = Choice()
# By the layers of a step, from which its folded weights follow, and its kernel. What another
# process has packed stands there as an array, its `memory`, until a plan takes it.
Packed = dict[tuple[tuple[str, ...], Kernel], Any]
_P = TypeVar("_P")


def compile_plan(
    graph: Graph,
    params: Mapping[str, Array],
    outputs: Sequence[str] | None = None,
    choice: Choice = INVARIANT,
    packed: Packed | None = None,
) -> Plan:
    """Compiles the plan that computes the named layers; by default the graph's outputs.

    packed: weights that plans of the same graph and parameters share; the plan takes what is there
    and adds its own.

    Raises UnknownNameError for a layer that does not exist, ShapeError and TypeError for
    parameters that do not fit the graph.
    """
    names = list(graph.outputs.values()) if outputs is None else list(outputs)
    asked = [graph.resolve(name) for name in names]
    checked: dict[str, Array] = {}
    for name, spec in graph.parameter_specs().items():
        if name not in params:
            raise UnknownNameError(f"the parameter {name!r} is missing")
        checked[name] = float32_shaped(params[name], name, spec.shape, "as its layer says")
    steps = join_moves(lower(graph, checked, list(dict.fromkeys(asked))))
    compiler = _Compiler(graph, steps, asked, choice, {} if packed is None else packed)
    reads = not any(steps.outputs[name] in graph.inputs for name in asked)
    return Plan(compiler.run(), steps, compiler.parts, reads)


class _Compiler:
    def __init__(
        self, graph: Graph, steps: Steps, asked: list[str], choice: Choice, packed: Packed
    ) -> None:
        self.graph, self.steps, self.asked, self.choice = graph, steps, asked, choice
        self.packed = packed
        self.parts: list[PlanStep] = []
        self.values: dict[str, Value] = {}
        self.shapes = {name: image_shape(shape) for name, shape in graph.inputs.items()}
        # An input as layers that read it want it: planar with a halo, or blocked.
        self.copies: dict[tuple[str, bool], Value] = {}
        self.results = self.stored()

    def run(self) -> Executor:
        self.groups = groups = self.group_steps()
        results = [self.graph.shape(name) for name in self.asked]
        self.executor = executor = Executor(groups, results, self.work())
        self.lay_out(groups, executor.block)
        self.external = {name: executor.input(*shape) for name, shape in self.shapes.items()}
        for value in self.values.values():
            if value.result >= 0:
                value.tensor = executor.result(value.result, *value.shape)
        values = [value for value in self.values.values() if value.result < 0]
        every = [*self.copies.values(), *(v for v in values if v.inside is None)]
        for value in every:
            value.tensor = executor.tensor(*value.shape, value.halo, value.planar, value.level)
        extents = {v.tensor: Extent(executor.floats(v.tensor), v.first, v.last) for v in every}
        for tensor, offset in place(extents).items():
            executor.place(tensor, offset)
        for value in values:
            if value.inside is not None:
                outer = self.values[value.inside].tensor
                value.tensor = executor.part(outer, value.block, value.shape[0])
        for (name, _), copy in self.copies.items():
            executor.stage(copy.made_at, self.external[name], copy.tensor)
            self.note_copy("input", prod(copy.shape), (True, copy.planar), copy.level)
        for level, step in zip(self.levels, self.steps.steps, strict=True):
            source = self.source(step.inputs[0], step, level)
            planar = source.planar
            stored = step.name in self.results
            kernel = choose(step, self.steps.shapes, planar, stored, groups[level], self.choice)
            first = executor.operations
            self.emit(level, step, kernel)
            added, macs = range(first, executor.operations), self.macs(step)
            layout = planar, stored
            part = PlanStep.of(step, self.steps.shapes, macs, kernel, layout, groups[level], added)
            self.parts.append(part)
        for number, name in enumerate(self.asked):
            behind = self.steps.outputs[name]
            made = self.values.get(behind)
            if made is not None and made.result >= 0:
                continue
            tensor, level = (made.tensor, made.level) if made else (self.external[behind], 0)
            executor.output(level, tensor, number)
            self.note_copy("output", prod(self.graph.shape(name)), (made is None, True), level)
        return executor

    def note_copy(self, name: str, floats: int, layout: tuple[bool, bool], level: int) -> None:
        """Lists the executor's last operation, a copy, as a step."""
        added = range(self.executor.operations - 1, self.executor.operations)
        self.parts.append(PlanStep.of_copy(name, floats, layout, self.groups[level], added))

    def macs(self, step: Step) -> int:
        """Multiply-accumulates that an image takes."""
        nodes = map(self.graph.node, step.nodes)
        return sum(node.op.macs(self.graph.input_shapes(node)) for node in nodes)

    def work(self) -> float:
        """About how many multiply-accumulates an image takes, the cheap layers counted too."""
        macs = sum(map(self.macs, self.steps.steps))
        values = [*self.graph.inputs.values(), *(step.shape for step in self.steps.steps)]
        return float(macs + 4 * sum(map(prod, values)))

    # -- how many images at a time ------------------------------------------------------------

    def group_steps(self) -> list[int]:
        """Sets each step's level; returns the group size of each level.

        A step takes as many images at a time as the cache holds of what it reads and makes, but no
        more than any step after it: so the groups grow along the plan.
        """
        group, sizes = self.choice.most, []
        for step in reversed(self.steps.steps):
            names = [*step.inputs, *([step.residual] if step.residual else [])]
            floats = prod(step.shape)
            if step.origins is None:  # moves are few, and most of them are none in the end
                floats += sum(prod(self.steps.shapes[name]) for name in names)
            if isinstance(step.op, layers.Affine):
                fitting = max(1, AFFINE_FLOATS // floats)
            else:
                pixels = prod((step.unpooled or step.shape)[1:])
                fitting = max(1, GROUP_FLOATS // floats, MIN_PIXELS // pixels)
            group = min(group, 1 << fitting.bit_length() - 1)
            sizes.append(group)
        sizes.reverse()
        groups = sorted(set(sizes)) or [self.choice.most]
        self.levels = [groups.index(size) for size in sizes]
        return groups

    # -- where it lies ------------------------------------------------------------------------

    def stored(self) -> dict[str, int]:
        """Steps whose kernel stores what it makes as NCHW, and as which result.

        Nothing else may read it, and it is asked for once.
        """
        behind = [self.steps.outputs[name] for name in self.asked]
        read = {name for step in self.steps.steps for name in (*step.inputs, step.residual)}
        return {
            step.name: behind.index(step.name)
            for step in self.steps.steps
            if behind.count(step.name) == 1
            and step.name not in read
            and can_store(step.op, step.shape)
        }

    def lay_out(self, groups: list[int], block: int) -> None:
        """Each value's halo, lifetime and number of images, and which lie in one tensor.

        Time 0 is the staging of the inputs.
        """
        for now, (level, step) in enumerate(zip(self.levels, self.steps.steps, strict=True), 1):
            value = Value(image_shape(step.shape), level, now, now, level=level)
            value.result = self.results.get(step.name, -1)
            self.values[step.name] = value
            for source in step.inputs:
                self.read(self.source(source, step, level), level, now, self.halo(step))
            if step.residual:
                self.read(self.values[step.residual], level, now, NO_HALO)
        for name in self.asked:
            asked = self.values.get(self.steps.outputs[name])
            if asked is not None:
                # written out at its own level, after all that level's steps
                asked.last = len(self.steps.steps) + 1
        share(self.steps, self.values, groups, block)
        for (name, _), copy in self.copies.items():
            self.check_size(name, copy)
        for name, value in self.values.items():
            self.check_size(name, value)
            if value.level > value.made_at:
                value.first = 0  # it fills up while the steps of lower levels run again and again

    def check_size(self, name: str, value: Value) -> None:
        """Layers keep to the limit by themselves; the padding around them may be a thousandfold."""
        (channels, height, width), (top, bottom, left, right) = value.shape, value.halo
        floats = channels * (top + height + bottom) * (left + width + right)
        if floats > MAX_ELEMENTS:
            raise ShapeError(
                f"{name!r} with the padding of the convolutions that read it has {floats} "
                f"values, more than {MAX_ELEMENTS}"
            )

    def source(self, name: str, step: Step, level: int) -> Value:
        """The value that a step reads: of an input of the network, a copy in the arena."""
        if name not in self.shapes:
            return self.values[name]
        shape = self.shapes[name]
        planar = isinstance(step.op, layers.Affine) or (
            isinstance(step.op, layers.Conv2d) and shape[0] < PLANAR_CHANNELS
        )
        new = Value(shape, level, 0, 0, planar=planar, level=level)
        return self.copies.setdefault((name, planar), new)

    def read(self, value: Value, level: int, now: int, halo: Halo) -> None:
        value.last = max(value.last, now)
        value.level = max(value.level, level)
        value.halo = tuple(map(max, value.halo, halo))  # type: ignore[assignment]

    def halo(self, step: Step) -> Halo:
        if not isinstance(step.op, layers.Conv2d):
            return NO_HALO
        window = step.op.window([self.steps.shapes[step.inputs[0]]])
        return window.pt, window.pb, window.pl, window.pr

    # -- what it does -------------------------------------------------------------------------

    def emit(self, level: int, step: Step, kernel: Kernel) -> None:
        op, executor = step.op, self.executor
        sources = [self.source(name, step, level) for name in step.inputs]
        x = [source.tensor for source in sources]
        y = self.values[step.name].tensor
        shape = self.steps.shapes[step.inputs[0]]
        match op:
            case layers.Conv2d():
                self.emit_conv(level, step, kernel, sources[0], x[0], y)
            case layers.Affine():
                image = image_shape(shape)
                size = *image[1:], 1, 0, 1, 1, "floor", sources[0].planar
                packed = self.shared(
                    step,
                    kernel,
                    lambda w, ready: PackedConv(w.reshape(-1, *image), step.bias, *size, ready),
                )
                executor.affine(level, x[0], y, packed, step.activation)
            case layers.MaxPool2d():
                executor.pool(level, x[0], y, op.window([shape]), True, False)
            case layers.AvgPool2d():
                executor.pool(level, x[0], y, op.window([shape]), False, op.count_include_pad)
            case layers.GlobalAvgPool2d():
                executor.global_avg_pool(level, x[0], y)
            case layers.GlobalMaxPool2d():
                executor.global_max_pool(level, x[0], y)
            case layers.BatchNorm() | layers.ScaleShift():
                assert step.scale is not None and step.shift is not None
                executor.scale_shift(level, x[0], y, step.scale, step.shift, step.activation)
            case layers.LayerNorm():
                assert step.scale is not None and step.shift is not None
                executor.layer_norm(level, x[0], y, step.scale, step.shift, op.eps)
            case layers.LRN():
                around = (op.size - 1) // 2, op.size // 2
                before, after = (min(n, shape[0] - 1) for n in around)
                alpha = op.alpha / op.size
                executor.lrn(level, x[0], y, before, after, alpha, op.beta, op.bias)
            case layers.PReLU():
                assert step.scale is not None
                executor.prelu(level, x[0], y, step.scale)
            case layers.Add() | layers.Sub() | layers.Mul():
                executor.arithmetic(level, op.op, x[0], x[1], y, step.activation)
            case layers.Concat() | layers.Slice() | layers.ChannelShuffle():
                self.emit_moves(level, step, dict(zip(step.inputs, x, strict=True)), y)
            case layers.Pad() | layers.Crop():
                (top, _), (left, _) = padding_sides(op.padding)
                if isinstance(op, layers.Pad):
                    executor.pad(level, x[0], y, top, left, op.value)
                else:
                    executor.pad(level, x[0], y, -top, -left, 0.0)
            case layers.Softmax():
                executor.softmax(level, x[0], y)
            case layers.LogSoftmax():
                executor.log_softmax(level, x[0], y)
            case layers.Flatten():
                executor.flatten(level, x[0], y)
            case _:
                if activation_of(op) is None:
                    raise TypeError(f"layer {step.name!r}: no kernel for {op.op}")
                executor.activate(level, x[0], y, step.activation)

    def emit_moves(self, level: int, step: Step, x: dict[str, int], y: int) -> None:
        if step.copied:
            counts = [run.channels for run in step.copied]
            tensors = np.repeat([x[run.source] for run in step.copied], counts)
            channels = [np.arange(run.start, run.start + run.channels) for run in step.copied]
            sources = [np.arange(run.first, run.first + run.channels) for run in step.copied]
            self.executor.rearrange(
                level, y, np.concatenate(channels), tensors, np.concatenate(sources)
            )

    def shared(self, step: Step, kernel: Kernel, pack: Callable[[Array, Array | None], _P]) -> _P:
        """The step's packed weights: those of a plan before this one, or pack(weight, ready)."""
        key = tuple(step.nodes), kernel
        there = self.packed.get(key)
        if there is None:
            there = pack(step.take_weight(), None)
        elif isinstance(there, np.ndarray):
            assert step.weight is not None
            there = pack(step.weight, there)
        self.packed[key] = there
        weights_there: _P = there
        return weights_there

    def emit_conv(
        self, level: int, step: Step, kernel: Kernel, source: Value, x: int, y: int
    ) -> None:
        op, shape = step.op, image_shape(self.steps.shapes[step.inputs[0]])
        assert isinstance(op, layers.Conv2d)
        window = op.window([shape])
        residual = self.values[step.residual].tensor if step.residual else None
        if isinstance(kernel, Depthwise):
            bias = np.zeros(shape[0], np.float32) if step.bias is None else step.bias
            filters = np.ascontiguousarray(step.take_weight()[:, 0])
            self.executor.depthwise(level, x, y, filters, bias, window, step.activation)
        elif isinstance(kernel, Winograd):
            wanted = *shape[1:], op.padding, kernel.m
            wino = self.shared(
                step, kernel, lambda w, ready: PackedWinograd(w, step.bias, *wanted, ready)
            )
            pooled = step.pool is not None
            self.executor.winograd(level, x, y, wino, window, step.activation, residual, pooled)
        else:
            form = *shape[1:], op.stride, op.padding, op.dilation, op.groups, "floor", source.planar
            packed = self.shared(
                step, kernel, lambda w, ready: PackedConv(w, step.bias, *form, ready)
            )
            pool = None
            if step.pool is not None:
                largest = isinstance(step.pool, layers.MaxPool2d)
                counted = isinstance(step.pool, layers.AvgPool2d) and step.pool.count_include_pad
                pool = step.pool.window([step.unpooled]), largest, counted
            self.executor.conv(level, x, y, packed, window, step.activation, residual, pool)
