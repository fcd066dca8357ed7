"""What a run was told, as TOML: read with --config, written beside the model, the same names.

defaults < --recipe NAME < --config FILE < options on the command line
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from convserve._npz import atomic_file, remove_leftovers
from convserve.cli._toml_values import toml_values
from convserve.datasets.base import as_text
from convserve.errors import ModelFileError
from convserve.training import Group
from convserve.training.export import check_writable
from convserve.training.recipes import RECIPES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["RunFiles", "config_option", "effective", "recipe_option", "to_toml", "told_beside"]

NOT_SAVED = ("config", "recipe", "resume", "debug", "help", "threads")  # of this call only
MAX_BYTES = 1 << 20
TOLD = "convserve.train.told"  # by --config, of the context


def _use_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    if value is None:
        return None
    try:
        if value.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        document = tomllib.loads(value.read_text(encoding="utf-8"))
        told = toml_values(ctx.command, document, {*NOT_SAVED} - {"recipe", "threads"})
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{value}: {error}", ctx, param) from error
    ctx.meta[TOLD] = told
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
    help="Options from a TOML file, by their names here with _ for -, as lists if they can be "
    "repeated; those given here win.",
)
recipe_option = click.option(
    "--recipe",
    type=click.Choice(sorted(RECIPES)),
    is_eager=True,
    callback=_use_recipe,
    help="The options of a recipe (docs/recipes.md); those given here win.",
)


def told_beside(ctx: click.Context, names: Iterable[str], other: str) -> list[str]:
    """Those of the options that were told by whoever told `other` (or later), not by a recipe.

    The command line tells last; what the file of --config tells counts if it tells `other` too.
    """
    line = ParameterSource.COMMANDLINE
    in_file = () if ctx.get_parameter_source(other) is line else ctx.meta.get(TOLD, ())
    return [name for name in names if ctx.get_parameter_source(name) is line or name in in_file]


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


class RunFiles:
    """`NAME.run.toml` beside a model and beside a checkpoint, each with the options of its run.

    They are written when those are: a run that fails before leaves an earlier model's as it was.
    """

    def __init__(self, out: Path, checkpoint: Path, text: str) -> None:
        """Raises ModelFileError if there is no place for them."""
        self._text = text
        self._model_file = out.with_name(f"{out.stem}.run.toml")
        self._checkpoint_file = _beside(checkpoint)
        for path in (self._model_file, self._checkpoint_file):
            check_writable(path, ModelFileError)

    def model_written(self) -> None:
        self._write(self._model_file)

    def checkpoint_set_aside(self, kept: Path) -> None:
        """An earlier run's checkpoint goes to `kept`, and its options with it."""
        if self._checkpoint_file.exists():
            try:
                self._checkpoint_file.replace(_beside(kept))
            except OSError as error:
                raise ModelFileError(
                    f"{self._checkpoint_file}: can't be set aside: {error}"
                ) from error

    def checkpoint_written(self) -> None:
        self._write(self._checkpoint_file)

    def checkpoint_removed(self) -> None:
        self._checkpoint_file.unlink(missing_ok=True)

    def _write(self, path: Path) -> None:
        """Whole or not at all, and not when it is there already."""
        try:
            if path.exists() and path.read_text(encoding="utf-8") == self._text:
                return
            remove_leftovers(path)
            with atomic_file(path) as file:
                file.write(self._text.encode())
        except (OSError, ValueError) as error:
            raise ModelFileError(f"{path}: can't be written: {error}") from error


def _beside(checkpoint: Path) -> Path:
    return checkpoint.with_name(f"{checkpoint.name.removesuffix('.npz')}.run.toml")


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
