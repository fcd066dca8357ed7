"""What a run was told, as TOML: read with --config, written beside the model, the same names.

defaults < --recipe NAME < --config FILE < options on the command line
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from convserve.datasets.base import as_text
from convserve.training import Group
from convserve.training.recipes import RECIPES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["config_option", "effective", "recipe_option", "to_toml"]

NOT_SAVED = ("config", "recipe", "resume", "debug", "help", "threads")  # of this call only
MAX_BYTES = 1 << 20


def _use_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is None:
        return None
    known = {p.name or "" for p in ctx.command.params} - set(NOT_SAVED) | {"recipe", "threads"}
    try:
        if value.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        told = tomllib.loads(value.read_text(encoding="utf-8"))
        for name in told:
            if name not in known:
                raise ValueError(
                    f"there is no option {name!r}; there are: {', '.join(sorted(known))}"
                )
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{value}: {error}", ctx, param) from error
    _below(ctx, {}, told)
    return value


def _use_recipe(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        recipe = RECIPES[value]
        told = {"arch": recipe.arch, "arch_options": dict(recipe.arch_options), **recipe.settings}
        _below(ctx, told, {})
    return value


def _below(ctx: click.Context, lower: Mapping[str, Any], upper: Mapping[str, Any]) -> None:
    """Make them the options' defaults; `lower` gives way to what is there, `upper` does not."""
    merged = {**lower, **(ctx.default_map or {}), **upper}
    options = merged.get("arch_options")
    if isinstance(options, Mapping):
        merged["arch_options"] = list(options.items())
    ctx.default_map = merged


# Both are read before the options whose defaults they give, the file first: it may name a recipe.
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    is_eager=True,
    callback=_use_config,
    help="Options from a TOML file, by their names here with _ for -; those given here win.",
)
recipe_option = click.option(
    "--recipe",
    type=click.Choice(sorted(RECIPES)),
    is_eager=True,
    callback=_use_recipe,
    help="The options of a recipe (docs/recipes.md); those given here win.",
)


def effective(ctx: click.Context, **instead: Any) -> dict[str, Any]:
    """Every option as it counts, as TOML and JSON values; the same file gives the same run."""
    values: dict[str, Any] = {}
    for param in ctx.command.params:
        name = param.name or ""
        value = instead.get(name, ctx.params.get(name))
        if name not in NOT_SAVED and value is not None and value != ():
            values[name] = _plain(value) if name != "image_size" else "x".join(map(str, value))
    if "arch_options" in values:
        values["arch_options"] = dict(values["arch_options"])
    return values


def to_toml(values: Mapping[str, Any], comment: str) -> str:
    """A TOML document of numbers, strings, lists and tables, under a line of comment."""
    lines = [f"# {comment}"]
    lines += [f"{name} = {_toml(value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{name} = {_toml(item)}' for name, item in value.items())} }}"
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for the one character that only TOML escapes.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _plain(value: Any) -> Any:
    """With JSON's types only."""
    if isinstance(value, Group):
        return {name: item for name, item in asdict(value).items() if item is not None}
    if isinstance(value, (str, Path)):
        return as_text(str(value))  # a name that is no UTF-8 can't be in TOML or JSON
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
