"""Learning rates over the course of a run: each a pure function of how far the run is.

constant   1 ─────          linear     1 ╲ 0         one-cycle  0.04 ╱ 1 ╲ 0
step       1 ─┐0.1 ┐0.01    cosine     1 ╮╰ 0        piecewise  through points that are given
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import cos, pi

from convserve.training.config import TrainConfig

__all__ = [
    "Schedule",
    "constant",
    "cosine",
    "linear",
    "make_schedule",
    "one_cycle",
    "piecewise",
    "step",
    "with_warmup",
]

# From the share of the run that is done, 0 at the first step and below 1 at the last, to a factor.
Schedule = Callable[[float], float]

MILESTONES = (0.5, 0.75)  # of the step schedule: shares of the run, each of which divides by 10
DECAY = 0.1
# Of one-cycle, as in Smith and Topin 2017 and PyTorch: where it starts, peaks and ends.
CYCLE_START, CYCLE_PEAK_AT, CYCLE_END = 1 / 25, 0.3, 1 / 25 / 10_000
RISING = ("one-cycle", "piecewise")  # they have a rise of their own, so no warm-up comes before


def constant(progress: float) -> float:
    return 1.0


def step(progress: float) -> float:
    """1, then a tenth from half of the run, then a hundredth from three quarters."""
    return DECAY ** sum(progress >= milestone for milestone in MILESTONES)


def cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine."""
    return 0.5 * (1.0 + cos(pi * progress))


def linear(progress: float) -> float:
    """From 1 to 0 along a line."""
    return 1.0 - progress


def one_cycle(progress: float) -> float:
    """Up from 1/25 to 1 over the first 30 %, then down to nearly nothing, along half cosines."""
    if progress < CYCLE_PEAK_AT:
        low, part = CYCLE_START, 1.0 - progress / CYCLE_PEAK_AT
    else:
        low, part = CYCLE_END, (progress - CYCLE_PEAK_AT) / (1.0 - CYCLE_PEAK_AT)
    return low + (1.0 - low) * cosine(part)


def piecewise(points: Sequence[tuple[float, float]]) -> Schedule:
    """Along lines through (progress, factor) points, which rise in progress."""

    def at(progress: float) -> float:
        before = points[0]
        for point in points:
            if progress < point[0]:
                if point is before:
                    break
                share = (progress - before[0]) / (point[0] - before[0])
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1]

    return at


def with_warmup(schedule: Schedule, step: int, total: int, warmup: int) -> float:
    """The factor at a step of `total`: a linear rise over `warmup` steps, then the schedule."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return schedule((step - warmup) / max(total - warmup, 1))


def make_schedule(
    config: TrainConfig, steps_per_epoch: int, epochs: float | None = None
) -> Callable[[int], float]:
    """Step number (from 0) to learning rate; 0 from the end of `epochs` (None: the run's) on.

    Warm-up takes at most half of the run.
    """
    factors: dict[str, Schedule] = {
        "constant": constant,
        "cosine": cosine,
        "linear": linear,
        "one-cycle": one_cycle,
        "piecewise": piecewise(config.points),
        "step": step,
    }
    factor = factors[config.schedule]
    total = round((config.epochs if epochs is None else epochs) * steps_per_epoch)
    warmup = min(round(config.warmup * steps_per_epoch), total // 2)
    if config.schedule in RISING:
        warmup = 0
    peak = config.lr or 0.0  # never None: the configuration fills it in

    def rate(number: int) -> float:
        return peak * with_warmup(factor, number, total, warmup) if number < total else 0.0

    return rate
