"""convserve with batch_invariant=False: kernels may be chosen by the size of the batch."""

from __future__ import annotations

from benchmarks.contestants import Job, Setting
from benchmarks.contestants.ours import peak_gflops, predictor, version

__all__ = ["peak_gflops", "settings", "version"]


def settings(job: Job) -> list[Setting]:
    name = f"load(threads={job.threads}, batch_invariant=False)"
    return [Setting(name, lambda: predictor(job, batch_invariant=False))]
