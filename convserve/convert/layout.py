"""How an ONNX tensor lies on the value that one of our layers makes.

    (8, 4, 4) of a layer, as ONNX sees it after Transpose to NHWC:
        ((4, stride 4),), ((4, stride 1),), ((8, stride 16),)

Transposes and reshapes move no data here: they only change the layout, an axis being a list of
(size, stride) atoms over the layer's row-major values. What a layer then needs is read off it: the
image as it lies, its channels shuffled, a row of features in another order. The batch axis is the
first in both and left out. Sizes of 1 have no atoms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Atom", "Axis", "Layout", "join", "offsets"]


class Atom(NamedTuple):
    """`size` steps of `stride` values."""

    size: int
    stride: int


Axis = tuple[Atom, ...]  # outer to inner


@dataclass(frozen=True)
class Layout:
    """The axes of an ONNX tensor, without the batch, over a layer's value."""

    axes: tuple[Axis, ...]

    @classmethod
    def natural(cls, shape: Sequence[int]) -> Layout:
        """Of a tensor that is the value itself."""
        return cls(
            tuple(join([Atom(size, prod(shape[place + 1 :]))]) for place, size in enumerate(shape))
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(prod(atom.size for atom in axis) for axis in self.axes)

    @property
    def atoms(self) -> Axis:
        """All axes as one, outer to inner."""
        return join([atom for axis in self.axes for atom in axis])

    def transpose(self, order: Sequence[int]) -> Layout:
        return Layout(tuple(self.axes[place] for place in order))

    def reshape(self, shape: Sequence[int]) -> Layout | None:
        """The same values in the same order under other axes; None where a size cuts an atom."""
        left = list(reversed(self.atoms))
        axes = []
        for size in shape:
            axis = []
            while size > 1:
                if not left:
                    return None
                atom = left.pop()
                if size % atom.size == 0:
                    axis.append(atom)
                    size //= atom.size
                elif atom.size % size == 0:
                    inner = atom.size // size
                    axis.append(Atom(size, atom.stride * inner))
                    left.append(Atom(inner, atom.stride))
                    size = 1
                else:
                    return None
            axes.append(join(axis))
        return None if left else Layout(tuple(axes))

    def places(self) -> npt.NDArray[np.int64]:
        """For each value in the tensor's order, where it lies in the layer's."""
        return offsets(self.atoms)


def offsets(atoms: Axis) -> npt.NDArray[np.int64]:
    """For each step along an axis, where it leads in the layer's values."""
    place = np.zeros(1, np.int64)
    for size, stride in atoms:
        place = (place[:, None] + np.arange(size, dtype=np.int64) * stride).reshape(-1)
    return place


def join(atoms: Iterable[Atom]) -> Axis:
    """Neighbours that are one run of steps together are one atom."""
    joined: list[Any] = []
    for atom in atoms:
        if atom.size == 1:
            continue
        if joined and joined[-1].stride == atom.size * atom.stride:
            joined[-1] = Atom(joined[-1].size * atom.size, atom.stride)
        else:
            joined.append(atom)
    return tuple(joined)
