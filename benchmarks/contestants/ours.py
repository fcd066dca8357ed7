"""convserve: the ONNX file becomes a model file, as a user's would, and is loaded from there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import convserve
from benchmarks.contestants import Array, Job, Runner, Setting
from convserve import kernels


def version() -> str:
    return f"{convserve.__version__}, {kernels.isa()}"


def settings(job: Job) -> list[Setting]:
    return [Setting(f"load(threads={job.threads})", lambda: predictor(job))]


def peak_gflops(threads: int) -> float:
    """The multiply-add peak of as many cores, from one of them: two that are measured together
    wait for each other where the machine is shared.
    """
    return threads * kernels.peak_gflops(threads=1, seconds=0.05)


def predictor(job: Job, **options: Any) -> Runner:
    model = convserve.load(_convert(job), threads=job.threads, **options)

    def run(x: Array) -> Array:
        output = model.predict(x)
        assert not isinstance(output, dict)
        return output

    return run


def _convert(job: Job) -> Path:
    path = job.folder / f"{job.model.stem}.npz"
    if not path.exists():
        convserve.convert_onnx(job.model, path)
    return path
