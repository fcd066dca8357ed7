"""SIGINT and SIGTERM as a wish that is granted after the step under way; the second one at once.

What has no steps, as reading the data, ends at the first one.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from convserve.errors import TrainingStoppedError

__all__ = ["StopSignals"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAID = b"convserve: stopping after the step under way; a second signal ends it at once\n"


class _AtOnce(BaseException):
    """No Exception, so that nobody on the way takes it for a damaged file and goes on."""


class StopSignals:
    """While the block runs the first signal only sets `number`; after it all is as it was.

    Outside the main thread, where Python takes no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._at_once = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on) for number in SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def __call__(self) -> bool:
        """Whether one has come."""
        return self.number is not None

    @contextmanager
    def at_once(self, what: str) -> Iterator[None]:
        """While this block runs the first signal ends it: TrainingStoppedError, naming `what`."""
        self._at_once = True
        try:
            yield
        except _AtOnce:
            raise TrainingStoppedError(f"stopped while {what}") from None
        finally:
            self._at_once = False

    @property
    def status(self) -> int:
        """The exit status by which shells know what ended a process."""
        return 128 + (self.number or signal.SIGINT)

    def _on(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()
        if self._at_once:
            raise _AtOnce
        # Not through Python's buffers: the signal may have come within a write to them.
        with suppress(OSError, ValueError):
            os.write(sys.stderr.fileno(), b"\n" * sys.stderr.isatty() + SAID)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
