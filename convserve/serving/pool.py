"""The threads that calls run on: as many as may be under way, made when they are first needed.

gRPC takes nothing but a `ThreadPoolExecutor` for the calls of one method. This one is leaner: a
queue, a semaphore and a `Future` a call cost more than all else that a small inference does in
Python. The thread that went idle last, whose stack is still in the cache, is the next to work.

Calls that compute may be bounded, for threads that wait for the interpreter's lock wake up every
5 ms to ask for it: 200 of them took a quarter of the core on which they did so. Calls beyond the
bound wait for their turn without a thread. One that waits for something else meanwhile does not
count: it says so (`waiting`), or has taken longer than `PATIENCE`, as the call of a client whose
message is slow to come, for which gRPC itself waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

__all__ = ["CallPool"]

_log = logging.getLogger(__name__)
PATIENCE = 0.01  # seconds that a call may take of its turn while others wait for theirs
_NOTHING = nullcontext()


class CallPool(ThreadPoolExecutor):
    """A pool for calls, whose bound may be raised. What it runs must catch its own exceptions.

    Where the system allows no more threads it makes do with those that there are, of which `start`
    makes the first: an exception of `submit` would end the thread in which gRPC takes calls, and
    with it the server.

    initializer: called first in each thread.
    at_once: how many calls may compute at a time; None: as many as there are threads.
    """

    def __init__(
        self,
        name: str,
        threads: int = 1,
        initializer: Callable[[], None] = lambda: None,
        at_once: int | None = None,
    ) -> None:
        super().__init__(1)
        self._name, self._initialize = name, initializer
        self._at_once = at_once
        self._here = threading.local()  # .worker: the one whose thread this is
        self._guard = threading.Lock()  # of all below
        self._limit = threads
        self._made = 0
        self._idle: list[_Worker] = []
        self._computing: set[_Worker] = set()  # those that count as such, if that is bounded
        self._backlog: deque[_Task] = deque()
        self._behind = threading.Event()  # there is a backlog, or the end
        self._closed = False

    def start(self) -> None:
        """Make the first thread; it has the cores and the policy of the one that calls this.

        RuntimeError if there can't be even one.
        """
        with self._guard:
            self._idle.append(self._worker())
        if self._at_once is not None:
            name = f"{self._name} turns"
            threading.Thread(target=self._watch_turns, name=name, daemon=True).start()

    def _worker(self) -> _Worker:
        worker = _Worker(self, f"{self._name}_{self._made + 1}")
        self._made += 1
        return worker

    def grow(self, threads: int) -> None:
        """Allow so many threads."""
        with self._guard:
            self._limit = max(self._limit, threads)

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Run `call` soon. Returns what takes one callback for its end, and nothing else.

        RuntimeError after `shutdown`.
        """
        task = _Task(self._guard, call, args, kwargs)
        with self._guard:
            if self._closed:
                raise RuntimeError("cannot schedule new calls after shutdown")
            worker = self._hire()
            if worker is None:
                self._backlog.append(task)
                self._behind.set()
                return task
        worker.give(task)
        return task

    def _begin(self, worker: _Worker) -> None:
        """In a new thread."""
        if self._at_once is not None:
            self._here.worker = worker
        self._initialize()

    def _hire(self) -> _Worker | None:
        """A thread for a call whose turn it is; the guard is held."""
        if self._at_once is not None and len(self._computing) >= self._at_once:
            return None
        worker = self._idle.pop() if self._idle else None
        if worker is None and self._made < self._limit:
            with suppress(RuntimeError):  # no more threads
                worker = self._worker()
        if worker is not None:
            self._count(worker)
        return worker

    def _count(self, worker: _Worker) -> None:
        """It computes from now on."""
        if self._at_once is not None:
            worker.since = time.monotonic()
            self._computing.add(worker)

    def _go_on(self) -> None:
        """Have idle threads take calls that wait, as far as it is their turn; the guard is held."""
        while self._backlog and (worker := self._hire()):
            worker.give(self._backlog.popleft())

    def waiting(self) -> AbstractContextManager[None]:
        """Around what the calling thread's call waits for: it does not compute meanwhile."""
        return getattr(self._here, "worker", _NOTHING)

    def _wait(self, worker: _Worker) -> None:
        with self._guard:
            self._computing.discard(worker)
            self._go_on()

    def _waited(self, worker: _Worker) -> None:
        with self._guard:  # even if there are enough of them: it has had its turn
            self._count(worker)

    def _watch_turns(self) -> None:
        """Take those that compute for long for waiting, while others wait for their turns."""
        while True:
            self._behind.wait()
            time.sleep(PATIENCE)
            with self._guard:
                if self._closed:
                    return
                if not self._backlog:
                    self._behind.clear()
                    continue
                late = time.monotonic() - PATIENCE
                self._computing -= {w for w in self._computing if w.since < late}
                self._go_on()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; idle threads end, busy ones after their call."""
        with self._guard:
            self._closed = True
            self._behind.set()
            idle, self._idle = self._idle, []
            if cancel_futures:
                self._backlog.clear()
        for worker in idle:
            worker.give(None)
        super().shutdown(wait=wait)

    def _next(self, worker: _Worker) -> _Task | None:
        """What an idle worker does now; None: wait until something is given to it."""
        with self._guard:
            self._computing.discard(worker)
            enough = self._at_once is not None and len(self._computing) >= self._at_once
            if self._backlog and not enough:
                self._count(worker)
                return self._backlog.popleft()
            if self._closed:
                worker.give(None)
            else:
                self._idle.append(worker)
            return None


class _Worker:
    """A thread and the place where it is given its next task; `with` it where that task waits."""

    def __init__(self, pool: CallPool, name: str) -> None:
        self._pool = pool
        self.since = 0.0  # when it began to compute
        self._given: _Task | None = None
        self._wake = threading.Lock()
        self._wake.acquire()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def __enter__(self) -> None:
        self._pool._wait(self)

    def __exit__(self, *error: object) -> None:
        self._pool._waited(self)

    def give(self, task: _Task | None) -> None:
        """To a worker that waits; None ends it."""
        self._given = task
        self._wake.release()

    def _run(self) -> None:
        self._pool._begin(self)
        task = None
        while True:
            if task is None:
                self._wake.acquire()
                task, self._given = self._given, None
                if task is None:
                    return
            task.run()
            task = self._pool._next(self)


class _Task:
    """A call with its arguments, and who is to be told of its end."""

    __slots__ = ("_args", "_call", "_done", "_guard", "_kwargs", "_told")

    def __init__(
        self,
        guard: threading.Lock,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self._guard, self._call, self._args, self._kwargs = guard, call, args, kwargs
        self._done = False
        self._told: Callable[[Any], Any] | None = None

    def add_done_callback(self, callback: Callable[[Any], Any]) -> None:
        """Call `callback(self)` once at the end; at once if that is past."""
        with self._guard:
            if not self._done:
                self._told = callback
                return
        callback(self)

    def run(self) -> None:
        """Make the call."""
        try:
            self._call(*self._args, **self._kwargs)
        except Exception:
            _log.exception("a call ended in an exception that it should have caught")
        with self._guard:
            self._done = True
            told = self._told
        if told is not None:
            told(self)
