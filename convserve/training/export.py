"""The model that a run leaves, and what it says of its origin."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from convserve import __version__
from convserve.datasets import Dataset
from convserve.graph import Graph
from convserve.model_file import ModelFile
from convserve.training.config import TrainConfig
from convserve.training.progress import EpochRecord
from convserve.training.step import Array

__all__ = ["check_writable", "exported"]


def exported(
    graph: Graph,
    params: Mapping[str, Array],
    dataset: Dataset,
    config: TrainConfig,
    record: EpochRecord,
    *,
    test: float | None = None,
    provenance: Mapping[str, Any],
) -> ModelFile:
    """A model of these parameters (copied), as they were after the epoch of `record`.

    test: its accuracy on the test images, if they were looked at. provenance: more to say.
    """
    reached = {
        "test": test,
        "validation": record.validation_accuracy,
        "train": record.train_accuracy,
    }
    part = next(part for part, value in reached.items() if value is not None)
    told = {
        "data": dataset.name,
        "images": len(dataset.train),
        "accuracy": reached[part],
        "accuracy_on": part,
        "validation_accuracy": record.validation_accuracy,
        "test_accuracy": test,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "epoch": record.epoch,
        "epochs": config.epochs,
        "seed": config.seed,
        "config": config.to_dict(),
        "convserve": __version__,
        **provenance,
    }
    copies = {name: value.copy() for name, value in params.items()}
    return ModelFile(graph, copies, dataset.labels, dataset.preprocessing, told)


def check_writable(path: Path, error: type[Exception]) -> None:
    """Raise `error` unless a file can be put at `path`: better now than after the last epoch."""
    if not path.parent.is_dir():
        raise error(f"{path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise error(f"{path}: it exists and is not a regular file")
    if not os.access(path.parent, os.W_OK):
        raise error(f"{path}: the folder {path.parent} is not writable")
