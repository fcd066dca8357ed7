"""Checks of settings; messages name the setting, what was given and what is allowed."""

from __future__ import annotations

from math import isfinite

from convserve.errors import TrainingError

__all__ = ["check_choice", "check_integer", "check_number"]


def check_integer(name: str, value: object, least: int) -> None:
    """TypeError unless it is an integer, TrainingError if it is below `least`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, not {value!r}")
    if value < least:
        raise TrainingError(f"{name} must be at least {least}, not {value}")


def check_number(name: str, value: object, low: float, high: float, open_low: bool = False) -> None:
    """TypeError unless it is a number, TrainingError unless low <= value < high."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not isfinite(value) or not low <= value < high or (open_low and value == low):
        above = f"above {low:g}" if open_low else f"at least {low:g}"
        below = "finite" if high == float("inf") else f"below {high:g}"
        raise TrainingError(f"{name} must be {above} and {below}, not {value}")


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """TypeError unless it is a string, TrainingError unless it is one of those allowed."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r}")
    if value not in allowed:
        raise TrainingError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
