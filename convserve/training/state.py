"""Where a run is: the part of its state that is no array, and that a checkpoint holds as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from convserve.training.progress import EpochRecord

__all__ = ["RunState"]


@dataclass
class RunState:
    """The epoch under way, what it has come to so far, and what came before.

    epoch: from 1; above the last when the run is done. step: steps of it that are done. loss_sum,
    correct, images, seconds: over these. Random numbers have no place here: each stream comes from
    the seed, the epoch and the step.
    """

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    images: int = 0
    seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int | None = None
    best_accuracy: float = -1.0

    def add(self, loss: float, correct: int, images: int) -> None:
        """One more step of the epoch: its mean loss, and how many images were right."""
        self.step += 1
        self.loss_sum += loss * images
        self.correct += correct
        self.images += images

    def finish_epoch(self, validation: float | None, lr: float) -> EpochRecord:
        """The record of the epoch, which is then over: the next one begins."""
        record = EpochRecord(
            self.epoch,
            self.loss_sum / self.images,
            self.correct / self.images,
            validation,
            lr,
            self.seconds,
            self.images / max(self.seconds, 1e-9),
        )
        self.history.append(record)
        self.epoch += 1
        self.step = self.correct = self.images = 0
        self.loss_sum = self.seconds = 0.0
        return record

    def is_better(self, validation: float | None) -> bool:
        """Whether no epoch has done better; without validation images none is chosen."""
        return validation is not None and validation >= self.best_accuracy

    def waited(self, patience: int) -> bool:
        """Whether so many epochs have brought nothing better (0: never)."""
        if not patience or self.best_epoch is None:
            return False
        # Of equal epochs the last is kept, but only a better one is worth waiting for.
        first = next(
            record.epoch
            for record in self.history
            if record.validation_accuracy == self.best_accuracy
        )
        return len(self.history) - first >= patience

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunState:
        """Of a `to_dict`; KeyError or TypeError if it isn't one."""
        values = {name: data[name] for name in cls.__dataclass_fields__}
        values["history"] = [EpochRecord(**record) for record in values["history"]]
        return cls(**values)
