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
from convserve.training.rules import RULES, Rng
from convserve.training.step import Array, StepResult

__all__ = ["LayerwiseStep"]


class LayerwiseStep:
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
        self._params = {name: params[name].copy() for name in specs}
        self._local = {
            node.name: {
                local: self._params[f"{node.name}.{local}"]
                for local in node.op.parameters(graph.input_shapes(node))
            }
            for node in graph.nodes
        }
        # What no output depends on has no gradient, and stays as it is.
        self._trainable = {
            name: self._params[name]
            for name, spec in specs.items()
            if spec.trainable and name.rpartition(".")[0] in self._trained
        }
        self._optimiser = optimiser
        optimiser.prepare(self._trainable)
        self._seed = seed
        self._steps = 0

    @property
    def params(self) -> Mapping[str, Array]:
        return self._params

    def step(self, x: Array, targets: Array, lr: float) -> StepResult:
        result, grads = self.gradients(x, targets)
        self._optimiser.update(self._trainable, grads, lr)
        self._steps += 1
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

    def state(self) -> tuple[dict[str, Array], dict[str, Any]]:
        arrays = {f"params.{name}": value for name, value in self._params.items()}
        arrays |= {f"optimiser.{n}": value for n, value in self._optimiser.state().items()}
        return arrays, {"steps": self._steps}

    def load_state(self, arrays: Mapping[str, Array], values: Mapping[str, Any]) -> None:
        own, _ = self.state()
        for name, array in own.items():
            array[...] = arrays[name]
        self._steps = values["steps"]
        self._optimiser.steps = self._steps

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
