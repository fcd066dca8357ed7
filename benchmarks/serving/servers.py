"""Server processes for the time of a `with` block."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from convserve.cli._child_server import ready_process

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Running:
    """A server that is ready, and how long that took."""

    address: str
    pids: tuple[int, ...]
    seconds: float

    def resident_mb(self) -> float:
        """Resident memory of its largest process."""
        return max(_resident_mb(pid) for pid in self.pids)


@contextmanager
def ours(model: Path, workers: int = 1, **options: object) -> Iterator[Running]:
    """`convserve serve` on free ports."""
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    if workers > 1:
        flags += ["--workers", str(workers)]
    command = ["-m", "convserve", "serve", str(model), "--port", "0", "--metrics-port", "0"]
    with _process([*command, "--log-level", "warning", *flags]) as running:
        yield running


@contextmanager
def echo(processes: int = 1) -> Iterator[Running]:
    """So many bare echo servers on one port."""
    with ExitStack() as stack:
        command = ["-m", "benchmarks.serving.echo"]
        first = stack.enter_context(_process([*command, "0"]))
        port = first.address.rpartition(":")[2]
        others = [stack.enter_context(_process([*command, port])) for _ in range(processes - 1)]
        pids = tuple(pid for one in (first, *others) for pid in one.pids)
        yield Running(first.address, pids, first.seconds)


@contextmanager
def _process(arguments: list[str]) -> Iterator[Running]:
    began = time.perf_counter()
    with ready_process([sys.executable, *arguments], cwd=ROOT) as (process, address):
        yield Running(address, (process.pid,), time.perf_counter() - began)


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no VmRSS of process {pid}")
