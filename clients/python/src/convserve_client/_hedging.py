"""A call that is slow is made once more, and the first answer wins.

As gRPC's hedging (gRFC A6), which gRPC for Python takes in a service config and ignores: another
attempt each `after` seconds that pass without an answer; UNAVAILABLE of one leaves the others
running and has the next one made at once, or as `grpc-retry-pushback-ms` says; any other status is
the call's; a budget like that of retries bounds the attempts, so that they can't multiply the load
of servers that have become slow.

Unlike there, UNAVAILABLE of the only attempt that runs is the call's: A6 has either hedging or
retries, and here the channel has retried before, as often as it was told to.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import grpc

# Starts an attempt; the first one is number 0.
Start = Callable[[int], Any]


class Hedging:
    """When further attempts are made, and how many may be; safe from several threads at once.

    Of 2 x `budget` tokens a further attempt takes one and an answer gives a tenth back; it needs
    more than half of them, as in gRPC's throttling of retries.
    """

    def __init__(self, after: float, budget: int, attempts: int) -> None:
        self.after = after
        self.attempts = attempts
        self._half = budget
        self._tokens = 2.0 * budget
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether one more attempt may be made."""
        with self._lock:
            if self._tokens <= self._half:
                return False
            self._tokens -= 1
            return True

    def due(self, made: int) -> float:
        """When, by time.monotonic(), the next attempt is after `made` of them; inf: never."""
        return time.monotonic() + self.after if made < self.attempts else math.inf

    def answered(self) -> None:
        """A call has got its answer."""
        with self._lock:
            self._tokens = min(self._tokens + 0.1, 2.0 * self._half)


class HedgedCall:
    """A call of the sync API; like gRPC's own it has `done`, `result` and `cancel`.

    There is no thread behind it: attempts are made by whoever waits, see `wait_for_first`.
    """

    def __init__(self, hedging: Hedging, start: Start) -> None:
        self._hedging = hedging
        self._start = start
        self._finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._running: list[Any] = []
        self._winner: Any = None
        self._made = 0
        self.due = math.inf  # when, by time.monotonic(), the next attempt is
        self._attempt()

    def _attempt(self) -> None:
        call = self._start(self._made)
        self._made += 1
        self._running.append(call)
        self.due = self._hedging.due(self._made)
        call.add_done_callback(self._finished.put)

    def attempt_if_due(self) -> None:
        """Makes the next attempt if it is time and the budget allows it."""
        if not self.done() and time.monotonic() >= self.due:
            self.due = math.inf
            if self._hedging.take():
                self._attempt()

    def wait(self, seconds: float) -> None:
        """Waits until an attempt ends, at most `seconds`."""
        try:
            self._settle(self._finished.get(timeout=None if seconds == math.inf else seconds))
        except queue.Empty:
            return

    def done(self) -> bool:
        while self._winner is None and not self._finished.empty():
            self._settle(self._finished.get())
        return self._winner is not None

    def _settle(self, call: Any) -> None:
        self._running.remove(call)
        code = call.code()
        if code is grpc.StatusCode.UNAVAILABLE and self._running:
            self.due = _due_after_failure(self.due, call.trailing_metadata())
            return
        if code is grpc.StatusCode.OK:
            self._hedging.answered()
        self._winner = call
        self.due = math.inf
        self.cancel()

    def result(self) -> Any:
        """The answer, or the error that gRPC raises; only after it is done."""
        return self._winner.result()

    def cancel(self) -> None:
        for call in self._running:
            call.cancel()


def wait_for_first(calls: Sequence[HedgedCall]) -> Any:
    """The answer to the first of the calls; further attempts of all of them are made meanwhile."""
    while not calls[0].done():
        due = min(call.due for call in calls)
        calls[0].wait(max(0.0, due - time.monotonic()))
        for call in calls:
            call.attempt_if_due()
    return calls[0].result()


def hedged(hedging: Hedging, start: Start) -> asyncio.Task[Any]:
    """A call of the async API; its first attempt is under way at once."""
    first = start(0)

    def ended(task: asyncio.Task[Any]) -> None:
        first.cancel()  # where the task was cancelled before it began
        if not task.cancelled():
            task.exception()  # nobody may want to know, and asyncio must not complain about that

    task = asyncio.ensure_future(_first_answer(hedging, start, first))
    task.add_done_callback(ended)
    return task


async def _first_answer(hedging: Hedging, start: Start, first: Awaitable[Any]) -> Any:
    running: set[asyncio.Future[Any]] = {asyncio.ensure_future(first)}
    made = 1
    due = hedging.due(made)
    try:
        while True:
            done, _ = await asyncio.wait(
                running,
                timeout=None if due == math.inf else max(0.0, due - time.monotonic()),
                return_when=asyncio.FIRST_COMPLETED,
            )
            for attempt in done:
                running.remove(attempt)
                try:
                    answer = attempt.result()
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE or not running:
                        raise
                    due = _due_after_failure(due, error.trailing_metadata())
                else:
                    hedging.answered()
                    return answer
            if time.monotonic() >= due:
                due = math.inf
                if hedging.take():
                    running.add(asyncio.ensure_future(start(made)))
                    made += 1
                    due = hedging.due(made)
    finally:
        for attempt in running:
            attempt.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _due_after_failure(due: float, trailing: Iterable[tuple[str, Any]] | None) -> float:
    """When the next attempt is, due at `due`, now that one has ended in UNAVAILABLE."""
    if due == math.inf:
        return due
    pushback = dict(trailing or ()).get("grpc-retry-pushback-ms", "0")
    if not (pushback.isdecimal() and len(pushback) <= 10):  # as "-1", the server wants no more
        return math.inf
    return time.monotonic() + int(pushback) / 1000
