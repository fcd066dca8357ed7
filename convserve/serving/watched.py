"""What files say, read anew when they change; what is then malformed leaves the last good one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from convserve.engine.source import Stamp
from convserve.errors import ConfigError

__all__ = ["Watched"]

_log = logging.getLogger(__name__)
T = TypeVar("T")


class Watched(Generic[T]):
    """`value`, made by `read` of the files at `paths`; ConfigError if that fails at first.

    what: how logs call it. every: seconds between two looks, at least.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        read: Callable[[], T],
        what: str,
        every: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths, self._read, self._what = paths, read, what
        self._every, self._clock = every, clock
        self._lock = threading.Lock()
        self._seen = self._stamps()
        self._looked = clock()
        self.value = read()

    def look(self) -> bool:
        """Take over what has changed; whether this look has found a new value."""
        if self._clock() - self._looked < self._every:
            return False
        with self._lock:
            self._looked = self._clock()
            stamps = self._stamps()
            if stamps == self._seen:
                return False
            self._seen = stamps
            try:
                self.value = self._read()
            except ConfigError as error:
                _log.error("%s: it stays as it was: %s", self._what, error)
                return False
            _log.info("%s: read anew", self._what)
            return True

    def _stamps(self) -> list[Stamp | None]:
        return [Stamp.of(path) for path in self._paths]
