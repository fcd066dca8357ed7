"""SIGTERM, SIGINT and SIGHUP of a server."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

__all__ = ["Signals", "hold_hangups"]


def hold_hangups() -> list[int]:
    """The SIGHUPs that come from now on, until there are Signals; they end nothing."""
    held: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _frame: held.append(number))
    return held


class Signals:
    """The first SIGTERM or SIGINT ends `wait()`; the second ends the process on the spot.

    SIGHUP calls `on_hangup`, the first signal also `on_stop`.

    Python runs signal handlers on the main thread only, which may be asleep in a wait when another
    thread is given the signal. So the news goes through a pipe that Python's own C handler writes
    to on any thread, and a thread of its own reads it.
    """

    _NUMBERS = (signal.SIGTERM, signal.SIGINT)

    def __init__(
        self,
        *,
        on_hangup: Callable[[], None] = lambda: None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self.on_hangup, self._on_stop = on_hangup, on_stop
        self._first = threading.Event()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (*self._NUMBERS, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)  # the pipe has it
        threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()

    def _watch(self, reader: int) -> None:
        while True:
            number = os.read(reader, 1)[0]
            if number == signal.SIGHUP:
                self.on_hangup()
            elif number in self._NUMBERS:
                if self._first.is_set():
                    os._exit(1)
                self._first.set()
                self._on_stop()

    def wait(self) -> None:
        """Block until the first signal."""
        self._first.wait()
