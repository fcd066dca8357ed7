"""Latencies in numbers and as a picture for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["PERCENTILES", "bars", "histogram", "percentiles", "plot"]

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
BINS = 16
WIDTH = 50
BLOCKS = " ▁▂▃▄▅▆▇█"
PARTS = " ▏▎▍▌▋▊▉█"


def percentiles(ms: NDArray[np.float64]) -> dict[str, float]:
    """min, p50, …, p99.9, max in ms; empty if there are none."""
    if not len(ms):
        return {}
    values = np.percentile(ms, PERCENTILES).tolist()
    named = {f"p{q:g}": value for q, value in zip(PERCENTILES, values, strict=True)}
    return {"min": float(ms.min()), **named, "max": float(ms.max())}


def histogram(ms: NDArray[np.float64]) -> tuple[list[float], list[int]]:
    """Edges (ms, in equal ratios from the fastest to the slowest) and counts between them."""
    low, high = float(ms.min()), float(ms.max())
    edges = np.geomspace(low, max(high, low * 1.001), BINS + 1)
    places = np.clip(np.searchsorted(edges, ms, side="right") - 1, 0, BINS - 1)
    return edges.tolist(), np.bincount(places, minlength=BINS).tolist()


def bars(counts: Sequence[int]) -> str:
    """Counts as one line of blocks; the smallest block is at least one."""
    most = max(counts)
    steps = len(BLOCKS) - 1
    return "".join(BLOCKS[-(-count * steps // most)] for count in counts)


def plot(ms: NDArray[np.float64]) -> list[str]:
    """The histogram as lines of text, a bin each: where it ends, a bar, its count."""
    edges, counts = histogram(ms)
    most = max(counts)
    lines = []
    for end, count in zip(edges[1:], counts, strict=True):
        whole, part = divmod(-(-count * WIDTH * 8 // most), 8)
        bar = PARTS[-1] * whole + (PARTS[part] if part else "")
        lines.append(f"{end:10.3f} ms {bar:<{WIDTH}} {count}")
    return lines
