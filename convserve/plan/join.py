"""Joins the steps that only move channels, and drops those that then move nothing."""

from __future__ import annotations

import numpy as np

from convserve.plan.lower import Step, Steps
from convserve.plan.moves import Origins

__all__ = ["join_moves"]


def join_moves(steps: Steps) -> Steps:
    """The same values by fewer moves; each step that moves has its inputs' names in `origins`."""
    computed = [step for step in steps.steps if step.origins is None]
    kept = set(steps.outputs.values()) | {name for step in computed for name in _reads(step)}
    moves: dict[str, Origins] = {}  # those that nothing but moves reads
    nodes: dict[str, list[str]] = {}
    for step in steps.steps:
        if step.origins is not None:
            passed = [name for name in step.origins.names if name in moves]
            step.origins = step.origins.through(moves)
            step.nodes = list(dict.fromkeys(n for name in passed for n in nodes[name])) + step.nodes
            if step.name not in kept:
                moves[step.name], nodes[step.name] = step.origins, step.nodes
    left = [step for step in steps.steps if step.origins is None or step.name in kept]
    _grow(left)
    same = _identities(left)
    for step in left:
        step.inputs = [same.get(name, name) for name in step.inputs]
        step.residual = same.get(step.residual, step.residual) if step.residual else None
        if step.origins is not None:
            step.origins.names = step.inputs = [same.get(n, n) for n in step.origins.names]
    outputs = {name: same.get(value, value) for name, value in steps.outputs.items()}
    return Steps([step for step in left if step.name not in same], steps.shapes, outputs)


def _reads(step: Step) -> list[str]:
    return [*step.inputs, *([step.residual] if step.residual else [])]


def _identities(steps: list[Step]) -> dict[str, str]:
    """Moves that leave an earlier step's value as it is -> that value."""
    channels = {step.name: step.shape[0] for step in steps}
    same: dict[str, str] = {}
    for step in steps:
        if step.origins is None or len(step.origins.names) > 1:
            continue
        source = step.origins.names[0]
        everything = np.arange(channels.get(source, 0))  # none of the network's input
        if np.array_equal(step.origins.channel, everything):
            same[step.name] = same.get(source, source)
    return same


def _grow(steps: list[Step]) -> None:
    """Lets a concatenation that begins as an earlier one does read that one instead."""
    # A tree of all beginnings: (beginning, next run) -> longer beginning, by number.
    longer: dict[tuple[int, tuple[str, int, int]], int] = {}
    made: dict[int, str] = {}  # beginning -> the step that made it
    for step in steps:
        if step.origins is None:
            continue
        runs = step.origins.runs()
        at, found = 0, None
        for run in runs:
            at = longer.setdefault((at, run[1:]), len(longer) + 1)
            if at in made and run.start:
                found = made[at], run.start + run.channels
        made.setdefault(at, step.name)
        if found is not None:
            step.origins = step.origins.beginning_with(*found)
