"""Accuracy, measured with the plan that `predict` and the server run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from convserve import kernels
from convserve.datasets import Split
from convserve.graph import Graph
from convserve.model_file import Preprocessing
from convserve.plan import compile_plan
from convserve.training.step import Array

__all__ = ["accuracy"]

BATCH = 256  # images; results do not depend on it


def accuracy(
    graph: Graph,
    params: Mapping[str, Array],
    preprocessing: Preprocessing,
    split: Split,
    *,
    between: Callable[[], None] = lambda: None,
) -> float:
    """The share, 0 to 1, of images whose highest score is their label's.

    between: called before each batch; what it raises ends the evaluation.
    """
    plan = compile_plan(graph, dict(params))
    threads = kernels.num_threads()
    correct = 0
    for start in range(0, len(split), BATCH):
        between()
        x = preprocessing.normalise(split.x[start : start + BATCH])
        scores = plan.run(x, threads)[0]
        correct += int((scores.argmax(axis=1) == split.y[start : start + BATCH]).sum())
    return correct / len(split)
