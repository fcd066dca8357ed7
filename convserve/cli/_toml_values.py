"""Options told by a TOML document: by which names, and of which types.

Click converts the words of a command line, and would take 3.7 for an integer and true for a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import click

__all__ = ["toml_values"]


def toml_values(
    command: click.Command, document: Mapping[str, Any], hidden: Iterable[str] = ()
) -> dict[str, Any]:
    """The values by the names of the command's parameters.

    A key is a parameter's name or any long spelling of its option, with _ for - (or with -); `no_x`
    says the opposite of `x`. hidden: parameters that can't be told so. Raises ValueError, naming
    the key, for one that does not exist, that is there twice, or a value of a wrong type.
    """
    known = {
        spelling: (param, sense)
        for param in command.params
        if param.name not in hidden and isinstance(param, click.Option)
        for spelling, sense in _spellings(param)
    }
    values: dict[str, Any] = {}
    keys: dict[str, str] = {}
    for key, value in document.items():
        if (spelling := key.replace("-", "_")) not in known:
            raise ValueError(f"there is no option {key!r}; {_hint(spelling, known)}")
        param, sense = known[spelling]
        name = param.name or ""
        if name in values:
            raise ValueError(f"{keys[name]} and {key} are the same option")
        if fault := _fault(param, value):
            raise ValueError(f"{key} must be {fault}, not {value!r:.80}")
        keys[name] = key
        values[name] = value if sense else not value
    return values


def _spellings(option: click.Option) -> list[tuple[str, bool]]:
    """What it may be called, and whether that says what it is or the opposite."""

    def plain(flags: Iterable[str]) -> list[str]:
        return [flag[2:].replace("-", "_") for flag in flags if flag.startswith("--")]

    names = [option.name or "", *plain(option.opts)]
    return [(name, True) for name in names] + [
        (name, False) for name in plain(option.secondary_opts)
    ]


def _hint(key: str, known: Mapping[str, tuple[click.Option, bool]]) -> str:
    if close := get_close_matches(key, known, 1):
        return f"is {close[0]} meant?"
    return f"there are: {', '.join(sorted({param.name or '' for param, _ in known.values()}))}"


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


# By the name that the type of an option has in click, or in ours.
_TYPES: dict[str, tuple[str, Callable[[object], bool]]] = {
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "integer": ("an integer", _is_integer),
    "integer range": ("an integer", _is_integer),
    "float": ("a number", _is_number),
    "float range": ("a number", _is_number),
    "group": ("a table or a string", lambda value: isinstance(value, (str, Mapping))),
    "numbers": ("a list or a string", lambda value: isinstance(value, (str, list))),
    "option": ("a string", _is_text),
}
_TEXT: tuple[str, Callable[[object], bool]] = ("a string", _is_text)
# They take a number or a word.
_EITHER: tuple[str, Callable[[object], bool]] = (
    "an integer or a string",
    lambda value: _is_integer(value) or _is_text(value),
)


def _fault(option: click.Option, value: object) -> str:
    """What it must be instead; empty if it is."""
    either = option.name in ("image_size", "checkpoint_every")
    allowed, fits = _EITHER if either else _TYPES.get(option.type.name, _TEXT)
    if not option.multiple:
        return "" if fits(value) else allowed
    if option.name == "arch_options" and isinstance(value, Mapping):
        return ""
    if isinstance(value, list) and all(map(fits, value)):
        return ""
    return f"a list, each {allowed}" + (", or a table" if option.name == "arch_options" else "")
