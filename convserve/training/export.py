"""The model that a run leaves, and what it says of its origin."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from convserve import __version__, model_file
from convserve._npz import holds
from convserve.datasets import Dataset
from convserve.errors import TrainingError
from convserve.graph import Graph
from convserve.model_file import ModelFile
from convserve.training.config import TrainConfig
from convserve.training.progress import EpochRecord
from convserve.training.step import Array

__all__ = ["Exporter", "check_replaceable", "check_writable"]


class Exporter:
    """Makes models of a run's parameters, and writes them to `out` (None: nowhere).

    Raises TrainingError for a provenance that is no JSON: a run that ends so has trained in vain.
    """

    def __init__(
        self,
        graph: Graph,
        dataset: Dataset,
        config: TrainConfig,
        out: Path | None,
        provenance: Mapping[str, Any],
    ) -> None:
        self._graph, self._dataset, self._config = graph, dataset, config
        self._out, self._provenance = out, provenance
        try:
            json.dumps(dict(provenance), allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise TrainingError(f"provenance must be JSON values: {error}") from error

    def write(
        self, params: Mapping[str, Array], record: EpochRecord, test: float | None = None
    ) -> ModelFile:
        """The model of these parameters (copied), as they were after the epoch of `record`.

        test: its accuracy on the test images, if they were looked at. Written atomically;
        ModelFileError if that fails.
        """
        data = self._dataset
        copies = {name: value.copy() for name, value in params.items()}
        told = self._origin(record, test)
        model = ModelFile(self._graph, copies, data.labels, data.preprocessing, told)
        if self._out is not None:
            model_file.save(self._out, model)
        return model

    def _origin(self, record: EpochRecord, test: float | None) -> dict[str, Any]:
        validation = record.validation_accuracy
        held_out = self._dataset.held_out
        reached = {"test": test, "validation": validation, "train": record.train_accuracy}
        part = next(part for part, value in reached.items() if value is not None)
        return {
            "data": self._dataset.name,
            "images": len(self._dataset.train),
            "held_out": None if held_out is None else asdict(held_out),
            "accuracy": reached[part],
            "accuracy_on": part,
            "validation_accuracy": validation,
            "test_accuracy": test,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "epoch": record.epoch,
            "epochs": self._config.epochs,
            "seed": self._config.seed,
            "config": self._config.to_dict(),
            "convserve": __version__,
            **self._provenance,
        }


def check_writable(path: Path, error: type[Exception]) -> None:
    """Raise `error` unless a file can be put at `path`: better now than after the last epoch."""
    if not path.parent.is_dir():
        raise error(f"{path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise error(f"{path}: it exists and is not a regular file")
    if not os.access(path.parent, os.W_OK):
        raise error(f"{path}: the folder {path.parent} is not writable")


def check_replaceable(path: Path, entry: str, kind: str, error: type[Exception]) -> None:
    """Raise `error` if a file without that entry is there: whose it is, nobody knows.

    kind: what files with it are called. An empty file is nobody's.
    """
    if path.exists() and path.stat().st_size and not holds(path, entry):
        raise error(
            f"{path}: it exists, is not a {kind}, and would be replaced by one: choose another "
            "name, or remove it"
        )
