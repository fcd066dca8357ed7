"""From a version on disk to one that is ready to serve: configured, checked, planned, warmed up."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convserve import model_file
from convserve.engine import config_file
from convserve.engine.budget import ThreadBudget
from convserve.engine.config import ModelConfig, ModelWarmup, WarmupInput
from convserve.engine.model import Model
from convserve.engine.scheduler import BatchScheduler
from convserve.engine.segment import Segment
from convserve.engine.source import MODEL_FILENAME, Source, Stamp
from convserve.engine.statistics import Statistics
from convserve.errors import ConfigError, ModelFileError
from convserve.plan import tuning

__all__ = ["Loader", "Override", "ServedModel"]

_log = logging.getLogger(__name__)
_DEFAULT_WARMUP_BATCHES = (1, 8)


@dataclass(eq=False)
class ServedModel:
    """One version of a model, ready to answer requests."""

    name: str
    version: str
    model: Model
    scheduler: BatchScheduler
    stamp: Stamp | None = None  # of the file that it was read from
    segment: Segment | None = None  # where its weights lie, if processes share them
    uses: int = field(default=0, repr=False)  # requests that hold it; the repository counts

    @cached_property
    def config(self) -> ModelConfig:
        """How it is served."""
        return self.scheduler.config

    @cached_property
    def statistics(self) -> Statistics:
        """What it has done so far."""
        return self.scheduler.statistics


@dataclass(frozen=True)
class Override:
    """What a caller gives in place of the repository's own: configuration, files by version."""

    tables: Mapping[str, Any]
    files: Mapping[int, bytes] = field(default_factory=dict)


class Loader:
    """Loads the models of a source; `defaults` are tables that a model's own tables go over.

    shared: weights go into segments, for other processes to `adopt`.
    """

    def __init__(
        self,
        source: Source,
        *,
        defaults: Mapping[str, Any] | None = None,
        budget: ThreadBudget,
        shared: bool = False,
    ) -> None:
        self.source = source
        self._shared = shared
        self._defaults = defaults or {}
        self._budget = budget
        config_file.build({}, self._defaults)

    def config(self, name: str, override: Override | None = None) -> ModelConfig:
        """A model's configuration; ConfigError for one that is wrong."""
        if override is not None:
            return config_file.build(override.tables, self._defaults)
        tables = self.source.config(name)
        path = str(self.source.config_path(name))
        return config_file.build(tables, self._defaults, source=path)

    def wanted(self, name: str, config: ModelConfig, override: Override | None) -> list[int]:
        """The versions to serve."""
        files = override.files if override is not None else {}
        chosen = config.version_policy.choose(files or self.source.versions(name))
        if not chosen:
            raise ModelFileError("no version is available")
        return chosen

    def load(
        self,
        name: str,
        version: int,
        config: ModelConfig,
        override: Override | None = None,
        known: ServedModel | None = None,
    ) -> ServedModel:
        """The version, ready; `known` itself if neither its file nor its configuration changed.

        Raises ModelFileError or ConfigError. Uses one thread, so that what is served beside it
        loses as little as can be.
        """
        started = time.monotonic()
        if override is not None and override.files:
            stamp, times = None, None
            file = _read_bytes(override.files[version], f"file:{version}/{MODEL_FILENAME}")
        else:
            path = self.source.model_path(name, version)
            # Read before the file: a change while it is read then shows as a change.
            stamp = Stamp.of(path)
            if known is not None and stamp == known.stamp and known.config == config:
                return known
            file = model_file.load(path)
            inside = self.source.holds(tuning.record_path(path))
            times = tuning.find(path, file.graph) if inside else None
        threads = config.instance_group.threads or None
        if self._shared:
            segment = Segment.of(file, times or {})
            del file  # served is what lies in the segment
            served = self.adopt(name, version, config, stamp, segment)
        else:
            model = Model.from_file(file, name=name, threads=threads, times=times)
            served = self._ready(name, version, config, model, stamp)
        seconds = time.monotonic() - started
        _log.info("loaded model %s version %d in %.2f s", name, version, seconds)
        return served

    def adopt(
        self, name: str, version: int, config: ModelConfig, stamp: Stamp | None, segment: Segment
    ) -> ServedModel:
        """A version that a process has loaded, ready in this one."""
        model = segment.model(name, config.instance_group.threads or None)
        return self._ready(name, version, config, model, stamp, segment)

    def _ready(
        self,
        name: str,
        version: int,
        config: ModelConfig,
        model: Model,
        stamp: Stamp | None,
        segment: Segment | None = None,
    ) -> ServedModel:
        self._warm_up(model, config)
        scheduler = BatchScheduler(
            model, config, budget=self._budget, name=name, estimate=model.estimate
        )
        return ServedModel(name, str(version), model, scheduler, stamp, segment)

    def _warm_up(self, model: Model, config: ModelConfig) -> None:
        batches = config.model_warmup or tuple(
            ModelWarmup("default", size)
            for size in sorted({min(n, config.max_batch_size) for n in _DEFAULT_WARMUP_BATCHES})
        )
        for batch in batches:
            known = model.inputs
            if unknown := [name for name in batch.inputs if name not in known]:
                raise ConfigError(
                    f"model_warmup: unknown input {unknown[0]!r:.80}; known are {list(known)}"
                )
            default = WarmupInput(zero_data=True)
            inputs = {
                name: self._warmup_data(model, batch.inputs.get(name, default), shape)
                for name, shape in known.items()
            }
            x = {name: np.stack([values] * batch.batch_size) for name, values in inputs.items()}
            for _ in range(batch.count):
                model.predict(x, threads=1)

    def _warmup_data(
        self, model: Model, given: WarmupInput, shape: tuple[int, ...]
    ) -> npt.NDArray[Any]:
        """One image's values."""
        dtype = np.dtype("<f4") if given.data_type == "TYPE_FP32" else np.dtype("u1")
        if dtype == np.uint8 and model.preprocessing is None:
            raise ConfigError("model_warmup: the model takes no TYPE_UINT8: no preprocessing")
        if given.input_data_file:
            path = self.source.warmup_path(model.name, given.input_data_file)
            data = path.read_bytes()
            if len(data) != np.prod(shape) * dtype.itemsize:
                raise ModelFileError(
                    f"{path}: has {len(data)} bytes, {given.data_type} of {list(shape)} has "
                    f"{np.prod(shape) * dtype.itemsize}"
                )
            return np.frombuffer(data, dtype).reshape(shape)
        if given.random_data:
            random = np.random.default_rng(0)
            return (random.random(shape, np.float32) * (255 if dtype == np.uint8 else 1)).astype(
                dtype
            )
        return np.zeros(shape, dtype)


def _read_bytes(data: bytes, what: str) -> model_file.ModelFile:
    """A model file that was sent; it is checked like one on disk."""
    with tempfile.TemporaryDirectory(prefix="convserve-") as folder:
        path = Path(folder) / MODEL_FILENAME
        path.write_bytes(data)
        try:
            return model_file.load(path)
        except ModelFileError as error:
            raise ModelFileError(str(error).replace(str(path), what)) from None
