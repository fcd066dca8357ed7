"""Latency and throughput of a call that is made over and over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convserve.cli._latency import bars, histogram


@dataclass(frozen=True)
class Timing:
    """What was measured; `histogram` counts calls in bins of equal ratio from min to max."""

    batch: int
    threads: int
    calls: int
    images_per_second: float
    min_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    histogram: list[int]

    def bars(self) -> str:
        """The histogram as one line of blocks; the smallest block is at least one call."""
        return bars(self.histogram)


def measure(
    call: Callable[[Any], Any],
    x: Any,
    images: int,
    threads: int,
    callers: int,
    seconds: float,
) -> Timing:
    """Call `call(x)` from `callers` threads for `seconds` after a warm-up; x has `images`."""
    for _ in range(3):
        call(x)
    start = threading.Barrier(callers + 1)
    stop = threading.Event()

    def caller() -> list[int]:
        spent: list[int] = []  # nanoseconds
        start.wait()
        while not spent or not stop.is_set():
            before = time.perf_counter_ns()
            call(x)
            spent.append(time.perf_counter_ns() - before)
        return spent

    with ThreadPoolExecutor(callers) as pool:
        futures = [pool.submit(caller) for _ in range(callers)]
        start.wait()
        began = time.perf_counter()
        timer = threading.Timer(seconds, stop.set)
        timer.start()
        try:
            spent = [nanoseconds for future in futures for nanoseconds in future.result()]
        finally:
            timer.cancel()
            stop.set()
        elapsed = time.perf_counter() - began
    return _timing(np.array(spent) / 1e6, images, threads, elapsed)


def _timing(ms: NDArray[np.float64], batch: int, threads: int, elapsed: float) -> Timing:
    p50, p90, p99 = np.percentile(ms, [50, 90, 99]).tolist()
    _, counts = histogram(ms)
    rate = len(ms) * batch / elapsed
    low, high = float(ms.min()), float(ms.max())
    return Timing(batch, threads, len(ms), rate, low, p50, p90, p99, high, counts)
