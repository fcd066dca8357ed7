"""The models that a server serves: one file, or DIR/<model>/<version>/model.npz.

Of each model the highest version is served. Names are checked before they touch the file system,
and a link that leads outside the directory is refused, so nothing outside it is ever opened.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from convserve import model_file
from convserve.engine.model import Model
from convserve.engine.scheduler import Batching, BatchScheduler
from convserve.engine.statistics import Statistics
from convserve.errors import InvalidRequestError, ModelFileError, ModelNotFoundError
from convserve.plan import tuning

__all__ = ["IndexEntry", "ModelRepository", "ServedModel", "find_models"]

_log = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
MODEL_FILENAME = "model.npz"


class IndexEntry(NamedTuple):
    """A line of the repository's index."""

    name: str
    version: str
    state: str
    reason: str


class Found(NamedTuple):
    """A model version on disk."""

    name: str
    version: str
    path: Path


@dataclass(frozen=True)
class ServedModel:
    """One version of a model, ready to answer requests."""

    name: str
    version: str
    model: Model
    scheduler: BatchScheduler

    @property
    def statistics(self) -> Statistics:
        """What it has done so far."""
        return self.scheduler.statistics


class ModelRepository:
    """All served models by name; loaded and warmed up when this is made, fixed from then on."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = dict(models)

    @classmethod
    def open(
        cls, path: Path | str, *, batching: Batching | None = None, threads: int | None = None
    ) -> ModelRepository:
        """Load what `path` holds, a model file or a directory of models.

        Each model runs once at batch 1 and once at the largest batch, so that no request pays for
        first use. Raises ModelFileError if anything in it can't be served.
        """
        batching = batching or Batching()
        models = {}
        for found in find_models(Path(path)):
            started = time.monotonic()
            loaded = model_file.load(found.path)
            times = tuning.find(found.path, loaded.graph)
            model = Model.from_file(loaded, name=found.name, threads=threads, times=times)
            for size in sorted({1, batching.max_batch_size}):
                shapes = {name: (size, *shape) for name, shape in model.inputs.items()}
                model.predict({name: np.zeros(s, np.float32) for name, s in shapes.items()})
            scheduler = BatchScheduler(model, batching, name=found.name)
            models[found.name] = ServedModel(found.name, found.version, model, scheduler)
            seconds = time.monotonic() - started
            _log.info("loaded model %s version %s in %.2f s", found.name, found.version, seconds)
        return cls(models)

    def get(self, name: str, version: str = "") -> ServedModel:
        """The model of that name; an empty version is the served one.

        Raises ModelNotFoundError, or InvalidRequestError if `version` is not a positive integer.
        """
        if version and not re.fullmatch(r"0{0,9}[1-9][0-9]{0,17}", version):
            raise InvalidRequestError(
                f"model version {_shown(version)} is not valid: it should be an integer > 0"
            )
        served = self._models.get(name)
        if served is None:
            raise ModelNotFoundError(f"Request for unknown model: {_shown(name)} is not found")
        if version and int(version) != int(served.version):
            raise ModelNotFoundError(
                f"Request for unknown model: {_shown(name)} version {int(version)} is not found; "
                f"version {served.version} is served"
            )
        return served

    def models(self) -> list[ServedModel]:
        """All served models, by name."""
        return [self._models[name] for name in sorted(self._models)]

    def index(self) -> list[IndexEntry]:
        """What RepositoryIndex answers."""
        return [IndexEntry(m.name, m.version, "READY", "") for m in self.models()]

    def stop(self, timeout: float | None = None) -> bool:
        """Finish the accepted requests and take no more; whether all ended in `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ended = True
        for served in self.models():
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            ended &= served.scheduler.stop(left)
        return ended


def _shown(name: str) -> str:
    """A name from the wire as part of a message, which must stay short."""
    return f"'{name}'" if len(name) <= 128 else f"'{name[:128]}…'"


def find_models(path: Path) -> list[Found]:
    """The model versions to serve, by name; raises ModelFileError if there are none."""
    if not path.exists():
        raise ModelFileError(f"{path}: no such file or directory")
    if not path.is_dir():
        if not _NAME.fullmatch(path.stem):
            raise ModelFileError(
                f"{path}: the file's name without its suffix is the model's name, and that may "
                f"hold only letters, digits, '.', '_' and '-': rename the file"
            )
        return [Found(path.stem, "1", path)]
    root = path.resolve()
    models = [_highest(root, folder) for folder in sorted(path.iterdir()) if _may_be_model(folder)]
    if not models:
        raise ModelFileError(f"{path}: holds no <model>/<version>/{MODEL_FILENAME}")
    return models


def _may_be_model(folder: Path) -> bool:
    if folder.name.startswith(".") or not folder.is_dir():
        return False
    if not _NAME.fullmatch(folder.name):
        raise ModelFileError(
            f"{folder}: a model's name may hold only letters, digits, '.', '_' and '-'"
        )
    return True


def _highest(root: Path, folder: Path) -> Found:
    versions = [entry.name for entry in folder.iterdir() if _VERSION.fullmatch(entry.name)]
    if not versions:
        raise ModelFileError(f"{folder}: has no version, a directory named 1, 2, 3, …")
    version = max(versions, key=int)
    file = folder / version / MODEL_FILENAME
    if not file.resolve().is_relative_to(root):
        raise ModelFileError(f"{file}: leads outside the model repository {root}")
    if not file.is_file():
        raise ModelFileError(f"{file}: no such file")
    return Found(folder.name, version, file)
