"""What `train` and `eval` share: image sizes, a description of the data, live progress."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from math import log
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from convserve.datasets import Dataset
from convserve.training import EpochRecord, Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from convserve.cli._run_file import RunFiles

__all__ = ["TrainingProgress", "cache_choice", "describe", "folder_options", "image_size_option"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def image_size_option(help: str) -> Callable[[Decorated], Decorated]:
    """`--image-size N` or `HxW`, as the parameter `image_size`: (height, width) or None."""
    return click.option("--image-size", metavar="SIZE", callback=_image_size, help=help)


def folder_options(command: Decorated) -> Decorated:
    """`--cache`, `--no-cache` and `--skip-bad-files`, as `cache`, `no_cache`, `skip_bad_files`."""
    options = [
        click.option(
            "--cache",
            type=click.Path(path_type=Path, file_okay=False),
            metavar="DIR",
            help="Where a folder's decoded images are kept, for this run (which reads them from "
            "there and not from memory) and the next.  [default: the user's cache folder, if they "
            "take more than 64 MiB]",
        ),
        click.option("--no-cache", is_flag=True, help="Keep a folder's decoded images in memory."),
        click.option(
            "--skip-bad-files",
            is_flag=True,
            help="Leave out a folder's images that can't be read.  [default: they are an error]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def cache_choice(cache: Path | None, no_cache: bool) -> Path | bool | None:
    """The argument `cache` of `datasets.load`."""
    if no_cache and cache is not None:
        raise click.UsageError("--cache and --no-cache exclude each other")
    return False if no_cache else cache


def _image_size(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", value)
    if match is None or int(match[1]) < 1 or int(match[2] or 1) < 1:
        raise click.BadParameter(f"{value!r} is neither N nor HxW, in pixels")
    return int(match[1]), int(match[2] or match[1])


def describe(data: Dataset) -> list[str]:
    """Lines that say what there is to train on."""
    parts = [("training", data.train), ("validation", data.validation), ("test", data.test)]
    counts = ", ".join(f"{len(split):,} {name}" for name, split in parts if split is not None)
    p = data.preprocessing
    return [
        f"{data.name}: {counts} images, {p.height}×{p.width} {p.colour}, "
        f"{len(data.labels)} classes",
        *data.notes,
    ]


class TrainingProgress(Progress):
    """A line an epoch on standard output, and on a terminal a live bar below."""

    def __init__(self, files: RunFiles, classes: int) -> None:
        self._files, self._classes = files, classes
        self.epochs_done = 0
        self._epochs = self._images = 0
        self._done = self._resumed = 0
        self._start = time.monotonic()
        self._bar: Bar | None = None

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def run_started(self, epochs: int, images: int, resumed: int) -> None:
        self._epochs, self._images = epochs, images
        self.epochs_done = resumed
        self._done = self._resumed = resumed * images
        self._start = time.monotonic()
        if sys.stdout.isatty():
            self._bar = _make_bar()
            self._bar.start()
            self._bar.add_task("", total=epochs * images, completed=self._done, note="", eta="")

    def epoch_started(self, epoch: int) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], description=f"epoch {epoch}/{self._epochs}")

    def epoch_resumed(self, images: int) -> None:
        self._done += images
        self._resumed += images
        click.echo(f"resumed after {images:,} images of the epoch", err=True)

    def batch_done(self, images: int, loss: float) -> None:
        self._done += images
        if self._bar:
            rate = (self._done - self._resumed) / max(time.monotonic() - self._start, 1e-9)
            self._bar.update(
                self._bar.task_ids[0],
                completed=self._done,
                note=f"loss {loss:.4f}  {rate:,.0f} images/s",
                eta=f"{_clock(self._left())} left",
            )

    def checkpoint_set_aside(self, kept: Path) -> None:
        self._files.checkpoint_set_aside(kept)

    def checkpoint_written(self) -> None:
        self._files.checkpoint_written()

    def model_written(self) -> None:
        self._files.model_written()

    def epoch_done(self, record: EpochRecord) -> None:
        self.epochs_done = record.epoch
        width = len(str(self._epochs))
        words = [
            f"epoch {record.epoch:{width}}/{self._epochs}",
            f"loss {record.loss:.4f}",
            f"training {100 * record.train_accuracy:.2f} %",
        ]
        if record.validation_accuracy is not None:
            words.append(f"validation {100 * record.validation_accuracy:.2f} %")
        words.append(f"{record.images_per_second:,.0f} images/s")
        if record.epoch < self._epochs:
            words.append(f"{_clock(self._left())} left")
        line = "  ".join(words)
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(line)
            sys.stdout.flush()
        if record.epoch == 2 or record.epoch == self._epochs == 1:
            self._hint(record, self._classes)

    def _hint(self, record: EpochRecord, classes: int) -> None:
        """Say so where a network does no better than one that gives all classes the same share."""
        if record.loss > 0.99 * log(classes) and record.train_accuracy < 1.25 / classes:
            click.echo(
                f"nothing is learnt so far: loss {record.loss:.4f} is no better than guessing "
                f"among {classes} classes. Another --lr, --clip 1 or a longer --warmup may help",
                err=True,
            )

    def _left(self) -> float:
        """Seconds, by the speed so far."""
        done = max(self._done - self._resumed, 1)
        return (time.monotonic() - self._start) * (self._epochs * self._images - self._done) / done


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _make_bar() -> Bar:
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TextColumn("{task.fields[eta]}"),
        transient=True,
    )
