"""Learning rates over the course of a run."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

from convserve.training.config import TrainConfig

__all__ = ["Schedule", "constant", "cosine", "make_schedule", "step", "with_warmup"]

# From the share of the run that is done, 0 at the first step and below 1 at the last, to a factor.
Schedule = Callable[[float], float]

MILESTONES = (0.5, 0.75)  # of the step schedule: shares of the run, each of which divides by 10
DECAY = 0.1


def constant(progress: float) -> float:
    return 1.0


def step(progress: float) -> float:
    """1, then a tenth from half of the run, then a hundredth from three quarters."""
    return DECAY ** sum(progress >= milestone for milestone in MILESTONES)


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine."""
    return 0.5 * (1.0 + cos(pi * progress))


def with_warmup(schedule: Schedule, step: int, total: int, warmup: int) -> float:
    """The factor at a step of `total`: a linear rise over `warmup` steps, then the schedule."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return schedule((step - warmup) / max(total - warmup, 1))


def make_schedule(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Step number (from 0) to learning rate. Warm-up takes at most half of the run."""
    factor = {"constant": constant, "cosine": cosine, "step": step}[config.schedule]
    total = config.epochs * steps_per_epoch
    warmup = min(round(config.warmup * steps_per_epoch), total // 2)
    peak = config.lr or 0.0  # never None: the configuration fills it in
    return lambda number: peak * with_warmup(factor, number, total, warmup)
