"""Measure the server beside a bare gRPC echo: `make bench-serving`.

Contestants take turns within each round, and a figure is the median over the rounds, so that what
else the machine does meets both alike.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

import convserve
from benchmarks.sections import write_section
from benchmarks.serving import clients, servers
from benchmarks.serving.clients import calling, request
from benchmarks.serving.report import Row, markdown
from benchmarks.serving.servers import Running
from convserve.cli._load import poisson, uniform
from convserve.model_file import ModelFile, save

LENET = (1, 28, 28)
DEEP = (1, 28, 28)
STARTS = 3  # of each server
OVERLOADS = 3  # to find the capacity
FILLERS = 4  # callers: one is computed, one waits, and the others are refused
TRITON_LENET = 45_000  # images/s, Triton's Python backend with ONNX Runtime, reference machine


class Bench:
    """The rows of the table, each by its own small experiment."""

    def __init__(self, folder: Path, rounds: int, seconds: float) -> None:
        self._rounds, self._seconds = rounds, seconds
        self.lenet, self.deep = (self._model(folder, name) for name in ("lenet", "deep_convnet"))

    def _model(self, folder: Path, name: str) -> Path:
        graph = convserve.architectures.build(name)
        path = folder / f"{name}.npz"
        save(path, ModelFile(graph, graph.initialise(np.random.default_rng(1))))
        return path

    def _medians(
        self,
        model: Path,
        measure: Callable[[Running], float],
        *more: Callable[[], float],
        processes: int = 1,
    ) -> list[float]:
        """The median of our server's figure, of the echo's and of others, taken in turns.

        The servers are started anew a few times: how fast a process is also depends on where its
        threads happen to come to lie.
        """
        rounds = []
        starts = min(STARTS, self._rounds)
        for start in range(starts):
            with servers.ours(model, processes) as mine, servers.echo(processes) as bare:
                for _ in range(start, self._rounds, starts):
                    turn = [measure(mine), measure(bare), *(other() for other in more)]
                    rounds.append(turn)
        return [median(values) for values in zip(*rounds, strict=True)]

    def rows(self) -> Iterator[Row]:
        yield from self.batches(self.lenet, LENET)
        yield from self.batches(self.deep, DEEP)
        yield from self.single()
        yield from self.under_load()
        yield from self.start()
        yield from self.queue_full()

    def batches(self, model: Path, shape: tuple[int, ...]) -> Iterator[Row]:
        """Requests of 32 images by concurrent callers, and what engine and transport allow."""
        name = model.stem
        data = request(name, 32, shape)
        ours, echo, engine = self._medians(
            model,
            lambda server: self._throughput(server.address, data, 2, 4),
            lambda: clients.engine_images_per_second(model, shape, self._seconds),
        )
        ours, echo = 32 * ours, 32 * echo
        what = f"{name}, 32 images, 8 in flight"
        if name == "lenet":
            yield Row(what, "images/s", ours, "Triton, there", TRITON_LENET, ">= 2")
            yield Row(what, "images/s", ours, "engine in process", engine, ">= 0.6")
        allowed = 1 / (1 / engine + 1 / echo)
        yield Row(what, "images/s", ours, "1/(1/engine+1/echo)", allowed, ">= 0.9")

    def _throughput(self, address: str, data: bytes, connections: int, each: int) -> float:
        if clients.has_h2load():
            return clients.requests_per_second(address, data, self._seconds, connections, each)
        with calling(address, connections) as caller:
            return caller.closed(data, connections * each, self._seconds).per_second

    def single(self) -> Iterator[Row]:
        """One image: one caller, and 32 in flight, by one process and by two."""
        data = request("lenet", 1, LENET)
        ours, echo = self._medians(self.lenet, lambda server: self._p50(server.address, data))
        yield Row("lenet, 1 image, serial, p50", "µs", ours, "echo", echo, "<= 1.15")
        for processes in (1, 2):
            ours, echo = self._medians(
                self.lenet,
                lambda server: self._throughput(server.address, data, 8, 4),
                processes=processes,
            )
            what = "lenet, 1 image, 32 in flight"
            if processes > 1:
                what = f"{what}, {processes} processes"
            yield Row(what, "requests/s", ours, "echo", echo, ">= 0.9")
        yield Row(what, "requests/s", ours, "8.2k", 8200, ">= 1")

    def _p50(self, address: str, data: bytes) -> float:
        with calling(address) as caller:
            return float(np.median(caller.closed(data, 1, self._seconds).milliseconds)) * 1e3

    def under_load(self) -> Iterator[Row]:
        """Latencies at 70 % of what the server answers when it is asked for too much."""
        data = request("lenet", 1, LENET)
        if clients.has_h2load():
            yield from self._rated(data)
        with servers.ours(self.lenet) as mine, servers.echo() as bare, ExitStack() as stack:
            ours, echo = (stack.enter_context(calling(one.address)) for one in (mine, bare))
            # Open as well: a closed loop costs less a request, and can ask for more than that.
            too_much = 1.3 * ours.closed(data, 32, self._seconds).per_second
            capacity = median(
                ours.open(data, uniform(too_much), 1.0).per_second for _ in range(OVERLOADS)
            )
            rate = 0.7 * capacity
            for arrivals, how in ((uniform, "evenly"), (poisson, "at random")):
                tails = [
                    [
                        _p50_and_p99(
                            caller.open(data, arrivals(rate), 2 * self._seconds).milliseconds
                        )
                        for caller in (ours, echo)
                    ]
                    for _ in range(self._rounds)
                ]
                yield from _tail_rows(f"{rate:,.0f} requests/s {how} by Python", tails)

    def _rated(self, data: bytes) -> Iterator[Row]:
        """By h2load, which leaves the server more of the machine than our own generator does."""
        tails, rates = [], []
        starts = min(STARTS, self._rounds)
        for start in range(starts):
            with servers.ours(self.lenet) as mine, servers.echo() as bare:
                too_much = 1.3 * clients.requests_per_second(mine.address, data, 1.0, 8, 4)
                rate = 0.7 * median(
                    clients.at_rate(mine.address, data, too_much, 1.0).per_second
                    for _ in range(OVERLOADS)
                )
                rates.append(rate)
                tails += [
                    [
                        _p50_and_p99(
                            clients.at_rate(one.address, data, rate, 2 * self._seconds).milliseconds
                        )
                        for one in (mine, bare)
                    ]
                    for _ in range(start, self._rounds, starts)
                ]
        yield from _tail_rows(f"{median(rates):,.0f} requests/s by h2load", tails)

    def start(self) -> Iterator[Row]:
        """From the start of the process to the first answer, and its memory then."""
        data = request("lenet", 1, LENET)
        spent, memory = [], []
        for _ in range(self._rounds):
            began = time.perf_counter()
            with servers.ours(self.lenet) as mine:
                with calling(mine.address) as caller:
                    caller.once(data)
                    spent.append(time.perf_counter() - began)
                memory.append(mine.resident_mb())
        yield Row("start to first answer", "s", median(spent), "target", 0.5, "<= 1")
        yield Row("resident, lenet", "MB", median(memory), "target", 80.0, "<= 1")

    def queue_full(self) -> Iterator[Row]:
        """How long a caller waits to hear that the queue is full."""
        probe, filling = request("deep_convnet", 1, DEEP), request("deep_convnet", 64, DEEP)
        options = {"max-batch-size": 64, "max-queue-size": 1}
        refused, echoed = [], []
        with (
            servers.ours(self.deep, **options) as mine,
            servers.echo() as bare,
            ExitStack() as stack,
        ):
            ours, echo = (stack.enter_context(calling(one.address)) for one in (mine, bare))
            ours.once(filling)
            for _ in range(self._rounds):
                refused += ours.probes(probe, filling, FILLERS, self._seconds).refused
                echoed += echo.probes(probe, filling, FILLERS, self._seconds).answered
        what = f"queue full, {len(refused)} refusals of one image, median"
        yield Row(what, "ms", median(refused), "target", 5.0, "<= 1")
        yield Row(what, "ms", median(refused), "echo's answers", median(echoed), "<= 1")


def _p50_and_p99(milliseconds: NDArray[np.float64]) -> list[float]:
    return np.percentile(milliseconds, [50, 99]).tolist()  # type: ignore[no-any-return]


def _tail_rows(how: str, tails: list[list[list[float]]]) -> Iterator[Row]:
    """tails: of each round ours and the echo's, each p50 and p99 in milliseconds."""
    (p50, p99), (_, of_echo) = np.median(tails, axis=0).tolist()
    what = f"lenet, 1 image, 70 %: {how}, p99"
    yield Row(what, "ms", p99, "p50", p50, "<= 3")
    yield Row(what, "ms", p99, "echo's p99", of_echo, "<= 1.15")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three short rounds")
    parser.add_argument("--rounds", type=int, help="[9; 3 if quick]")
    parser.add_argument("--seconds", type=float, help="of each measurement [2; 1 if quick]")
    parser.add_argument("--docs", type=Path, help="write the Markdown report into this page")
    given = parser.parse_args()
    rounds = given.rounds or (3 if given.quick else 9)
    seconds = given.seconds or (1.0 if given.quick else 2.0)
    gc.freeze()  # what is imported; looking through it stops our own generator for 30 ms
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for row in Bench(Path(folder), rounds, seconds).rows():
            print(row.text(), flush=True)
            rows.append(row)
    if given.docs is not None:
        text = markdown(rows, rounds, seconds, clients.has_h2load())
        write_section(given.docs, "serving", text)


if __name__ == "__main__":
    main()
