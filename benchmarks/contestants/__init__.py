"""One module a contestant: the settings that its documentation recommends, ready to build.

    version() -> str
    settings(job) -> list[Setting]

Where the best setting depends on the model (streams or one request, compiled or traced), all are
listed, and the worker takes what is fastest before the rounds begin: a peer must be at its best.
A module imports its engine at the top, so it is imported only in the contestant's own process.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Runner = Callable[[Array], Array]  # float32[N, C, H, W], C-contiguous, to the model's output


@dataclass(frozen=True)
class Job:
    """What a contestant prepares for; `folder` is where its converted files may stay."""

    model: Path
    input_shape: tuple[int, int, int]
    batch: int
    threads: int
    folder: Path


class Setting(NamedTuple):
    """Words for the report, and what makes the runner; a quick run passes over slow ones."""

    name: str
    build: Callable[[], Runner]
    slow: bool = False


MODULES = {
    "onnxruntime": "ort",
    "openvino": "ov",
    "torch": "pytorch",
    "ncnn": "ncnn_peer",
    "mnn": "mnn_peer",
    "convserve": "ours",
    "convserve_by_batch": "ours_by_batch",
    "convserve_1_thread": "ours_1_thread",
}
PEERS = ("onnxruntime", "openvino", "torch", "ncnn", "mnn")
OURS = "convserve"
OURS_BY_BATCH = "convserve_by_batch"  # batch_invariant=False
OURS_1_THREAD = "convserve_1_thread"  # beside more threads: how it scales


def load(contestant: str) -> ModuleType:
    """The contestant's module, which imports its engine."""
    return importlib.import_module(f"benchmarks.contestants.{MODULES[contestant]}")
