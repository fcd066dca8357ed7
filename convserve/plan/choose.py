"""Which kernel computes a step: by the cost model, or by a tuning record's times.

A plan keeps each layer's kernel whatever the batch, so that an image gives the same bits in any. It
is made for no particular number of images: taken is the kernel whose time is, in the worst of two
cases (a single image and a whole group), the smallest multiple of the best kernel's. A plan that
is made for a given number of images takes what is best there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, prod

from convserve.graph import layers
from convserve.graph.layers import Shape
from convserve.kernels._core import block
from convserve.plan.abilities import can_winograd, can_winograd6, is_depthwise
from convserve.plan.cost import Affine, Conv, Depthwise, Direct, Kernel, Moving, Pixels, Winograd
from convserve.plan.lower import Step, image_shape

__all__ = ["KERNELS", "MANY", "Choice", "Times", "alternatives", "choose"]

# Of one layer: kernel -> images -> nanoseconds.
Times = Mapping[str, Mapping[int, float]]
# Images a thread from which on a batch is a large one.
MANY = 32
# Of a convolution for which there is a choice.
KERNELS = ("winograd6", "winograd4", "winograd2", "direct")
# Four times the error of F(4, 3), for a few per cent of time: a deep network with one such layer
# (Inception v3) differs by 2e-4 from other engines. Whoever measures has seen both.
_ON_REQUEST = ("winograd6",)
# Multiply-adds that a value takes, roughly.
TAPS: dict[type[layers.Operator], int] = {
    layers.Softmax: 30,
    layers.LogSoftmax: 30,
    layers.LRN: 30,
    layers.LayerNorm: 4,
}


@dataclass(frozen=True)
class Choice:
    """What a plan's choices depend on beside the shapes."""

    batch: int | None = None  # images a thread that the plan is made for; None: any number
    kernel: str | None = None  # to take wherever a layer can
    times: Mapping[str, Times] = field(default_factory=dict)  # measured, by layer

    @property
    def most(self) -> int:
        """The images that a thread may get, if the plan is for them up to their double."""
        return MANY if self.batch is None else min(MANY, 2 * self.batch - 1)


def choose(
    step: Step,
    shapes: Mapping[str, Shape],
    planar: bool,
    stored: bool,
    group: int,
    choice: Choice,
) -> Kernel:
    """The kernel of a step that takes `group` images at a time.

    planar: it reads the network's input as NCHW; stored: it makes a result, NCHW too.
    """
    kernels = alternatives(step, shapes, planar, stored)
    if len(kernels) == 1:
        return kernels[0]
    for kernel in kernels:
        if kernel.name == choice.kernel:
            return kernel
    cases = sorted({1, group} if choice.batch is None else {min(choice.batch, group)})
    measured = choice.times.get(step.nodes[0])
    # a record from before one of them is no measure
    if measured is not None and any(kernel.name not in measured for kernel in kernels):
        measured = None
    if measured is None:
        kernels = [kernel for kernel in kernels if kernel.name not in _ON_REQUEST]
    costs = [[_cost(kernel, measured, images) for images in cases] for kernel in kernels]
    best = [min(column) for column in zip(*costs, strict=True)]
    regrets = [max(c / b for c, b in zip(row, best, strict=True)) for row in costs]
    return kernels[regrets.index(min(regrets))]


def _cost(kernel: Kernel, measured: Times | None, images: int) -> float:
    if measured is None:
        return kernel.nanoseconds(images)
    times = measured[kernel.name]
    return times[min(times, key=lambda n: abs(n - images))]


def alternatives(
    step: Step, shapes: Mapping[str, Shape], planar: bool, stored: bool = False
) -> Sequence[Kernel]:
    """The kernels that can compute the step."""
    shape = image_shape(shapes[step.inputs[0]])
    match step.op:
        case layers.Conv2d() as op:
            window = op.window([shape])
            pixels = shape[1] * shape[2]
            stored = stored and step.pool is None and step.residual is None
            conv = Conv(shape[0], op.out_channels, op.groups, window, pixels, planar, stored)
            if planar:
                return [Pixels(conv) if Pixels.suit(conv) else Direct(conv)]
            if is_depthwise(op, shape):
                return [Depthwise(conv)]
            if can_winograd(op, shape):
                sizes = (6, 4, 2) if can_winograd6(op, shape) else (4, 2)
                return [*(Winograd(conv, m) for m in sizes), Direct(conv)]
            return [Direct(conv)]
        case layers.Affine():
            return [Affine(prod(shape), step.shape[0])]
    values, taps = prod(step.shape), TAPS.get(type(step.op), 1)
    if isinstance(step.op, layers.MaxPool2d | layers.AvgPool2d):
        taps = prod(step.op.window([shape])[:2])
    elif isinstance(step.op, layers.GlobalAvgPool2d | layers.GlobalMaxPool2d):
        values = prod(shape)
    if step.origins is not None:  # what lies in its place already costs nothing
        values = sum(run.channels for run in step.copied) * prod(step.shape[1:])
        return [Moving(step.op.op, 8 * values, taps, ceil(values / block()))]
    inputs = sum(prod(shapes[name]) for name in step.inputs)
    return [Moving(step.op.op, 4 * (inputs + prod(step.shape)), taps, ceil(values / block()))]
