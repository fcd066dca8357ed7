"""The table of the server's figures beside what they are measured against."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

# What queueing alone makes of it (M/D/1): p99 beside p50 of a server that takes requests one by
# one, each for the same time, when they come at random and keep it busy for 70 % of the time.
TAIL_OF_A_QUEUE = 4.3


@dataclass(frozen=True)
class Row:
    """A figure of ours beside another; `target` is a bound on their ratio, such as ">= 0.9"."""

    what: str
    unit: str
    ours: float
    beside: str
    other: float
    target: str

    @property
    def ratio(self) -> float:
        return self.ours / self.other

    @property
    def met(self) -> bool:
        sign, bound = self.target.split()
        return self.ratio >= float(bound) if sign == ">=" else self.ratio <= float(bound)

    def cells(self) -> list[str]:
        sign, bound = self.target.split()
        return [
            self.what,
            f"{_number(self.ours)} {self.unit}",
            f"{self.beside}: {_number(self.other)}",
            f"{self.ratio:.2f}",
            f"{'≥' if sign == '>=' else '≤'} {bound}",
            "yes" if self.met else "no",
        ]

    def text(self) -> str:
        what, ours, other, ratio, target, met = self.cells()
        return f"{what:<58} {ours:>20} {other:>32} {ratio:>6} {target:>7} {met}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(rows: Sequence[Row], rounds: int, seconds: float, h2load: bool) -> str:
    """The report as a Markdown document."""
    asked = "h2load" if h2load else "Python's gRPC, which is the slower end of it (no h2load here)"
    lines = [
        "## The server beside a bare gRPC echo",
        "",
        f"Made by `make bench-serving` on {datetime.date.today().isoformat()}: "
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load generator on the same machine. Medians of {rounds} rounds of {seconds:g} s in which "
        "contestants take turns. "
        f"Throughput is asked for by {asked}; latencies are those that a blocking Python client "
        "sees, and under load those of an open loop. The echo is a synchronous grpcio server that "
        "sends each request back unread. 70 % is of what the same generator is answered when it "
        "asks for too much. h2load's requests come over so many connections that each makes at "
        "most 80 a second, at even distances, and count from when they are sent; those of "
        "`convserve bench`'s generator, which is in Python and takes a core for itself, over one, "
        f"from when they are due, evenly or at random, which alone makes p99 {TAIL_OF_A_QUEUE} "
        "times p50 at 70 % of what a server can do that takes them one by one, each for the same "
        "time. The queue is kept full by four callers with 64 images each.",
        "",
        "| what | convserve | beside | ratio | target | met |",
        "|---|---:|---:|---:|---:|---|",
    ]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    return "\n".join(lines) + "\n"
