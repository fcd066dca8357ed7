"""Tensors of a request that lie in shared memory, put into the message and taken out of it.

What reads requests and writes answers knows nothing of shared memory: before, the inputs are copied
from their regions to where inputs usually are; after, outputs go to their regions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from convserve.errors import InvalidRequestError
from convserve.serving.shared_memory import Region, Regions
from convserve_client import tensors

__all__ = ["Place", "deliver", "take"]

_REGION, _SIZE, _OFFSET = (
    "shared_memory_region",
    "shared_memory_byte_size",
    "shared_memory_offset",
)


class Place(NamedTuple):
    """Where a tensor lies: `size` bytes at `offset` of a region."""

    region: Region
    offset: int
    size: int


def take(regions: Regions, message: Any) -> dict[str, Place]:
    """Make a ModelInferRequest a plain one; returns where the caller wants which output."""
    if any(_REGION in tensor.parameters for tensor in message.inputs):
        sent = list(reversed(message.raw_input_contents))
        is_raw = bool(sent)
        raw = []
        for tensor in message.inputs:
            if _REGION not in tensor.parameters:
                if not is_raw and tensor.HasField("contents"):
                    raw.append(_typed_to_raw(tensor))
                elif sent:
                    raw.append(sent.pop())
                else:
                    raise InvalidRequestError(
                        f"input '{tensor.name[:64]}' has neither contents nor a region"
                    )
                continue
            if tensor.HasField("contents"):
                raise InvalidRequestError(
                    f"contents field must not be specified when using shared memory for input "
                    f"'{tensor.name[:64]}'"
                )
            region, offset, size = _place(regions, tensor)
            raw.append(bytes(region.read(offset, size)))
        del message.raw_input_contents[:]
        message.raw_input_contents.extend([*raw, *reversed(sent)])  # what is too much is refused
    places = {}
    for output in message.outputs:
        if _REGION in output.parameters:
            if "classification" in output.parameters:
                raise InvalidRequestError(
                    f"shared memory can't be used with classification for output "
                    f"'{output.name[:64]}'"
                )
            places[output.name] = _place(regions, output)
    return places


def _typed_to_raw(tensor: Any) -> bytes:
    """Take a tensor's typed contents out of it."""
    try:
        array = tensors.from_contents(tensor.datatype, tensor.shape, tensor.contents)
    except ValueError as error:
        raise InvalidRequestError(f"input '{tensor.name[:64]}': {error}") from None
    tensor.ClearField("contents")
    return tensors.to_raw(array)


def deliver(places: Mapping[str, Place], answer: Any) -> None:
    """Move the outputs of a ModelInferResponse to where they are wanted."""
    for index, output in enumerate(answer.outputs):
        place = places.get(output.name)
        if place is None:
            continue
        data = answer.raw_output_contents[index]
        if len(data) > place.size:
            raise InvalidRequestError(
                f"shared memory size specified with the request for output '{output.name}' "
                f"({place.size} bytes) should be at least {len(data)} bytes to hold the results"
            )
        place.region.write(place.offset, memoryview(data))
        answer.raw_output_contents[index] = b""
        output.parameters[_REGION].string_param = place.region.name
        output.parameters[_SIZE].int64_param = len(data)
        if place.offset:
            output.parameters[_OFFSET].int64_param = place.offset


def _place(regions: Regions, tensor: Any) -> Place:
    """Where a tensor of the request says that it lies; its parameters are taken off."""
    values = {}
    kinds = ((_REGION, ("string_param",)), (_SIZE, _WHOLE), (_OFFSET, _WHOLE))
    for name, allowed in kinds:
        if name not in tensor.parameters:
            continue
        choice = tensor.parameters[name].WhichOneof("parameter_choice")
        if choice not in allowed:
            raise InvalidRequestError(
                f"invalid value type for '{name}' parameter of '{tensor.name[:64]}': expected "
                f"{allowed[0]}, got {choice}"
            )
        values[name] = getattr(tensor.parameters[name], choice)
        del tensor.parameters[name]
    size, offset = values.get(_SIZE, 0), values.get(_OFFSET, 0)
    if size < 1 or offset < 0:
        raise InvalidRequestError(
            f"'{tensor.name[:64]}' needs a {_SIZE} from 1 and an offset from 0, got {size} and "
            f"{offset}"
        )
    region = regions.get(values[_REGION])
    region.check(offset, size)
    return Place(region, offset, size)


_WHOLE = ("int64_param", "uint64_param")
