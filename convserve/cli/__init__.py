"""The command line: one file a command, imported only when that command runs.

Each of `convserve/cli/<name>.py` exports a click command as `command`. The short descriptions are
kept here, so that `convserve --help` and shell completion import none of them, and `convserve
serve` loads no table, plot or image library.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from convserve import __version__
from convserve.cli._common import debug_option, run

__all__ = ["cli", "main"]

# In the order in which one meets them.
_COMMANDS = {
    "demo": "Train, serve and classify handwritten digits, in under a minute.",
    "train": "Train a network and export it to one .npz file.",
    "eval": "Measure a model's accuracy on a data set.",
    "compare": "Say what changes when one model replaces another.",
    "inspect": "Show a model's layers, sizes and costs.",
    "convert": "Convert a model from ONNX, or to ONNX.",
    "serve": "Serve models over gRPC.",
    "classify": "Classify image files and folders.",
    "bench": "Measure a model's or a server's speed.",
}

_EPILOG = """\b
Exit status:
  0    success
  1    an error; one line on standard error says which
  2    wrong usage
  130  interrupted (143 by SIGTERM, where a run can be resumed)

\b
Shell completion, for ~/.bashrc (or ~/.zshrc with zsh_source, and fish_source for fish):
  eval "$(_CONVSERVE_COMPLETE=bash_source convserve)"
"""


class _Commands(click.Group):
    """A group that knows its commands by the table above."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"convserve.cli.{cmd_name}").command
        if all(param.name != "debug" for param in command.params):
            debug_option(command)  # also after the command's name
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        commands = [
            CompletionItem(name, help=text)
            for name, text in _COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return commands + click.Command.shell_complete(self, ctx, incomplete)


@click.group(
    cls=_Commands,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, message="convserve %(version)s")
@debug_option
def cli() -> None:
    """Train a convolutional network, export it to one .npz, serve it over gRPC, classify images.

    \b
    The shortest tour:
      convserve demo
    The same by hand:
      convserve train --out model.npz          (embedded sample of handwritten digits)
      convserve inspect model.npz
      convserve serve model.npz
      convserve classify images/ --server localhost:8001
    """


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The `convserve` program."""
    raise SystemExit(run(cli, args))
