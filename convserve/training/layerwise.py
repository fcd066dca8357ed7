"""The first training step: layer by layer on the public kernels.

Correct and plain before fast: it is the oracle that a compiled step is compared with.

    x ─ forward, node by node ─▶ logits ─ cross-entropy ─▶ gradient ─ backward, in reverse ─▶ update
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from convserve.errors import ShapeError
from convserve.graph import Graph, Node
from convserve.training.dropout import CounterRandom
from convserve.training.loss import cross_entropy
from convserve.training.network import ancestors, trained_network
from convserve.training.optimisers import Optimiser
from convserve.training.owned import OwnedState
from convserve.training.rules import RULES, Rng
from convserve.training.step import Array, StepResult

__all__ = ["LayerwiseStep"]


class LayerwiseStep(OwnedState):
    """A `TrainStep` for any graph with one output of scores, with or without a final softmax.

    params: float32 arrays by "<layer>.<param>"; copied. Dropout depends on `seed` and on the
    number of the step, so that a resumed run draws what an uninterrupted one would.
    Raises ShapeError if the graph has several outputs, one that is not a row of scores, or a
    layer that only inference knows.
    """

    def __init__(
        self,
        graph: Graph,
        params: Mapping[str, Array],
        optimiser: Optimiser,
        *,
        seed: int = 0,
    ) -> None:
        network = trained_network(graph)
        self._graph, self._output = graph, network.output
        self._logits, self._trained = network.logits, network.trained
        for node in self._trained.values():
            if type(node.op) not in RULES:
                raise ShapeError(f"layer {node.name!r}: {node.op.op} is for inference only")
        specs = graph.parameter_specs()
        owned = {name: params[name].copy() for name in specs}
        trainable = {name: owned[name] for name in network.trainable(specs)}
        super().__init__(owned, trainable, optimiser, seed)
        self._local = {
            node.name: {
                local: owned[f"{node.name}.{local}"]
                for local in node.op.parameters(graph.input_shapes(node))
            }
            for node in graph.nodes
        }

    def step(self, x: Array, targets: Array, lr: float) -> StepResult:
        result, grads = self.gradients(x, targets)
        self._update(grads, lr)
        return result

    def gradients(self, x: Array, targets: Array) -> tuple[StepResult, dict[str, Array]]:
        """Loss, correct count, and the gradient by every trainable parameter; no update.

        Batch norm's running statistics move.
        """
        rng = CounterRandom(self._seed, self._steps)
        values: dict[str, Array] = {self._graph.input_name: x}
        saved: dict[str, Any] = {}
        for node in self._trained.values():
            values[node.name], saved[node.name] = self._forward(node, values, rng)
        logits = values[self._logits]
        loss, grad = cross_entropy(logits, targets)
        correct = int((logits.argmax(axis=1) == targets.argmax(axis=1)).sum())
        return StepResult(loss, correct), self._backward(grad, saved)

    def predict(self, x: Array) -> Array:
        """Scores [N, K] in inference mode, for x float32 [N, C, H, W] normalised."""
        values = {self._graph.input_name: x}
        nodes = ancestors(self._graph, self._output.name).values()
        for node in nodes:
            values[node.name], _ = self._forward(node, values, None)
        return values[self._output.name]

    def _forward(self, node: Node, values: Mapping[str, Array], rng: Rng) -> tuple[Array, Any]:
        inputs = [values[name] for name in node.inputs]
        return RULES[type(node.op)].forward(node.op, inputs, self._local[node.name], rng)

    def _backward(self, grad: Array, saved: dict[str, Any]) -> dict[str, Array]:
        by_output = {self._logits: grad}
        by_param: dict[str, Array] = {}
        for node in reversed(self._trained.values()):
            rule, local = RULES[type(node.op)], self._local[node.name]
            given = node.op, saved.pop(node.name), by_output.pop(node.name), local
            if rule.parameters and set(node.inputs) == {self._graph.input_name}:
                of_params = rule.parameters(*given)
            else:
                grads, of_params = rule.backward(*given)
                for name, part in zip(node.inputs, grads, strict=True):
                    # An output with several readers gets the sum of what they send back.
                    by_output[name] = by_output[name] + part if name in by_output else part
            by_param |= {f"{node.name}.{local}": value for local, value in of_params.items()}
        return by_param
