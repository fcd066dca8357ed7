"""Places tensors in one arena by their lifetimes."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass

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
    placed: list[tuple[int, int, Extent]] = []  # (offset, end, extent), by offset
    offsets: dict[int, int] = {}
    for key, extent in sorted(extents.items(), key=lambda item: (-item[1].size, item[0])):
        size = -(-extent.size // ALIGNMENT) * ALIGNMENT
        best, best_gap, end = None, 0, 0
        for start, stop, other in placed:
            if other.last < extent.first or extent.last < other.first:
                continue
            gap = start - end
            if gap >= size and (best is None or gap < best_gap):
                best, best_gap = end, gap
            end = max(end, stop)
        offset = end if best is None else best
        offsets[key] = offset
        insort(placed, (offset, offset + size, extent), key=lambda item: item[:2])
    return offsets
