"""Encoded images of requests to pixels, in a few threads of their own.

Decoding runs beside computing and never on the threads that answer health checks. The memory that
it takes is known from an image's header and bounded for all threads together: who finds too little
of it free waits its turn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from convserve.engine.affinity import roam
from convserve.errors import ImageError, InvalidRequestError, QueueFullError
from convserve.images import MAX_PIXELS, to_pixels
from convserve.model_file import Preprocessing

__all__ = ["MAX_DECODE_BYTES", "DecodeMemory", "ImageDecoder"]

MAX_DECODE_BYTES = 256 << 20  # 60 million pixels of RGB, or 30 million with transparency


class DecodeMemory:
    """`limit` bytes that images being decoded share, first come, first served.

    A large image therefore is not passed by small ones for ever, and they wait for it.
    """

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, got {limit}")
        self.limit = limit
        self._changed = threading.Condition(threading.Lock())
        self._used = 0
        self._turns: deque[object] = deque()

    @contextmanager
    def reserve(self, size: int, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Wait for `size` bytes, and hold them while the block runs.

        check: called after the waiting; may raise if the bytes are not wanted any more.
        """
        if not 0 <= size <= self.limit:
            raise ValueError(f"size must be 0 to {self.limit}, got {size}")
        if not size:
            check()
            yield
            return
        turn = object()
        with self._changed:
            self._turns.append(turn)
            try:
                self._changed.wait_for(
                    lambda: self._turns[0] is turn and self._used + size <= self.limit
                )
                self._used += size
            finally:
                self._turns.remove(turn)
                self._changed.notify_all()
        try:
            check()
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


class _Wanted:
    """The memory as one request sees it, whose answer may not be wanted after the waiting."""

    def __init__(self, memory: DecodeMemory, check: Callable[[], None]) -> None:
        self._memory, self._check = memory, check
        self.limit = memory.limit

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        with self._memory.reserve(size, self._check):
            yield


class ImageDecoder:
    """Decodes the images of at most `max_requests` requests at a time; the next is turned away.

    max_bytes: of memory for decoding, in all threads together.
    """

    def __init__(
        self,
        workers: int,
        *,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int = MAX_DECODE_BYTES,
        max_requests: int = 256,
    ) -> None:
        self._pool = ThreadPoolExecutor(workers, "decode", initializer=roam)
        self._max_pixels = max_pixels
        self._memory = DecodeMemory(max_bytes)
        self.max_requests = max_requests
        self._room = threading.BoundedSemaphore(max_requests)

    def decode(
        self, images: Sequence[bytes], preprocessing: Preprocessing, check: Callable[[], None]
    ) -> npt.NDArray[np.uint8]:
        """The images as uint8[N, C, H, W].

        `check` is called before each image and raises if the answer is not wanted any more. A
        damaged or oversized image raises InvalidRequestError with its index and what is wrong.
        """
        p = preprocessing
        pixels = np.empty((len(images), p.channels, p.height, p.width), np.uint8)
        memory = _Wanted(self._memory, check)

        def decode_one(index: int) -> None:
            try:
                pixels[index] = to_pixels(
                    images[index], p, max_pixels=self._max_pixels, memory=memory
                )
            except ImageError as error:
                fault = str(error).removeprefix("image: ")
                raise InvalidRequestError(f"image {index} of {len(images)}: {fault}") from None

        if not self._room.acquire(blocking=False):
            raise QueueFullError("Exceeds maximum queue size of images to decode")
        try:
            futures = [self._pool.submit(decode_one, index) for index in range(len(images))]
            try:
                for future in futures:
                    future.result()
            finally:
                for future in futures:
                    future.cancel()
        finally:
            self._room.release()
        return pixels

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
