"""The load generator: what it counts, and from when."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from convserve.cli import _latency, _load
from convserve.cli._load import (
    NOT_SENT,
    OK,
    Limits,
    begun_twice,
    closed_loop,
    open_loop,
    poisson,
    uniform,
)


class Server:
    """Answers in order, each after `seconds`, one at a time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def send(self) -> Future[str]:
        future: Future[str] = Future()
        self._threads.append(threading.Thread(target=self._answer, args=(future,)))
        self._threads[-1].start()
        return future

    def _answer(self, future: Future[str]) -> None:
        with self._lock:
            time.sleep(self.seconds)
        future.set_result(OK)

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def result(call: Any) -> str:
    return str(call.result())


def test_latency_counts_from_when_a_request_was_due() -> None:
    server = Server(0.02)
    outcome = open_loop(server.send, result, uniform(200), Limits(10, requests=20))
    server.join()
    assert outcome.statuses == {OK: 20}
    # Twenty in 0.1 s at a server that takes 0.4 s: the last one waited for all before it.
    assert max(outcome.latencies) > 200
    assert sorted(outcome.latencies)[10] > 100


def test_a_slow_sender_does_not_hide_its_delay() -> None:
    def send() -> Future[str]:
        time.sleep(0.02)  # while it does, five more get due
        future: Future[str] = Future()
        future.set_result(OK)
        return future

    outcome = open_loop(send, result, uniform(250), Limits(10, requests=10))
    assert max(outcome.latencies) > 100


class Clock:
    """A module `time` whose time passes as the test wants it."""

    now = 1000.0

    def perf_counter(self) -> float:
        return self.now


def test_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(_load, "time", clock)

    def call(caller: int) -> str:
        clock.now += 0.125
        return OK if clock.now > 1002 else "UNAVAILABLE"

    outcome = closed_loop(call, 1, Limits(4, warm_up=2))
    assert outcome.statuses == {OK: 32}
    assert outcome.latencies == [125.0] * 32
    assert outcome.seconds == 4


@pytest.mark.parametrize("requests", [1, 7])
def test_requests_bound_a_closed_loop(requests: int) -> None:
    outcome = closed_loop(lambda caller: OK, 3, Limits(60, requests))
    assert sum(outcome.statuses.values()) == requests


def test_errors_are_counted_by_status_and_have_no_latency() -> None:
    statuses = itertools.cycle([OK, "UNAVAILABLE", OK, "DEADLINE_EXCEEDED"])
    outcome = closed_loop(lambda caller: next(statuses), 1, Limits(60, 8))
    assert outcome.statuses == {OK: 4, "UNAVAILABLE": 2, "DEADLINE_EXCEEDED": 2}
    assert len(outcome.latencies) == 4


def test_a_caller_that_fails_ends_the_loop() -> None:
    def call(caller: int) -> str:
        if caller == 1:
            raise ValueError("broken")
        return OK

    with pytest.raises(ValueError, match="broken"):
        closed_loop(call, 3, Limits(60))


def test_what_could_not_be_sent_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_load, "MAX_UNANSWERED", 2)
    unanswered: list[Future[str]] = []

    def send() -> Future[str]:
        unanswered.append(Future())
        return unanswered[-1]

    def arrivals() -> Iterator[float]:
        yield from itertools.islice(uniform(1000), 5)
        for future in unanswered:
            future.set_result(OK)

    outcome = open_loop(send, result, arrivals(), Limits(60))
    assert outcome.statuses == {OK: 2, NOT_SENT: 3}


def test_a_generator_that_is_too_far_behind_lets_requests_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_load, "MAX_BEHIND", 0.1)
    sent = []

    def send() -> Future[str]:
        sent.append(time.sleep(0.2))
        future: Future[str] = Future()
        future.set_result(OK)
        return future

    outcome = open_loop(send, result, uniform(1e4), Limits(0.5))
    assert outcome.statuses == {OK: len(sent), NOT_SENT: 5000 - len(sent)}
    assert len(sent) < 10


@pytest.mark.parametrize("arrivals", [uniform, poisson])
def test_one_request_counts_at_any_rate(arrivals: Callable[[float], Any]) -> None:
    times = [*itertools.takewhile(lambda time_: time_ < 1, begun_twice(arrivals, 0.01, 0.3))]
    assert times == [0.0, 0.3]
    times = [*itertools.takewhile(lambda time_: time_ < 40, begun_twice(arrivals, 100.0, 10))]
    assert times == sorted(times)
    assert len(times) == pytest.approx(4000, rel=0.1)


@pytest.mark.parametrize("arrivals", [uniform, poisson])
def test_arrivals_keep_the_rate(arrivals: Callable[[float], Any]) -> None:
    times = np.array([*itertools.islice(arrivals(100.0), 4001)])
    gaps = np.diff(times)
    assert (gaps >= 0).all()
    assert times[-1] == pytest.approx(40, rel=0.1)
    spread = gaps.std() / gaps.mean()
    assert spread == pytest.approx(0 if arrivals is uniform else 1, abs=0.1)


def test_percentiles_and_the_plot() -> None:
    ms = np.arange(1.0, 1001.0)
    named = _latency.percentiles(ms)
    assert list(named) == ["min", "p50", "p90", "p95", "p99", "p99.9", "max"]
    assert named["p50"] == 500.5 and named["max"] == 1000
    lines = _latency.plot(ms)
    assert sum(int(line.split()[-1]) for line in lines) == 1000
    assert lines[-1].startswith("  1000.000 ms ██████")
    assert _latency.percentiles(ms[:0]) == {}
    assert len(_latency.plot(np.array([2.0]))) == len(lines)
