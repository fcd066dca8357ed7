"""What a training run is told: one frozen, checked object that checkpoints and models record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from convserve.errors import TrainingError
from convserve.training.augment.config import AugmentConfig
from convserve.training.checks import check_choice, check_integer, check_number
from convserve.training.groups import Group

__all__ = ["INITIALISATIONS", "OPTIMISERS", "SCHEDULES", "STEPS", "TrainConfig"]

# To the learning rate unless one is given.
OPTIMISERS = {"adam": 0.001, "adamw": 0.001, "muon": 0.05, "sgd": 0.05}
SCHEDULES = ("constant", "cosine", "linear", "one-cycle", "piecewise", "step")
INITIALISATIONS = ("dirac", "he")
STEPS = ("auto", "compiled", "layerwise")


@dataclass(frozen=True)
class TrainConfig(AugmentConfig):
    """The settings that decide what a run computes; equal settings give equal bits.

    batch_size: images a step; the last step of an epoch takes what is left, or is left out
    (drop_last).

    initialisation: "he" (normal), or "dirac": convolutions begin as the identity and the last layer
    near zero. whiten: the first convolution's filters decorrelate the training images' patches.

    optimiser: sgd; adam (weight decay joins the gradient) or adamw (it shrinks the weights); muon
    for filters and matrices but the last layer's, with sgd for the rest.
    lr: peak learning rate; None takes the optimiser's default. momentum: of sgd, nesterov too;
    muon_momentum, sgd_lr: with muon, its own momentum and the peak learning rate of the rest.
    weight_decay: of weights, not of biases or batch norm; decoupled_decay: with sgd and muon too it
    shrinks the weights. clip: the largest norm of the gradient, all parameters together; above it
    is scaled down. groups: what differs for some parameters. freeze: patterns of layers or
    parameters that stay as they are.

    schedule: how the learning rate goes. points: of "piecewise", (share of the run, factor).
    warmup: epochs over which the learning rate rises from zero first ("one-cycle" and "piecewise"
    rise by themselves).
    ema: decay a step of a running average of the weights, which is then what is validated and
    exported (0: none). lookahead: every so many steps the weights are drawn to a slow copy, by
    lookahead_decay to the power of lookahead times the cube of the share of the run (0: never).

    class_weights: of each class's images in the loss, "balanced" for the inverse of their number,
    None for equal.
    patience: epochs without a better validation accuracy after which to stop (0: never).
    step: "compiled" forward and backward, the plain "layerwise" ones that they are checked against,
    or "auto": compiled where it knows every layer.
    And the fields of `AugmentConfig`: what is done to the images and their targets, and the seed.

    Raises TrainingError for a value out of range, TypeError for one of a wrong type.
    """

    epochs: int = 10
    batch_size: int = 64
    drop_last: bool = False
    initialisation: str = "he"
    whiten: bool = False
    optimiser: str = "sgd"
    lr: float | None = None
    momentum: float = 0.9
    nesterov: bool = True
    muon_momentum: float = 0.6
    sgd_lr: float = OPTIMISERS["sgd"]
    weight_decay: float = 5e-4
    decoupled_decay: bool = False
    clip: float | None = None
    groups: tuple[Group, ...] = ()
    freeze: tuple[str, ...] = ()
    schedule: str = "cosine"
    points: tuple[tuple[float, float], ...] = ((0.0, 0.2), (0.23, 1.0), (1.0, 0.07))
    warmup: float = 1.0
    ema: float = 0.0
    lookahead: int = 0
    lookahead_decay: float = 0.95
    class_weights: str | tuple[float, ...] | None = None
    patience: int = 0
    step: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("epochs", 1), ("batch_size", 1), ("lookahead", 0), ("patience", 0)):
            check_integer(name, getattr(self, name), least)
        for name in ("drop_last", "whiten", "nesterov", "decoupled_decay"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        check_choice("initialisation", self.initialisation, INITIALISATIONS)
        check_choice("optimiser", self.optimiser, tuple(OPTIMISERS))
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("step", self.step, STEPS)
        if self.lr is None:
            object.__setattr__(self, "lr", OPTIMISERS[self.optimiser])
        for name in ("lr", "sgd_lr"):
            check_number(name, getattr(self, name), 0.0, float("inf"), open_low=True)
        for name in ("momentum", "muon_momentum", "ema", "lookahead_decay"):
            check_number(name, getattr(self, name), 0.0, 1.0)
        for name in ("weight_decay", "warmup"):
            check_number(name, getattr(self, name), 0.0, float("inf"))
        if self.clip is not None:
            check_number("clip", self.clip, 0.0, float("inf"), open_low=True)
        _members("groups", self.groups, Group)
        _members("freeze", self.freeze, str)
        self._check_points()
        self._check_class_weights()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Of a `to_dict`, or of the values of a TOML file. TrainingError for an unknown name."""
        unknown = [name for name in data if name not in cls.__dataclass_fields__]
        if unknown:
            raise TrainingError(
                f"there is no setting {unknown[0]!r}; there are: "
                f"{', '.join(cls.__dataclass_fields__)}"
            )
        values = dict(data)
        if isinstance(values.get("groups"), Sequence):
            values["groups"] = tuple(
                group if isinstance(group, Group) else Group.from_dict(group)
                for group in values["groups"]
            )
        for name in ("freeze", "class_weights"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        if isinstance(values.get("points"), list):
            values["points"] = tuple(
                tuple(point) if isinstance(point, list) else point for point in values["points"]
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, as checkpoints and provenance hold them."""
        return asdict(self)

    def _check_points(self) -> None:
        points = self.points
        if not isinstance(points, tuple) or not all(
            isinstance(point, tuple) and len(point) == 2 for point in points
        ):
            raise TypeError(f"points must be a tuple of (share, factor) pairs, not {points!r}")
        for share, factor in points:
            check_number("a share of points", share, 0.0, 1.0 + 1e-9)
            check_number("a factor of points", factor, 0.0, float("inf"))
        shares = [share for share, _ in points]
        if not points or shares != sorted(set(shares)):
            raise TrainingError(f"points must rise in their shares of the run, not {points!r}")

    def _check_class_weights(self) -> None:
        weights = self.class_weights
        if weights is None:
            return
        if isinstance(weights, str):
            check_choice("class_weights", weights, ("balanced",))
            return
        if not isinstance(weights, tuple):
            raise TypeError(f'class_weights must be "balanced" or a tuple, not {weights!r}')
        for weight in weights:
            check_number("a class weight", weight, 0.0, float("inf"))
        if not any(weights):
            raise TrainingError("class_weights must not all be 0")


def _members(name: str, values: object, kind: type) -> None:
    if not isinstance(values, tuple) or not all(isinstance(value, kind) for value in values):
        raise TypeError(f"{name} must be a tuple of {kind.__name__}, not {values!r}")
