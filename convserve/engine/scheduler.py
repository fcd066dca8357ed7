"""Dynamic batching: the requests of many callers for one model run together.

    run(request) ── idle ──> computes at once, in the caller's own thread
         │
         └── busy ──> bounded queues ──> compute thread: select, merge, predict, split ──> answer

As many batches run at a time as the model has instances, one by default, on threads from a budget
that all models of the process share. A request that arrives while the model is idle is not delayed
and changes no thread; those that arrive meanwhile make up the next batch. Where callers' threads
share a core and several are at work, what takes longer than a change of threads is left to the
compute thread too, on another core. All times are monotonic.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from convserve.engine.affinity import anywhere, binds, crowded, roam
from convserve.engine.batch import Batch, Inputs, economical, select
from convserve.engine.budget import ThreadBudget
from convserve.engine.config import ModelConfig
from convserve.engine.queues import PriorityQueues
from convserve.engine.request import Request
from convserve.engine.statistics import Statistics
from convserve.errors import QueueFullError, ShapeError, StoppingError

__all__ = ["BatchScheduler", "Predictor", "Request"]

Array = npt.NDArray[Any]
_log = logging.getLogger(__name__)
HANDOVER = 30e-6  # seconds that it takes to wake another thread for a request, and then the caller
BRIEF = 1e-3  # seconds of computing for which a thread does not change its core
OVERHEAD = 100e-6  # seconds that a batch takes besides computing: to merge, split and wake callers
# Images a thread from which on one more or less in a batch makes no difference worth looking for.
MANY = 16


class Predictor(Protocol):
    """The part of `engine.model.Model` that a scheduler calls."""

    @property
    def output_names(self) -> Sequence[str]: ...

    def predict(
        self, x: Inputs, outputs: Sequence[str] | None = None, *, threads: int | None = None
    ) -> Array | Mapping[str, Array]: ...


class BatchScheduler:
    """Runs the requests for one model in batches; one per model version.

    The caller checks the requests: every `x` fits the model and has 1 to `max_batch_size` images.
    """

    def __init__(
        self,
        model: Predictor,
        config: ModelConfig | None = None,
        *,
        budget: ThreadBudget | None = None,
        statistics: Statistics | None = None,
        name: str = "model",
        estimate: Callable[[int, int], float] | None = None,
    ) -> None:
        """estimate: seconds that the model takes for so many images, on so many threads."""
        self.model = model
        self.config = config or ModelConfig()
        self.statistics = statistics or Statistics()
        self.name = name
        batching, instances = self.config.dynamic_batching, self.config.instance_group
        self._budget = budget or ThreadBudget(instances.count)
        self._threads = instances.threads or self._budget.threads  # of a batch, at most
        self._preferred = batching.preferred_batch_size
        self._estimate = estimate
        self._alone: dict[int, float] = {}  # seconds on one thread, by the number of images
        self._output_name = model.output_names[0]  # of a model with a single one
        self._lock = threading.Lock()  # guards all below
        self._changed = threading.Condition(self._lock)
        self._queues = PriorityQueues(batching)
        self._free = instances.count  # instances that compute nothing
        self._instances = instances.count
        self._stopping = False
        self._delay = batching.max_queue_delay_microseconds * 1e-6
        self._batch_seconds = 0.0  # of the last batch, to tell a rejected caller when to retry
        self._compute = [
            threading.Thread(target=self._loop, name=f"compute {name}", daemon=True)
            for _ in range(instances.count)
        ]
        for thread in self._compute:
            thread.start()

    @property
    def pending(self) -> int:
        """The number of requests that wait and are not being computed."""
        with self._changed:
            self._queues.expire(time.monotonic())
            return len(self._queues)

    def run(
        self,
        request: Request,
        *,
        alone: bool = True,
        waiting: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Mapping[str, Array]:
        """Compute `request` and return its outputs by name; blocks until it ends.

        alone: no other caller is at work, who may need this thread's core.
        waiting: a context for the time in which the calling thread needs none of that core.
        Raises QueueFullError or StoppingError at once, QueueTimeoutError, DeadlineExceededError,
        CancelledError, or what the model itself raised for these images.
        """
        brief = self._is_brief(request.size)
        granted = self._start(request, may_compute=alone or brief)
        if granted and brief:
            self._execute_and_release([request], granted)
            return request.result()
        with waiting():
            if granted:
                self._execute_and_release([request], granted)
            elif request.expiry is not None and not request.wait(request.expiry):
                with self._changed:
                    self._queues.expire(time.monotonic())
            return request.result()

    def _is_brief(self, images: int) -> bool:
        """Whether to compute so many takes no longer than to hand them to another core."""
        if not binds() or self._estimate is None:
            return True
        seconds = self._alone.get(images)
        if seconds is None:
            seconds = self._alone[images] = self._estimate(images, 1)
        return seconds < HANDOVER

    def submit(self, request: Request) -> None:
        """Queue `request` and return; the caller asks for `request.result()` later."""
        self._start(request, may_compute=False)

    def _start(self, request: Request, *, may_compute: bool) -> int:
        """Admit a request; how many threads the caller may compute it on itself, 0 to wait."""
        limit = self.config.max_batch_size
        if not 1 <= request.size <= limit:
            raise ShapeError(f"a request must have 1 to {limit} images, got {request.size}")
        with self._lock:
            if self._stopping:
                raise StoppingError(
                    "Server is stopping, scheduler for model has stopped accepting new inference "
                    "requests"
                )
            now = time.monotonic()
            if request.drop_if_expired(now):
                return 0
            if self._free and not self._queues and (not self._delay or self._is_whole(request)):
                if may_compute and (granted := self._budget.try_take(self._threads)):
                    self._free -= 1
                    return granted
                request.at_once = True
            try:
                self._queues.add(request, now)
            except QueueFullError as error:
                error.retry_after = self._seconds_to_drain()
                raise
            self._changed.notify_all()
        return 0

    def _is_whole(self, request: Request) -> bool:
        """Whether it is a batch that waits for no more."""
        return request.size == self.config.max_batch_size or request.size in self._preferred

    def _seconds_to_drain(self) -> float:
        batches = sum(request.size for request in self._queues) / self.config.max_batch_size
        return min(max(batches * self._batch_seconds / self._instances, 0.001), 1.0)

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
            if not self._changed.wait_for(self._is_idle, timeout):
                return False
        for thread in self._compute:
            thread.join(timeout)
        return True

    def _is_idle(self) -> bool:
        return not self._queues and self._free == self._instances

    def _loop(self) -> None:
        roam()
        while (work := self._next_batch()) is not None:
            self._execute_and_release(*work)

    def _next_batch(self) -> tuple[list[Request], int] | None:
        """Wait for the next batch and the threads for it; None when stopped and drained."""
        with self._changed:
            while True:
                batch, left = self._ready_batch()
                if batch and left <= 0:
                    wanted = self._wanted()
                    granted = self._budget.try_take(wanted)
                    if not granted:
                        batch, granted = self._wait_for_turn(wanted)
                    if batch:
                        batch = self._economical(batch, wanted)
                        self._queues.remove(batch)
                        self._free -= 1
                        return batch, granted
                elif batch:
                    self._changed.wait(left)
                elif self._stopping and self._is_idle():
                    self._changed.notify_all()
                    return None
                else:
                    self._changed.wait()

    def _wanted(self) -> int:
        """The threads for a batch: of a core that is crowded by others it would get too little."""
        if not crowded():
            return self._threads
        return max(1, min(self._threads, self._budget.threads - 1))

    def _ready_batch(self) -> tuple[list[Request], float]:
        """What the next batch would be, and for how many seconds it may still wait to fill up."""
        now = time.monotonic()
        self._queues.expire(now)
        if not self._free or not self._queues:
            return [], 0.0
        batch, full = select(self._queues, self.config.max_batch_size, self._preferred)
        if full or not self._delay:
            return batch, 0.0
        return batch, min(request.arrival for request in batch) * 1e-9 + self._delay - now

    def _economical(self, batch: list[Request], threads: int) -> list[Request]:
        """The batch without what makes it dearer and can wait for the next one, but only once."""
        estimate = self._estimate
        size = sum(request.size for request in batch)
        if estimate is None or self._preferred or not size % threads or size > MANY * threads:
            return batch
        cut = economical(batch, threads, lambda images: OVERHEAD + estimate(images, threads))
        left_out = batch[len(cut) :]
        until = time.monotonic() + 2 * (self._batch_seconds + estimate(size, threads))
        if any(request.passed_over or request.ends_by(until) for request in left_out):
            return batch
        for request in left_out:
            request.passed_over = True
        return cut

    def _wait_for_turn(self, wanted: int) -> tuple[list[Request], int]:
        """Let other models compute first; what is to be done after that may be another batch."""
        self._changed.release()
        try:
            granted = self._budget.take(wanted)
        finally:
            self._changed.acquire()
        batch, _ = self._ready_batch()
        if not batch:
            self._budget.give_back(granted)
        return batch, granted

    def _execute_and_release(self, batch: list[Request], threads: int) -> None:
        try:
            self._execute(batch, threads)
        finally:
            self._budget.give_back(threads)
            with self._lock:
                self._free += 1
                if self._queues or self._stopping:
                    self._changed.notify_all()

    def _execute(self, requests: list[Request], threads: int) -> None:
        """Compute one batch and end its requests, each one for itself if the batch fails."""
        if len(requests) == 1:
            self._execute_alone(requests[0], threads)
            return
        started = time.monotonic_ns()
        try:
            batch = Batch([request.x for request in requests])
            x = batch.merge()
            merged = time.monotonic_ns()
            outputs = self._predict(x, requests[0].outputs, threads)
            computed = time.monotonic_ns()
            results = batch.split(outputs)
        except Exception:
            # Requests are checked before they come here, so this is a fault of ours. Whatever it
            # is, it must not spread from one caller to the others.
            _log.exception("model %s: a batch of %d requests failed", self.name, len(requests))
            for request in requests:
                if not request.done:
                    self._execute_alone(request, threads)
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
        ran = (started, split, batch.size)
        for request, result in zip(requests, results, strict=True):
            request.ran = ran
            request.finish(result)

    def _execute_alone(self, request: Request, threads: int) -> None:
        """A batch of one request, without what only merging needs."""
        started = time.monotonic_ns()
        try:
            outputs = self._predict(request.x, request.outputs, threads)
        except Exception as error:
            request.fail(error)
            return
        ended, images = time.monotonic_ns(), request.size
        spent = ended - started
        self.statistics.executed(1, images, started - request.arrival, 0, spent, 0)
        self._batch_seconds = spent * 1e-9
        request.ran = (started, ended, images)
        request.finish(outputs)

    def _predict(
        self, x: Inputs, names: tuple[str, ...] | None, threads: int
    ) -> Mapping[str, Array]:
        if self._batch_seconds < BRIEF:
            result = self.model.predict(x, outputs=names, threads=threads)
        else:
            with anywhere():
                result = self.model.predict(x, outputs=names, threads=threads)
        return {self._output_name: result} if isinstance(result, np.ndarray) else result
