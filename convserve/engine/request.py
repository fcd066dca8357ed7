"""One caller's request on its way through the scheduler."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from convserve.engine.batch import Inputs, count
from convserve.errors import CancelledError, DeadlineExceededError

__all__ = ["Request"]

Array = npt.NDArray[Any]


class Request:
    """One caller's images on their way; ends once: answered, failed or abandoned.

    x: [N, C, H, W], or for a model with several inputs arrays by name.

    deadline: a reading of `time.monotonic()`, after which nobody waits for the answer.
    priority: from 1, the most urgent; 0: the model's default.
    timeout: seconds that it may wait in a queue whose policy allows requests to say so; 0: as long
    as the queue's own timeout. `cancel()` may be called from any thread, before, while and after
    the request runs.
    """

    __slots__ = (
        "_ended",
        "_error",
        "_lock",
        "_result",
        "arrival",
        "at_once",
        "deadline",
        "expiry",
        "key",
        "outputs",
        "passed_over",
        "priority",
        "ran",
        "size",
        "timeout",
        "x",
    )

    def __init__(
        self,
        x: Inputs,
        *,
        outputs: Sequence[str] | None = None,
        deadline: float | None = None,
        priority: int = 0,
        timeout: float = 0.0,
    ) -> None:
        self.x = x
        self.size = count(x)  # images
        self.outputs = None if outputs is None else tuple(outputs)
        self.deadline = deadline
        self.priority = priority
        self.timeout = timeout
        self.expiry: float | None = None  # when its time in the queue is over; the queue sets it
        self.at_once = False  # whether an instance is free for it, so that it takes no place
        self.passed_over = False  # whether a batch went without it in which there was room
        dtypes = x.dtype if isinstance(x, np.ndarray) else tuple(v.dtype for v in x.values())
        self.key = (dtypes, self.outputs)
        self.arrival = time.monotonic_ns()
        # When its batch was taken up and was done, and how many images were in it.
        self.ran: tuple[int, int, int] | None = None
        self._lock = threading.Lock()
        self._ended = threading.Lock()  # held until the end: the cheapest event there is
        self._ended.acquire()
        self._result: Mapping[str, Array] | None = None
        self._error: BaseException | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._result is not None or self._error is not None

    def ends_by(self, moment: float) -> bool:
        """Whether its deadline or its time in the queue is over by then."""
        return any(end is not None and end <= moment for end in (self.deadline, self.expiry))

    def cancel(self) -> None:
        """Give up: not computed if it still waits, and the answer is thrown away if it runs."""
        if not self.done:
            self.fail(CancelledError("the request was cancelled"))

    def finish(self, result: Mapping[str, Array]) -> None:
        """End with an answer."""
        self._end(result, None)

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self._end(None, error)

    def _end(self, result: Mapping[str, Array] | None, error: BaseException | None) -> None:
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

    def wait(self, until: float | None) -> bool:
        """Wait for the end, at most until the deadline and `until`; whether it has ended."""
        if self.done:
            return True
        times = [time for time in (self.deadline, until) if time is not None]
        timeout = max(min(times) - time.monotonic(), 0.0) if times else -1.0
        if not self._ended.acquire(timeout=timeout):
            return self.drop_if_expired(time.monotonic())
        self._ended.release()
        return True

    def result(self) -> Mapping[str, Array]:
        """Wait for the end, at most until the deadline; the answer by output name, or raises."""
        if self._result is None and not self.wait(None):
            assert self.deadline is not None
            self.drop_if_expired(self.deadline)
        if self._result is None:
            assert self._error is not None
            raise self._error
        return self._result
