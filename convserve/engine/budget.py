"""The compute threads of a process, shared fairly by all its models.

At most as many batches run at a time as there are threads; who comes then waits, first come, first
served. A batch gets the threads that it wants as far as they are free, and at least one: while one
model computes alone it has them all, and when another one joins in, both soon have their share.
Only until the batch that had them all ends, more threads run than there are cores; a small model
does not wait for a large one's long batch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["ThreadBudget"]


class ThreadBudget:
    """`threads` compute threads; all methods may be called from any thread.

    Who has taken threads gives them back itself, before it takes others.
    """

    def __init__(self, threads: int) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.threads = threads
        self._lock = threading.Lock()
        self._running = 0  # batches
        self._used = 0  # threads
        self._began: dict[int, float] = {}  # when, by the thread that runs a batch
        self._turns: deque[threading.Lock] = deque()  # of those who wait, each held until its turn

    def try_take(self, wanted: int) -> int:
        """The threads that a batch may use now; 0 if it has to wait with `take`."""
        with self._lock:
            if self._turns or self._running >= self.threads:
                return 0
            self._running += 1
            return self._grant(wanted)

    def take(self, wanted: int) -> int:
        """Wait for a turn; the threads that the batch may use, 1 to `wanted`."""
        with self._lock:
            if not self._turns and self._running < self.threads:
                self._running += 1
                return self._grant(wanted)
            turn = threading.Lock()
            turn.acquire()
            self._turns.append(turn)
        turn.acquire()  # whoever released it has counted this batch as running
        with self._lock:
            return self._grant(wanted)

    def _grant(self, wanted: int) -> int:
        granted = max(1, min(wanted, self.threads - self._used))
        self._used += granted
        self._began[threading.get_ident()] = time.monotonic()
        return granted

    def give_back(self, granted: int) -> None:
        """A batch has ended; the next one in line has its turn."""
        with self._lock:
            self._used -= granted
            self._began.pop(threading.get_ident(), None)
            if self._turns:
                self._turns.popleft().release()
            else:
                self._running -= 1

    def longest(self) -> float:
        """For how many seconds the batch that runs the longest has been running; 0: none runs."""
        with self._lock:
            return time.monotonic() - min(self._began.values()) if self._began else 0.0

    @contextmanager
    def turn(self, wanted: int) -> Iterator[int]:
        """`take` and `give_back` around a block."""
        granted = self.take(wanted)
        try:
            yield granted
        finally:
            self.give_back(granted)
