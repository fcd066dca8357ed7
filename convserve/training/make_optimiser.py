"""From settings to an optimiser."""

from __future__ import annotations

from typing import Any

from convserve.graph import Graph
from convserve.graph.layers import Affine
from convserve.training.config import TrainConfig
from convserve.training.groups import Group
from convserve.training.muon import Muon
from convserve.training.optimisers import SGD, Adam, Optimiser, ScheduleOf

__all__ = ["make_optimiser"]


def make_optimiser(
    config: TrainConfig, graph: Graph | None = None, schedule: ScheduleOf | None = None
) -> Optimiser:
    """The optimiser that a configuration names.

    graph: tells muon which layer is the last. schedule: for groups that rest before the end.
    """
    frozen = [Group(pattern, lr=0.0) for pattern in config.freeze]
    common: dict[str, Any] = {
        "weight_decay": config.weight_decay,
        "clip": config.clip,
        "groups": [*config.groups, *frozen],
        "schedule": schedule,
    }
    if config.optimiser in ("adam", "adamw"):
        return Adam(decoupled=config.optimiser == "adamw", **common)
    if config.optimiser == "muon":
        lr = config.lr or 1.0  # never None or 0: the configuration sees to it
        return Muon(
            config.muon_momentum,
            sgd_momentum=config.momentum,
            sgd_lr=config.sgd_lr / lr,
            head=() if graph is None else _head(graph),
            decoupled=config.decoupled_decay,
            **common,
        )
    return SGD(config.momentum, nesterov=config.nesterov, **common)


def _head(graph: Graph) -> list[str]:
    """The weight of the last affine layer."""
    affine = [node.name for node in graph.nodes if isinstance(node.op, Affine)]
    return [f"{affine[-1]}.weight"] if affine else []
