"""One contestant in a process of its own: `python -m benchmarks.worker CONTESTANT`.

Commands are JSON, one a line, on standard input; answers go to what was standard output, which
the engines can't write to.

    {"do": "load", "job": {...}, "slow_settings": true, "single": false}
                                                 {"setting": "...", "version": "...", ...}
    {"do": "check", "inputs": FILE, "outputs": FILE}     {}
    {"do": "time", "seconds": 0.3}                       {"rate": images/s}
    {"do": "peak", "threads": 2}                         {"gflops": ...}

A command that fails is answered by {"error": "..."}.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contestants
from benchmarks.contestants import Array, Job, Runner, Setting

POOL_BYTES = 64 << 20  # of different inputs, which follow each other in a round
POOL_BATCHES = 64
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
WARM_UP = 0.1  # of a round's seconds
TRIAL_SECONDS = 0.3


class Worker:
    """The commands; `load` comes before the others."""

    def __init__(self, contestant: str) -> None:
        self._module = contestants.load(contestant)

    def load(self, job: dict[str, Any], slow_settings: bool, single: bool) -> dict[str, Any]:
        """single: try one thread as well, where more may cost more than they bring."""
        files = {key: Path(job[key]) for key in ("model", "folder")}
        self._job = Job(**{**job, **files, "input_shape": tuple(job["input_shape"])})
        self._pool = _inputs(self._job)
        failed: dict[str, str] = {}
        name, self._run, rate = self._fastest(self._job, slow_settings, failed)
        if single:
            one, run, one_rate = self._fastest(replace(self._job, threads=1), False, failed)
            if one_rate > rate:
                name, self._run = f"{one} (1 thread)", run
        return {"setting": name, "version": self._module.version(), "failed": failed}

    def check(self, inputs: str, outputs: str) -> dict[str, Any]:
        np.save(outputs, self._run(np.load(inputs)))
        return {}

    def time(self, seconds: float) -> dict[str, Any]:
        _rate(self._run, self._pool, WARM_UP * seconds)
        return {"rate": _rate(self._run, self._pool, seconds)}

    def peak(self, threads: int) -> dict[str, Any]:
        return {"gflops": self._module.peak_gflops(threads)}

    def _fastest(self, job: Job, slow: bool, failed: dict[str, str]) -> tuple[str, Runner, float]:
        """Name, runner and images/s of the best setting; those that fail are noted."""
        settings: list[Setting] = self._module.settings(job)
        best: tuple[str, Runner, float] | None = None
        for name, build in [s[:2] for s in settings if slow or not s.slow]:
            try:
                run = build()
                _rate(run, self._pool[:3], 0)  # builds what is built at the first call
                rate = _rate(run, self._pool, TRIAL_SECONDS)
            except Exception as error:
                failed[name] = f"{type(error).__name__}: {error}"[:300]
                continue
            if best is None or rate > best[2]:
                best = name, run, rate
            del run
            gc.collect()
        if best is None:
            raise RuntimeError("; ".join(f"{name}: {fault}" for name, fault in failed.items()))
        return best


def _inputs(job: Job) -> list[Array]:
    """Different batches, the same for every contestant."""
    shape = (job.batch, *job.input_shape)
    count = int(np.clip(POOL_BYTES // (4 * np.prod(shape)), 3, POOL_BATCHES))
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(count)]


def _rate(run: Runner, pool: list[Array], seconds: float) -> float:
    """Images/s over at least `seconds`, and at least one call."""
    calls = 0
    start = time.perf_counter()
    while True:
        run(pool[calls % len(pool)])
        calls += 1
        elapsed = time.perf_counter() - start
        if elapsed >= seconds:
            return calls * len(pool[0]) / elapsed


def _end_with_parent() -> None:
    """A process that stands still would outlive a coordinator that was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(make: Callable[[], Any]) -> None:
    """Answers commands by the methods of what `make` makes, until there are no more."""
    _end_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker: Any = None
    for line in sys.stdin:
        command = json.loads(line)
        try:
            worker = worker or make()
            answer = getattr(worker, command.pop("do"))(**command)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve(lambda: Worker(sys.argv[1]))
