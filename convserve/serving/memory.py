"""Memory that large requests leave behind goes back to the system.

What gRPC read a request into is freed in pieces, and the C library keeps them for later: a few
requests of 64 MiB left 160 MB behind, for good. So a thread looks once a second, and lets the
library give back what is free when the process has grown and does little else, or has grown much.
Giving back takes milliseconds, in which other threads may have to wait for memory.

And the library has two heaps instead of eight a core: each keeps what it can't give back, and
threads that take turns don't need one each. That is 4 MB less of 84 after a load. Buffers from 4 MB
on lie outside of them, so that what is freed is the system's at once: glibc by itself puts buffers
of up to 32 MB into its heaps once one was freed, keeps up to 64 MB at the end of each, and gives
back the main one's only. Images of 9 million pixels left 4 to 22 MB behind, for good. So no more
than half a MB is kept at the end of a heap.
"""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

__all__ = ["MemoryKeeper", "Watch", "bound_heaps", "spare_imports"]

_SECONDS = 1.0  # between two looks
_GROWN = 1 << 19  # bytes
_GROWN_MUCH = 64 << 20
_QUIET = 0.1  # of a core, below which nobody is kept waiting
_AGAIN = 10  # looks
_WORK = 0.02  # seconds of processor time, less than a large request takes
_STATM = Path("/proc/self/statm")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_HEAPS = 2
_LARGE, _KEPT = 4 << 20, 1 << 19  # bytes


def bound_heaps() -> None:
    """Let threads share two heaps without large buffers; for before they start.

    Does nothing without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _HEAPS)
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


def spare_imports() -> None:
    """Have the garbage collector pass over what has been made so far, for good; before models are
    loaded, which are to go one day.

    Modules are 44,000 objects, which Python would look through every 4,500 requests or so, and all
    callers would wait meanwhile: 27 ms under load, 1 without them.
    """
    gc.freeze()


class Watch:
    """Says at each look, a second after the last one, whether to give back what is free.

    In quiet seconds that is when the process has grown since it last was done, and otherwise every
    ten seconds if something was done: what was in use then may be free now. In others it is when
    the process has grown much.
    """

    def __init__(self, resident: int) -> None:
        self._quiet_floor = self._floor = resident  # after the last time in quiet, and at all
        self._looks, self._worked = 0, 0.0

    def is_due(self, resident: int, worked: float) -> bool:
        """resident: bytes in use; worked: seconds of processor time since the last look."""
        self._looks += 1
        self._worked += worked
        self._quiet_floor = min(self._quiet_floor, resident)
        self._floor = min(self._floor, resident)
        if worked >= _QUIET * _SECONDS:
            return resident - self._floor > _GROWN_MUCH
        again = self._looks >= _AGAIN and self._worked > _WORK
        return again or resident - self._quiet_floor > _GROWN

    def done(self, resident: int, worked: float) -> None:
        """It was given back, with the last look's `worked`, and `resident` is left."""
        self._floor = resident
        if worked < _QUIET * _SECONDS:
            self._quiet_floor = resident
            self._looks, self._worked = 0, 0.0


class MemoryKeeper:
    """Looks after the process's memory until `close`; does nothing where that can't be done."""

    def __init__(self) -> None:
        self._closed = threading.Event()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
        if trim is None or not _STATM.exists():
            return
        self._trim: Callable[[int], int] = trim
        threading.Thread(target=self._run, name="memory", daemon=True).start()

    def close(self) -> None:
        """End the thread."""
        self._closed.set()

    def _run(self) -> None:
        watch, busy = None, time.process_time()
        while True:
            before, busy = busy, time.process_time()
            with suppress(OSError):  # as many files are open as may be: it can wait
                if watch is None:
                    watch = Watch(_resident())
                elif watch.is_due(_resident(), busy - before):
                    self._trim(0)
                    watch.done(_resident(), busy - before)
                    busy = time.process_time()  # this was no work
            if self._closed.wait(_SECONDS):
                return


def _resident() -> int:
    """Bytes of the process's memory that are in use."""
    return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
