"""Which parameters learn how fast: patterns over parameter names, resolved once for a network.

Group("bn*.bias", lr=64)                 64 times the run's learning rate
Group("conv1.bias", until=3)             learns for 3 epochs, on a schedule of that length
Group("affine1.weight", rule="sgd")      left to SGD by muon
Group("conv1", lr=0)                     a layer's name stands for all its parameters; frozen
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import isfinite
from typing import Any

from convserve.errors import TrainingError, UnknownNameError
from convserve.training.step import Array

__all__ = ["RULES", "Group", "Setting", "matching", "settings_for"]

RULES = ("muon", "sgd")


@dataclass(frozen=True)
class Group:
    """What differs for the parameters that `match` names; of several that match, the last counts.

    match: "<layer>.<parameter>" or "<layer>", with * and ? as in file names. lr: times the run's
    learning rate; 0 freezes. weight_decay: None keeps the run's rule. until: epochs after which
    they rest, the schedule drawn together to end there. rule: with muon, who updates them ("muon"
    or "sgd"; None: muon takes matrices and filters but the last layer's).

    Raises TrainingError for a value out of range, TypeError for one of a wrong type.
    """

    match: str
    lr: float = 1.0
    weight_decay: float | None = None
    until: float | None = None
    rule: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.match, str):
            raise TypeError(f"a group's match must be a string, not {self.match!r}")
        for name, least in (("lr", 0.0), ("weight_decay", 0.0), ("until", 0.0)):
            value = getattr(self, name)
            if value is None and name != "lr":
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(f"{name} of group {self.match!r} must be a number, not {value!r}")
            if not isfinite(value) or value < least or (name == "until" and value == 0):
                raise TrainingError(
                    f"{name} of group {self.match!r} must be finite and not below 0, not {value}"
                )
        if self.rule is not None and self.rule not in RULES:
            raise TrainingError(
                f"rule of group {self.match!r} must be one of {', '.join(RULES)}, not {self.rule!r}"
            )

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Group:
        """Of JSON or TOML values; TrainingError for an entry that does not exist."""
        allowed = cls.__dataclass_fields__
        if not isinstance(data, Mapping) or "match" not in data or set(data) - set(allowed):
            raise TrainingError(
                f"a group needs match, and may have {', '.join(list(allowed)[1:])}; "
                f"got {data!r:.80}"
            )
        return cls(**data)


@dataclass(frozen=True)
class Setting:
    """How one parameter is updated; `schedule` (step to learning rate) replaces the run's."""

    lr: float = 1.0
    weight_decay: float = 0.0
    schedule: Callable[[int], float] | None = None
    rule: str = "sgd"


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The parameters that a pattern names: a pattern of parameters, or of layers."""
    return [
        name
        for name in names
        if fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[0], pattern)
    ]


def settings_for(
    params: Mapping[str, Array],
    groups: Sequence[Group] = (),
    *,
    weight_decay: float = 0.0,
    schedule: Callable[[float], Callable[[int], float]] | None = None,
    matrices: Iterable[str] = (),
) -> dict[str, Setting]:
    """The setting of every parameter that learns; frozen ones are left out.

    weight_decay: of weights (more than one axis), unless a group says otherwise. schedule: epochs
    to a schedule of that length. matrices: the names that muon takes unless a group says otherwise.
    Raises UnknownNameError for a group that no parameter belongs to, TrainingError if nothing
    learns.
    """
    group_of: dict[str, Group] = {}
    for group in groups:
        names = matching(group.match, params)
        if not names:
            raise UnknownNameError(
                f"no parameter is called {group.match!r}; there are: {', '.join(params)}"
            )
        group_of |= dict.fromkeys(names, group)
    by_muon = set(matrices)
    settings = {}
    for name, param in params.items():
        group = group_of.get(name, Group("*"))
        if group.lr == 0:
            continue
        decay = weight_decay if param.ndim > 1 else 0.0
        if group.weight_decay is not None:
            decay = group.weight_decay
        own = None if group.until is None or schedule is None else schedule(group.until)
        rule = group.rule or ("muon" if name in by_muon else "sgd")
        settings[name] = Setting(group.lr, decay, own, rule)
    if params and not settings:
        raise TrainingError(
            "nothing is left to learn: freeze, or groups of lr 0, name all "
            f"{len(params)} parameters"
        )
    return settings
