"""What a run reports while it goes, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from convserve.model_file import ModelFile

__all__ = ["EpochRecord", "Progress", "TrainResult"]


@dataclass(frozen=True)
class EpochRecord:
    """One epoch: mean training loss, accuracies 0 to 1, time in seconds (validation apart).

    train_accuracy is measured on the fly: on augmented images, while the network changes.
    """

    epoch: int
    loss: float
    train_accuracy: float
    validation_accuracy: float | None
    lr: float
    seconds: float
    images_per_second: float


class Progress:
    """Receives what happens; does nothing. Override what is of interest."""

    def run_started(self, epochs: int, images: int, resumed: int) -> None:
        """Epochs in all, images in each, and how many epochs a checkpoint has brought."""

    def epoch_started(self, epoch: int) -> None:
        """Epochs count from 1."""

    def epoch_resumed(self, images: int) -> None:
        """After `epoch_started`: so many images of the epoch a checkpoint has brought."""

    def batch_done(self, images: int, loss: float) -> None:
        """After every update."""

    def checkpoint_set_aside(self, kept: Path) -> None:
        """Just before the checkpoint of another, unfinished run is moved to `kept`."""

    def checkpoint_written(self) -> None:
        """After every checkpoint."""

    def model_written(self) -> None:
        """After every export: a better epoch's model, and at the end the one that stays."""

    def epoch_done(self, record: EpochRecord) -> None:
        """After validation, and once the checkpoint is written."""


@dataclass(frozen=True, eq=False)
class TrainResult:
    """The exported model (in `model`, and in the file if there was one), and how it came about.

    The model is that of `epoch`: the best by validation if there were validation images, else the
    last. test_accuracy is None without test images; last_test_accuracy is that of the last epoch's
    weights, which were not chosen by anything.
    """

    model: ModelFile
    epoch: int
    history: tuple[EpochRecord, ...]
    validation_accuracy: float | None
    test_accuracy: float | None
    seconds: float
    last_test_accuracy: float | None = None
