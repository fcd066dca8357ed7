"""Merge the requests that wait into one batch, and split the batch's results: no threads here.

waiting   a[2] b[1] c'[1] d[3]   (c' has another dtype)
select    a b d                  -> merge: x[6] -> compute -> y[6] -> split: a[2] b[1] d[3]
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from convserve.errors import ShapeError

__all__ = ["Batch", "Mergeable", "select"]

Array = npt.NDArray[Any]


class Mergeable(Protocol):
    """What `select` needs to know of a request."""

    @property
    def size(self) -> int:
        """Its number of images."""

    @property
    def key(self) -> Hashable:
        """Requests with equal keys may share a batch."""


Request = TypeVar("Request", bound=Mergeable)


def select(waiting: Iterable[Request], limit: int) -> tuple[list[Request], bool]:
    """The oldest request with those behind it that may join it, up to `limit` images.

    Returns the requests, oldest first, and whether the batch is full: nothing that arrives later
    could join it. A request never overtakes an older one of the same key, even if the older one
    does not fit and the newer one would.
    """
    chosen: list[Request] = []
    size = 0
    for request in waiting:
        if chosen and request.key != chosen[0].key:
            continue
        if chosen and size + request.size > limit:
            return chosen, True
        chosen.append(request)
        size += request.size
        if size >= limit:
            return chosen, True
    return chosen, False


class Batch:
    """Arrays [n_i, …] of equal dtype and trailing shape as one array [sum of n_i, …], and back."""

    def __init__(self, arrays: Sequence[Array]) -> None:
        if not arrays:
            raise ShapeError("a batch needs at least one array")
        first = arrays[0]
        for array in arrays:
            if array.ndim == 0 or array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
                raise ShapeError(
                    f"arrays of one batch must agree in dtype and in all sizes but the first: "
                    f"got {array.dtype}{list(array.shape)} beside {first.dtype}{list(first.shape)}"
                )
        self._arrays = arrays
        self.size = sum(len(array) for array in arrays)

    def merge(self) -> Array:
        """The batch; a single array is passed on without a copy."""
        return self._arrays[0] if len(self._arrays) == 1 else np.concatenate(self._arrays)

    def split(self, outputs: Mapping[str, Array]) -> list[dict[str, Array]]:
        """Each request's own rows of every output, as views, in the order of the arrays."""
        for name, output in outputs.items():
            if output.ndim == 0 or len(output) != self.size:
                raise ShapeError(
                    f"output {name!r} of a batch of {self.size} has shape {list(output.shape)}"
                )
        results: list[dict[str, Array]] = []
        start = 0
        for array in self._arrays:
            end = start + len(array)
            results.append({name: output[start:end] for name, output in outputs.items()})
            start = end
        return results
