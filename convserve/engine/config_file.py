"""`config.toml`, or the same as nested dicts, to a checked `ModelConfig`.

An unknown key, a wrong type or a value out of its limits is a ConfigError that names the key by its
full path, and for an unknown key the nearest that exists.
"""

from __future__ import annotations

import difflib
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from convserve.engine.config import DynamicBatching, ModelConfig
from convserve.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["build", "merged", "parse", "read", "reference"]

T = TypeVar("T")
MAX_BYTES = 1 << 20
_KINDS = {int: "an integer", bool: "true or false", str: "a string"}


def read(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; none if there is no such file."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: over the limit of {MAX_BYTES} bytes")
        return parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def parse(data: bytes, path: str) -> dict[str, Any]:
    """The tables of TOML text in UTF-8."""
    try:
        tables: dict[str, Any] = tomllib.loads(data.decode())
        return tables
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are
        raise ConfigError(f"{path}: {error}") from None


def merged(defaults: Mapping[str, Any], tables: Mapping[str, Any]) -> dict[str, Any]:
    """`tables` over `defaults`, table by table."""
    result = dict(defaults)
    for key, value in tables.items():
        known = result.get(key)
        both = isinstance(known, Mapping) and isinstance(value, Mapping)
        result[key] = merged(known, value) if both else value  # type: ignore[arg-type]
    return result


def build(
    tables: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, *, source: str = ""
) -> ModelConfig:
    """The configuration that `tables` give over `defaults`; `source` begins error messages."""
    try:
        return _table(ModelConfig, merged(defaults or {}, tables), "")
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}" if source else str(error)) from None


def _table(kind: type[T], tables: object, where: str) -> T:
    if not isinstance(tables, Mapping):
        raise ConfigError(f"{where} must be a table, got {tables!r:.80}")
    hints = typing.get_type_hints(kind)
    known = {knob.name: knob for knob in fields(kind)}  # type: ignore[arg-type]
    if kind is DynamicBatching:
        tables = _with_inherited_policies(tables)
    values = {}
    for key, value in tables.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise ConfigError(f"unknown key {place:.200}{_nearest(str(key), known)}")
        values[key] = _value(hints[key], value, place)
    try:
        return kind(**values)
    except ConfigError as error:
        fault = str(error)
        begins_with_key = fault.split()[0].split(".")[0] in known
        joint = "" if not where else "." if begins_with_key else ": "
        raise ConfigError(f"{where}{joint}{fault}") from None


def _with_inherited_policies(tables: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a level's policy leaves out comes from the default policy."""
    default, levels = tables.get("default_queue_policy"), tables.get("priority_queue_policy")
    if not isinstance(default, Mapping) or not isinstance(levels, Mapping):
        return tables
    full = {k: merged(default, v) if isinstance(v, Mapping) else v for k, v in levels.items()}
    return {**tables, "priority_queue_policy": full}


def _value(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return _table(typing.cast(type, hint), value, where)
    if hint in _KINDS:
        if type(value) is not hint:
            raise ConfigError(f"{where} must be {_KINDS[hint]}, got {value!r:.80}")
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _value(arguments[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} must be a list, got {value!r:.80}")
        return tuple(_value(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    assert origin is typing.get_origin(Mapping[int, int])
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a table, got {value!r:.80}")
    return {
        _key(arguments[0], k, where): _value(arguments[1], v, f"{where}.{k}")
        for k, v in value.items()
    }


def _key(kind: type, key: Any, where: str) -> Any:
    if kind is int:
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10):
            raise ConfigError(f"{where}: a key must be a whole number, got {key!r:.80}")
        return int(key)
    return key


def _nearest(key: str, known: Mapping[str, Field[Any]]) -> str:
    near = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.5)
    return f": did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def reference() -> str:
    """Every key as a Markdown table, in the order in which they nest."""
    rows = ["| key | default | values | meaning |", "|---|---|---|---|", *_rows(ModelConfig, "")]
    return "\n".join(rows) + "\n"


def _rows(kind: type, prefix: str) -> list[str]:
    hints = typing.get_type_hints(kind)
    rows = []
    for knob in fields(kind):
        place, text = prefix + knob.name, knob.metadata["text"]
        inner, below = _inner(hints[knob.name])
        if text:
            rows.append(f"| `{place}` | {_default(knob)} | {_values(knob, inner)} | {text} |")
        if is_dataclass(inner):
            rows += _rows(typing.cast(type, inner), f"{place}{below}.")
    return rows


def _inner(hint: Any) -> tuple[Any, str]:
    """What a hint is made of, and how a key below it is written."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is None:
        return hint, ""
    if origin in (types.UnionType, typing.Union):
        return arguments[0], ""
    if origin is tuple:
        return arguments[0], "[]"
    return arguments[1], ".<level>" if arguments[0] is int else ".<name>"


def _default(knob: Field[Any]) -> str:
    value = "" if knob.default is MISSING else knob.default
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value in ("", (), None) else f"{value}"


def _values(knob: Field[Any], inner: Any) -> str:
    about = knob.metadata
    if about["choices"]:
        return ", ".join(about["choices"])
    if is_dataclass(inner):
        return "tables" if knob.name == "model_warmup" else "table"
    limits = "" if about["low"] is None else f" {about['low']} to {about['high']}"
    return {int: "integers" if knob.default == () else "integer", bool: "true, false", str: "text"}[
        inner
    ] + limits


if __name__ == "__main__":
    print(reference(), end="")
