"""Dynamic batching: the requests of many callers for one model run together.

    run(request) ── idle ──> computes at once, in the caller's own thread
         │
         └── busy ──> bounded queue ──> compute thread: select, merge, predict, split ──> answer

Only one batch runs at a time. A request that arrives while the model is idle is not delayed and
changes no thread; those that arrive meanwhile make up the next batch. All times are monotonic.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from convserve.engine.batch import Batch, Inputs, count, select
from convserve.engine.statistics import Statistics
from convserve.errors import (
    CancelledError,
    DeadlineExceededError,
    QueueFullError,
    ShapeError,
    StoppingError,
)

__all__ = ["BatchScheduler", "Batching", "Predictor", "Request"]

Array = npt.NDArray[Any]
_log = logging.getLogger(__name__)


class Predictor(Protocol):
    """The part of `engine.model.Model` that a scheduler calls."""

    @property
    def output_names(self) -> Sequence[str]: ...

    def predict(
        self, x: Inputs, outputs: Sequence[str] | None = None
    ) -> Array | Mapping[str, Array]: ...


@dataclass(frozen=True)
class Batching:
    """The knobs of dynamic batching, with Triton's meanings; the queue is always bounded."""

    max_batch_size: int = 64  # images in a batch, and so in a request
    max_queue_delay: float = 0.0  # seconds that a batch which is not full may wait for more
    max_queue_size: int = 1024  # requests that wait

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, got {self.max_batch_size}")
        if not 0 <= self.max_queue_delay <= 60:
            raise ValueError(f"max_queue_delay must be 0 to 60 seconds, got {self.max_queue_delay}")
        if self.max_queue_size < 1:
            raise ValueError(f"max_queue_size must be at least 1, got {self.max_queue_size}")


class Request:
    """One caller's images on their way; ends once: answered, failed or abandoned.

    `x`: [N, C, H, W], or for a model with several inputs arrays by name. `deadline` is a
    reading of `time.monotonic()`. `cancel()` may be called from any thread, before, while and
    after the request runs.
    """

    __slots__ = (
        "_ended",
        "_error",
        "_lock",
        "_result",
        "arrival",
        "deadline",
        "key",
        "outputs",
        "x",
    )

    def __init__(
        self, x: Inputs, *, outputs: Sequence[str] | None = None, deadline: float | None = None
    ) -> None:
        self.x = x
        self.outputs = None if outputs is None else tuple(outputs)
        self.deadline = deadline
        dtypes = x.dtype if isinstance(x, np.ndarray) else tuple(v.dtype for v in x.values())
        self.key = (dtypes, self.outputs)
        self.arrival = time.monotonic_ns()
        self._lock = threading.Lock()
        self._ended = threading.Lock()  # held until the end: the cheapest event there is
        self._ended.acquire()
        self._result: dict[str, Array] | None = None
        self._error: BaseException | None = None

    @property
    def size(self) -> int:
        """The number of images."""
        return count(self.x)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._result is not None or self._error is not None

    def cancel(self) -> None:
        """Give up: not computed if it still waits, and the answer is thrown away if it runs."""
        if not self.done:
            self.fail(CancelledError("the request was cancelled"))

    def finish(self, result: dict[str, Array]) -> None:
        """End with an answer."""
        self._end(result, None)

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self._end(None, error)

    def _end(self, result: dict[str, Array] | None, error: BaseException | None) -> None:
        with self._lock:
            if self.done:
                return
            self._result, self._error = result, error
        self._ended.release()

    def drop_if_expired(self, now: float) -> bool:
        """Whether the request needs no computing any more: ended, or its deadline has passed."""
        if self.deadline is not None and now >= self.deadline:
            self.fail(DeadlineExceededError("the request's deadline passed before it was answered"))
        return self.done

    def result(self) -> dict[str, Array]:
        """Wait for the end, at most until the deadline; the answer by output name, or raises."""
        timeout = -1.0
        if self.deadline is not None:
            timeout = max(self.deadline - time.monotonic(), 0.0)
        if not self._ended.acquire(timeout=timeout):
            assert self.deadline is not None
            self.drop_if_expired(self.deadline)
            self._ended.acquire()
        self._ended.release()
        if self._result is None:
            assert self._error is not None
            raise self._error
        return self._result


class BatchScheduler:
    """Runs the requests for one model in batches; one per model version.

    The caller checks the requests: every `x` fits the model and has 1 to `max_batch_size` images.
    """

    def __init__(
        self,
        model: Predictor,
        batching: Batching | None = None,
        *,
        statistics: Statistics | None = None,
        name: str = "model",
    ) -> None:
        self.model = model
        self.batching = batching or Batching()
        self.statistics = statistics or Statistics()
        self.name = name
        self._changed = threading.Condition(threading.Lock())  # guards all below
        self._queue: deque[Request] = deque()
        self._busy = False
        self._stopping = False
        self._delay = self.batching.max_queue_delay
        self._batch_seconds = 0.0  # of the last batch, to tell a rejected caller when to retry
        self._thread = threading.Thread(target=self._loop, name=f"compute {name}", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """The number of requests that wait and are not being computed."""
        with self._changed:
            self._forget_ended()
            return len(self._queue)

    def run(self, request: Request) -> dict[str, Array]:
        """Compute `request` and return its outputs by name; blocks until it ends.

        Raises QueueFullError or StoppingError at once, DeadlineExceededError, CancelledError, or
        what the model itself raised for these images.
        """
        if self._start(request, may_compute=True):
            self._execute_and_release([request])
        return request.result()

    def submit(self, request: Request) -> None:
        """Queue `request` and return; the caller asks for `request.result()` later."""
        self._start(request, may_compute=False)

    def _start(self, request: Request, *, may_compute: bool) -> bool:
        """Admit a request; True if the model is idle and the caller is to compute it itself."""
        limits = self.batching
        if not 1 <= request.size <= limits.max_batch_size:
            raise ShapeError(
                f"a request must have 1 to {limits.max_batch_size} images, got {request.size}"
            )
        with self._changed:
            if self._stopping:
                raise StoppingError(
                    "Server is stopping, scheduler for model has stopped accepting new inference "
                    "requests"
                )
            if request.drop_if_expired(time.monotonic()):
                return False
            idle = not self._busy and not self._queue
            full = request.size == limits.max_batch_size
            if may_compute and idle and (full or not self._delay):
                self._busy = True
                return True
            if len(self._queue) >= limits.max_queue_size:
                self._forget_ended()
            if len(self._queue) >= limits.max_queue_size:
                raise self._queue_full()
            self._queue.append(request)
            self._changed.notify_all()
        return False

    def _queue_full(self) -> QueueFullError:
        error = QueueFullError("Exceeds maximum queue size")
        batches = sum(request.size for request in self._queue) / self.batching.max_batch_size
        error.retry_after = min(max(batches * self._batch_seconds, 0.001), 1.0)
        return error

    def end_delay(self) -> None:
        """From now on no batch waits to fill up; for the time before a stop."""
        with self._changed:
            self._delay = 0.0
            self._changed.notify_all()

    def stop(self, timeout: float | None = None) -> bool:
        """Take no more requests and wait for the accepted ones; whether all ended in time."""
        with self._changed:
            self._stopping = True
            self._delay = 0.0
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not self._queue and not self._busy, timeout):
                return False
        self._thread.join(timeout)
        return True

    def _forget_ended(self) -> None:
        """Cancelled and expired requests leave the queue, so that they take no live one's place."""
        now = time.monotonic()
        if any(request.drop_if_expired(now) for request in self._queue):
            self._queue = deque(request for request in self._queue if not request.done)

    def _loop(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._execute_and_release(batch)

    def _next_batch(self) -> list[Request] | None:
        """Wait for the next batch and take it from the queue; None when stopped and drained."""
        limits = self.batching
        with self._changed:
            while True:
                self._forget_ended()
                if self._queue and not self._busy:
                    batch, full = select(self._queue, limits.max_batch_size)
                    left = batch[0].arrival * 1e-9 + self._delay - time.monotonic()
                    if full or left <= 0:
                        taken = set(map(id, batch))
                        self._queue = deque(r for r in self._queue if id(r) not in taken)
                        self._busy = True
                        return batch
                    self._changed.wait(left)
                elif self._stopping and not self._busy:
                    self._changed.notify_all()
                    return None
                else:
                    self._changed.wait()

    def _execute_and_release(self, batch: list[Request]) -> None:
        try:
            self._execute(batch)
        finally:
            with self._changed:
                self._busy = False
                if self._queue or self._stopping:
                    self._changed.notify_all()

    def _execute(self, requests: list[Request]) -> None:
        """Compute one batch and end its requests, each one for itself if the batch fails."""
        started = time.monotonic_ns()
        try:
            batch = Batch([request.x for request in requests])
            x = batch.merge()
            merged = time.monotonic_ns()
            outputs = self._predict(x, requests[0].outputs)
            computed = time.monotonic_ns()
            results = batch.split(outputs)
        except Exception as error:
            if len(requests) == 1:
                requests[0].fail(error)
                return
            # Requests are checked before they come here, so this is a fault of ours. Whatever it
            # is, it must not spread from one caller to the others.
            _log.exception("model %s: a batch of %d requests failed", self.name, len(requests))
            for request in requests:
                if not request.done:
                    self._execute([request])
            return
        split = time.monotonic_ns()
        # Counted before the callers wake, so that a caller finds its own request counted.
        self.statistics.executed(
            len(requests),
            batch.size,
            sum(started - request.arrival for request in requests),
            merged - started,
            computed - merged,
            split - computed,
        )
        self._batch_seconds = (split - started) * 1e-9
        for request, result in zip(requests, results, strict=True):
            request.finish(result)

    def _predict(self, x: Inputs, names: tuple[str, ...] | None) -> Mapping[str, Array]:
        result = self.model.predict(x) if names is None else self.model.predict(x, outputs=names)
        if isinstance(result, Mapping):
            return result
        return {self.model.output_names[0]: result}
