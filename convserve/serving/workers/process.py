"""A worker as the supervisor sees it: a process, its end of the connection, how it fares."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from convserve.serving.workers.peer import Peer

__all__ = ["ENDINGS", "WorkerProcess"]

# What `ending` begins with for what ends a process by itself or by hand; others are "other".
_SIGNALS = ("ABRT", "BUS", "FPE", "HUP", "ILL", "INT", "KILL", "SEGV", "SYS", "TERM")
ENDINGS = ("exit code 0", "exit code 1", *(f"signal SIG{name}" for name in _SIGNALS), "other")
_LAST_BREATH = 2.0  # seconds for a process that has closed its connection to be gone
_FOR_SUPERVISOR = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_FIRST_BEAT = 60.0  # seconds that a start may take until the worker reports


class WorkerProcess:
    """Started by the constructor, which raises OSError or RuntimeError if the system has no room
    for it. command: gets --worker-socket FD appended.

    handlers, told: what the worker may call and tell, for Peer. gone: called when it has ended.
    """

    def __init__(
        self,
        number: int,
        command: Sequence[str],
        handlers: Callable[[WorkerProcess], Mapping[str, Callable[..., Any]]],
        told: Callable[[WorkerProcess], Mapping[str, Callable[..., None]]],
        gone: Callable[[WorkerProcess], None],
    ) -> None:
        self.number = number
        self.ready_since: float | None = None
        self.gone = False
        self.why = ""  # it was killed
        self.started = time.monotonic()
        self.beat = self.started + _FIRST_BEAT  # when it last reported
        self._longest = [0.0, 0.0]  # seconds that a batch had run, at the last two reports
        ours, theirs = socket.socketpair()
        # Signals are for the supervisor: a worker has them blocked from its first instant.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_SUPERVISOR)
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [
                        *command,
                        "--worker-number",
                        str(number),
                        "--worker-socket",
                        str(theirs.fileno()),
                    ],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                )
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

        def ended() -> None:
            self.gone = True
            gone(self)

        self.peer = Peer(ours, handlers(self), told(self), ended)
        try:
            self.peer.start()
        except RuntimeError:  # there can't be more threads
            self.process.kill()
            self.process.wait()
            ours.close()
            raise

    def __str__(self) -> str:
        return f"worker {self.number} (process {self.process.pid})"

    @property
    def ready(self) -> bool:
        """Whether it serves."""
        return self.ready_since is not None and not self.gone

    def reported(self, longest: float) -> None:
        """It lives; its longest batch has been running for so many seconds."""
        self.beat = time.monotonic()
        self._longest = [self._longest[1], longest]

    def fault(self, limit: float) -> str:
        """Why it has to be killed; empty if it need not be."""
        silent = time.monotonic() - self.beat
        if silent > limit:
            return f"it has not reported for {silent:.1f} s"
        # Twice, so that a batch that was held up with the whole machine gets a chance to end.
        if min(self._longest) > limit:
            return f"a batch has been running for {self._longest[1]:.1f} s"
        return ""

    def tell(self, name: str, *arguments: Any) -> bool:
        """Send it news; whether that was possible."""
        try:
            self.peer.tell(name, *arguments)
        except OSError:
            return False
        return True

    def kill(self, why: str) -> None:
        """End it on the spot."""
        self.why = why
        self.process.kill()

    def exit_code(self) -> int:
        """Of the process, which has closed its end of the connection."""
        try:
            return self.process.wait(_LAST_BREATH)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def ending(self) -> str:
        """How it has ended."""
        code = self.exit_code()
        if code >= 0:
            how = f"exit code {code}"
        else:
            try:
                how = f"signal {signal.Signals(-code).name}"
            except ValueError:
                how = f"signal {-code}"
        return f"{how}: {self.why}" if self.why else how
