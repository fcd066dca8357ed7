"""What a training run is told: one frozen, checked object that checkpoints and models record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from convserve.errors import TrainingError

__all__ = ["OPTIMISERS", "SCHEDULES", "TrainConfig"]

OPTIMISERS = {"adam": 0.001, "sgd": 0.05}  # to the learning rate unless one is given
SCHEDULES = ("constant", "cosine", "step")


@dataclass(frozen=True)
class TrainConfig:
    """The settings that decide what a run computes; equal settings give equal bits.

    batch_size: images a step; the last step of an epoch takes what is left.
    lr: peak learning rate; None takes the optimiser's default (sgd 0.05, adam 0.001).
    momentum, nesterov: of sgd. weight_decay: of weights, not of biases or batch norm.
    warmup: epochs over which the learning rate rises from zero.
    label_smoothing: the share of a target that is spread over all classes.
    shift: augmentation, largest shift in pixels each way; flip: mirror half of the images.

    Raises TrainingError for a value out of range, TypeError for one of a wrong type.
    """

    epochs: int = 10
    batch_size: int = 64
    optimiser: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    warmup: float = 1.0
    label_smoothing: float = 0.0
    shift: int = 2
    flip: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("shift", 0), ("seed", 0)):
            _integer(name, getattr(self, name), least)
        for name in ("nesterov", "flip"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        _choice("optimiser", self.optimiser, tuple(OPTIMISERS))
        _choice("schedule", self.schedule, SCHEDULES)
        if self.lr is None:
            object.__setattr__(self, "lr", OPTIMISERS[self.optimiser])
        _number("lr", self.lr, 0.0, float("inf"), open_low=True)
        _number("momentum", self.momentum, 0.0, 1.0)
        _number("weight_decay", self.weight_decay, 0.0, float("inf"))
        _number("warmup", self.warmup, 0.0, float("inf"))
        _number("label_smoothing", self.label_smoothing, 0.0, 1.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, as checkpoints and provenance hold them."""
        return asdict(self)


def _integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if value < least:
        raise TrainingError(f"{name} must be at least {least}, not {value}")


def _number(name: str, value: object, low: float, high: float, open_low: bool = False) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not isfinite(value) or not low <= value < high or (open_low and value == low):
        above = f"above {low:g}" if open_low else f"at least {low:g}"
        below = "finite" if high == float("inf") else f"below {high:g}"
        raise TrainingError(f"{name} must be {above} and {below}, not {value}")


def _choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise TrainingError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
