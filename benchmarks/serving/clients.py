"""What asks the servers: h2load, which costs little beside them, and our own generator."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from statistics import median
from typing import NamedTuple

import grpc
import numpy as np
from numpy.typing import NDArray

from convserve.cli._load import OK, Limits, Outcome, closed_loop, open_loop
from convserve_client import protocol, tensors

PATH = protocol.path("ModelInfer")
# h2load looks at its clock every 10 ms for connections that ask more often, and sends what is due.
PER_CONNECTION = 80.0  # requests a second
WARM_UP = 0.3  # seconds
PAUSE = 0.01  # seconds from a probe to the next, and after a refusal


def request(model: str, images: int, shape: tuple[int, ...]) -> bytes:
    """A serialized request of random images."""
    x = np.random.default_rng(0).standard_normal((images, *shape), np.float32)
    message = protocol.ModelInferRequest(model_name=model)
    message.inputs.add(name="input", datatype="FP32", shape=x.shape)
    return tensors.serialize(message, [x])


def has_h2load() -> bool:
    return shutil.which("h2load") is not None


def requests_per_second(
    address: str, data: bytes, seconds: float, connections: int, in_flight: int
) -> float:
    """By h2load: so many requests under way at once on each connection."""
    shown = _h2load(
        address, data, f"--duration={max(1, round(seconds))}", "--warm-up-time=1",
        f"-c{connections}", f"-m{in_flight}",
    )  # fmt: skip
    rate = re.search(r"finished in [\d.]+\w+, ([\d.]+) req/s", shown)
    if rate is None:
        raise RuntimeError(f"h2load: {shown[-600:]}")
    return float(rate[1])


class Rated(NamedTuple):
    """What came of requests that were made at a rate, whether answered or not."""

    milliseconds: NDArray[np.float64]
    per_second: float  # answers, while requests were made


def at_rate(address: str, data: bytes, rate: float, seconds: float) -> Rated:
    """By h2load: connections of at most 80 requests a second, each at even distances of its own."""
    connections = ceil(rate / PER_CONNECTION)
    each = ceil(rate * (WARM_UP + seconds) / connections)
    with tempfile.NamedTemporaryFile() as log:
        _h2load(
            address, data, f"-c{connections}", "-r1", "--rate-period=1ms", "-m100",
            f"--rps={rate / connections}", f"-n{each * connections}", f"--log-file={log.name}",
        )  # fmt: skip
        begun, _, spent = np.loadtxt(log.name, ndmin=2).T / 1e6
    first, last = begun.min() + WARM_UP, begun.max()
    ended = begun + spent
    answers = np.count_nonzero((ended >= first) & (ended < last))
    return Rated(spent[begun >= first] * 1e3, answers / (last - first))


def _h2load(address: str, data: bytes, *arguments: str) -> str:
    """What h2load prints; RuntimeError if a request failed."""
    with tempfile.NamedTemporaryFile() as body:
        body.write(b"\0" + len(data).to_bytes(4, "big") + data)  # gRPC's frame
        body.flush()
        command = [
            "h2load", "-t1", "-w20", "-W24", *arguments, f"--data={body.name}",
            "-Hcontent-type: application/grpc", "-Hte: trailers", f"http://{address}{PATH}",
        ]  # fmt: skip
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    failed = re.search(r"(\d+) failed, (\d+) errored, (\d+) timeout", shown)
    if failed is None or any(int(count) for count in failed.groups()):
        raise RuntimeError(f"h2load: {shown[-600:]}")
    return shown


class Probes(NamedTuple):
    """Milliseconds that calls took."""

    answered: list[float]
    refused: list[float]


class Caller:
    """Connections of Python's gRPC to one server."""

    def __init__(self, address: str, connections: int = 1) -> None:
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.enable_retries", 0),
        ]
        self._channels = [grpc.insecure_channel(address, options) for _ in range(connections)]
        self._calls = [channel.unary_unary(PATH) for channel in self._channels]

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def once(self, data: bytes) -> bytes:
        """One answer; grpc.RpcError if there is none."""
        answer: bytes = self._calls[0](data, timeout=60, wait_for_ready=True)
        return answer

    def closed(self, data: bytes, concurrency: int, seconds: float) -> Outcome:
        def call(caller: int) -> str:
            self._calls[caller % len(self._calls)](data, timeout=60)
            return OK

        return closed_loop(call, concurrency, Limits(seconds, warm_up=0.2))

    def open(self, data: bytes, arrivals: Iterator[float], seconds: float) -> Outcome:
        return open_loop(
            lambda: self._calls[0].future(data, timeout=60),
            lambda call: str(call.code().name),  # type: ignore[attr-defined]
            arrivals,
            Limits(seconds, warm_up=0.3),
        )

    def probes(self, probe: bytes, filling: bytes, callers: int, seconds: float) -> Probes:
        """A small call every 10 ms, while so many callers keep the server busy with large ones."""
        seen, stop = Probes([], []), threading.Event()

        def fill() -> None:
            while not stop.is_set():
                if not self._is_answered(filling):
                    time.sleep(PAUSE)

        with ThreadPoolExecutor(callers) as pool:
            fillers = [pool.submit(fill) for _ in range(callers)]
            try:
                end = time.perf_counter() + seconds
                while (began := time.perf_counter()) < end:
                    ended = seen.answered if self._is_answered(probe) else seen.refused
                    ended.append((time.perf_counter() - began) * 1e3)
                    time.sleep(PAUSE)
            finally:
                stop.set()
            for filler in fillers:
                filler.result()
        return seen

    def _is_answered(self, data: bytes) -> bool:
        """False: refused, since the queue is full."""
        try:
            self._calls[0](data, timeout=60)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False
        return True


@contextmanager
def calling(address: str, connections: int = 1) -> Iterator[Caller]:
    """A caller for the time of a `with` block."""
    caller = Caller(address, connections)
    try:
        yield caller
    finally:
        caller.close()


def engine_images_per_second(model: Path, shape: tuple[int, ...], seconds: float) -> float:
    """In this process, by batches of 32 and the median of all of them."""
    from convserve.engine.model import load

    loaded = load(model)
    x = np.random.default_rng(0).standard_normal((32, *shape), np.float32)
    spent = []
    end = time.perf_counter() + seconds
    while not spent or time.perf_counter() < end:
        began = time.perf_counter()
        loaded.predict(x)
        spent.append(time.perf_counter() - began)
    return 32 / median(spent)
