"""One row: all contestants prepared, checked against each other, then timed in turn, in rounds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.contestants import OURS, PEERS
from benchmarks.models import Network
from benchmarks.process import Process, WorkerError
from benchmarks.ratios import REFERENCE, Row

TOLERANCE = 1e-3  # of the largest output: contestants that differ more don't compute the same
# A call of less work, about half a millisecond, may be faster with one thread than with two.
TINY_MACS = 50e6


@dataclass(frozen=True)
class Plan:
    """How to measure. python: of the peers; our_python: of convserve's own environment."""

    contestants: Sequence[str]
    rounds: int
    seconds: float
    slow_settings: bool
    python: Path
    our_python: Path
    folder: Path


def measure(kind: str, network: Network, batch: int, threads: int, plan: Plan) -> Row:
    """Runs the row; a contestant that fails is left out of it, with the reason."""
    row = Row(kind, network.name, batch, threads, network.macs)
    job = {
        "model": str(network.path),
        "input_shape": network.input_shape,
        "batch": batch,
        "threads": threads,
        "folder": str(plan.folder),
    }
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": str(plan.folder / "inductor"),
    }
    with ExitStack() as stack:
        workers: dict[str, Process] = {}
        for name in plan.contestants:
            python = plan.our_python if name.startswith(OURS) else plan.python
            worker = Process(python, name, plan.folder / f"{name}.log", environment)
            stack.callback(worker.close)
            try:
                answer = worker.ask(
                    "load", job=job, slow_settings=plan.slow_settings,
                    single=name in PEERS and threads > 1 and network.macs * batch < TINY_MACS,
                )  # fmt: skip
            except WorkerError as error:
                row.errors[name] = str(error)
                worker.close()
                continue
            row.settings[name] = answer["setting"]
            row.versions[name] = answer["version"]
            row.failed_settings.update(answer["failed"])
            workers[name] = worker
        _check(row, workers, network, plan.folder)
        _time(row, workers, plan)
    return row


def _check(row: Row, workers: dict[str, Process], network: Network, folder: Path) -> None:
    """Takes out who computes something else than ONNX Runtime (or the first, without it)."""
    shape = (row.batch, *network.input_shape)
    inputs = folder / "inputs.npy"
    np.save(inputs, np.random.default_rng(1).standard_normal(shape, dtype=np.float32))
    outputs: dict[str, NDArray[np.float32]] = {}
    for name, worker in list(workers.items()):
        file = folder / f"{name}-outputs.npy"
        try:
            worker.ask("check", inputs=str(inputs), outputs=str(file))
        except WorkerError as error:
            row.errors[name] = str(error)
            del workers[name]
            continue
        outputs[name] = np.load(file)
    if not outputs:
        return
    reference = outputs.get(REFERENCE, next(iter(outputs.values())))
    for name, output in outputs.items():
        row.difference[name] = difference = largest_difference(output, reference)
        if not difference <= TOLERANCE:
            row.errors[name] = f"its output differs from {REFERENCE}'s by {difference:.1e}"
            del workers[name]


def largest_difference(output: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Relative to the reference's largest value; infinite where shapes differ, NaN with a NaN."""
    if output.shape != reference.shape:
        return float("inf")
    return float(np.abs(output - reference).max() / np.abs(reference).max())


def _time(row: Row, workers: dict[str, Process], plan: Plan) -> None:
    """Each round has an order of its own, so that none always follows the same one."""
    order = random.Random(0)
    for _ in range(plan.rounds):
        names = list(workers)
        order.shuffle(names)
        for name in names:
            try:
                rate = workers[name].ask("time", seconds=plan.seconds)["rate"]
                row.rates.setdefault(name, []).append(rate)
                if name == OURS:
                    row.peak.append(workers[name].ask("peak", threads=row.threads)["gflops"])
            except WorkerError as error:
                row.errors[name] = str(error)
                row.rates.pop(name, None)
                del workers[name]
