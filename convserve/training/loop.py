"""The training loop: epochs, validation, checkpoints, and the model that comes out.

    uint8 images ─ shuffle, shift, flip, normalise ─▶ TrainStep.step ─▶ after each epoch:
        validate ─▶ keep the best ─▶ export it ─▶ checkpoint;  at the end: test once, export

The test images choose nothing: the exported model is the best on validation images if some were
held out, else that of the last epoch. Every random stream comes from the seed and the epoch, so a
run gives the same bits with any number of threads, and whether or not it was interrupted.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import numpy as np

from convserve import __version__, kernels, model_file
from convserve.datasets import Dataset, Split
from convserve.errors import CheckpointError, ModelFileError, ShapeError, TrainingError
from convserve.graph import Graph
from convserve.model_file import ModelFile
from convserve.training import augment, checkpoint
from convserve.training.config import TrainConfig
from convserve.training.evaluation import accuracy
from convserve.training.layerwise import LayerwiseStep
from convserve.training.loss import smoothed_targets
from convserve.training.optimisers import make_optimiser
from convserve.training.progress import EpochRecord, Progress, TrainResult
from convserve.training.schedules import make_schedule
from convserve.training.step import Array, TrainStep

__all__ = ["check_writable", "train"]

SHUFFLE_STREAM, AUGMENT_STREAM = 1, 2  # tell the random streams of one seed and epoch apart


def train(
    graph: Graph,
    dataset: Dataset,
    config: TrainConfig | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    provenance: Mapping[str, Any] | None = None,
    **options: Any,
) -> TrainResult:
    """Train `graph` on `dataset` from fresh parameters, and return (and export) the model.

    The settings are the fields of `TrainConfig`, in `config` or as keywords:

        result = convserve.train(graph, datasets.load(), epochs=5, lr=0.1, out="model.npz")

    out: the model file, written atomically: at the end, and before whenever validation improves.
    checkpoint: a file for all of the run's state, written after each epoch; resume: continue from
    it, bit for bit. threads: for the kernels during the call (None: as they are). provenance: JSON
    values to store in the model beside the run's own.

    Raises TypeError or TrainingError for a setting, ShapeError if graph and data do not fit,
    TrainingError if the loss diverges, CheckpointError, and ModelFileError if `out` can't be
    written. An interrupt or an error leaves the last checkpoint and export as they were.
    """
    if config is not None and options:
        raise TypeError(f"give config or settings, not both: {', '.join(options)}")
    run = _Run(
        graph,
        dataset,
        TrainConfig(**options) if config is None else config,
        None if out is None else Path(out),
        None if checkpoint is None else Path(checkpoint),
        progress or Progress(),
        dict(provenance or {}),
    )
    if resume:
        run.restore()
    before = kernels.num_threads()
    try:
        if threads is not None:
            kernels.set_num_threads(threads)
        return run.go()
    finally:
        kernels.set_num_threads(before)


class _Run:
    """The state of one call of `train`."""

    def __init__(
        self,
        graph: Graph,
        dataset: Dataset,
        config: TrainConfig,
        out: Path | None,
        checkpoint_path: Path | None,
        progress: Progress,
        provenance: dict[str, Any],
    ) -> None:
        _check_fit(graph, dataset, config)
        for path, error in ((out, ModelFileError), (checkpoint_path, CheckpointError)):
            if path is not None:
                check_writable(path, error)
        if out is not None and checkpoint_path is not None and _same(out, checkpoint_path):
            raise CheckpointError(f"{out}: the model and the checkpoint can't be the same file")
        self.graph, self.dataset, self.config = graph, dataset, config
        self.out, self.checkpoint_path = out, checkpoint_path
        self.progress, self.provenance = progress, provenance
        self.step: TrainStep = LayerwiseStep(
            graph,
            graph.initialise(config.seed),
            make_optimiser(config),
            seed=config.seed,
        )
        self.steps_per_epoch = ceil(len(dataset.train) / config.batch_size)
        self.schedule = make_schedule(config, self.steps_per_epoch)
        self.history: list[EpochRecord] = []
        self.best: dict[str, Array] = {}
        self.best_epoch: int | None = None
        self.best_accuracy = -1.0
        self.run = checkpoint.identity(graph, dataset, config) if checkpoint_path else {}

    def go(self) -> TrainResult:
        start = time.monotonic()
        epochs = self.config.epochs
        self.progress.run_started(epochs, len(self.dataset.train), len(self.history))
        for epoch in range(len(self.history) + 1, epochs + 1):
            self.progress.epoch_started(epoch)
            record = self.train_epoch(epoch)
            self.history.append(record)
            self.keep_best(record)
            self.save_checkpoint()
            self.progress.epoch_done(record)
        chosen = epochs if self.best_epoch is None else self.best_epoch
        params = self.step.params if self.best_epoch is None else self.best
        test = None
        if self.dataset.test is not None:
            test = accuracy(self.graph, params, self.dataset.preprocessing, self.dataset.test)
        validation = self.history[chosen - 1].validation_accuracy
        model = self.model(params, chosen, validation, test)
        if self.out is not None:
            model_file.save(self.out, model)
        seconds = time.monotonic() - start
        return TrainResult(model, chosen, tuple(self.history), validation, test, seconds)

    def train_epoch(self, epoch: int) -> EpochRecord:
        classes = len(self.dataset.labels)
        start = time.monotonic()
        loss_sum, correct, lr = 0.0, 0, 0.0
        for number, batch in enumerate(self.batches(epoch)):
            targets = smoothed_targets(batch.y, classes, self.config.label_smoothing)
            lr = self.schedule((epoch - 1) * self.steps_per_epoch + number)
            x = self.dataset.preprocessing.normalise(batch.x)
            with np.errstate(over="ignore", invalid="ignore"):  # said below, once and in words
                result = self.step.step(x, targets, lr)
            if not isfinite(result.loss):
                raise self.diverged(
                    f"the loss became {result.loss} at step {number + 1}", epoch, lr
                )
            loss_sum += result.loss * len(batch)
            correct += result.correct
            self.progress.batch_done(len(batch), result.loss)
        if not all(np.isfinite(value).all() for value in self.step.params.values()):
            raise self.diverged("the parameters overflowed", epoch, lr)
        images, seconds = len(self.dataset.train), time.monotonic() - start
        validation = None
        if self.dataset.validation is not None:
            validation = accuracy(
                self.graph, self.step.params, self.dataset.preprocessing, self.dataset.validation
            )
        return EpochRecord(
            epoch, loss_sum / images, correct / images, validation, lr, seconds, images / seconds
        )

    def batches(self, epoch: int) -> Iterator[Split]:
        """The epoch's batches: every image once, in an order of its own, augmented."""
        config, data = self.config, self.dataset.train
        order = np.random.default_rng([config.seed, SHUFFLE_STREAM, epoch]).permutation(len(data))
        rng = np.random.default_rng([config.seed, AUGMENT_STREAM, epoch])
        for start in range(0, len(order), config.batch_size):
            batch = data.take(order[start : start + config.batch_size])
            x = batch.x
            if config.shift:
                x = augment.shift(x, config.shift, rng)
            if config.flip:
                x = augment.flip(x, rng)
            yield Split(x, batch.y)

    def keep_best(self, record: EpochRecord) -> None:
        """Keep and export the parameters if no epoch did better on the validation images."""
        reached = record.validation_accuracy
        if reached is None or reached < self.best_accuracy:
            return
        self.best = {name: value.copy() for name, value in self.step.params.items()}
        self.best_epoch, self.best_accuracy = record.epoch, reached
        if self.out is not None:
            model_file.save(self.out, self.model(self.best, record.epoch, reached, None))

    def model(
        self, params: Mapping[str, Array], epoch: int, validation: float | None, test: float | None
    ) -> ModelFile:
        dataset, record = self.dataset, self.history[epoch - 1]
        reached = {"test": test, "validation": validation, "train": record.train_accuracy}
        part = next(part for part, value in reached.items() if value is not None)
        provenance = {
            "data": dataset.name,
            "images": len(dataset.train),
            "accuracy": reached[part],
            "accuracy_on": part,
            "validation_accuracy": validation,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "epoch": epoch,
            "epochs": self.config.epochs,
            "seed": self.config.seed,
            "config": self.config.to_dict(),
            "convserve": __version__,
            **self.provenance,
        }
        copies = {name: value.copy() for name, value in params.items()}
        return ModelFile(self.graph, copies, dataset.labels, dataset.preprocessing, provenance)

    def save_checkpoint(self) -> None:
        if self.checkpoint_path is None:
            return
        arrays, values = self.step.state()
        arrays |= {f"best.{name}": value for name, value in self.best.items()}
        reached = {
            "step": values,
            "history": [asdict(record) for record in self.history],
            "best_epoch": self.best_epoch,
            "best_accuracy": self.best_accuracy,
        }
        checkpoint.save(self.checkpoint_path, self.run, reached, arrays)

    def restore(self) -> None:
        """Continue where the checkpoint was written."""
        if self.checkpoint_path is None:
            raise CheckpointError("resume needs the path of a checkpoint")
        own, _ = self.step.state()
        shapes = {name: value.shape for name, value in own.items()}
        reached, arrays = checkpoint.read(self.checkpoint_path, self.run, shapes)
        try:
            self.step.load_state(arrays, reached["step"])
            self.history = [EpochRecord(**record) for record in reached["history"]]
            self.best_epoch = reached["best_epoch"]
            self.best_accuracy = reached["best_accuracy"]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{self.checkpoint_path}: its progress: {error}") from error
        best = {name: value for name, value in arrays.items() if name.startswith("best.")}
        self.best = {name.removeprefix("best."): value for name, value in best.items()}

    def diverged(self, what: str, epoch: int, lr: float) -> TrainingError:
        kept = ""
        if self.checkpoint_path is not None and len(self.history) > 0:
            kept = f" The checkpoint of epoch {len(self.history)} is intact."
        return TrainingError(
            f"{what} of epoch {epoch}, at a learning rate of {lr:.4g}: training diverged. "
            f"Try a lower lr or a longer warmup.{kept}"
        )


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


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def check_writable(path: Path, error: type[Exception]) -> None:
    """Raise `error` unless a file can be put at `path`: better now than after the last epoch."""
    if not path.parent.is_dir():
        raise error(f"{path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise error(f"{path}: it exists and is not a regular file")
    if not os.access(path.parent, os.W_OK):
        raise error(f"{path}: the folder {path.parent} is not writable")
