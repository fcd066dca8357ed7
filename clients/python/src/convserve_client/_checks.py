"""Checks of arguments: the error names the parameter, what was given, and what is allowed."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

MAX_SECONDS = 1e9  # 31 years; gRPC's deadlines end after some more
MAX_INTERVAL = 2e6  # 23 days in seconds; gRPC's intervals are 32 bits of milliseconds


def check_timeout(timeout: Any) -> None:
    if timeout is not None:
        check_seconds("timeout", timeout, "above 0 s, or None for no limit")


def check_seconds(
    name: str,
    value: Any,
    allowed: str = "above 0 s",
    least: float = math.ulp(0),
    most: float = MAX_SECONDS,
) -> None:
    """Raises unless `value` is a number of seconds from `least` to `most`, NumPy's included.

    What is added to a time must be made a float: float32 does not hold the time to a second.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number of seconds, got {_shown(value)}")
    if not least <= value < math.inf:
        raise ValueError(f"{name} must be {allowed}, got {value}")
    if value > most:
        raise ValueError(f"{name} must be at most {most:,.0f} s, got {_shown(value)}")


def check_whole(
    name: str,
    value: Any,
    low: int,
    high: int | None = None,
    error: type[ValueError] = ValueError,
) -> None:
    """Raises unless `value` is a whole number from `low` to `high`."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be a whole number, got {_shown(value)}")
    if value < low or (high is not None and value > high):
        allowed = f"at least {low}" if high is None else f"{low} to {high}"
        raise error(f"{name} must be {allowed}, got {value}")


def check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {_shown(value)}")


def check_name(name: str, value: Any, example: str) -> None:
    """Raises unless `value` is a text that can go into a message."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string such as {example!r}, got {_shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not valid Unicode: {value!r}") from None


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        allowed = ", ".join(map(repr, choices))
        raise ValueError(f"{name} must be {allowed} or None, got {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '…'}"
