"""The progress of a long run on standard error: a live bar on a terminal, quiet otherwise."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

from convserve.cli._common import printable

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Progress:
    """Counts `unit`s done and keeps the bar, where there is one, up to date."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.done = 0
        self.faults = 0
        self._start = time.monotonic()
        self._bar = self._make_bar() if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
            self._bar.add_task("", total=None, rate="", note="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, count: int, total: int | None) -> None:
        """`count` more are done; `total` is how many there are in all as far as is known."""
        self.done += count
        if self._bar:
            [task] = self._bar.task_ids
            note = f"{self.faults:,} unreadable" if self.faults else ""
            rate = f"{self.rate:,.0f} {self.unit}/s"
            self._bar.update(task, completed=self.done, total=total, rate=rate, note=note)

    def fault(self, message: str) -> None:
        """Print a message about something that is passed over."""
        self.faults += 1
        text = f"convserve: {printable(message)}"
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(text, err=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        return self.done / max(self.seconds, 1e-9)

    def _make_bar(self) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        return Bar(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", style="red"),
            console=Console(stderr=True),
            transient=True,
        )
