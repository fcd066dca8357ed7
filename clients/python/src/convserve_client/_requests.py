"""Requests as bytes to send, and answers as arrays: no I/O, the same for both clients."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from convserve_client import protocol, tensors
from convserve_client._model import ModelInfo, Tensor
from convserve_client._request_options import PLAIN, RequestOptions
from convserve_client._security import Metadata
from convserve_client._shared_memory import PARAMETER, SMALL, Region, aligned
from convserve_client.errors import InvalidResponseError, ResourceExhaustedError

Array = npt.NDArray[Any]

# What a message holds beside tensor data and further tensors' names; far above what it comes to.
OVERHEAD = 2048


Places = dict[str, tuple[int, int]]  # output -> offset and size in a region


class Request(NamedTuple):
    """A serialized ModelInferRequest.

    `rows` is how many images it holds (None: no batch dimension), `places` where in `region` its
    outputs come to lie; `metadata` goes with it.
    """

    data: bytes
    rows: int | None
    region: Region | None = None
    places: Places | None = None
    metadata: Metadata = ()


@dataclass(frozen=True)
class Target:
    """Where requests go: a model, the outputs asked for (None: all), the limit of a message.

    With `regions`, requests take their tensors there, each in the next of them.
    """

    info: ModelInfo
    version: str
    outputs: tuple[str, ...] | None
    max_message_bytes: int
    options: RequestOptions = PLAIN
    regions: Iterator[Region] | None = None

    def rows_per_request(self, row_bytes: int) -> int:
        """How many images of `row_bytes` fit in a request, and their results in the answer."""
        answered = sum(output.row_bytes for output in self.asked)
        return self.limit_batch(max(1, self.room // max(row_bytes, answered, 1)))

    def limit_batch(self, rows: int) -> int:
        """`rows`, or the model's largest batch where that is less."""
        limit = self.info.max_batch_size
        return rows if limit is None or limit <= 0 else min(rows, limit)

    @property
    def room(self) -> int:
        """Bytes that a message has for tensor data."""
        more = [*(self.outputs or ()), *(tensor.name for tensor in self.info.inputs[1:])]
        names = sum(len(name.encode()) + 64 for name in more)
        return self.max_message_bytes - OVERHEAD - names - len(self.options.request_id.encode())

    def check_size(self, row_bytes: int) -> None:
        """Refuses an image that no message has room for."""
        if row_bytes > self.room:
            raise ResourceExhaustedError(
                f"an image of {row_bytes} bytes does not fit in a message of at most "
                f"{self.max_message_bytes} bytes; raise max_message_bytes and the server's limit"
            )

    def region_size(self, rows: int, row_bytes: int) -> int:
        """Bytes of shared memory for a request; 0 where it would gain nothing."""
        parts = [rows * row_bytes, *(rows * output.row_bytes for output in self.asked)]
        return sum(aligned(part) for part in parts) if max(parts) >= SMALL else 0

    @property
    def asked(self) -> list[Tensor]:
        """The outputs that will be answered, as far as the metadata has them."""
        wanted = self.outputs
        return [out for out in self.info.outputs if wanted is None or out.name in wanted]

    def request(self, inputs: Mapping[str, Array]) -> Request:
        """One ModelInferRequest; shared memory is for a single input."""
        message = protocol.ModelInferRequest(model_name=self.info.name, model_version=self.version)
        for name, x in inputs.items():
            message.inputs.add(name=name, datatype=tensors.datatype_of(x), shape=x.shape)
        for name in self.outputs or ():
            message.outputs.add(name=name)
        self.options.fill(message)
        pairs = self.options.metadata
        rows = _count(inputs) if self.info.batched else None
        arrays = list(inputs.values())
        if self.regions is None or len(arrays) > 1 or arrays[0].dtype == object:
            return Request(tensors.serialize(message, arrays), rows, metadata=pairs)
        region = next(self.regions)
        inside = region.put(message.inputs[0], arrays[0])
        places = self._reserve(message, region, rows) if inside else None
        data = message.SerializeToString() if inside else tensors.serialize(message, arrays)
        return Request(data, rows, region, places, pairs)

    def _reserve(self, message: Any, region: Region, rows: int | None) -> Places:
        """Places in `region` for the outputs whose size is known and worth it."""
        sizes = {
            out.name: (rows or 1) * out.row_bytes for out in self.asked if out.datatype != "BYTES"
        }
        if max(sizes.values(), default=0) < SMALL:
            return {}
        if self.outputs is None:  # naming one is naming all
            for output in self.asked:
                message.outputs.add(name=output.name)
        places: Places = {}
        for output in message.outputs:
            size = sizes.get(output.name, 0)
            if size >= SMALL and (place := region.reserve(output, size)):
                places[output.name] = place
        return places

    def split(self, inputs: Mapping[str, Array]) -> Iterator[Request]:
        """Requests for the parts of a batch, in order, each made when it is pulled."""
        if not self.info.batched:
            self.check_size(sum(x.nbytes for x in inputs.values()))
            yield self.request(inputs)
            return
        count = _count(inputs)
        row_bytes = sum(x.nbytes for x in inputs.values()) // count
        self.check_size(row_bytes)
        rows = self.rows_per_request(row_bytes)
        for start in range(0, count, rows):
            yield self.request({name: x[start : start + rows] for name, x in inputs.items()})

    def encoded(self, images: Iterable[Any]) -> Iterator[Request]:
        """Requests for encoded images, as BYTES tensors, each full up to the limits."""
        name = self.info.input.name
        part: list[bytes] = []
        size = 0
        for image in images:
            data = read_image(image)
            self.check_size(4 + len(data))
            full = self.limit_batch(len(part) + 1) == len(part)
            if part and (full or size + 4 + len(data) > self.room):
                yield self.request({name: _bytes_tensor(part)})
                part, size = [], 0
            part.append(data)
            size += 4 + len(data)
        if part:
            yield self.request({name: _bytes_tensor(part)})


def _count(inputs: Mapping[str, Array]) -> int:
    """The number of images, the same in every input."""
    return len(next(iter(inputs.values())))


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
        arrays = _read_outputs(request, response)
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


def _read_outputs(request: Request, response: Any) -> dict[str, Array]:
    """The outputs by name, from the message and from the request's region."""
    outputs, raw = response.outputs, response.raw_output_contents
    region, places = request.region, request.places
    if region is None or not places:
        return tensors.read_tensors(outputs, raw)
    elsewhere = [output.name in places and PARAMETER in output.parameters for output in outputs]
    if len(raw) == len(outputs):  # an output in shared memory may leave an empty entry, or none
        raw = [data for data, placed in zip(raw, elsewhere, strict=True) if not placed]
    inside = [output for output, placed in zip(outputs, elsewhere, strict=True) if not placed]
    arrays = tensors.read_tensors(inside, raw)
    for output, placed in zip(outputs, elsewhere, strict=True):
        if placed:
            arrays[output.name] = region.read(output, places[output.name])
    return arrays


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
