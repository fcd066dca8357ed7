"""A command's options as a Markdown table, made of what `--help` says.

`python -m convserve.cli._option_reference` prints that of `serve`, which docs/configuration.md has.
"""

from __future__ import annotations

import re

import click

__all__ = ["of_serve", "reference"]


def reference(command: click.Command) -> str:
    """Every option that is not hidden, in the order of `--help`."""
    rows = ["| option | default | values | meaning |", "|---|---|---|---|"]
    for option in command.params:
        if isinstance(option, click.Option) and not option.hidden:
            help, _, told = (option.help or "").rstrip("]").partition("  [default: ")
            cells = (_names(option), told or _default(option), _values(option), help)
            # What is left as it is would end the cell, or be taken for HTML.
            escaped = (cell.replace("|", r"\|").replace("<", r"\<") for cell in cells)
            rows.append("| " + " | ".join(escaped) + " |")
    return "\n".join(rows) + "\n"


def _names(option: click.Option) -> str:
    return " ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))


def _default(option: click.Option) -> str:
    if option.is_flag:
        given = option.secondary_opts if option.default is not True else option.opts
        return f"`{given[0]}`" if given else ""
    value = option.default
    return str(value) if isinstance(value, str | int | float) else ""


def _values(option: click.Option) -> str:
    kind = option.type
    if option.is_flag:
        return ""
    if isinstance(kind, click.Choice):
        return ", ".join(map(str, kind.choices))
    if isinstance(kind, click.IntRange | click.FloatRange):
        what = "integer" if isinstance(kind, click.IntRange) else "number"
        low = "" if kind.min is None else f" {kind.min}"
        return f"{what}{low} to {kind.max}" if kind.max is not None else f"{what} from{low}"
    return option.metavar or re.sub(r"\W", "", kind.name)


def of_serve() -> str:
    """Of `convserve serve`, by way of the group, which adds an option to every command."""
    from convserve.cli import cli

    command = cli.get_command(click.Context(cli), "serve")
    assert command is not None
    return reference(command)


if __name__ == "__main__":
    print(of_serve(), end="")
