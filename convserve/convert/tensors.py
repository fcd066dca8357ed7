"""ONNX tensors to arrays, trusting neither their sizes nor where they say that their data is."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

from convserve.convert.values import Array, Unsupported
from convserve.errors import ConversionError
from convserve.graph.graph import MAX_ELEMENTS

__all__ = ["dtype_of", "load_external", "to_array"]

_DTYPES: dict[int, Any] = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.INT8: np.int8,
    TensorProto.INT16: np.int16,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
    TensorProto.UINT8: np.uint8,
    TensorProto.UINT16: np.uint16,
    TensorProto.UINT32: np.uint32,
    TensorProto.UINT64: np.uint64,
    TensorProto.BOOL: np.bool_,
}


def dtype_of(data_type: int) -> Any:
    """NumPy's type for an ONNX element type."""
    if data_type not in _DTYPES:
        raise Unsupported(f"it needs values of the type {type_name(data_type)}")
    return _DTYPES[data_type]


def type_name(data_type: int) -> str:
    known = TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(data_type)) if data_type in known else f"{data_type}"


def to_array(tensor: TensorProto) -> Array:
    """The tensor's values; without a copy where they lie in it as bytes."""
    dtype = np.dtype(dtype_of(tensor.data_type))
    shape = tuple(tensor.dims)
    if any(size < 0 for size in shape) or prod(shape) > MAX_ELEMENTS:
        raise ConversionError(f"the tensor {tensor.name!r:.200} has an impossible shape {shape}")
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ConversionError(f"the tensor {tensor.name!r:.200} has its data in another file")
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != prod(shape) * dtype.itemsize:
            raise ConversionError(
                f"the tensor {tensor.name!r:.200} of shape {shape} must have "
                f"{prod(shape) * dtype.itemsize} bytes, it has {len(tensor.raw_data)}"
            )
        return np.frombuffer(tensor.raw_data, dtype.newbyteorder("<")).reshape(shape)
    try:
        return numpy_helper.to_array(tensor).reshape(shape)
    except (ValueError, TypeError, KeyError) as error:
        raise ConversionError(f"the tensor {tensor.name!r:.200} is malformed: {error}") from None


def load_external(tensor: TensorProto, folder: Path | None) -> None:
    """Puts a tensor's data, kept in a file beside the model, into the tensor.

    Only a regular file inside the model's folder is read, and only where the sizes fit.
    """
    what = f"the tensor {tensor.name!r:.200}"
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    if folder is None:
        raise ConversionError(f"{what} has its data in the file {location!r:.200}")
    try:
        root = folder.resolve()
        path = (root / location).resolve()
        if not location or Path(location).is_absolute() or root not in path.parents:
            raise ConversionError(
                f"{what} has its data in {location!r:.200}, outside the model's folder"
            )
        if not path.is_file():
            raise ConversionError(f"{what} has its data in {location!r:.200}, which is no file")
        offset, size = int(fields.get("offset", "0")), path.stat().st_size
        length = int(fields.get("length", str(max(0, size - offset))))
        if offset < 0 or length < 0 or offset + length > size:
            raise ConversionError(f"{what} has its data beyond the end of {location!r:.200}")
        expected = prod(tensor.dims) * np.dtype(dtype_of(tensor.data_type)).itemsize
        if length != expected or min(tensor.dims, default=1) < 0:
            raise ConversionError(f"{what} must have {expected} bytes of data, it has {length}")
        with path.open("rb") as file:
            file.seek(offset)
            tensor.raw_data = file.read(length)
    except (OSError, ValueError) as error:
        raise ConversionError(f"{what}: {location!r:.200}: {error}") from None
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
