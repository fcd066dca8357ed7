"""Tensors on the wire: datatype names, raw bytes and typed contents, to and from NumPy arrays.

Both ends use this. A tensor travels *raw* (elements row-major, little-endian, without padding) or
in the typed fields of `InferTensorContents`. BYTES elements are arbitrary byte strings; in raw
form each is preceded by its length as four little-endian bytes, and here they are `bytes` in an
array of dtype object. Everything malformed raises ValueError, and nothing is allocated or read on
the word of a length or a shape that the data does not bear out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from convserve_client import protocol

__all__ = [
    "DATATYPES",
    "datatype_of",
    "decode_bytes",
    "element_count",
    "encode_bytes",
    "from_contents",
    "from_raw",
    "read_tensors",
    "serialize",
    "to_contents",
    "to_raw",
]

Array = npt.NDArray[Any]
Buffer = bytes | bytearray | memoryview

MAX_RANK = 32  # what every supported NumPy can hold
MAX_ELEMENTS = 2**63 - 1

# Raw form. BF16 has no NumPy dtype: its bits are read as uint16 and widened, exactly, to float32.
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype("O"),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items() if name != "BF16"}

# Datatype -> field of InferTensorContents and the width of that field's elements.
_CONTENTS: dict[str, tuple[str, npt.DTypeLike]] = {
    "BOOL": ("bool_contents", np.bool_),
    "UINT8": ("uint_contents", np.uint32),
    "UINT16": ("uint_contents", np.uint32),
    "UINT32": ("uint_contents", np.uint32),
    "UINT64": ("uint64_contents", np.uint64),
    "INT8": ("int_contents", np.int32),
    "INT16": ("int_contents", np.int32),
    "INT32": ("int_contents", np.int32),
    "INT64": ("int64_contents", np.int64),
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
    "BYTES": ("bytes_contents", np.object_),
}


def datatype_of(array: Array) -> str:
    """The wire's name of an array's dtype, in either byte order: float32 is "FP32"."""
    try:
        return _NAMES[array.dtype.newbyteorder("<")]
    except KeyError:
        raise ValueError(f"dtype {array.dtype} has no datatype on the wire") from None


def element_count(shape: Iterable[int]) -> int:
    """The product of a shape's sizes; refuses negative sizes, rank > 32 and 2**63 elements."""
    sizes = list(shape)
    if len(sizes) > MAX_RANK:
        raise ValueError(f"rank {len(sizes)} is above {MAX_RANK}")
    if any(size < 0 for size in sizes):
        raise ValueError(f"shape {sizes} has a negative size")
    if math.prod(max(size, 1) for size in sizes) > MAX_ELEMENTS:
        raise ValueError(f"shape {sizes} has more than 2**63 - 1 elements")
    return math.prod(sizes)


def encode_bytes(items: Iterable[bytes | str]) -> bytes:
    """Byte strings (or text, as UTF-8), each after its length, in one piece."""
    pieces: list[bytes] = []
    for item in items:
        data = item.encode() if isinstance(item, str) else item
        if not isinstance(data, bytes):
            raise ValueError(f"an element of a BYTES tensor is {type(item).__name__}, not bytes")
        if len(data) >= 2**32:
            raise ValueError(f"an element of {len(data)} bytes is over the wire's limit of 4 GiB")
        pieces += (len(data).to_bytes(4, "little"), data)
    return b"".join(pieces)


def decode_bytes(raw: Buffer, count: int) -> list[bytes]:
    """The inverse of `encode_bytes`: exactly `count` elements that fill `raw` exactly."""
    view = memoryview(raw)
    if count * 4 > len(view):
        raise ValueError(f"{count} elements need at least {count * 4} bytes, got {len(view)}")
    items: list[bytes] = []
    start = 0
    for index in range(count):
        data = start + 4
        end = data + int.from_bytes(view[start:data], "little")
        if data > len(view) or end > len(view):
            raise ValueError(f"element {index} of {count} ends beyond the {len(view)} bytes given")
        items.append(view[data:end].tobytes())
        start = end
    if start != len(view):
        raise ValueError(f"{count} elements take {start} bytes, got {len(view)}")
    return items


def _bytes_array(items: Sequence[bytes], shape: Sequence[int]) -> Array:
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array.reshape(tuple(shape))


def to_raw(array: Array) -> bytes:
    """An array's elements in raw form."""
    return bytes(_buffer(array))


def from_raw(datatype: str, shape: Sequence[int], raw: Buffer) -> Array:
    """A tensor in raw form as an array: a read-only view on `raw` (BYTES and BF16 are copied)."""
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        raise ValueError(f"unknown datatype {datatype!r}; known are {', '.join(DATATYPES)}")
    count = element_count(shape)
    if datatype == "BYTES":
        return _bytes_array(decode_bytes(raw, count), shape)
    if len(raw) != count * dtype.itemsize:
        raise ValueError(
            f"expected {count * dtype.itemsize} bytes for {datatype} {list(shape)}, got {len(raw)}"
        )
    if datatype == "BOOL" and raw and np.frombuffer(raw, np.uint8).max() > 1:
        raise ValueError("a BOOL element is neither 0 nor 1")
    array: Array = np.frombuffer(raw, dtype)
    array.flags.writeable = False
    if datatype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.reshape(tuple(shape))


def _contents_field(datatype: str) -> tuple[str, npt.DTypeLike]:
    if datatype in _CONTENTS:
        return _CONTENTS[datatype]
    if datatype in DATATYPES:
        raise ValueError(f"{datatype} travels in raw form only")
    raise ValueError(f"unknown datatype {datatype!r}; known are {', '.join(DATATYPES)}")


def to_contents(array: Array) -> Any:
    """An array as `InferTensorContents`."""
    datatype = datatype_of(array)
    field, _ = _contents_field(datatype)
    items = array.ravel().tolist()
    if datatype == "BYTES":
        items = [item.encode() if isinstance(item, str) else item for item in items]
    return protocol.InferTensorContents(**{field: items})


def from_contents(datatype: str, shape: Sequence[int], contents: Any) -> Array:
    """A tensor of `InferTensorContents` as an array; checks field, count and range."""
    field, width = _contents_field(datatype)
    wrong = [used.name for used, _ in contents.ListFields() if used.name != field]
    if wrong:
        raise ValueError(f"{datatype} elements belong in {field}, got {wrong[0]}")
    items = getattr(contents, field)
    count = element_count(shape)
    if len(items) != count:
        raise ValueError(
            f"expected {count} elements for {datatype} {list(shape)}, got {len(items)}"
        )
    if datatype == "BYTES":
        return _bytes_array(list(items), shape)
    array: Array = np.array(items, width)
    dtype = DATATYPES[datatype]
    if dtype.kind in "iu" and dtype.itemsize < array.itemsize and count:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise ValueError(f"an element is outside {datatype}, {limits.min} to {limits.max}")
    return array.astype(dtype, copy=False).reshape(tuple(shape))


def read_tensors(tensors: Sequence[Any], raw: Sequence[bytes]) -> dict[str, Array]:
    """The tensors of a ModelInfer request or response by name, in either form.

    `tensors` is the message's `inputs` or `outputs`, `raw` its `raw_*_contents`.
    """
    if raw and len(raw) != len(tensors):
        raise ValueError(f"expected {len(tensors)} raw contents, one a tensor, got {len(raw)}")
    arrays: dict[str, Array] = {}
    for index, tensor in enumerate(tensors):
        if tensor.name in arrays:
            raise ValueError(f"tensor {tensor.name!r} is given twice")
        try:
            if raw and tensor.HasField("contents"):
                raise ValueError("both raw and typed contents are given")
            arrays[tensor.name] = (
                from_raw(tensor.datatype, tensor.shape, raw[index])
                if raw
                else from_contents(tensor.datatype, tensor.shape, tensor.contents)
            )
        except ValueError as error:
            raise ValueError(f"tensor {tensor.name!r}: {error}") from None
    return arrays


def serialize(message: Any, arrays: Iterable[Array]) -> bytes:
    """A ModelInfer request or response, serialized with `arrays` as its raw contents.

    The same bytes as putting `to_raw(array)` into the message first, and three copies fewer:
    the raw contents are a message's last field, so they can be written straight behind the rest.
    """
    fields = message.DESCRIPTOR.fields_by_name
    field = fields.get("raw_input_contents") or fields["raw_output_contents"]
    pieces: list[Any] = [message.SerializeToString()]
    for array in arrays:
        raw = _buffer(array)
        pieces += (_varint(field.number << 3 | 2), _varint(len(raw)), raw)
    return b"".join(pieces)


def _buffer(array: Array) -> Any:
    """An array's raw form, without a copy where it lies in memory as it goes on the wire."""
    if datatype_of(array) == "BYTES":
        return encode_bytes(array.ravel().tolist())
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8)


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value > 127:
        digits.append(value & 127 | 128)
        value >>= 7
    digits.append(value)
    return bytes(digits)
