"""Load for a server: closed loop (so many callers) or open loop (so many requests a second).

In an open loop a request's latency counts from the moment at which it was to be sent. A server
that falls behind delays what comes after, and that shows; callers who wait for their answers before
they ask again would just ask less often ("coordinated omission").
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "NOT_SENT",
    "OK",
    "Limits",
    "Outcome",
    "Pending",
    "begun_twice",
    "closed_loop",
    "open_loop",
    "poisson",
    "uniform",
]

OK = "OK"
NOT_SENT = "NOT_SENT"  # held back: too many were unanswered, or the generator was too far behind
MAX_UNANSWERED = 8192
MAX_BEHIND = 1.0  # seconds; a generator that is later than that measures itself, and would not end


class Pending(Protocol):
    """A request that is under way, such as a gRPC future."""

    def add_done_callback(self, callback: Callable[[Pending], object]) -> None: ...


@dataclass(frozen=True)
class Limits:
    """How long to measure: seconds, and a number of requests if that is reached earlier."""

    seconds: float
    requests: int | None = None
    warm_up: float = 0.0  # seconds before, of the same load, that do not count


@dataclass
class Outcome:
    """What came of the requests after the warm-up."""

    latencies: list[float] = field(default_factory=list)  # ms, of those answered with OK
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0  # from the first of them to the last answer

    @property
    def milliseconds(self) -> NDArray[np.float64]:
        return np.array(self.latencies)

    @property
    def per_second(self) -> float:
        """Requests answered with OK."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0


class _Recorder:
    """Counts the answers to requests that were due after the warm-up; safe in any thread."""

    def __init__(self, limits: Limits) -> None:
        self.outcome = Outcome()
        self._lock = threading.Lock()
        self._limits = limits
        self._first = time.perf_counter() + limits.warm_up
        self._last = self._first
        self._due = 0

    def time_left(self, due: float) -> bool:
        """Whether a request that is due then is to be made; counts it if so."""
        limits = self._limits
        with self._lock:
            if due >= self._first:
                self._due += 1
            return due < self._first + limits.seconds and (
                limits.requests is None or self._due <= limits.requests
            )

    def answered(self, due: float, status: str) -> None:
        now = time.perf_counter()
        if due < self._first:
            return
        with self._lock:
            self._last = max(self._last, now)
            self.outcome.statuses[status] += 1
            if status == OK:
                self.outcome.latencies.append((now - due) * 1e3)

    def result(self) -> Outcome:
        self.outcome.seconds = self._last - self._first
        return self.outcome


def closed_loop(call: Callable[[int], str], concurrency: int, limits: Limits) -> Outcome:
    """`call(caller)` over and over by so many threads; it returns a status, such as OK."""
    recorder = _Recorder(limits)
    stop = threading.Event()

    def caller(index: int) -> None:
        try:
            while not stop.is_set() and recorder.time_left(due := time.perf_counter()):
                recorder.answered(due, call(index))
        finally:
            stop.set()  # one that fails, or is through, ends all

    with ThreadPoolExecutor(concurrency) as pool:
        try:
            for future in [pool.submit(caller, index) for index in range(concurrency)]:
                future.result()
        finally:
            stop.set()
    return recorder.result()


def open_loop(
    send: Callable[[], Pending],
    status: Callable[[Pending], str],
    arrivals: Iterator[float],
    limits: Limits,
) -> Outcome:
    """`send()` at each of the `arrivals` (seconds from now, ascending), answered or not."""
    recorder = _Recorder(limits)
    unanswered = threading.Semaphore(MAX_UNANSWERED)
    start = time.perf_counter()
    for arrival in arrivals:
        due = start + arrival
        if not recorder.time_left(due):
            break
        early = due - time.perf_counter()
        if early > 0:
            time.sleep(early)
        if early < -MAX_BEHIND or not unanswered.acquire(blocking=False):
            recorder.answered(due, NOT_SENT)
            continue

        def done(call: Pending, due: float = due) -> None:
            recorder.answered(due, status(call))
            unanswered.release()

        send().add_done_callback(done)
    for _ in range(MAX_UNANSWERED):  # each ends: it has a deadline
        unanswered.acquire()
    return recorder.result()


def begun_twice(
    arrivals: Callable[[float], Iterator[float]], rate: float, warm_up: float
) -> Iterator[float]:
    """Arrivals for `warm_up` seconds, and then from their beginning: one counts at any rate."""
    yield from takewhile(lambda arrival: arrival < warm_up, arrivals(rate))
    for arrival in arrivals(rate):
        yield warm_up + arrival


def uniform(rate: float) -> Iterator[float]:
    """Arrival times, `rate` a second, all the same distance apart."""
    count = 0
    while True:
        yield count / rate
        count += 1


def poisson(rate: float, seed: int = 0) -> Iterator[float]:
    """Arrival times of callers who know nothing of each other: `rate` a second on average."""
    generator = random.Random(seed)
    time_ = 0.0
    while True:
        yield time_
        time_ += generator.expovariate(rate)
