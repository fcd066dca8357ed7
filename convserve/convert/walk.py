"""From an ONNX graph to layers: each node that the outputs need, in order, is folded or mapped.

    Known inputs only   evaluated now (weights' and shapes' arithmetic)
    If, functions       their nodes take their place
    anything else       one of the mappings of nodes_*; what has none is collected, with all others

A node's fault is a ConversionError that names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

from convserve.convert import nodes_linear, nodes_pointwise, nodes_shapes, nodes_windows
from convserve.convert.attributes import Attributes
from convserve.convert.call import Call, Nodes, Value
from convserve.convert.fold import Budget, can_fold, fold, shape_part
from convserve.convert.tensors import load_external, to_array
from convserve.convert.values import Array, Feature, Known, Layers, Origin, Unsupported
from convserve.errors import ConversionError, ConvserveError, UnsupportedOperatorError

__all__ = ["FAULTS", "MAX_OPSET", "MIN_OPSET", "Walk"]

MIN_OPSET, MAX_OPSET = 7, 28  # that the mappings were written for
MAX_NODES = 100_000  # visited, functions and branches counted at every call
MAX_DEPTH = 32  # of branches and functions in each other
DEFAULT_DOMAINS = ("", "ai.onnx")

_NODES: Nodes = {
    **nodes_linear.NODES,
    **nodes_pointwise.NODES,
    **nodes_shapes.NODES,
    **nodes_windows.NODES,
}
# What a wrong file can make a node's conversion raise.
FAULTS = (ConvserveError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError)


class _Lost:
    """The output of a node that can't be converted."""


_LOST = _Lost()


@dataclass
class _Scope:
    """Names of one graph, or of one function's body."""

    values: dict[str, Value | _Lost | None]
    tensors: dict[str, TensorProto]
    producers: dict[str, NodeProto]
    read: set[str]  # by any node, or as an output
    bindings: Mapping[str, AttributeProto]
    opset: int
    parent: _Scope | None
    depth: int


class Walk:
    """Converts a graph's nodes; `layers` gets what they become."""

    def __init__(
        self, model: ModelProto, layers: Layers, batch: tuple[int, ...], folder: Path | None
    ) -> None:
        self.layers, self.batch, self.folder = layers, batch, folder
        self.opset = _opset(model.opset_import)
        self.functions: dict[tuple[str, str], FunctionProto] = {
            (function.domain, function.name): function for function in model.functions
        }
        self.unsupported: dict[Origin, str] = {}
        self.visited = 0
        self.budget = Budget()

    def run(self, graph: GraphProto, given: Mapping[str, Value]) -> list[Value]:
        """The values of the graph's outputs; UnsupportedOperatorError lists what is missing."""
        scope = self._scope(graph, given, {}, self.opset, None)
        if graph.sparse_initializer:
            raise UnsupportedOperatorError("the model has sparse weights: it needs dense ones")
        names = [output.name for output in graph.output]
        self._make(scope, names)
        if self.unsupported:
            raise UnsupportedOperatorError(self._report())
        values = [self._find(scope, name, "the graph's outputs") for name in names]
        return [value for value in values if value is not None and not isinstance(value, _Lost)]

    def add_unsupported(self, origin: Origin, why: str) -> None:
        self.unsupported.setdefault(origin, why)

    def check(self) -> None:
        if self.unsupported:
            raise UnsupportedOperatorError(self._report())

    def _report(self) -> str:
        lines = [f"{origin}: {why}" for origin, why in self.unsupported.items()]
        count = f"{len(lines)} node{'s' if len(lines) > 1 else ''} can't be converted"
        return "\n  ".join([f"{count}:", *lines])

    # -- names --------------------------------------------------------------------------------

    def _scope(
        self,
        graph: GraphProto | FunctionProto,
        given: Mapping[str, Value | _Lost | None],
        bindings: Mapping[str, AttributeProto],
        opset: int,
        parent: _Scope | None,
        depth: int = 0,
    ) -> _Scope:
        if depth > MAX_DEPTH:
            raise ConversionError(f"functions or branches are nested deeper than {MAX_DEPTH}")
        tensors = {t.name: t for t in graph.initializer} if isinstance(graph, GraphProto) else {}
        producers: dict[str, NodeProto] = {}
        read = {o if isinstance(o, str) else o.name for o in graph.output}
        for node in graph.node:
            read |= _reads(node)
            for output in node.output:
                if output and (output in producers or output in tensors or output in given):
                    raise ConversionError(
                        f"{_origin(node)}: its output {output!r:.200} is there twice"
                    )
                producers[output] = node
        return _Scope(dict(given), tensors, producers, read, bindings, opset, parent, depth)

    def _find(self, scope: _Scope, name: str, reader: object) -> Value | _Lost | None:
        """The value of a name that is made already, here or around."""
        if not name:
            return None
        found: _Scope | None = scope
        while found is not None:
            if name in found.values:
                return found.values[name]
            if name in found.tensors:
                tensor = found.tensors[name]
                if tensor.data_location == TensorProto.EXTERNAL:
                    load_external(tensor, self.folder)
                found.values[name] = Known((to_array(tensor),))
                return found.values[name]
            found = found.parent
        raise ConversionError(f"{reader} needs {name!r:.200}, which nothing makes")

    def _make(self, scope: _Scope, names: Iterable[str]) -> None:
        """Converts the nodes that make these names, and before them those that they need."""
        pending = [(node, False) for node in self._makers(scope, names)][::-1]
        open_nodes: set[int] = set()
        done: set[int] = set()
        while pending:
            node, ready = pending.pop()
            if id(node) in done:
                continue
            if ready:
                open_nodes.discard(id(node))
                done.add(id(node))
                self._node(scope, node)
                continue
            if id(node) in open_nodes:
                raise ConversionError(f"{_origin(node)}: it depends on its own output")
            open_nodes.add(id(node))
            pending.append((node, True))
            for maker in self._makers(scope, _reads(node)):
                if id(maker) in open_nodes:
                    raise ConversionError(f"{_origin(maker)}: it depends on its own output")
                if id(maker) not in done:
                    pending.append((maker, False))

    def _makers(self, scope: _Scope, names: Iterable[str]) -> list[NodeProto]:
        makers = {}
        for name in names:
            node = scope.producers.get(name)
            if node is not None and name not in scope.values:
                makers[id(node)] = node
        return list(makers.values())

    # -- nodes --------------------------------------------------------------------------------

    def _node(self, scope: _Scope, node: NodeProto) -> None:
        self.visited += 1
        if self.visited > MAX_NODES:
            raise ConversionError(f"the model has more than {MAX_NODES} nodes")
        origin = _origin(node)
        made: Sequence[Value | _Lost | None]
        try:
            made = self._converted(scope, node, origin)
        except Unsupported as error:
            self.add_unsupported(origin, str(error))
            made = [_LOST] * len(node.output)
        except FAULTS as error:
            if isinstance(error, UnsupportedOperatorError):
                raise
            detail = " ".join(str(error).split()) or type(error).__name__
            place = "" if str(origin) in detail else f"{origin}: "
            raise ConversionError(f"{place}{detail:.1000}") from error
        for name, value in zip(node.output, [*made, *[_LOST] * len(node.output)], strict=False):
            if name:
                scope.values[name] = value

    def _converted(
        self, scope: _Scope, node: NodeProto, origin: Origin
    ) -> Sequence[Value | _Lost | None]:
        op = node.op_type
        attributes = Attributes(node, scope.bindings)
        inputs = [self._find(scope, name, "it") for name in node.input]
        function = self.functions.get((node.domain, op))
        if function is not None:
            return self._function(scope, function, attributes, inputs)
        if node.domain not in DEFAULT_DOMAINS:
            raise Unsupported(f"it needs the operator {op} of the domain {node.domain!r:.100}")
        if op not in _NODES and not can_fold(op) and op != "If":
            raise Unsupported(f"it needs an operator {op}, which there is not")
        if any(value is _LOST for value in inputs):
            return [_LOST] * len(node.output)
        values = [value for value in inputs if not isinstance(value, _Lost)]
        if op == "If":
            return self._if(scope, attributes, values)
        if all(value is None or isinstance(value, Known) for value in values) and can_fold(op):
            return self._fold(op, values, attributes, scope.opset)
        if op in ("Shape", "Size"):
            return [self._shape(op, values, attributes)]
        if op not in _NODES:
            raise Unsupported(f"it needs an operator {op} on tensors that depend on the image")
        self.layers.origin = origin
        more_read = [name for name in node.output[1:] if name in scope.read]
        call = Call(
            self.layers, op, values, len(node.output), more_read, attributes, scope.opset,
            self.batch,
        )  # fmt: skip
        made = _NODES[op](call)
        attributes.check_all_read()
        return made if isinstance(made, list) else [made]

    def _fold(
        self, op: str, values: list[Value | None], attributes: Attributes, opset: int
    ) -> list[Value]:
        known = [value for value in values if isinstance(value, Known)]
        count = max((len(value.variants) for value in known), default=1)
        variants = []
        for place in range(count):
            arrays = [
                value.variants[place % len(value.variants)] if isinstance(value, Known) else None
                for value in values
            ]
            variants.append(fold(op, arrays, attributes, opset, self.budget))
        return [_known(outputs) for outputs in zip(*variants, strict=True)]

    def _shape(self, op: str, values: list[Value | None], attributes: Attributes) -> Known:
        x = values[0]
        if not isinstance(x, Feature):
            raise Unsupported("it works across the images of a batch")
        shapes = [(batch, *x.shape) for batch in self.batch]
        if op == "Size":
            return Known(tuple(np.asarray(np.prod(shape), np.int64) for shape in shapes))
        return _known([shape_part(shape, attributes) for shape in shapes])

    def _if(
        self, scope: _Scope, attributes: Attributes, values: list[Value | None]
    ) -> Sequence[Value | _Lost | None]:
        condition = values[0] if values else None
        if not isinstance(condition, Known) or condition.array.size != 1:
            raise Unsupported("it needs a branch that depends on the image")
        branches = attributes.graph("then_branch"), attributes.graph("else_branch")
        branch = branches[0 if condition.array.reshape(()) else 1]
        inner = self._scope(branch, {}, scope.bindings, scope.opset, scope, scope.depth + 1)
        names = [output.name for output in branch.output]
        self._make(inner, names)
        return [self._find(inner, name, "a branch") for name in names]

    def _function(
        self,
        scope: _Scope,
        function: FunctionProto,
        attributes: Attributes,
        inputs: Sequence[Value | _Lost | None],
    ) -> Sequence[Value | _Lost | None]:
        padded = [*inputs, *[None] * len(function.input)]
        given = dict(zip(function.input, padded, strict=False))
        bindings = {a.name: a for a in function.attribute_proto} | attributes.all
        opset = _opset(function.opset_import) if function.opset_import else scope.opset
        inner = self._scope(function, given, bindings, opset, None, scope.depth + 1)
        self._make(inner, function.output)
        return [
            self._find(inner, name, f"the function {function.name!r}") for name in function.output
        ]


def _known(variants: Sequence[Array]) -> Known:
    """One array where all are the same: what does not depend on the batch size."""
    first = variants[0]
    same = all(first.dtype == other.dtype and np.array_equal(first, other) for other in variants)
    return Known((first,) if same else tuple(variants))


def _opset(imports: Iterable[object]) -> int:
    versions = [o.version for o in imports if o.domain in DEFAULT_DOMAINS]  # type: ignore[attr-defined]
    if not versions:
        raise ConversionError("the model does not say which version of ONNX's operators it uses")
    if not MIN_OPSET <= max(versions) <= MAX_OPSET:
        raise UnsupportedOperatorError(
            f"the model uses version {max(versions)} of ONNX's operators; known are {MIN_OPSET} "
            f"to {MAX_OPSET}: export it with one of these"
        )
    return int(max(versions))


def _origin(node: NodeProto) -> Origin:
    return Origin(node.name, node.op_type, next((o for o in node.output if o), ""))


def _reads(node: NodeProto) -> set[str]:
    """The names that a node reads, those of its branches' nodes too."""
    names: set[str] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        names.update(name for name in current.input if name)
        for attribute in current.attribute:
            if attribute.type == AttributeProto.GRAPH:
                pending.extend(attribute.g.node)
                names.update(output.name for output in attribute.g.output)
    return names
