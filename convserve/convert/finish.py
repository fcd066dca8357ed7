"""From layers to a Graph: what is left over is dropped, constants move into the layers they fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from convserve.convert.values import Array, Layer, Layers, Pending
from convserve.graph import Graph
from convserve.graph import layers as ops
from convserve.graph.graph import MAX_NAME
from convserve.kernels._arguments import padding_sides

__all__ = ["build_graph", "in_order", "left_over", "lowered"]

Params = dict[str, npt.NDArray[np.float32]]
_WANTED = {
    "mean": "a mean over the channels (known inside layer norm only)",
    "centred": "a mean over the channels (known inside layer norm only)",
    "sqrt": "a square root (known inside layer norm only)",
    "reciprocal_sqrt": "a reciprocal square root (known inside layer norm only)",
    "padded": "padding of the channels (known inside LRN only)",
    "local_mean": "a mean over neighbouring channels (known inside LRN only)",
    "local_power": "a power (known inside LRN only)",
    "erf": "an operator Erf (known inside GELU only)",
    "softplus": "an operator Softplus",
}


def in_order(outputs: Iterable[Layer]) -> list[Layer]:
    """The layers that the outputs need, inputs first."""
    ordered: list[Layer] = []
    done: set[int] = set()
    pending = [(layer, False) for layer in outputs][::-1]
    while pending:
        layer, ready = pending.pop()
        if id(layer) in done:
            continue
        if ready:
            done.add(id(layer))
            ordered.append(layer)
            continue
        pending.append((layer, True))
        pending.extend((source, False) for source in reversed(layer.inputs))
    return ordered


def left_over(outputs: Iterable[Layer]) -> list[tuple[Layer, str]]:
    """Layers that are only a part of a pattern and were left alone, and what each would need."""
    return [
        (layer, f"it needs {_WANTED[layer.op.kind]}")
        for layer in in_order(outputs)
        if isinstance(layer.op, Pending) and layer.op.kind in _WANTED
    ]


def lowered(build: Layers, outputs: Sequence[Layer]) -> list[Layer]:
    """The outputs with every layer in its final form."""
    found = [layer for layer in in_order(outputs) if layer.op is not None]
    readers: dict[int, int] = {}
    for layer in [*found, *(Layer(None, (output,), (), {}) for output in outputs)]:
        for source in layer.inputs:
            readers[id(source)] = readers.get(id(source), 0) + 1
    final: dict[int, Layer] = {id(layer): layer for layer in build.inputs}
    for layer in found:
        inputs = [final[id(source)] for source in layer.inputs]
        build.origin = layer.origin
        made = _merged(build, layer, inputs, alone=readers[id(layer.inputs[0])] == 1)
        if made is None:
            assert layer.op is not None
            made = build.add(layer.op, *inputs, params=layer.params)
        final[id(layer)] = made
    return [final[id(output)] for output in outputs]


def _merged(build: Layers, layer: Layer, inputs: list[Layer], alone: bool) -> Layer | None:
    """The layer as a change of the one before it, or None."""
    op, x = layer.op, inputs[0]
    if isinstance(op, Pending):  # square, cube
        square = build.add(ops.Mul(), x, x)
        return square if op.kind == "square" else build.add(ops.Mul(), square, x)
    if isinstance(op, ops.ScaleShift) and alone:
        return _scaled(build, x, layer.params["scale"], layer.params["shift"])
    if isinstance(x.op, ops.Pad) and x.op.value == 0:
        sides = [
            (a + c, b + d)
            for (a, b), (c, d) in zip(
                padding_sides(x.op.padding), padding_sides(getattr(op, "padding", 0)), strict=True
            )
        ]
        padding = sides[0], sides[1]
        if isinstance(op, ops.Conv2d):
            return build.add(replace(op, padding=padding), *x.inputs, params=layer.params)
    return None


def _scaled(build: Layers, x: Layer, scale: Array, shift: Array) -> Layer | None:
    """A scale and shift taken into the weights of the layer that alone feeds it."""
    op, params = x.op, dict(x.params)
    if isinstance(op, (ops.Conv2d, ops.Affine)):
        weight = params["weight"]
        if not (scale == 1).all():
            factors = scale.astype(np.float32).reshape((-1,) + (1,) * (weight.ndim - 1))
            params["weight"] = weight * factors
        params["bias"] = np.asarray(params.get("bias", 0.0), np.float64) * scale + shift
        return build.add(replace(op, bias=True), *x.inputs, params=params)
    if isinstance(op, (ops.BatchNorm, ops.LayerNorm)):
        params["weight"] = params["weight"] * scale
        params["bias"] = params["bias"] * scale + shift
        return build.add(op, *x.inputs, params=params)
    return None


def build_graph(
    inputs: Mapping[str, Layer], outputs: Sequence[tuple[str, Layer]]
) -> tuple[Graph, Params]:
    """The graph, its layers named after the ONNX nodes, and its float32 parameters."""
    (first, image), *more = inputs.items()
    graph = Graph((image.shape[0], image.shape[1], image.shape[2]), input_name=first)
    for name, layer in more:
        graph.add_input(name, layer.shape)
    names = {id(layer): name for name, layer in inputs.items()}
    taken = set(inputs)
    params: Params = {}
    ordered = in_order(layer for _, layer in outputs)
    # The last layer that a node became has its name, what was made for it a default one.
    named = {layer.origin: layer for layer in ordered}
    for layer in ordered:
        if layer.op is None:
            continue
        own = layer.origin is not None and named[layer.origin] is layer
        wanted = _safe_name(layer.origin.name, taken) if own and layer.origin else None
        name = graph.add(layer.op, *(names[id(source)] for source in layer.inputs), name=wanted)
        taken.add(name)
        names[id(layer)] = name
        for parameter, value in layer.params.items():
            params[f"{name}.{parameter}"] = np.ascontiguousarray(value, np.float32)
    for wire_name, layer in outputs:
        graph.set_output(names[id(layer)], wire_name)
    return graph, params


def _safe_name(name: str, taken: set[str]) -> str | None:
    """An ONNX node's name as a layer's: letters, digits and a few signs; None without one."""
    name = re.sub(r"[^A-Za-z0-9_.:/-]", "_", name).strip("/")
    name = "/".join(part if part.strip(".") else "_" * len(part) for part in name.split("/"))
    if not name:
        return None
    if not re.match(r"[A-Za-z0-9_]", name):
        name = f"_{name}"
    name = name[: MAX_NAME - 10]
    count, unique = 1, name
    while unique in taken or unique == "__convserve__":
        count += 1
        unique = f"{name}_{count}"
    return unique
