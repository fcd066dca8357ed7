"""docs/configuration.md has every option of `serve`, as it is."""

from __future__ import annotations

from pathlib import Path

import click

from convserve.cli import serve
from convserve.cli._option_reference import of_serve, reference

DOCS = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"


def test_the_documentation_is_the_code():
    """Write it anew with `python -m convserve.cli._option_reference`."""
    assert of_serve() in DOCS.read_text(encoding="utf-8")


def test_every_kind_of_option():
    @click.command()
    @click.argument("model")
    @click.option("--count", type=click.IntRange(1, 9), default=3, help="How many <things>.")
    @click.option("--least", type=click.FloatRange(min=0.5), help="At least.  [default: none]")
    @click.option("--way", type=click.Choice(["in", "out"]), default="in", help="In | out.")
    @click.option("--file", metavar="FILE|-", help="Where.")
    @click.option("--on/--off", default=False, help="Whether.")
    @click.option("--flag", is_flag=True, help="Whether.")
    @click.option("--name", help="Which.")
    @click.option("--internal", hidden=True)
    def command():
        """Nothing."""

    assert reference(command).splitlines()[2:] == [
        r"| `--count` | 3 | integer 1 to 9 | How many \<things>. |",
        "| `--least` | none | number from 0.5 | At least. |",
        r"| `--way` | in | in, out | In \| out. |",
        r"| `--file` |  | FILE\|- | Where. |",
        "| `--on` `--off` | `--off` |  | Whether. |",
        "| `--flag` |  |  | Whether. |",
        "| `--name` |  | text | Which. |",
    ]


def test_every_option_says_what_it_is():
    for option in serve.command.params:
        if isinstance(option, click.Option) and not option.hidden:
            assert option.help, option.opts
