"""Merge the requests that wait into one batch, and split the batch's results: no threads here.

waiting   a[2] b[1] c'[1] d[3]   (c' has another dtype)
select    a b d                  -> merge: x[6] -> compute -> y[6] -> split: a[2] b[1] d[3]
economical                       a batch of 5 of which 4 are much cheaper an image: those 4 first
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from convserve.errors import ShapeError

__all__ = ["Batch", "Inputs", "Mergeable", "count", "economical", "select"]

Array = npt.NDArray[Any]
# Of one request: its images, or for a model with several inputs an array for each by name.
Inputs: TypeAlias = "Array | Mapping[str, Array]"


class Mergeable(Protocol):
    """What `select` needs to know of a request."""

    @property
    def size(self) -> int:
        """Its number of images."""

    @property
    def key(self) -> Hashable:
        """Requests with equal keys may share a batch."""


Request = TypeVar("Request", bound=Mergeable)
# How much cheaper an image must become before requests are left for the next batch.
SAVING = 0.05


def select(
    waiting: Iterable[Request], limit: int, preferred: Sequence[int] = ()
) -> tuple[list[Request], bool]:
    """The first request with those behind it that may join it, up to `limit` images.

    Returns the requests in their order, and whether the batch shall go at once: it has `limit`
    images, or nothing that arrives later could join it, or it has the largest preferred size that
    can be made. A request never overtakes one of the same key before it, even if that one does not
    fit and the later one would.
    """
    chosen: list[Request] = []
    size = best = 0
    full = False
    for request in waiting:
        if chosen and request.key != chosen[0].key:
            continue
        if chosen and size + request.size > limit:
            full = True
            break
        chosen.append(request)
        size += request.size
        if size >= limit:
            return chosen, True
        if size in preferred:
            best = len(chosen)
    return (chosen[:best], True) if best else (chosen, full)


def economical(
    chosen: list[Request], threads: int, seconds: Callable[[int], float]
) -> list[Request]:
    """The batch without those at its end that make an image of it much dearer.

    Images are dealt out to threads, so five on two threads take as long as six: four now, and the
    fifth with those that come meanwhile, are more images a second. Fewer than `threads` images are
    left out, and never all. seconds: what a batch of so many images takes.
    """
    left = size = sum(request.size for request in chosen)
    best, dear = len(chosen), seconds(size) / size
    limit = dear * (1.0 - SAVING)
    for number in range(len(chosen) - 1, 0, -1):
        left -= chosen[number].size
        if left <= size - threads:
            break
        if (each := seconds(left) / left) < limit:
            best, limit = number, each
    return chosen[:best]


def count(x: Inputs) -> int:
    """The number of images."""
    return len(x) if isinstance(x, np.ndarray) else len(next(iter(x.values())))


class Batch:
    """Arrays [n_i, …] of equal dtype and trailing shape as one array [sum of n_i, …], and back.

    With several inputs: dicts of such arrays, all of n_i images, as one dict.
    """

    def __init__(self, requests: Sequence[Inputs]) -> None:
        if not requests:
            raise ShapeError("a batch needs at least one array")
        first = requests[0]
        if isinstance(first, Mapping):
            for name in first:
                self._check([x[name] for x in requests if isinstance(x, Mapping)])
        else:
            self._check([x for x in requests if not isinstance(x, Mapping)])
        self._requests = requests
        self._counts = [count(x) for x in requests]
        self.size = sum(self._counts)

    @staticmethod
    def _check(arrays: Sequence[Array]) -> None:
        first = arrays[0]
        for array in arrays:
            if array.ndim == 0 or array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
                raise ShapeError(
                    f"arrays of one batch must agree in dtype and in all sizes but the first: "
                    f"got {array.dtype}{list(array.shape)} beside {first.dtype}{list(first.shape)}"
                )

    def merge(self) -> Inputs:
        """The batch; a single request is passed on without a copy."""
        first = self._requests[0]
        if len(self._requests) == 1:
            return first
        if isinstance(first, np.ndarray):
            return np.concatenate(self._requests)  # type: ignore[arg-type]
        parts: list[Any] = list(self._requests)
        return {name: np.concatenate([x[name] for x in parts]) for name in first}

    def split(self, outputs: Mapping[str, Array]) -> list[dict[str, Array]]:
        """Each request's own rows of every output, as views, in the order of the requests."""
        for name, output in outputs.items():
            if output.ndim == 0 or len(output) != self.size:
                raise ShapeError(
                    f"output {name!r} of a batch of {self.size} has shape {list(output.shape)}"
                )
        results: list[dict[str, Array]] = []
        start = 0
        for images in self._counts:
            end = start + images
            results.append({name: output[start:end] for name, output in outputs.items()})
            start = end
        return results
