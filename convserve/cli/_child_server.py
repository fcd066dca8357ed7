"""Server processes for the time of a `with` block."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

START_SECONDS = 120
STOP_SECONDS = 15


@contextmanager
def child_server(model: Path) -> Iterator[str]:
    """Serve `model` on free ports of this machine; yield HOST:PORT of its gRPC service."""
    command = [sys.executable, "-m", "convserve", "serve", str(model)]
    options = ["--port", "0", "--metrics-port", "0", "--log-level", "warning"]
    with ready_process([*command, *options]) as (_, address):
        yield address


@contextmanager
def ready_process(
    command: Sequence[str], cwd: Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a server that prints `ready grpc=HOST:PORT …`; yield it and that address.

    The process is stopped at the end of the block, whatever ends it: an error, Ctrl-C or SIGTERM.
    """
    previous = signal.signal(signal.SIGTERM, _leave)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=cwd)
    try:
        yield process, _address(process)
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        signal.signal(signal.SIGTERM, previous)


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    readable, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    line = process.stdout.readline() if readable else ""
    if not line.startswith("ready grpc="):
        raise click.ClickException(
            "the server did not get ready"
            + ("; its messages are above" if readable else f" in {START_SECONDS} s")
        )
    return line.split()[1].removeprefix("grpc=")


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
