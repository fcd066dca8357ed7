"""Places tensors in one arena by their lifetimes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Extent", "place"]

ALIGNMENT = 16  # floats: a cache line


@dataclass
class Extent:
    """A tensor's size in floats, and the first and last step at which it is alive."""

    size: int
    first: int
    last: int


def place(extents: dict[int, Extent]) -> dict[int, int]:
    """Offsets, multiples of 16 floats, such that tensors alive at a time don't overlap.

    The largest first, each in the smallest gap that holds it (greedy by size, best fit).
    """
    # Of what is placed, ordered by offset: offset, end, first and last step.
    offsets: dict[int, int] = {}
    placed = np.empty((4, 0), np.int64)
    for key, extent in sorted(extents.items(), key=lambda item: (-item[1].size, item[0])):
        size = -(-extent.size // ALIGNMENT) * ALIGNMENT
        starts, ends = placed[:2, (placed[2] <= extent.last) & (placed[3] >= extent.first)]
        # where everything before it has ended
        free = np.maximum.accumulate(np.concatenate([[0], ends]))
        gaps = np.concatenate([starts, [2**62]]) - free
        offset = int(free[np.where(gaps >= size, gaps, 2**63 - 1).argmin()])
        offsets[key] = offset
        at = int(np.searchsorted(placed[0], offset))
        row = [offset, offset + size, extent.first, extent.last]
        placed = np.insert(placed, at, row, axis=1)
    return offsets
