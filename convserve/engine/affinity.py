"""One core for the threads that run Python: they take turns anyway, under the interpreter's lock.

A request passes from thread to thread. Where each of them sleeps on a core of its own, every pass
has to wake a core, which takes longer than all that a small inference does: of a bare gRPC server
17 context switches a request, and half of its throughput (docs/operations.md). On one core the
kernel only switches. What computes for longer than a moment is not bound to it.

And there they take turns: none interrupts another when it wakes up (the kernel calls that "batch").
Else a thread that hands over the interpreter's lock is interrupted by the one it wakes before it
has let go of all of it; that one goes back to sleep, and the handing over takes three switches,
half of all that there were. The threads in which gRPC reads and writes may interrupt: they don't
need that lock, and should not have to wait where another process keeps the core busy.

    bound()     starts gRPC: the threads that come into being stay on the core, and theirs
    roam()      for threads that compute, decode or load: all cores that the process may use
    anywhere()  around long work in a thread that is bound

`CoreWatch` moves the threads to another core when others keep theirs busy while that one is idle.
It also sees when they are `crowded`: batches then leave their core to them. And threads of gRPC
that keep the core for milliseconds, as a thousand streams opened and reset at once make them, are
moved away and interrupted for a while (`kernels/csrc/preempt.h`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from convserve.kernels._preempt import Preemption
from convserve.kernels._threads import bound_times

__all__ = ["CoreWatch", "anywhere", "binds", "bound", "choose", "crowded", "roam"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

_FOREIGN = 0.3  # the share of the core that others take before it is worth moving
_BETTER = 0.3  # how much more of its time the other core must be idle
_CROWDED = 0.5  # the share of the core that the bound threads take
_LOOK_SECONDS = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")  # a second, of /proc/stat

_core: int | None = None  # None: nothing is bound
_crowded = False


def _allowed() -> set[int]:
    """The cores of the process: those of its main thread, which is never bound."""
    try:
        return set(os.sched_getaffinity(os.getpid()))
    except (AttributeError, OSError):  # not on every system
        return set()


def choose(index: int | None = None) -> int | None:
    """The core for this process, of the ones that it may use; None if there is no choice.

    index: which of them, for processes that shall not share one; None: any.
    """
    cores = sorted(_allowed())
    if len(cores) < 2:
        return None
    return cores[(os.getpid() if index is None else index) % len(cores)]


def binds() -> bool:
    """Whether threads share a core."""
    return _core is not None


def crowded() -> bool:
    """Whether they took more than half of it when `CoreWatch` last looked."""
    return _crowded


def bound(core: int | None, start: Callable[[], T], *, in_turns: bool = True) -> T:
    """What `start()` returns; the threads that it starts, and theirs, are bound to the core.

    in_turns: they don't interrupt each other. `start` is called in a thread that is bound, so that
    the main thread never is. core: None binds nothing.
    """
    global _core
    if core is None:
        return start()
    _core = core

    def bind() -> None:
        os.sched_setaffinity(0, {core})
        if in_turns:
            _set_in_turns(True)

    with ThreadPoolExecutor(1, initializer=bind) as pool:
        return pool.submit(start).result()


def _set_in_turns(value: bool) -> None:
    """For the calling thread; not where somebody has chosen a policy for the whole process."""
    with contextlib.suppress(AttributeError, OSError):  # Linux only, and not in every sandbox
        if os.sched_getscheduler(os.getpid()) == os.SCHED_OTHER:
            policy = os.SCHED_BATCH if value else os.SCHED_OTHER
            os.sched_setscheduler(0, policy, os.sched_param(0))


def _is_in_turns() -> bool:
    try:
        return os.sched_getscheduler(0) == os.SCHED_BATCH
    except (AttributeError, OSError):
        return False


def roam() -> None:
    """Let the calling thread run on all cores of the process, and whenever it has work."""
    if _core is not None:
        with contextlib.suppress(OSError):  # the cores were taken away: the kernel has seen to it
            os.sched_setaffinity(0, _allowed())
        _set_in_turns(False)


@contextlib.contextmanager
def anywhere() -> Iterator[None]:
    """Let the calling thread run on all cores, and whenever it has work, during the block."""
    if _core is None:
        yield
        return
    before, in_turns = os.sched_getaffinity(0), _is_in_turns()
    roam()
    try:
        yield
    finally:
        if len(before) == 1 and _core is not None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {_core})
        if in_turns:
            _set_in_turns(True)


class _Usage(NamedTuple):
    """Until now: ticks that each core was busy and idle, seconds that each bound thread ran."""

    cores: dict[int, tuple[int, int]]
    threads: dict[int, float]


class CoreWatch:
    """Moves the bound threads to an idler core when others need theirs; `close()` ends it.

    others: beginnings of the names of threads that must not keep the core for milliseconds.
    """

    def __init__(
        self,
        proc: Path = Path("/proc"),
        seconds: float = _LOOK_SECONDS,
        others: Sequence[str] = (),
    ) -> None:
        self._proc = proc
        self._closed = threading.Event()
        self._seconds = seconds
        self._preemption: Preemption | None = None
        self._told = 0  # of the times that it has moved them
        if _core is not None and others:
            self._preemption = Preemption(list(others), _core)
        if _core is not None and self._cores():
            threading.Thread(target=self._watch, name="core watch", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()
        if self._preemption is not None:
            self._preemption.close()

    def _tell(self) -> None:
        """Log once that the `others` were moved away, if they were since the last look."""
        times = 0 if self._preemption is None else self._preemption.times
        if times > self._told:
            self._told = times
            _log.info(
                "threads that read and write kept their core for milliseconds, as very large "
                "messages or floods of streams make them: on another core for some seconds"
            )

    def _watch(self) -> None:
        global _crowded
        roam()
        before: _Usage | None = None
        suspicious = False
        while True:
            self._tell()
            try:
                now = self._usage()
                better = None
                if before is not None:
                    _crowded = self._own_share(before, now) > _CROWDED
                    better = self._better(before, now)
                if better is not None and suspicious:  # for the second time
                    self.move(better)
                    now = self._usage()
                before, suspicious = now, better is not None and not suspicious
            except OSError:  # as many files are open as may be: it can wait
                before, suspicious = None, False
            if self._closed.wait(self._seconds):
                _crowded = False
                return

    def _usage(self) -> _Usage:
        return _Usage(self._cores(), self._own())

    def _own_share(self, before: _Usage, now: _Usage) -> float:
        """The share of the core's time that the bound threads took."""
        if _core not in before.cores or _core not in now.cores:
            return 0.0
        ticks = sum(now.cores[_core]) - sum(before.cores[_core])
        spent = sum(
            now.threads[thread] - before.threads[thread]
            for thread in now.threads.keys() & before.threads.keys()
        )
        return spent * _TICKS / max(ticks, 1)

    def _better(self, before: _Usage, now: _Usage) -> int | None:
        """The core to move to, if others are busy on ours and it has more time for us."""
        spent = {
            core: (busy - before.cores[core][0], idle - before.cores[core][1])
            for core, (busy, idle) in now.cores.items()
            if core in before.cores
        }
        share = {core: idle / max(busy + idle, 1) for core, (busy, idle) in spent.items()}
        if _core is None or _core not in spent:
            return None
        foreign = 1 - share[_core] - self._own_share(before, now)
        candidates = [core for core in _allowed() if core in share and core != _core]
        if foreign < _FOREIGN or not candidates:
            return None
        best = max(candidates, key=lambda core: share[core])
        return best if share[best] > share[_core] + _BETTER else None

    def move(self, core: int) -> None:
        """Bind what is bound to another core."""
        global _core
        old, _core = _core, core
        if self._preemption is not None:
            self._preemption.follow(core)
        for thread in self._threads():
            with contextlib.suppress(OSError):  # it has just ended
                if os.sched_getaffinity(thread) == {old}:
                    os.sched_setaffinity(thread, {core})

    def _cores(self) -> dict[int, tuple[int, int]]:
        """Ticks that each core was busy and idle."""
        found = {}
        try:
            lines = (self._proc / "stat").read_text().splitlines()
        except OSError:
            return {}
        for line in lines:
            name, *numbers = line.split()
            if name.startswith("cpu") and name != "cpu":
                user, nice, system, idle, wait, irq, soft, steal = map(int, numbers[:8])
                busy = user + nice + system + irq + soft + steal
                found[int(name[3:])] = (busy, idle + wait)
        return found

    def _threads(self) -> list[int]:
        return [int(entry.name) for entry in (self._proc / "self/task").iterdir()]

    def _own(self) -> dict[int, float]:
        """Seconds that each bound thread has run."""
        if _core is None:
            return {}
        return {thread: ran * 1e-9 for thread, ran in bound_times(_core).items()}
