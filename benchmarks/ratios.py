"""What the measured rounds say: ratios within a round, their median and their range."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

OURS = "convserve"
REFERENCE = "onnxruntime"
SUSPECT_BELOW = 0.85


@dataclass
class Row:
    """One row of a table: a model or a layer at one batch size and number of threads.

    rates: images/s of each contestant, one a round; round i of all of them ran side by side.
    peak: GFLOP/s of the machine, one a round. difference: the largest from ONNX Runtime's output,
    relative to its largest value. errors: why a contestant is missing; failed_settings: why one of
    the settings that it has a choice of was not tried.
    """

    kind: str
    name: str
    batch: int
    threads: int
    macs: int
    rates: dict[str, list[float]] = field(default_factory=dict)
    peak: list[float] = field(default_factory=list)
    difference: dict[str, float] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    failed_settings: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int, int]:
        return self.kind, self.name, self.batch, self.threads

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Ratio(NamedTuple):
    median: float
    low: float
    high: float


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of the rounds' ratios; both must have the same rounds."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Ratio(median(ratios), min(ratios), max(ratios))


def rate(row: Row, contestant: str) -> float | None:
    """The median of the rounds, or None where the contestant did not run."""
    rates = row.rates.get(contestant)
    return median(rates) if rates else None


def best_peer(row: Row, peers: Iterable[str]) -> str | None:
    """The peer with the highest median."""
    present = [peer for peer in peers if row.rates.get(peer)]
    return max(present, key=lambda peer: median(row.rates[peer]), default=None)


def ratio_to_best(row: Row, peers: Iterable[str], contestant: str = OURS) -> Ratio | None:
    best = best_peer(row, peers)
    if best is None or not row.rates.get(contestant):
        return None
    return ratio(row.rates[contestant], row.rates[best])


def percent_of_peak(row: Row, contestant: str = OURS) -> float | None:
    """Of the multiply-adds that direct convolution needs; above 100 % fewer were done."""
    rates = row.rates.get(contestant)
    if not rates or not row.peak:
        return None
    shares = [2e-9 * row.macs * a / b for a, b in zip(rates, row.peak, strict=True)]
    return 100 * median(shares)


def geometric_mean(values: Iterable[float]) -> float | None:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


Expected = Mapping[tuple[str, int], Mapping[str, float]]  # (model, batch) to images/s of each peer


def read_expected(path: Path) -> dict[tuple[str, int], dict[str, float]]:
    """The figures of an earlier careful run: a header of names, then model, batch and a rate each.

    `-` stands for none, # begins a comment. ValueError names the line that is malformed.
    """
    header: list[str] = []
    rows: dict[tuple[str, int], dict[str, float]] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        if not header:
            header = fields[2:]
            continue
        try:
            model, batch, *rates = fields
            pairs = zip(header, rates, strict=True)
            rows[model, int(batch)] = {name: float(value) for name, value in pairs if value != "-"}
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: must be a model, a batch and {len(header)} rates, "
                f"got {line.strip()!r}"
            ) from None
    return rows


def suspects(row: Row, expected: Expected) -> list[str]:
    """Peers that fell behind their known ratio to ONNX Runtime, in words: are they set up right?"""
    known = expected.get((row.name, row.batch), {})
    if row.kind != "model" or row.threads != 2 or not row.rates.get(REFERENCE):
        return []
    found = []
    for peer, value in known.items():
        if peer == REFERENCE or not row.rates.get(peer) or REFERENCE not in known:
            continue
        measured = ratio(row.rates[peer], row.rates[REFERENCE]).median
        due = value / known[REFERENCE]
        if measured < SUSPECT_BELOW * due:
            found.append(
                f"{row.name}, batch {row.batch}: {peer} reached {measured:.2f} of ONNX Runtime, "
                f"{due:.2f} was known"
            )
    return found
