"""The files that `train` is going to write: what it must not, and what is there already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from convserve import model_file
from convserve._npz import holds
from convserve.cli._common import printable
from convserve.errors import CheckpointError, ModelFileError
from convserve.training.checkpoint import ENTRY, earlier, is_unfinished
from convserve.training.export import check_replaceable, check_writable

__all__ = ["check_files", "tell_of_checkpoint"]


def check_files(
    out: Path, checkpoint: Path, report: Path | None, options: Mapping[str, Any]
) -> None:
    """Find out now what would fail after hours, or replace what is nobody's to replace.

    options: of the command line, by the names of their parameters. Raises UsageError,
    ModelFileError or CheckpointError.
    """
    check_writable(out, ModelFileError)
    check_writable(checkpoint, CheckpointError)
    for path in (out, checkpoint):
        if report is not None and report.resolve() in path.resolve().parents:
            raise click.UsageError(f"{path} lies in the folder of the report, {report.resolve()}")
        _check_inputs(path, options["data"], options["init"])
    check_replaceable(out, model_file.ENTRY, "model", ModelFileError)
    if not options["resume"]:
        check_replaceable(checkpoint, ENTRY, "checkpoint", CheckpointError)
        return
    started = checkpoint.exists() or (options["seeds"] > 1 and out.exists())
    if options["seeds"] == 1 and not started:
        raise CheckpointError(f"{checkpoint}: there is no checkpoint to resume from")


def _check_inputs(path: Path, spec: str | None, init: Path | None) -> None:
    """UsageError for a file that the run reads: its data, or the model that it begins with."""
    kind, _, place = (spec or "").partition(":")
    source = Path(place).expanduser()
    if init is not None and _is_same(path, init):
        what = "holds the model to begin with"
    elif kind == "npz" and _is_same(path, source):
        what = "holds the images to train on"
    elif (
        kind != "npz"
        and place
        and path.is_file()
        and source.resolve() in path.resolve().parents
        # A model or checkpoint of an earlier run may well lie among the data.
        and not any(holds(path, entry) for entry in (model_file.ENTRY, ENTRY))
    ):
        what = f"is a file of the data, {spec},"
    else:
        return
    raise click.UsageError(f"{path} {what} and would be replaced")


def _is_same(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.samefile(other)


def tell_of_checkpoint(path: Path) -> None:
    """Say what becomes of one that is there, as the run does not continue it."""
    if is_unfinished(path):
        said = f"{path} is of an unfinished run, which --resume would have continued; it is kept "
        said += f"as {earlier(path).name} once this run writes its own"
        click.echo(printable(said), err=True)
    elif path.exists() and path.stat().st_size:
        click.echo(printable(f"{path} is of a run that is done, and is replaced"), err=True)
