"""From a graph to the tape of a training step: operations over tensors, forward and then backward.

    forward    each layer's operations; bounds and slopes join the convolution before them, batch
               norm takes the residual and the activation after it
    backward   the same in reverse, down to the lowest layer that learns. The gradient of what
               several layers read is a sum: the first writes it, the others add to it. What only
               passes through (a residual's branches, a mask) shares memory, as long as nobody else
               still needs it as it was.

Tensors and operations are numbered; where they lie and who runs them is `compiled`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convserve.graph import Graph, Node, layers
from convserve.graph.layers import Operator, Shape
from convserve.plan.activations import LINEAR, Activation, activation_of

__all__ = ["Maker", "Op", "Tape", "Tensor"]

ROLES: tuple[str, ...] = ("x", "r", "y", "dx", "dy", "dr")


@dataclass
class Tensor:
    """One value of the network, or the gradient by one."""

    shape: tuple[int, int, int]
    planar: bool = False
    halo: int = 0  # zeros on each side
    whole: bool = True  # of the batch, not of a group


@dataclass
class Op:
    """One operation: its tensors by role, and what else its kind needs (`info`)."""

    kind: str
    tensors: dict[str, int]
    node: Node | None = None
    add: bool = False
    activation: Activation = LINEAR
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def layer(self) -> str:
        """The name of the layer whose operation it is."""
        assert self.node is not None
        return self.node.name


@dataclass
class Tape:
    """tensors[0] is the batch as it is given; ops in order; logits: what the loss reads."""

    tensors: list[Tensor]
    ops: list[Op]
    dropouts: int  # how many keys a step draws


class Maker:
    """The tape as far as it is made, and which gradients are where."""

    def __init__(
        self, graph: Graph, trained: Mapping[str, Node], logits: str, learning: Collection[str]
    ) -> None:
        self.graph, self.trained, self.logits, self.learning = graph, trained, logits, learning
        self.tensors: list[Tensor] = [Tensor(as_image(graph.input_shape), planar=True)]
        self.ops: list[Op] = []
        self.values = {graph.input_name: 0}  # tensors by the names of layers
        self.given = {0: 0}  # a planar tensor's blocked copy, once it is needed
        self.dropouts = 0
        self.joined: set[str] = set()  # layers that are part of the one before
        self.trainable: set[int] = set()  # tensors that depend on parameters that learn
        self.back: list[tuple[int, Callable[[int], None]]] = []
        self.bounds: dict[int, Activation] = {}  # of tensors whose reader may apply the mask
        self.masked: set[int] = set()  # whose gradient comes with the mask applied
        self.grads: dict[int, int] = {}
        self.owners: dict[int, set[int]] = {}  # by gradient: the values that still need it

    # -- both ways --------------------------------------------------------------------------------

    def tensor(self, shape: Shape) -> int:
        self.tensors.append(Tensor(as_image(shape)))
        return len(self.tensors) - 1

    def op(self, kind: str, node: Node | None = None, **rest: Any) -> Op:
        roles: dict[str, int] = {name: rest.pop(name) for name in ROLES if name in rest}
        add = rest.pop("add", False)
        function = rest.pop("activation", LINEAR)
        self.ops.append(Op(kind, roles, node, add, function, rest))
        return self.ops[-1]

    def only_reader(self, name: str) -> Node | None:
        readers = [n for n in self.graph.consumers(name) if n in self.trained]
        if len(readers) != 1 or name == self.logits:
            return None
        node = self.trained[readers[0]]
        return node if node.inputs.count(name) == 1 else None

    def read_only_by(self, x: int, node: Node) -> bool:
        """Whether no other layer reads the tensor, under any of its names."""
        names = [name for name, tensor in self.values.items() if tensor == x]
        readers = [self.only_reader(name) for name in names]
        return None not in readers and readers[-1] is node

    def blocked(self, name: str) -> int:
        """The tensor of that name as the kernels lay it out."""
        x = self.values[name]
        if self.tensors[x].planar:
            if self.given[x] == x:
                self.given[x] = self.tensor(self.tensors[x].shape)
                self.op("load", x=x, y=self.given[x])
            return self.given[x]
        return x

    def made(
        self,
        node: Node,
        inputs: Sequence[int],
        back: Callable[[int], None],
        learns: bool = False,
    ) -> int:
        """Notes a layer's output, with what turns its gradient into those of the inputs.

        learns: the layer has parameters that do.
        """
        y = self.tensor(node.shape)
        self.values[node.name] = y
        if learns or any(x in self.trainable for x in inputs):
            self.trainable.add(y)
            self.back.append((y, back))
        return y

    # -- gradients --------------------------------------------------------------------------------

    def into(self, x: int) -> tuple[int, bool]:
        """Where to put a contribution to the gradient by x, and whether to add it there."""
        if x not in self.grads:
            grad = self.tensor(self.tensors[x].shape)
            self.grads[x], self.owners[grad] = grad, {x}
            return grad, False
        grad = self.grads[x]
        if self.owners[grad] != {x}:
            own = self.tensor(self.tensors[x].shape)
            self.op("scale_dx", dy=grad, dx=own)
            self.owners[grad].discard(x)
            self.grads[x], self.owners[own] = own, {x}
        return self.grads[x], True

    def in_place(self, x: int, y: int) -> tuple[int, bool]:
        """Likewise; the gradient by y, which is read at the same place, may be overwritten."""
        grad = self.grads[y]
        if x in self.grads or self.owners[grad] != {y}:
            return self.into(x)
        self.grads[x], self.owners[grad] = grad, {x, y}
        return grad, False

    def pass_on(self, x: int, grad: int) -> None:
        """The gradient by x is this one, or has it as a part."""
        if x in self.grads:
            dx, add = self.into(x)
            self.op("scale_dx", dy=grad, dx=dx, add=add)
        else:
            self.grads[x] = grad
            self.owners[grad].add(x)

    def unmask(self, y: int, function: Activation, dy: int) -> int:
        """The gradient before an activation that was joined to what made y."""
        if function == LINEAR or y in self.masked:
            return dy
        dx = dy if self.owners[dy] == {y} else self.tensor(self.tensors[y].shape)
        self.op("activate_dx", y=y, dy=dy, dx=dx, activation=function)
        return dx

    def join(self, node: Node, kinds: tuple[type[Operator], ...]) -> tuple[Node, Activation]:
        """The activation after a layer, if it is one of those and reads nothing else."""
        reader = self.only_reader(node.name)
        if reader is None or not isinstance(reader.op, kinds):
            return node, LINEAR
        if isinstance(reader.op, layers.LeakyReLU) and reader.op.slope < 0:
            return node, LINEAR  # its derivative can't be told from its output
        self.joined.add(reader.name)
        return reader, activation_of(reader.op) or LINEAR


def as_image(shape: Shape) -> tuple[int, int, int]:
    """A flat shape as an image of one pixel."""
    return (shape[0], shape[1], shape[2]) if len(shape) == 3 else (shape[0], 1, 1)
