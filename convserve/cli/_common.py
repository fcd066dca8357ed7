"""What commands share: how a run ends, and options that look the same everywhere."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from convserve.errors import ConvserveError

__all__ = [
    "INTERRUPTED",
    "command_line",
    "debug_option",
    "model_argument",
    "printable",
    "run",
    "threads_option",
]

INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_Decorated = TypeVar("_Decorated", bound="Callable[..., Any] | click.Command")


@dataclass
class _State:
    """Of one run of the program."""

    debug: bool = False
    args: tuple[str, ...] = ()  # of the command line


def run(group: click.Command, args: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0, 1 error, 2 usage, 130 interrupted.

    An error is one line on standard error; `--debug` shows its traceback too. A command may return
    an exit status.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal can't show is no error
            stream.reconfigure(errors="backslashreplace")
    state = _State(args=tuple(sys.argv[1:] if args is None else args))
    try:
        status = group.main(
            None if args is None else list(args),
            prog_name="convserve",
            standalone_mode=False,
            obj=state,
        )
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone: `convserve … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (click.Abort, KeyboardInterrupt) as error:
        if state.debug:
            traceback.print_exception(error)
        if isinstance(error.__cause__, EOFError):  # click takes it for an answer to a prompt
            return _report(error.__cause__)
        _say("interrupted")
        return INTERRUPTED
    except Exception as error:
        if state.debug:
            traceback.print_exception(error)
        return _report(error)
    return status if type(status) is int else 0


def debug_option(command: _Decorated) -> _Decorated:
    """`--debug`, before or after the command's name."""
    return click.option(
        "--debug",
        is_flag=True,
        expose_value=False,
        callback=_set_debug,
        is_eager=True,
        help="Show the traceback of an error.",
    )(command)


def model_argument(command: _Decorated) -> _Decorated:
    """`MODEL`, a model file, as the parameter `model`."""
    return click.argument("model", type=click.Path(path_type=Path))(command)


def threads_option(command: _Decorated) -> _Decorated:
    """`--threads N`, as the parameter `threads`: None for every core this process may use."""
    return click.option(
        "--threads",
        type=click.IntRange(min=1),
        help="Threads for computing.  [default: the cores this process may use]",
    )(command)


def command_line() -> tuple[str, ...]:
    """The arguments that this run of the program was given."""
    args: tuple[str, ...] = click.get_current_context().ensure_object(_State).args
    return args


def printable(text: object) -> str:
    """The text with control characters escaped: what a file says must not steer the terminal."""
    return "".join(
        c if c.isprintable() or c == "\u00a0" else c.encode("unicode_escape").decode()
        for c in str(text)
    )


def _set_debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(_State).debug = True


def _report(error: Exception) -> int:
    if isinstance(error, click.UsageError):
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            error.show()  # the whole help
            return error.exit_code
        where = error.ctx.command_path if error.ctx else "convserve"
        _error(f"{error.format_message().rstrip('.')} (try '{where} --help')")
        return error.exit_code
    if isinstance(error, click.ClickException):
        _error(error.format_message())
        return error.exit_code
    if isinstance(error, (ConvserveError, OSError, *_client_errors())):
        _error(str(error) or type(error).__name__)
        return 1
    detail = f": {error}" if str(error) else ""
    _error(f"unexpected {type(error).__name__}{detail} (--debug shows where)")
    return 1


def _client_errors() -> tuple[type[Exception], ...]:
    """The client's error tree, if the command has loaded it; it needs gRPC, so we do not."""
    module = sys.modules.get("convserve_client.errors")
    return () if module is None else (module.ConvserveClientError,)


def _error(message: str) -> None:
    _say(f"error: {' '.join(message.split())}")


def _say(message: str) -> None:
    click.echo(f"convserve: {printable(message)}", err=True)
