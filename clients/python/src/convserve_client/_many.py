"""predict_many: a stream of images and batches, sent in full requests, answered item by item."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any

import numpy as np

from convserve_client._model import Array, check_dtype
from convserve_client._requests import Answer, Request, Target, present
from convserve_client.errors import (
    InvalidRequestError,
    InvalidResponseError,
    ResourceExhaustedError,
)

Result = Array | dict[str, Array]


def check_items(items: Any) -> None:
    """Raises TypeError, at once and not at the first result, for what has no items."""
    if not isinstance(items, Iterable | AsyncIterable) or isinstance(items, str | bytes | dict):
        raise TypeError(f"items must be an iterable of arrays, got {type(items).__name__}")


class Rows:
    """A queue of rows: batches go in, batches of other sizes come out, in the same order."""

    def __init__(self) -> None:
        self.count = 0
        self._parts: deque[Array] = deque()

    def push(self, rows: Array) -> None:
        self._parts.append(rows)
        self.count += len(rows)

    def follows(self, rows: Array) -> bool:
        """Whether `rows` is like what waits, so that both can be in one batch."""
        last = self._parts[-1] if self._parts else rows
        return last.shape[1:] == rows.shape[1:] and last.dtype == rows.dtype

    def take(self, count: int) -> Array:
        """The first `count` rows, as few as there are; a view where they came in as one batch."""
        self.count -= count
        parts: list[Array] = []
        while count:
            first = self._parts.popleft()
            if len(first) > count:
                self._parts.appendleft(first[count:])
                first = first[:count]
            parts.append(first)
            count -= len(first)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class Stream:
    """Regroups items into requests of up to `batch` images, and answers into items again.

    An item is one image or one batch. Requests are cut from the images as soon as enough of them
    wait; results are cut from the answers as soon as an item is whole.
    """

    def __init__(self, target: Target, batch: int) -> None:
        if not target.info.batched:
            raise InvalidRequestError(
                f"model {target.info.name!r} has no batch dimension; call predict for each array"
            )
        self._target = target
        self._input = target.info.input
        self._batch = batch
        self._accepted = 0
        self._images = Rows()  # not sent yet
        self._items: deque[tuple[int, bool]] = deque()  # not answered yet: images, is a single one
        self._answers: dict[str, Rows] = {}

    # ---- Items to requests; where an item fails, those before it are still sent and answered ----

    def requests(self, items: Iterable[Any]) -> Iterator[Request]:
        try:
            for item in items:
                yield from self._push(item)
        except Exception:
            yield from self._flush()
            raise
        yield from self._flush()

    async def requests_async(self, items: AsyncIterable[Any]) -> AsyncIterator[Request]:
        try:
            async for item in items:
                for request in self._push(item):
                    yield request
        except Exception:
            for request in self._flush():
                yield request
            raise
        for request in self._flush():
            yield request

    def _push(self, item: Any) -> Iterator[Request]:
        x, single = self._check(item)
        if not self._images.follows(x):
            yield from self._flush()
        self._accepted += 1
        self._items.append((len(x), single))
        if len(x) == 0:
            return
        self._images.push(x)
        rows = min(self._batch, self._target.rows_per_request(x[0].nbytes))
        while self._images.count >= rows:
            yield self._request(rows)

    def _flush(self) -> Iterator[Request]:
        if self._images.count:
            yield self._request(self._images.count)

    def _request(self, rows: int) -> Request:
        return self._target.request({self._input.name: self._images.take(rows)})

    def _check(self, item: Any) -> tuple[Array, bool]:
        """An item as a batch, and whether it is a single image."""
        name = f"item {self._accepted}"
        check_dtype(item, name)
        single = item.ndim == len(self._input.shape)
        try:
            self._target.info.check(item, self._input, image=single)
            x: Array = item[None] if single else item
            if len(x):
                self._target.check_size(x[0].nbytes)
        except (InvalidRequestError, ResourceExhaustedError) as error:
            raise type(error)(f"{name}: {error.details}") from None
        return x, single

    # ---- Answers to results ----

    def results(self, answer: Answer | None) -> Iterator[Result]:
        """The items that `answer` completes; None, at the end, gives those without any image."""
        for name, array in answer.arrays.items() if answer else ():
            rows = self._answers.setdefault(name, Rows())
            if not rows.follows(array):
                raise InvalidResponseError(f"output {name!r} differs in shape between requests")
            rows.push(array)
        while self._items and self._items[0][0] <= self._ready():
            count, single = self._items.popleft()
            yield self._result(count, single)

    def _ready(self) -> int:
        return min((rows.count for rows in self._answers.values()), default=0)

    def _result(self, count: int, single: bool) -> Result:
        outputs = self._target.outputs
        if count == 0:
            return present(self._target.info.empty(outputs), outputs)
        arrays = {name: rows.take(count) for name, rows in self._answers.items()}
        # Copies, so that a result is the caller's own and keeps no whole answer alive.
        return present(
            {name: (array[0] if single else array).copy() for name, array in arrays.items()},
            outputs,
        )
