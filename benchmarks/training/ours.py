"""convserve's compiled step."""

from __future__ import annotations

from collections.abc import Callable

import convserve
from benchmarks.training import networks
from convserve import kernels
from convserve.graph import Graph
from convserve.training import SGD, CompiledStep
from convserve.training.loss import smoothed_targets


def version() -> str:
    return f"{convserve.__version__}, {kernels.isa()}"


def settings(path: str, batch: int, threads: int) -> list[tuple[str, Callable[[], None]]]:
    """Each setting's name and one step of it."""
    kernels.set_num_threads(threads)
    document, params = networks.read(path)
    step = CompiledStep(Graph.from_dict(document), params, SGD(0.9, weight_decay=5e-4))
    x, y, classes = networks.batch(document, batch)
    targets = smoothed_targets(y, classes)

    def run() -> None:
        step.step(x, targets, 1e-3)

    return [("CompiledStep", run)]


def gradients(path: str, batch: int) -> dict[str, networks.Array]:
    """Without dropout."""
    document, params = networks.read(path)
    for node in document["nodes"]:
        if node["op"] == "dropout":
            node["attributes"]["rate"] = 0.0
    step = CompiledStep(Graph.from_dict(document), params, SGD())
    x, y, classes = networks.batch(document, batch)
    return step.gradients(x, smoothed_targets(y, classes))[1]
