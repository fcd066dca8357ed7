"""The training loop: epochs, validation, checkpoints, and the model that comes out.

    uint8 images ─▶ Batches: shuffle, augment ─▶ TrainStep.step ─▶ EMA, lookahead
        └─ now and then: checkpoint      after each epoch: validate ─▶ keep and export the best

The test images choose nothing: the exported model is the best on validation images if some were
held out, else that of the last epoch. Every random stream comes from the seed, the epoch and the
step, so a run gives the same bits with any number of threads, and whether or not, and wherever, it
was interrupted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from convserve import kernels, model_file
from convserve._npz import remove_leftovers
from convserve.datasets import Dataset, Split
from convserve.errors import (
    CheckpointError,
    ModelFileError,
    ShapeError,
    TrainingError,
    TrainingStoppedError,
)
from convserve.graph import Graph
from convserve.model_file import ModelFile
from convserve.training import checkpoint
from convserve.training.averaging import Averages
from convserve.training.batches import Batches
from convserve.training.compiled import CompiledStep
from convserve.training.config import TrainConfig
from convserve.training.evaluation import accuracy
from convserve.training.every import Every
from convserve.training.export import Exporter, check_replaceable, check_writable
from convserve.training.layerwise import LayerwiseStep
from convserve.training.loss import class_weights
from convserve.training.make_optimiser import make_optimiser
from convserve.training.optimisers import Optimiser
from convserve.training.progress import EpochRecord, Progress, TrainResult
from convserve.training.run_checkpoint import RunCheckpoint
from convserve.training.schedules import make_schedule
from convserve.training.start import Start
from convserve.training.state import RunState
from convserve.training.step import Array, TrainStep

__all__ = ["train"]


def train(
    graph: Graph,
    dataset: Dataset,
    config: TrainConfig | None = None,
    *,
    init: Start | None = None,
    out: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: str | int | None = None,
    resume: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
    provenance: Mapping[str, Any] | None = None,
    **options: Any,
) -> TrainResult:
    """Train `graph` on `dataset`, and return (and export) the model.

    The settings are the fields of `TrainConfig`, in `config` or as keywords:

        result = convserve.train(graph, datasets.load(), epochs=5, lr=0.1, out="model.npz")

    init: parameters to begin with (`start.from_model`: fine-tuning); None: fresh ones.
    out: the model file, written atomically: at the end, and before whenever validation improves.
    checkpoint: a file for all of the run's state, written after each epoch, and within it as
    checkpoint_every says: "500" steps, or "30s", "5m". resume: continue from it, bit for bit.
    threads: for the kernels during the call (None: as they are). stop: asked after each step; once
    it is true a checkpoint is written and TrainingStoppedError raised. provenance: JSON values to
    store in the model beside the run's own.

    A file at `out` that is no model, or at `checkpoint` that is no checkpoint, is refused. The
    checkpoint of another, unfinished run is kept, as NAME.earlier.npz (or NAME.earlier2.npz …),
    once this run writes its first.

    Raises TypeError or TrainingError for a setting, ShapeError if graph and data do not fit,
    TrainingError if the loss diverges, CheckpointError, and ModelFileError if `out` can't be
    written or is no model. An interrupt or an error leaves the last checkpoint and export as they
    were.
    """
    if config is not None and options:
        raise TypeError(f"give config or settings, not both: {', '.join(options)}")
    if not isinstance(graph, Graph):
        raise TypeError(f"graph must be a convserve.Graph, not {graph!r:.80}")
    if not isinstance(dataset, Dataset):
        raise TypeError(f"dataset must be a Dataset, of datasets.load(…), not {dataset!r:.80}")
    run = _Run(
        graph,
        dataset,
        TrainConfig(**options) if config is None else config,
        init,
        None if out is None else Path(out),
        None if checkpoint is None else Path(checkpoint),
        Every(checkpoint_every),
        progress or Progress(),
        stop or (lambda: False),
        dict(provenance or {}),
    )
    if resume:
        run.restore()
    elif run.checkpoint is not None:
        run.checkpoint.check()
    before = kernels.num_threads()
    try:
        if threads is not None:
            kernels.set_num_threads(threads)
        return run.go()
    finally:
        kernels.set_num_threads(before)


class _Run:
    """One call of `train`."""

    def __init__(
        self,
        graph: Graph,
        dataset: Dataset,
        config: TrainConfig,
        init: Start | None,
        out: Path | None,
        checkpoint_path: Path | None,
        every: Every,
        progress: Progress,
        stop: Callable[[], bool],
        provenance: dict[str, Any],
    ) -> None:
        _check_fit(graph, dataset, config)
        for path, error in ((out, ModelFileError), (checkpoint_path, CheckpointError)):
            if path is not None:
                check_writable(path, error)
        if out is not None:
            check_replaceable(out, model_file.ENTRY, "model", ModelFileError)
        if out is not None and checkpoint_path is not None and _same(out, checkpoint_path):
            raise CheckpointError(f"{out}: the model and the checkpoint can't be the same file")
        self.graph, self.dataset, self.config = graph, dataset, config
        self.progress, self.stop, self.every = progress, stop, every
        self.written = [path for path in (out, checkpoint_path) if path is not None]
        self.exporter = Exporter(graph, dataset, config, out, provenance)
        self.batches = Batches(
            dataset.train,
            len(dataset.labels),
            config,
            dataset.preprocessing,
            class_weights(config.class_weights, dataset.train.y, dataset.labels),
        )
        self.steps_per_epoch = len(self.batches)
        self.schedule = make_schedule(config, self.steps_per_epoch)
        start = init or Start.fresh(graph, dataset, config)
        optimiser = make_optimiser(
            config, graph, lambda epochs: make_schedule(config, self.steps_per_epoch, epochs)
        )
        self.step = _make_step(graph, start.params, optimiser, config)
        self.averages = Averages(self.step.params, config, config.epochs * self.steps_per_epoch)
        self.state = RunState()
        self.best: dict[str, Array] = {}
        self.checkpoint = (
            None
            if checkpoint_path is None
            else RunCheckpoint(
                checkpoint_path,
                checkpoint.identity(graph, dataset, config, start.origin),
                progress.checkpoint_set_aside,
            )
        )

    def go(self) -> TrainResult:
        start = time.monotonic()
        state, images = self.state, self.images_per_epoch
        for path in self.written:
            remove_leftovers(path)
        self.progress.run_started(self.config.epochs, images, len(state.history))
        self.every.restart()
        while state.epoch <= self.config.epochs and not state.waited(self.config.patience):
            self.progress.epoch_started(state.epoch)
            if state.images:
                self.progress.epoch_resumed(state.images)
            self.train_epoch()
            validation = self.validate()
            record = state.finish_epoch(validation, self.rate(state.epoch, self.last_step))
            better = state.is_better(validation)
            if better:
                self.keep_best()
            self.save_checkpoint()
            # Behind it: a model without a checkpoint is that of a run that is done.
            if better:
                self.export(self.best, record)
            self.progress.epoch_done(record)
        return self.result(time.monotonic() - start)

    @property
    def images_per_epoch(self) -> int:
        batch, count = self.config.batch_size, len(self.dataset.train)
        return min(self.steps_per_epoch * batch, count)

    @property
    def last_step(self) -> int:
        return self.steps_per_epoch - 1

    def rate(self, epoch: int, step: int) -> float:
        return self.schedule((epoch - 1) * self.steps_per_epoch + step)

    def train_epoch(self) -> None:
        """The steps of the epoch under way that are not done yet."""
        state, before = self.state, time.monotonic()
        for x, targets in self.batches.epoch(state.epoch, state.step):
            lr = self.rate(state.epoch, state.step)
            with np.errstate(over="ignore", invalid="ignore"):  # said below, once and in words
                result = self.step.step(x, targets, lr)
            if not isfinite(result.loss):
                raise self.diverged(f"the loss became {result.loss} at step {state.step + 1}", lr)
            state.add(result.loss, result.correct, len(x))
            self.averages.update((state.epoch - 1) * self.steps_per_epoch + state.step)
            now = time.monotonic()
            state.seconds += now - before
            before = now
            self.progress.batch_done(len(x), result.loss)
            self.stop_if_asked()
            if self.every.due():
                self.save_checkpoint()
        if not all(np.isfinite(value).all() for value in self.step.params.values()):
            raise self.diverged("the parameters overflowed", self.rate(state.epoch, self.last_step))

    def validate(self) -> float | None:
        if self.dataset.validation is None:
            return None
        return self.accuracy(self.averages.params, self.dataset.validation)

    def accuracy(self, params: Mapping[str, Array], split: Split) -> float:
        return accuracy(
            self.graph, params, self.dataset.preprocessing, split, between=self.stop_if_asked
        )

    def keep_best(self) -> None:
        """Keep the parameters of the epoch that has just ended."""
        record = self.state.history[-1]
        self.best = {name: value.copy() for name, value in self.averages.params.items()}
        self.state.best_epoch = record.epoch
        self.state.best_accuracy = record.validation_accuracy or 0.0

    def export(
        self, params: Mapping[str, Array], record: EpochRecord, test: float | None = None
    ) -> ModelFile:
        model = self.exporter.write(params, record, test)
        self.progress.model_written()
        return model

    def result(self, seconds: float) -> TrainResult:
        """Look at the test images, once, and export."""
        history, last = self.state.history, len(self.state.history)
        chosen = self.state.best_epoch or last
        params = self.best or self.averages.params
        test = last_test = None
        if self.dataset.test is not None:
            test = last_test = self.accuracy(params, self.dataset.test)
            if chosen != last:
                last_test = self.accuracy(self.averages.params, self.dataset.test)
        model = self.export(params, history[chosen - 1], test)
        self.save_checkpoint(finished=True)
        return TrainResult(
            model,
            chosen,
            tuple(history),
            history[chosen - 1].validation_accuracy,
            test,
            seconds,
            last_test,
        )

    def stop_if_asked(self) -> None:
        if not self.stop():
            return
        self.save_checkpoint()
        state = self.state
        raise TrainingStoppedError(f"stopped at step {state.step} of epoch {state.epoch}")

    def save_checkpoint(self, finished: bool = False) -> None:
        if self.checkpoint is not None:
            self.checkpoint.save(self.state, self.step, self.averages, self.best, finished)
            self.every.restart()
            self.progress.checkpoint_written()

    def restore(self) -> None:
        """Continue where the checkpoint was written."""
        if self.checkpoint is None:
            raise CheckpointError("resume needs the path of a checkpoint")
        self.state, self.best = self.checkpoint.restore(self.step, self.averages)

    def diverged(self, what: str, lr: float) -> TrainingError:
        kept = ""
        if self.checkpoint is not None and self.checkpoint.path.exists():
            kept = " The last checkpoint is intact."
        return TrainingError(
            f"{what} of epoch {self.state.epoch}, at a learning rate of {lr:.4g}: training "
            f"diverged. Try a lower lr or a longer warmup.{kept}"
        )


def _make_step(
    graph: Graph, params: Mapping[str, Array], optimiser: Optimiser, config: TrainConfig
) -> TrainStep:
    compiled = config.step == "compiled"
    if compiled or (config.step == "auto" and CompiledStep.supports(graph)):
        # A run may be resumed at the last batch of an epoch, which can be smaller.
        return CompiledStep(graph, params, optimiser, seed=config.seed, batch=config.batch_size)
    return LayerwiseStep(graph, params, optimiser, seed=config.seed)


def _check_fit(graph: Graph, dataset: Dataset, config: TrainConfig) -> None:
    if len(graph.inputs) > 1:
        raise ShapeError(f"training takes graphs of one input, this has {list(graph.inputs)}")
    if graph.input_shape != dataset.input_shape:
        raise ShapeError(
            f"the graph takes images of {graph.input_shape} (channels, height, width), "
            f"the data set's are {dataset.input_shape}"
        )
    outputs = [graph.shape(node) for node in graph.outputs.values()]
    if outputs != [(len(dataset.labels),)]:
        raise ShapeError(
            f"the graph's output must be one score for each of {len(dataset.labels)} classes, "
            f"its outputs are {outputs}"
        )
    if config.batch_size > len(dataset.train):
        raise TrainingError(
            f"batch_size {config.batch_size} is more than the {len(dataset.train)} training images"
        )
    if config.patience and dataset.validation is None:
        raise TrainingError("patience needs validation images: hold some out with validation")


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()
