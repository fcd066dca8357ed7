"""The compiled training step: forward, loss and backward of a batch in one call without the GIL.

    graph ─ tape ─▶ operations over tensors ─ assemble ─▶ kernels._trainer
                                                           │  x, targets
    params, one flat array ◀─ optimiser ◀─ gradients, another, with the same offsets

The bits of a step depend on the network, the batch and the state, not on the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from convserve import kernels
from convserve.errors import ShapeError
from convserve.graph import Graph
from convserve.kernels._trainer import Trainer
from convserve.training.assemble import Assembly
from convserve.training.dropout import step_keys
from convserve.training.network import trained_network
from convserve.training.optimisers import Optimiser
from convserve.training.owned import OwnedState
from convserve.training.step import Array, StepResult
from convserve.training.taped_layers import TRAINABLE, make_tape

__all__ = ["CompiledStep"]

LINE = 16  # floats of a cache line, at which each array begins


class CompiledStep(OwnedState):
    """A `TrainStep` for graphs whose trained layers it all knows (`supports`).

    params: float32 arrays by "<layer>.<param>"; copied. Memory is made for the largest batch so far
    and used again; batch: for so many images at least. What threads share is decided then, and with
    it the order of some sums: with `batch` a smaller one has the same bits whatever came before.
    Layers that the optimiser does not update get no gradients. Raises ShapeError if the graph has
    several outputs, one that is not a row of scores, or a layer that it does not know.
    """

    def __init__(
        self,
        graph: Graph,
        params: Mapping[str, Array],
        optimiser: Optimiser,
        *,
        seed: int = 0,
        batch: int = 0,
    ) -> None:
        network = trained_network(graph)
        for node in network.trained.values():
            if type(node.op) not in TRAINABLE:
                raise ShapeError(f"layer {node.name!r}: {node.op.op} is for inference only")
        self._graph, self._network = graph, network
        specs = graph.parameter_specs()
        names = network.trainable(specs)
        self.flat_params, trainable = _flat({name: params[name] for name in names})
        owned = {
            name: trainable[name] if name in trainable else params[name].copy() for name in specs
        }
        super().__init__(owned, trainable, optimiser, seed)
        self._learning = {name.rpartition(".")[0] for name in optimiser.learning}
        self.flat_grads, self._grads = _flat(
            {
                name: np.zeros_like(params[name])
                for name in names
                if name.rpartition(".")[0] in self._learning
            }
        )
        self._trainer: Trainer | None = None
        self._batch, self._dropouts = batch, 0

    @staticmethod
    def supports(graph: Graph) -> bool:
        """Whether it can train the graph."""
        return all(type(node.op) in TRAINABLE for node in trained_network(graph).trained.values())

    def step(self, x: Array, targets: Array, lr: float) -> StepResult:
        result = self._run(x, targets)
        self._update(self._grads, lr)
        return result

    def gradients(self, x: Array, targets: Array) -> tuple[StepResult, dict[str, Array]]:
        """Loss, correct count, and the gradient by every parameter of layers that learn; no update.

        Batch norm's running statistics move.
        """
        result = self._run(x, targets)
        return result, {name: grad.copy() for name, grad in self._grads.items()}

    def _run(self, x: Array, targets: Array) -> StepResult:
        if self._trainer is None or len(x) > self._batch:
            self._trainer = None  # first give back what the smaller one held
            self._trainer = self._build(max(len(x), self._batch))
        keys = step_keys(self._seed, self._steps, self._dropouts)
        x, targets = np.ascontiguousarray(x), np.ascontiguousarray(targets)
        return StepResult(*self._trainer.run(x, targets, keys, kernels.num_threads()))

    def _build(self, batch: int) -> Trainer:
        network = self._network
        tape = make_tape(self._graph, network.trained, network.logits, self._learning)
        self._batch, self._dropouts = batch, tape.dropouts
        (classes,) = self._graph.shape(self._network.logits)
        shape = self._graph.input_shape
        return Assembly(tape, batch, classes, shape, self._params, self._grads).trainer


def _flat(arrays: Mapping[str, Array]) -> tuple[NDArray[np.float32], dict[str, Array]]:
    """The arrays' values in one array, zeros between them, and views of them by name."""
    offsets, size = {}, 0
    for name, array in arrays.items():
        offsets[name] = size
        size += -(-array.size // LINE) * LINE
    # Kernels read whole vectors, so there is one more line.
    memory = np.zeros(size + 2 * LINE, np.float32)
    start = -(memory.ctypes.data // 4) % LINE
    flat = memory[start : start + size + LINE]
    views = {}
    for name, array in arrays.items():
        view = flat[offsets[name] : offsets[name] + array.size].reshape(array.shape)
        view[...] = array
        views[name] = view
    return flat, views
