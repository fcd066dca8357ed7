"""convserve with one thread, beside itself with more: what the other threads bring."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.contestants import Job, Setting, ours
from benchmarks.contestants.ours import peak_gflops, version

__all__ = ["peak_gflops", "settings", "version"]


def settings(job: Job) -> list[Setting]:
    return ours.settings(replace(job, threads=1))
