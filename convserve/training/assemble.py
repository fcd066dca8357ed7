"""From a tape to a trainer: segments, memory, and what each operation works with.

A tensor that only one segment touches holds the images of a group and lies in each thread's own
memory, so a network without batch norm goes forward and back through the caches, a few images at a
time; the others hold the batch and share one arena by their lifetimes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convserve.graph import layers
from convserve.graph.layers import Shape
from convserve.kernels._train_layers import ConvLayer, NormLayer
from convserve.kernels._trainer import DW_ROWS, MAX_LANES, Trainer
from convserve.plan.memory import Extent, place
from convserve.training.segments import Segment, recompute, split
from convserve.training.step import Array
from convserve.training.tape import Op, Tape

__all__ = ["Assembly"]

GROUP_BYTES = 768 * 1024  # of what a group's operations touch: most of a core's second-level cache
AFFINE_IMAGES = 16  # fewer would read an affine layer's weights for too little work
PARTIAL_FLOATS = 16 * 2**20  # of all lanes' partial sums of the weights' gradients
PART_FLOATS = 4096  # of weights, for a part of packing or adding up

_NORM_ARRAYS = ("weight", "bias", "running_mean", "running_var")


@dataclass
class Assembly:
    """Makes the trainer of a tape, for batches of up to `batch` images.

    params: all of the network's, grads: those of the layers that learn; live float32 arrays.
    """

    tape: Tape
    batch: int
    classes: int
    input_shape: Shape
    params: Mapping[str, Array]
    grads: Mapping[str, Array]

    def __post_init__(self) -> None:
        self.convs: dict[str, ConvLayer] = {}
        self.layers: dict[str, Mapping[str, Any]] = {}  # what the tape says of each of them
        self.norms: dict[str, NormLayer] = {}
        self.packed: dict[str, Any] = {}
        self.slope_sums: dict[str, Any] = {}
        self.by_filters: dict[str, dict[str, int]] = {}  # by layer: operations, and their parts
        self.wishes()
        self.segments = split(self.tape, self.by_filters, self.packs)
        recompute(self.tape, self.segments)
        self.lanes = self.lane_count()
        self.trainer = Trainer(self.batch, self.input_shape, self.classes, self.lanes)
        self.lay_out()
        self.emit()
        self.trainer.allocate()

    # -- convolutions -----------------------------------------------------------------------------

    def wishes(self) -> None:
        """What the convolutions' kernels would like: halos, and how to share their gradients."""
        for op in self.tape.ops:
            if op.kind == "conv":
                layer = self.layers[op.layer] = op.info["layer"]
                conv = self.convs[op.layer] = self.conv_layer(layer)
                for number, halo in zip((layer["x"], layer["dy"]), conv.halos, strict=True):
                    tensor = None if number is None else self.tape.tensors[number]
                    # One pixel may be an affine layer's row too, whose channels have no gaps.
                    if tensor and not tensor.planar and tensor.shape[1:] != (1, 1):
                        tensor.halo = max(tensor.halo, halo)

        for name, conv in self.convs.items():
            self.by_filters[name] = self.parts_of(conv, self.layers[name])

    def parts_of(self, conv: ConvLayer, layer: Mapping[str, Any]) -> dict[str, int]:
        """The operations that go by filters, and into how many parts; a halo needs whole images."""
        forward, data, weight = conv.parts
        whole = [
            tensor is None or self.tape.tensors[tensor].halo > 0
            for tensor in (layer["y"], layer["dx"])
        ]
        parts = {
            "conv": 0 if whole[0] else forward,
            "conv_dx": 0 if whole[1] else data,
            "conv_dw": weight,
        }
        return {kind: count for kind, count in parts.items() if count}

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
        partial = sum(
            conv.partial_floats
            for name, conv in self.convs.items()
            if "conv_dw" not in self.by_filters[name]
        )
        return max(2, min(MAX_LANES, PARTIAL_FLOATS // max(partial, 1)))

    def packs(self, name: str) -> tuple[bool, bool]:
        """Whether the weights are packed once a step, for either direction."""
        layer, parts = self.layers[name], self.by_filters[name]
        return "conv" not in parts, "conv_dx" not in parts and layer["dx"] is not None

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

    def group(self, segment: Segment, bytes_per_image: int) -> int:
        """Images that go through a segment together; of the network only, as the lanes are."""
        group = max(1, GROUP_BYTES // max(bytes_per_image, 1))
        for op in segment.ops:
            if op.kind.startswith("affine"):
                group = max(group, AFFINE_IMAGES)
            elif op.kind.startswith("conv"):
                group = max(group, self.convs[op.layer].batch)
        return group

    # -- operations -------------------------------------------------------------------------------

    def emit(self) -> None:
        for name, op in ((op.layer, op) for op in self.tape.ops if op.kind == "conv"):
            layer = op.info["layer"]
            none = (0, 0, 0, 0)
            layouts = [
                none if layer[role] is None else self.trainer.layout(layer[role])
                for role in ("x", "y", "dx", "dy")
            ]
            self.convs[name] = self.conv_layer(layer, layouts=tuple(layouts))
        for name, conv in self.convs.items():
            by_images = f"{name}.weight" in self.grads and "conv_dw" not in self.by_filters[name]
            partials = self.lanes if by_images else 0
            conv.allocate(*self.packs(name), partials)
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
        if op.kind == "prelu_reduce":
            return 1  # as few values as channels
        weights = self.weight(op)
        if op.kind == "affine_pack":
            return -(-len(weights) // self.trainer.block)
        if op.kind == "affine_dw":
            return -(-len(weights) // DW_ROWS)
        if op.kind.endswith("_parts"):
            return self.by_filters[op.layer][op.kind.removesuffix("_parts")]
        return max(1, min(MAX_LANES, weights.size // PART_FLOATS))

    def weight(self, op: Op) -> Array:
        return self.params[f"{op.layer}.weight"]

    def set(self, op: Op) -> None:
        """Tells the trainer what the operation added last works with."""
        kind, trainer = op.kind, self.trainer
        setter = _SETTERS.get(kind.removesuffix("_dx"))
        if kind.startswith(("conv", "affine")):
            name = op.layer
            weight, bias = f"{name}.weight", f"{name}.bias"
            trainer.set_parameters(
                self.params[weight],
                self.params.get(bias),
                self.grads.get(weight),
                self.grads.get(bias),
            )
            if kind.startswith("conv"):
                trainer.set_conv(self.convs[name])
            else:
                outputs, inputs = self.weight(op).shape
                if name not in self.packed:
                    self.packed[name] = trainer.affine_buffer(inputs, outputs)
                trainer.set_affine(inputs, outputs, self.packed[name])
        elif kind.startswith("prelu"):
            slope = f"{op.layer}.slope"
            channels = len(self.params[slope])
            if op.layer not in self.slope_sums:
                self.slope_sums[op.layer] = trainer.prelu_buffer(channels)
            trainer.set_parameters(self.params[slope], None, self.grads.get(slope), None)
            trainer.set_prelu(channels, self.slope_sums[op.layer])
        elif kind.startswith(("norm", "statistics")):
            trainer.set_norm(self.norm(op), op.info.get("slope", "none"))
        elif setter is not None:
            setter(trainer, op)

    def norm(self, op: Op) -> NormLayer:
        name = op.layer
        if name not in self.norms:
            assert op.node is not None
            assert isinstance(op.node.op, layers.BatchNorm)
            own = {local: self.params[f"{name}.{local}"] for local in _NORM_ARRAYS}
            unused = np.empty_like(own["weight"])  # by a layer that doesn't learn
            self.norms[name] = NormLayer(
                **own,
                dweight=self.grads.get(f"{name}.weight", unused),
                dbias=self.grads.get(f"{name}.bias", unused),
                eps=op.node.op.eps,
                momentum=op.node.op.momentum,
                lanes=self.lanes,
            )
        return self.norms[name]


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
