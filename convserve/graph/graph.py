"""The graph: named layers over an image (or several inputs), checked as they are added.

    g = Graph((1, 28, 28))
    g.add(layers.Conv2d(8, 3))             # "conv1"; its input is the node added last
    skip = g.add(layers.ReLU())            # "relu1"
    g.add(layers.Conv2d(8, 3, padding=1))
    g.add(layers.Add(), "conv2", skip)

    g.add_input("age", (1,))               # a second input, beside the image

A node can only name what was added before it, so the order of adding is topological and there are
no cycles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from convserve.errors import ConvserveError, ShapeError, UnknownNameError
from convserve.graph.initialise import initialise
from convserve.graph.layers import Operator, ParameterSpec, Shape, Softmax, from_attributes
from convserve.kernels._arguments import integer

__all__ = ["MAX_ELEMENTS", "Graph", "Node"]

# Of one array: indices are 32-bit in the kernels.
MAX_ELEMENTS = 2**31 - 1
MAX_NODES = 10_000
MAX_INPUTS = 256
MAX_NAME = 255
# Layer names are member names of a model file, so they must be safe as file names too. Dots are
# allowed, since parameter names have none: "block1.conv.weight" splits at the last one only.
_SAFE_NAME = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_.:/-]*")
RESERVED_NAME = "__convserve__"


@dataclass(frozen=True)
class Node:
    """One layer: its name, operator, the names that it reads, and its output's shape."""

    name: str
    op: Operator
    inputs: tuple[str, ...]
    shape: Shape


class Graph:
    """A directed acyclic graph of layers over an image of (C, H, W), and more inputs if need be.

    Errors name the layer and the rule: ShapeError where something does not fit, UnknownNameError
    for a name that does not exist, TypeError for an argument of a wrong type.
    """

    def __init__(self, input_shape: tuple[int, int, int], *, input_name: str = "input") -> None:
        _check_wire_name(input_name, "input_name")
        if not isinstance(input_shape, (tuple, list)) or len(input_shape) != 3:
            raise ShapeError(f"input_shape must be (channels, height, width), got {input_shape!r}")
        c, h, w = (integer(size, "input_shape", 1) for size in input_shape)
        _check_elements((c, h, w), "input_shape")
        self.input_name = input_name
        self.input_shape = (c, h, w)
        self._inputs: dict[str, Shape] = {input_name: (c, h, w)}
        self._nodes: dict[str, Node] = {}
        self._consumers: dict[str, list[str]] = {input_name: []}
        self._outputs: dict[str, str] = {}
        self._counts: dict[str, int] = {}
        self._last = input_name

    def add_input(self, name: str, shape: Shape) -> str:
        """Adds an input beside the first, an image (C, H, W) or a row (F,); returns its name.

        All inputs have the same number of images in a call.
        """
        _check_wire_name(name, "an input's name")
        if name in self._consumers:
            raise ShapeError(f"input {name!r}: the name is taken")
        if len(self._inputs) >= MAX_INPUTS:
            raise ShapeError(f"a graph has at most {MAX_INPUTS} inputs")
        if not isinstance(shape, (tuple, list)) or len(shape) not in (1, 3):
            raise ShapeError(
                f"input {name!r}: its shape must be (channels, height, width) or (features,), "
                f"got {shape!r:.80}"
            )
        sizes = tuple(integer(size, f"the shape of input {name!r}", 1) for size in shape)
        _check_elements(sizes, f"input {name!r}")
        self._inputs[name] = sizes
        self._consumers[name] = []
        return name

    def add(self, op: Operator, *inputs: str, name: str | None = None) -> str:
        """Adds a layer and returns its name.

        Without `inputs` it reads the layer added last (or the graph's input). Without a name it is
        called by its kind and a number: conv1, relu1, pool1, affine1, bn1, ...
        """
        if not isinstance(op, Operator) or not op.op:
            raise TypeError(f"op must be an operator of convserve.layers, got {op!r:.80}")
        name = self._free_name(op.prefix) if name is None else self._check_name(name)
        sources = inputs or (self._last,)
        try:
            shapes = [self.shape(source) for source in sources]
            if op.arity is None and len(sources) < 2:
                raise ShapeError(f"{op.op} needs two or more inputs, got {len(sources)}")
            if op.arity is not None and len(sources) != op.arity:
                plural = "" if op.arity == 1 else "s"
                raise ShapeError(f"{op.op} needs {op.arity} input{plural}, got {len(sources)}")
            shape = op.infer(shapes)
            _check_elements(shape, "the output")
            for parameter, spec in op.parameters(shapes).items():
                _check_elements(spec.shape, parameter)
        except ConvserveError as error:
            raise type(error)(f"layer {name!r}: {error}") from None
        if len(self._nodes) >= MAX_NODES:
            raise ShapeError(f"layer {name!r}: a graph has at most {MAX_NODES} layers")
        self._nodes[name] = Node(name, op, tuple(sources), shape)
        self._consumers[name] = []
        for source in dict.fromkeys(sources):
            self._consumers[source].append(name)
        self._last = name
        return name

    def set_output(self, node: str, name: str = "output") -> None:
        """Makes a layer an output of the graph under a wire name.

        Without any call the layer added last is the only one, named "output".
        """
        _check_wire_name(name, "output name")
        self.node(node)
        self._outputs[name] = node

    @property
    def inputs(self) -> dict[str, Shape]:
        """The inputs' shapes, without the batch axis, by name; the first is `input_name`."""
        return dict(self._inputs)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The layers in topological order."""
        return tuple(self._nodes.values())

    @property
    def outputs(self) -> dict[str, str]:
        """Wire name to layer name, in the order of `set_output`; empty if there is no layer."""
        if self._outputs or not self._nodes:
            return dict(self._outputs)
        return {"output": self._last}

    def node(self, name: str) -> Node:
        """The layer of that name; UnknownNameError lists the ones that exist."""
        try:
            return self._nodes[name]
        except (KeyError, TypeError):
            raise UnknownNameError(
                f"no layer is named {name!r:.300}; the layers are: {self._names()}"
            ) from None

    def shape(self, name: str) -> Shape:
        """The shape, without the batch axis, of a layer's output or of an input."""
        given = self._inputs.get(name) if isinstance(name, str) else None
        return self.node(name).shape if given is None else given

    def consumers(self, name: str) -> tuple[str, ...]:
        """The layers that read this one (or an input)."""
        if name not in self._inputs:
            self.node(name)
        return tuple(self._consumers[name])

    def resolve(self, name: str) -> str:
        """The layer (or the input) that a user's name means.

        That is a layer's own name, an input's, an output's wire name, or "logits": what feeds
        the final softmax.
        """
        if name in self._inputs or name in self._nodes:
            return name
        outputs = self.outputs
        if name in outputs:
            return outputs[name]
        if name == "logits":
            for output in outputs.values():
                node = self._nodes[output]
                if isinstance(node.op, Softmax):
                    return node.inputs[0]
            raise UnknownNameError("there are no logits: no output of the model is a softmax")
        return self.node(name).name

    def parameter_specs(self) -> dict[str, ParameterSpec]:
        """Every parameter array as "<layer>.<param>", in the order of the layers."""
        return {
            f"{node.name}.{parameter}": spec
            for node in self._nodes.values()
            for parameter, spec in node.op.parameters(self.input_shapes(node)).items()
        }

    def input_shapes(self, node: Node) -> list[Shape]:
        """The shapes of what a layer reads."""
        return [self.shape(source) for source in node.inputs]

    def initialise(self, rng: np.random.Generator | int = 0) -> dict[str, npt.NDArray[np.float32]]:
        """Fresh parameters for training; the same for the same seed.

        He-normal weights for layers that lead to a ReLU, 1 / sqrt(inputs) for others, zero biases;
        batch norm starts as weight 1, bias 0, mean 0, variance 1.
        """
        return initialise(self, rng)

    def to_dict(self) -> dict[str, Any]:
        """The graph as JSON values; `from_dict` is the inverse."""
        inputs = [{"name": name, "shape": list(shape)} for name, shape in self._inputs.items()]
        return {
            **({"input": inputs[0]} if len(inputs) == 1 else {"inputs": inputs}),
            "nodes": [
                {
                    "name": node.name,
                    "op": node.op.op,
                    "inputs": list(node.inputs),
                    "attributes": node.op.attributes(),
                }
                for node in self._nodes.values()
            ],
            "outputs": self.outputs,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Graph:
        """The graph of a `to_dict`, checked as strictly as one built by hand.

        Everything unknown, missing, ill-typed or too large is a ValueError (ShapeError or
        UnknownNameError) that names it. Nothing is allocated by the sizes in it.
        """
        try:
            several = isinstance(data, Mapping) and "inputs" in data
            inputs: dict[str, type] = {"inputs": list} if several else {"input": dict}
            top = _fields(data, "graph", **inputs, nodes=list, outputs=dict)
            entries = top["inputs"] if several else [top["input"]]
            if not entries:
                raise ShapeError("the graph has no inputs")
            given = [_fields(entry, "graph input", name=str, shape=list) for entry in entries]
            graph = cls(tuple(given[0]["shape"]), input_name=given[0]["name"])
            for more in given[1:]:
                graph.add_input(more["name"], tuple(more["shape"]))
            if not top["nodes"]:
                raise ShapeError("the graph has no layers")
            for place, entry in enumerate(top["nodes"]):
                node = _fields(
                    entry, f"layer {place} of the graph", name=str, op=str, inputs=list,
                    attributes=dict,
                )  # fmt: skip
                graph._add_from_dict(node)
            if not top["outputs"]:
                raise ShapeError("the graph has no outputs")
            for name, layer in top["outputs"].items():
                graph.set_output(layer, name)
        except TypeError as error:
            raise ShapeError(str(error)) from error
        return graph

    def _add_from_dict(self, node: dict[str, Any]) -> None:
        name, inputs = node["name"], node["inputs"]
        if not inputs:
            raise ShapeError(f"layer {name!r:.80}: it has no inputs")
        try:
            op = from_attributes(node["op"], node["attributes"])
        except UnknownNameError as error:
            raise UnknownNameError(f"layer {name!r:.80}: {error}") from None
        except (TypeError, ShapeError) as error:
            raise ShapeError(f"layer {name!r:.80}: {node['op']}: {error}") from None
        self.add(op, *inputs, name=name)

    def __eq__(self, other: object) -> bool:
        return self.to_dict() == other.to_dict() if isinstance(other, Graph) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # a graph can be added to

    def __repr__(self) -> str:
        inputs = self.input_shape if len(self._inputs) == 1 else self._inputs
        return f"<Graph {inputs} -> {len(self._nodes)} layers -> {self.outputs}>"

    def _names(self) -> str:
        names = list(self._nodes)
        listed = ", ".join(names[:50]) or "none"
        return f"{listed}, … ({len(names)} in all)" if len(names) > 50 else listed

    def _free_name(self, prefix: str) -> str:
        count = self._counts.get(prefix, 1)
        while f"{prefix}{count}" in self._consumers:
            count += 1
        self._counts[prefix] = count  # all below are taken
        return f"{prefix}{count}"

    def _check_name(self, name: str) -> str:
        if not isinstance(name, str):
            raise TypeError(f"a layer's name must be a string, got {name!r:.80}")
        segments = name.split("/")
        if (
            not _SAFE_NAME.fullmatch(name)
            or len(name) > MAX_NAME
            or name == RESERVED_NAME
            or "." in segments
            or ".." in segments
        ):
            raise ShapeError(
                f"a layer's name must be 1 to {MAX_NAME} letters, digits and _ . : / -, start with "
                f"a letter, digit, _ or /, and have no part '.' or '..'; got {name!r:.80}"
            )
        if name in self._consumers:
            raise ShapeError(f"layer {name!r}: the name is taken")
        return name


def _check_wire_name(name: object, what: str) -> None:
    """Names on the wire are the model's own (ONNX names have few rules), so almost all are fine."""
    if not isinstance(name, str):
        raise TypeError(f"{what} must be a string, got {name!r:.80}")
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise ShapeError(f"{what} must be 1 to {MAX_NAME} printable characters, got {name!r:.80}")


def _check_elements(shape: Shape, what: str) -> None:
    if prod(shape) > MAX_ELEMENTS:
        raise ShapeError(f"{what} of shape {shape} has more than {MAX_ELEMENTS} elements")


def _fields(data: object, what: str, **types: type) -> dict[str, Any]:
    """The mapping's values, if it has exactly these keys with values of these types."""
    if not isinstance(data, Mapping):
        raise ShapeError(f"{what} must be an object, got {data!r:.80}")
    for key in data:
        if key not in types:
            raise UnknownNameError(f"{what} has an unknown entry {key!r:.80}")
    for key, expected in types.items():
        if key not in data:
            raise ShapeError(f"{what} lacks the entry {key!r}")
        if not isinstance(data[key], expected):
            raise ShapeError(
                f"{what}: {key!r} must be a {expected.__name__}, got {data[key]!r:.80}"
            )
    return dict(data)
