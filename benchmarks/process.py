"""A worker as its coordinator sees it: asked one thing at a time, otherwise stopped."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TIMEOUT = 900.0  # seconds for one answer: a compilation of the largest network


class WorkerError(Exception):
    """The contestant failed, died or did not answer."""


class Process:
    """Runs `benchmarks.worker` (or its like) under `python`; its prints go to the file `log`."""

    def __init__(
        self,
        python: Path,
        contestant: str,
        log: Path,
        environment: Mapping[str, str],
        module: str = "benchmarks.worker",
    ) -> None:
        self.contestant = contestant
        self._log = log.open("ab")
        self._child = subprocess.Popen(
            [str(python), "-m", module, contestant],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            cwd=ROOT, env={**os.environ, **environment}, text=True,
        )  # fmt: skip
        self._stopped = False

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one command; afterwards the process stands still."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._signal(stop=False)
        try:
            self._child.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass  # that it has died is seen below, where nothing comes back
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            line = self._child.stdout.readline() if selector.select(TIMEOUT) else ""
        if not line:
            state = self._child.poll()
            raise WorkerError(f"{self.contestant} gave no answer to {do} (exit status {state})")
        self._signal(stop=True)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()
        self._log.close()

    def _signal(self, stop: bool) -> None:
        """Threads that wait for work by spinning must not take the cores of who is timed."""
        if stop != self._stopped and self._child.poll() is None:
            self._child.send_signal(signal.SIGSTOP if stop else signal.SIGCONT)
            self._stopped = stop
