"""Encoded images of requests to pixels, in a few threads of their own.

Decoding runs beside computing and never on the threads that answer health checks. The number of
threads bounds the memory that decoding takes: each holds one image of at most `max_pixels`,
and up to three copies of it while transparency is laid over black.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from convserve.engine.affinity import roam
from convserve.errors import ImageError, InvalidRequestError, QueueFullError
from convserve.images import MAX_PIXELS, to_pixels
from convserve.model_file import Preprocessing

__all__ = ["ImageDecoder"]


class ImageDecoder:
    """Decodes the images of at most `max_requests` requests at a time; the next is turned away."""

    def __init__(self, workers: int, *, max_pixels: int = MAX_PIXELS, max_requests: int = 256):
        self._pool = ThreadPoolExecutor(workers, "decode", initializer=roam)
        self._max_pixels = max_pixels
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

        def decode_one(index: int) -> None:
            check()
            try:
                pixels[index] = to_pixels(images[index], p, max_pixels=self._max_pixels)
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
