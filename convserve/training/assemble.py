"""From a tape to a trainer: segments, memory, and what each operation works with.

Operations of images follow each other in a segment until one needs something of the whole batch.
A tensor that only one segment touches holds the images of a group and lies in each thread's own
memory, so a network without batch norm goes forward and back through the caches, a few images at a
time; the others hold the batch and share one arena by their lifetimes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from convserve.graph import layers
from convserve.graph.layers import Shape
from convserve.kernels._trainer import DW_ROWS, MAX_LANES, ConvLayer, NormLayer, Trainer
from convserve.plan.memory import Extent, place
from convserve.training.step import Array
from convserve.training.tape import Op, Tape

__all__ = ["assemble"]

GROUP_BYTES = 768 * 1024  # of what a group's operations touch: most of a core's second-level cache
AFFINE_IMAGES = 16  # fewer would read an affine layer's weights for too little work
PARTIAL_FLOATS = 16 * 2**20  # of all lanes' partial sums of the weights' gradients
PART_FLOATS = 4096  # of weights, for a part of packing or adding up

_NORM_ARRAYS = ("weight", "bias", "running_mean", "running_var")
ONCE = {"statistics_done", "norm_sums_done"}


@dataclass
class _Segment:
    ops: list[Op] = field(default_factory=list)
    once: list[Op] = field(default_factory=list)
    parts: bool = False
    group: int = 1

    def reads(self, tensor: int) -> bool:
        return any(tensor in op.tensors.values() for op in [*self.ops, *self.once])

    def read_instead(self, tensor: int, other: int) -> None:
        for op in [*self.ops, *self.once]:
            op.tensors = {k: other if v == tensor else v for k, v in op.tensors.items()}


def assemble(
    tape: Tape,
    batch: int,
    classes: int,
    input_shape: Shape,
    params: Mapping[str, Array],
    grads: Mapping[str, Array],
) -> Trainer:
    """The trainer of a tape, for batches of up to `batch` images.

    params: all of the network's, grads: those of the trainable ones; live float32 arrays.
    """
    return _Assembly(tape, batch, classes, input_shape, params, grads).trainer


class _Assembly:
    def __init__(
        self,
        tape: Tape,
        batch: int,
        classes: int,
        input_shape: Shape,
        params: Mapping[str, Array],
        grads: Mapping[str, Array],
    ) -> None:
        self.tape, self.batch = tape, batch
        self.params, self.grads = params, grads
        self.convs: dict[str, ConvLayer] = {}
        self.norms: dict[str, NormLayer] = {}
        self.packed: dict[str, Any] = {}
        self.by_filters: set[str] = set()
        self.wishes()
        self.segments = self.split()
        self.recompute()
        self.lanes = self.lane_count()
        self.trainer = Trainer(batch, input_shape, classes, self.lanes)
        self.lay_out()
        self.emit()
        self.trainer.allocate()

    # -- convolutions -----------------------------------------------------------------------------

    def wishes(self) -> None:
        """What the convolutions' kernels would like: halos, and how to share their gradients."""
        for op in self.tape.ops:
            if op.kind == "conv":
                layer = op.info["layer"]
                conv = self.convs[_name(op)] = self.conv_layer(layer)
                for number, halo in zip((layer["x"], layer["dy"]), conv.halos, strict=True):
                    tensor = self.tape.tensors[number]
                    if not tensor.planar:
                        tensor.halo = max(tensor.halo, halo)
                if conv.by_filters:
                    self.by_filters.add(_name(op))

    def conv_layer(self, layer: Mapping[str, Any], **layouts: Any) -> ConvLayer:
        op, x = layer["node"].op, self.tape.tensors[layer["x"]]
        assert isinstance(op, layers.Conv2d)
        return ConvLayer(
            self.batch,
            x.shape,
            op.out_channels,
            op.window([x.shape]),
            op.groups,
            x.planar,
            op.bias,
            **layouts,
        )

    def lane_count(self) -> int:
        """As many as leave room for their partial sums of the weights' gradients.

        A function of the network only, since the results depend on it.
        """
        partial = sum(c.partial_floats for n, c in self.convs.items() if n not in self.by_filters)
        return max(2, min(MAX_LANES, PARTIAL_FLOATS // max(partial, 1)))

    # -- segments ---------------------------------------------------------------------------------

    def split(self) -> list[_Segment]:
        head, tail, body = _Segment(parts=True), _Segment(parts=True), [_Segment()]
        large: list[_Segment] = []
        for op in self.tape.ops:
            if op.kind in ("conv", "affine"):
                head.ops.append(Op(f"{op.kind}_pack", {}, op.node, info=op.info))
            if op.kind == "affine_dw":
                tail.ops.append(op)
            elif op.kind == "conv_dw" and _name(op) in self.by_filters:
                # One after the other, since they share the memory of the largest.
                for part in (
                    Op("conv_dw_parts", op.tensors, op.node),
                    Op("conv_reduce", {}, op.node),
                ):
                    large.append(_Segment([part], parts=True))
            elif op.kind in ONCE:
                body[-1].once.append(op)
            else:
                if body[-1].once:
                    body.append(_Segment())
                body[-1].ops.append(op)
                if op.kind == "conv_dw":
                    tail.ops.append(Op("conv_reduce", {}, op.node, info=op.info))
        return [s for s in (head, *body, tail, *large) if s.ops]

    def recompute(self) -> None:
        """Computes batch norm's output again where only one segment of the backward pass needs it.

        That segment reads the normalisation's input anyway, for its sums, so there is less to
        write, to read and to hold.
        """
        for number, segment in enumerate(self.segments):
            for op in segment.ops:
                if op.kind != "norm" or "r" in op.tensors:
                    continue
                y = op.tensors["y"]
                others = [s for n, s in enumerate(self.segments) if n != number and s.reads(y)]
                if len(others) != 1 or others[0].parts:
                    continue
                again = len(self.tape.tensors)
                self.tape.tensors.append(replace(self.tape.tensors[y]))
                others[0].read_instead(y, again)
                others[0].ops.insert(
                    next(i for i, o in enumerate(others[0].ops) if again in o.tensors.values()),
                    replace(op, tensors={**op.tensors, "y": again}),
                )

    # -- memory -----------------------------------------------------------------------------------

    def lay_out(self) -> None:
        """Numbers in the trainer are those of the tape."""
        touched: dict[int, list[tuple[int, int]]] = {}  # (segment, operation in it)
        for number, segment in enumerate(self.segments):
            for place_, op in enumerate([*segment.ops, *segment.once]):
                for key in op.tensors.values():
                    touched.setdefault(key, []).append((number, place_))
        for number, tensor in enumerate(self.tape.tensors):
            seen = {segment for segment, _ in touched.get(number, [])}
            whole = len(seen) != 1 or self.segments[min(seen)].parts
            self.trainer.tensor(*tensor.shape, tensor.halo, tensor.planar, whole)
            tensor.whole = whole
        whole_extents: dict[int, Extent] = {}
        for number, segment in enumerate(self.segments):
            own: dict[int, Extent] = {}
            bytes_ = 0
            for key, uses in touched.items():
                mine = [op for at, op in uses if at == number]
                if not mine or self.tape.tensors[key].planar:
                    continue
                floats = self.trainer.image_floats(key)
                bytes_ += 4 * floats
                if self.tape.tensors[key].whole:
                    first = whole_extents.get(key, Extent(0, number, number)).first
                    whole_extents[key] = Extent(floats * self.batch, first, number)
                else:
                    own[key] = Extent(floats, mine[0], mine[-1])
            if segment.parts:
                continue
            segment.group = self.group(segment, bytes_)
            for extent in own.values():
                extent.size *= segment.group
            for key, offset in place(own).items():
                self.trainer.place(key, offset, segment.group)
        for key, offset in place(whole_extents).items():
            self.trainer.place(key, offset, self.batch)

    def group(self, segment: _Segment, bytes_per_image: int) -> int:
        """Images that go through a segment together; of the network only, as the lanes are."""
        group = max(1, GROUP_BYTES // max(bytes_per_image, 1))
        for op in segment.ops:
            if op.kind.startswith("affine"):
                group = max(group, AFFINE_IMAGES)
            elif op.kind.startswith("conv"):
                group = max(group, self.convs[_name(op)].batch)
        return group

    # -- operations -------------------------------------------------------------------------------

    def emit(self) -> None:
        for name, op in ((_name(op), op) for op in self.tape.ops if op.kind == "conv"):
            layer = op.info["layer"]
            none = (0, 0, 0, 0)
            layouts = [
                none if layer[role] is None else self.trainer.layout(layer[role])
                for role in ("x", "y", "dx", "dy")
            ]
            self.convs[name] = self.conv_layer(layer, layouts=tuple(layouts))
        largest: ConvLayer | None = None
        for name, conv in sorted(self.convs.items(), key=lambda item: -item[1].partial_floats):
            if name in self.by_filters:
                conv.allocate(1, largest)
                largest = largest or conv
            else:
                conv.allocate(self.lanes)
        count = 0
        for segment in self.segments:
            parts = []
            for op in [*segment.ops, *segment.once]:
                self.trainer.op(op.kind, op.tensors, op.add, op.activation)
                self.set(op)
                if segment.parts:
                    parts.append(self.parts(op))
            once, end = count + len(segment.ops), count + len(segment.ops) + len(segment.once)
            group = 0 if segment.parts else segment.group
            self.trainer.segment(count, once, end, group, parts)
            count = end

    def parts(self, op: Op) -> int:
        weights = self.weight(op)
        if op.kind == "affine_pack":
            return -(-len(weights) // self.trainer.block)
        if op.kind == "affine_dw":
            return -(-len(weights) // DW_ROWS)
        if op.kind == "conv_dw_parts":
            return self.convs[_name(op)].filter_parts
        return max(1, min(MAX_LANES, weights.size // PART_FLOATS))

    def weight(self, op: Op) -> Array:
        return self.params[f"{_name(op)}.weight"]

    def set(self, op: Op) -> None:
        """Tells the trainer what the operation added last works with."""
        kind, trainer = op.kind, self.trainer
        setter = _SETTERS.get(kind.removesuffix("_dx"))
        if kind.startswith(("conv", "affine")):
            name = _name(op)
            weight, bias = f"{name}.weight", f"{name}.bias"
            trainer.set_parameters(
                self.params[weight], self.params.get(bias), self.grads[weight], self.grads.get(bias)
            )
            if kind.startswith("conv"):
                trainer.set_conv(self.convs[name], name in self.by_filters)
            else:
                outputs, inputs = self.weight(op).shape
                if name not in self.packed:
                    self.packed[name] = trainer.affine_buffer(inputs, outputs)
                trainer.set_affine(inputs, outputs, self.packed[name])
        elif kind.startswith(("norm", "statistics")):
            trainer.set_norm(self.norm(op), op.info.get("slope", "none"))
        elif setter is not None:
            setter(trainer, op)

    def norm(self, op: Op) -> NormLayer:
        name = _name(op)
        if name not in self.norms:
            assert op.node is not None
            assert isinstance(op.node.op, layers.BatchNorm)
            own = {local: self.params[f"{name}.{local}"] for local in _NORM_ARRAYS}
            self.norms[name] = NormLayer(
                **own,
                dweight=self.grads[f"{name}.weight"],
                dbias=self.grads[f"{name}.bias"],
                eps=op.node.op.eps,
                momentum=op.node.op.momentum,
                lanes=self.lanes,
            )
        return self.norms[name]


def _name(op: Op) -> str:
    assert op.node is not None
    return op.node.name


def _set_pool(trainer: Trainer, op: Op) -> None:
    assert op.node is not None
    assert isinstance(op.node.op, (layers.MaxPool2d, layers.AvgPool2d))
    back = op.kind.endswith("_dx")
    x, y = op.tensors["dx" if back else "x"], op.tensors["dy" if back else "y"]
    counts = isinstance(op.node.op, layers.AvgPool2d) and op.node.op.count_include_pad
    trainer.set_pool(x, y, op.info["window"], counts)


def _set_pointwise(trainer: Trainer, op: Op) -> None:
    trainer.set_pointwise(op.info.get("arithmetic", "add"), op.info.get("factor", 1.0))


def _set_dropout(trainer: Trainer, op: Op) -> None:
    trainer.set_dropout(op.info["rate"], op.info["key"])


def _set_channels(trainer: Trainer, op: Op) -> None:
    trainer.set_channels(op.info.get("source", 0), op.info.get("target", 0), op.info["count"])


_SETTERS: dict[str, Callable[[Trainer, Op], None]] = {
    "max_pool": _set_pool,
    "avg_pool": _set_pool,
    "arithmetic": _set_pointwise,
    "scale": _set_pointwise,
    "dropout": _set_dropout,
    "channels": _set_channels,
}
