"""Requests as bytes to send, and answers as arrays: no I/O, the same for both clients."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from convserve_client import protocol, tensors
from convserve_client._model import ModelInfo
from convserve_client.errors import InvalidResponseError, ResourceExhaustedError

Array = npt.NDArray[Any]

# What a message holds beside tensor data and output names; far above what it comes to.
OVERHEAD = 2048


class Request(NamedTuple):
    """A serialized ModelInferRequest, and how many images it holds (None: no batch dimension)."""

    data: bytes
    rows: int | None


@dataclass(frozen=True)
class Target:
    """Where requests go: a model, the outputs asked for (None: all), the limit of a message."""

    info: ModelInfo
    version: str
    outputs: tuple[str, ...] | None
    max_message_bytes: int

    def rows_per_request(self, row_bytes: int) -> int:
        """How many images of `row_bytes` fit in a request, and their results in the answer."""
        answered = sum(
            output.row_bytes
            for output in self.info.outputs
            if self.outputs is None or output.name in self.outputs
        )
        return self.limit_batch(max(1, self.room // max(row_bytes, answered, 1)))

    def limit_batch(self, rows: int) -> int:
        """`rows`, or the model's largest batch where that is less."""
        limit = self.info.max_batch_size
        return rows if limit is None or limit <= 0 else min(rows, limit)

    @property
    def room(self) -> int:
        """Bytes that a message has for tensor data."""
        names = sum(len(name.encode()) + 64 for name in self.outputs or ())
        return self.max_message_bytes - OVERHEAD - names

    def check_size(self, row_bytes: int) -> None:
        """Refuses an image that no message has room for."""
        if row_bytes > self.room:
            raise ResourceExhaustedError(
                f"an image of {row_bytes} bytes does not fit in a message of at most "
                f"{self.max_message_bytes} bytes; raise max_message_bytes and the server's limit"
            )

    def request(self, x: Array) -> Request:
        """One ModelInferRequest."""
        message = protocol.ModelInferRequest(model_name=self.info.name, model_version=self.version)
        message.inputs.add(
            name=self.info.input.name, datatype=tensors.datatype_of(x), shape=x.shape
        )
        for name in self.outputs or ():
            message.outputs.add(name=name)
        return Request(tensors.serialize(message, [x]), len(x) if self.info.batched else None)

    def split(self, x: Array) -> Iterator[Request]:
        """Requests for the parts of a batch, in order, each made when it is pulled."""
        if not self.info.batched:
            self.check_size(x.nbytes)
            yield self.request(x)
            return
        row_bytes = x.nbytes // len(x)
        self.check_size(row_bytes)
        rows = self.rows_per_request(row_bytes)
        for start in range(0, len(x), rows):
            yield self.request(x[start : start + rows])

    def encoded(self, images: Iterable[Any]) -> Iterator[Request]:
        """Requests for encoded images, as BYTES tensors, each full up to the limits."""
        part: list[bytes] = []
        size = 0
        for image in images:
            data = read_image(image)
            self.check_size(4 + len(data))
            full = self.limit_batch(len(part) + 1) == len(part)
            if part and (full or size + 4 + len(data) > self.room):
                yield self.request(_bytes_tensor(part))
                part, size = [], 0
            part.append(data)
            size += 4 + len(data)
        if part:
            yield self.request(_bytes_tensor(part))


def _bytes_tensor(items: Sequence[bytes]) -> Array:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array


def is_encoded(image: Any) -> bool:
    """Whether `image` is bytes, a path or a file object (and not an array)."""
    return isinstance(image, bytes | bytearray | memoryview | str | os.PathLike) or hasattr(
        image, "read"
    )


def read_image(image: Any) -> bytes:
    """The content of an encoded image given as bytes, a path or a binary file object."""
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    data = image.read() if hasattr(image, "read") else image
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    raise TypeError(f"an image file must be opened in binary mode, {image!r} gave text")


@dataclass(frozen=True)
class Answer:
    """The arrays of one ModelInferResponse, and which version of the model they come from."""

    version: str
    arrays: dict[str, Array]


def read_answer(target: Target, request: Request, response: Any) -> Answer:
    """Checks a ModelInferResponse against what was asked for."""
    try:
        arrays = tensors.read_tensors(response.outputs, response.raw_output_contents)
    except ValueError as error:
        raise InvalidResponseError(f"the server's answer is malformed: {error}") from error
    names = target.outputs or tuple(output.name for output in target.info.outputs) or tuple(arrays)
    missing = [name for name in names if name not in arrays]
    if missing or not names:
        raise InvalidResponseError(
            f"the server's answer lacks output {missing[:1]}, it has {list(arrays)}"
        )
    chosen = {name: arrays[name] for name in names}
    for name, array in chosen.items():
        if request.rows is not None and array.shape[:1] != (request.rows,):
            raise InvalidResponseError(
                f"output {name!r} has shape {list(array.shape)} for {request.rows} images"
            )
    return Answer(response.model_version, chosen)


def join(answers: Sequence[Answer]) -> dict[str, Array]:
    """The arrays of consecutive parts as one batch; writable, and owned by the caller."""
    joined = {}
    for name in answers[0].arrays:
        parts = [answer.arrays[name] for answer in answers]
        if len({(part.shape[1:], part.dtype) for part in parts}) > 1:
            raise InvalidResponseError(f"output {name!r} differs in shape between requests")
        joined[name] = parts[0].copy() if len(parts) == 1 else np.concatenate(parts)
    return joined


def present(arrays: dict[str, Array], outputs: tuple[str, ...] | None) -> Array | dict[str, Array]:
    """A model's only output as an array; several, or those asked for by name, as a dict."""
    if outputs is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    return arrays
