"""A thread that looks at the model repository: every few seconds, and when it is told to."""

from __future__ import annotations

import logging
import threading

from convserve.engine.repository import ModelRepository

__all__ = ["Poller"]

_log = logging.getLogger(__name__)


class Poller:
    """Looks every `seconds`; None: only when told to. Runs from construction until `close()`."""

    def __init__(self, repository: ModelRepository, seconds: float | None) -> None:
        self._repository = repository
        self._seconds = seconds
        self._wake = threading.Event()
        self._lock = threading.Lock()  # of what was said, which is read and forgotten in one
        self._told = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="repository", daemon=True)
        self._thread.start()

    def look_now(self) -> None:
        """Look at once, and trust that what is there is whole: its files are still checked."""
        with self._lock:
            self._told = True
        self._wake.set()

    def close(self) -> None:
        """Look no more; a look that is under way ends by itself."""
        self._closed = True
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(self._seconds)
            self._wake.clear()
            if self._closed:
                return
            with self._lock:
                told, self._told = self._told, False
            try:
                self._repository.refresh(settled=not told, loaded_only=self._seconds is None)
            except Exception:
                _log.exception("looking at the model repository failed")
