"""The results file: one JSON object a line, first the machine and the run, then a row each.

A row is written when it is finished, so that a run that was broken off goes on with `--resume`.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.ratios import Row


@dataclass(frozen=True)
class Run:
    """What all rows of a run have in common."""

    cpu: str
    cores: int
    date: str
    rounds: int
    seconds: float
    slow_settings: bool


def describe_cpu() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def start(path: Path, run: Run) -> None:
    path.write_text(json.dumps(asdict(run)) + "\n", "utf-8")


def append(path: Path, row: Row) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row.to_dict()) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> tuple[Run, list[Row]]:
    """The run and its rows; the last line may be torn where a run was killed while writing it."""
    first, *lines = path.read_text("utf-8").splitlines()
    rows: dict[tuple[str, str, int, int], Row] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = Row(**json.loads(line))
        except json.JSONDecodeError:
            if number == len(lines):
                break
            raise
        rows[row.key] = row
    return Run(**json.loads(first)), list(rows.values())
