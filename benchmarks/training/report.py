"""The table of training steps beside PyTorch's."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Row:
    """A network's figures, by contestant: "ours" and "torch_peer"."""

    name: str
    batch: int
    target: float
    rates: dict[str, list[float]] = field(default_factory=dict)
    peak_mb: dict[str, float] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    difference: float = float("nan")

    @property
    def ratios(self) -> list[float]:
        """Within each round, the least first."""
        return sorted(
            a / b for a, b in zip(self.rates["ours"], self.rates["torch_peer"], strict=True)
        )

    def cells(self) -> list[str]:
        ratios = self.ratios
        met = statistics.median(ratios) >= self.target
        return [
            self.name,
            str(self.batch),
            f"{statistics.median(self.rates['torch_peer']):,.0f}",
            f"{statistics.median(self.rates['ours']):,.0f}",
            f"**{statistics.median(ratios):.2f}×** ({ratios[0]:.2f}–{ratios[-1]:.2f})",
            f"≥ {self.target:g}: {'yes' if met else 'no'}",
            f"{self.peak_mb['torch_peer']:,.0f}",
            f"{self.peak_mb['ours']:,.0f}",
            f"{self.difference:.0e}",
            self.settings["torch_peer"],
        ]

    def text(self) -> str:
        return "  ".join(self.cells())


def markdown(rows: Sequence[Row], rounds: int, seconds: float, load: float) -> str:
    """The report as a Markdown document; load: the machine's load average before the run."""
    versions = rows[0].versions if rows else {"ours": "", "torch_peer": ""}
    lines = [
        "## Training beside PyTorch",
        "",
        f"Made by `make bench-training` on {datetime.date.today().isoformat()}: "
        f"{platform.machine()}, {os.cpu_count()} cores; convserve {versions['ours']}; "
        f"PyTorch {versions['torch_peer']}. float32, 2 threads. The load average before was "
        f"{load:.1f}: on a busy machine both are slower, and PyTorch by more, whose threads wait "
        "for each other more often.",
        "",
        "A step is forward, loss, backward and the update of SGD with Nesterov momentum and weight "
        "decay, on a batch in memory. Each contestant has a process of its own, which stands still "
        f"while the other is timed, in {rounds} rounds of {seconds:g} s in turn; PyTorch takes the "
        "better of its layouts. Figures are medians, a ratio is the median (least–greatest) of the "
        "ratios within the rounds. Peak is the process's largest resident size. Difference is that "
        "of the gradients of the first step without dropout: the largest over the parameters of "
        "the root mean square difference relative to PyTorch's. Deep networks and small batches "
        "magnify rounding: ResNet-18's change by more, 1e-2, where its images change by 1e-7.",
        "",
        "| network | batch | PyTorch, images/s | convserve | ratio | target | PyTorch, peak MB "
        "| convserve | difference | PyTorch's layout |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|---|",
    ]
    lines += [f"| {' | '.join(row.cells())} |" for row in rows]
    return "\n".join(lines) + "\n"
