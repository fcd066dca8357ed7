"""One contestant: `python -m benchmarks.training.worker ours|torch_peer`; commands as in
`benchmarks.worker`.

    {"do": "load", "path": FILE, "batch": 128, "threads": 2}    {"setting": "...", "version": "..."}
    {"do": "gradients", "path": FILE, "batch": 4, "to": FILE}   {}
    {"do": "time", "seconds": 1.0}                              {"rate": images/s, "peak_mb": ...}
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.worker import serve

TRIAL_SECONDS = 1.0


class Worker:
    """`load` comes before `time`; only the fastest setting is kept."""

    def __init__(self, contestant: str) -> None:
        self._module: Any = importlib.import_module(f"benchmarks.training.{contestant}")

    def gradients(self, path: str, batch: int, to: str) -> dict[str, Any]:
        np.savez(to, **self._module.gradients(path, batch))
        return {}

    def load(self, path: str, batch: int, threads: int, setting: str | None) -> dict[str, Any]:
        """setting: the one to take, for a process that has not tried the others."""
        self._batch = batch
        best = 0.0
        for name, run in self._module.settings(path, batch, threads):
            if setting not in (None, name):
                continue
            run()
            rate = self._rate(run, TRIAL_SECONDS) if setting is None else 1.0
            if rate > best:
                best, self._run, chosen = rate, run, name
        return {"setting": chosen, "version": self._module.version()}

    def time(self, seconds: float) -> dict[str, Any]:
        return {"rate": self._rate(self._run, seconds), "peak_mb": _peak_mb()}

    def _rate(self, run: Callable[[], None], seconds: float) -> float:
        """Images/s over at least `seconds`, after a step that isn't counted."""
        run()
        steps, start = 0, time.perf_counter()
        while True:
            run()
            steps += 1
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return steps * self._batch / elapsed


def _peak_mb() -> float:
    """The largest resident size so far, without that of the process before its exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (peak,) = (line for line in lines if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


if __name__ == "__main__":
    serve(lambda: Worker(sys.argv[1]))
