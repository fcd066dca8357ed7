"""How often a checkpoint is written within an epoch."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from convserve.errors import TrainingError

__all__ = ["Every"]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Every:
    """ "500": every 500 steps; "30s", "5m", "1h": every so much time; 0 or None: never.

    clock: seconds, monotonic. Raises TrainingError for anything else.
    """

    def __init__(
        self, interval: str | int | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        match = re.fullmatch(r"(\d{1,9})([smh]?)", "0" if interval is None else str(interval))
        if match is None or isinstance(interval, bool):
            raise TrainingError(
                "checkpoint_every must be a number of steps, or a time as 30s, 5m or 1h, "
                f"not {interval!r}"
            )
        amount = int(match[1])
        self._seconds = amount * _UNITS[match[2]] if match[2] else 0.0
        self._steps = 0 if match[2] else amount
        self._clock, self._last, self._count = clock, clock(), 0

    def due(self) -> bool:
        """Asked once after each step: whether it is time; the count then begins anew."""
        self._count += 1
        if (self._steps and self._count >= self._steps) or (
            self._seconds and self._clock() - self._last >= self._seconds
        ):
            self.restart()
            return True
        return False

    def restart(self) -> None:
        """A checkpoint was written."""
        self._last, self._count = self._clock(), 0
