"""ModelInfer messages to checked arrays, and named outputs to a message.

Nothing reaches a model that does not fit it: all of a request is checked here, cheapest test
first, before anything of its size is allocated. Faults raise InvalidRequestError with the inference
protocol's usual words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from convserve.engine.repository import ServedModel
from convserve.errors import InvalidRequestError
from convserve.serving.classification import classify
from convserve.serving.describe import input_datatypes
from convserve_client import protocol, tensors

__all__ = ["Wanted", "read_input", "read_wanted", "response"]

Array = npt.NDArray[Any]
_DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}
_SHARED_MEMORY = "shared_memory_region"


class Wanted(NamedTuple):
    """An output that the caller asks for; `classes` > 0 asks for its best classes as text."""

    name: str
    classes: int = 0


def read_input(served: ServedModel, message: Any) -> Array | list[bytes]:
    """The images of a ModelInferRequest.

    float32[N, C, H, W] (normalised), uint8[N, C, H, W] (raw pixels) or N encoded images, with
    1 <= N <= the model's largest batch. Arrays are read-only views on the message where possible.
    """
    tensor = _only_input(served, message)
    what = f"input '{tensor.name}' for model '{served.name}'"
    allowed = input_datatypes(served.model)
    if tensor.datatype not in allowed:
        raise InvalidRequestError(
            f"unexpected datatype {_shown(tensor.datatype)} for {what}: expected {_names(allowed)}"
        )
    shape = _checked_shape(served, tensor, what)
    raw = message.raw_input_contents
    if raw and tensor.contents.ByteSize():
        raise InvalidRequestError(
            f"contents field must not be specified when using raw_input_contents for {what}"
        )
    try:
        if tensor.datatype == "BYTES":
            if raw:
                return tensors.decode_bytes(raw[0], shape[0])
            return list(tensors.from_contents("BYTES", shape, tensor.contents).flat)
        if not raw:
            return tensors.from_contents(tensor.datatype, shape, tensor.contents)
    except ValueError as error:
        raise InvalidRequestError(f"{what}: {error}") from None
    dtype = _DTYPES[tensor.datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(raw[0]) != expected:
        raise InvalidRequestError(
            f"input byte size mismatch for {what}. Expected {expected}, got {len(raw[0])}"
        )
    return np.frombuffer(raw[0], dtype).reshape(shape)


def _only_input(served: ServedModel, message: Any) -> Any:
    """The model's one input tensor, in one form."""
    inputs, raw = message.inputs, message.raw_input_contents
    expected = served.model.input_name
    if len(inputs) != 1 or inputs[0].name != expected:
        got = [tensor.name for tensor in inputs]
        counts = Counter(got)
        faults = [
            f"expected 1 inputs but got {len(got)} inputs for model '{served.name}'",
            f"expected ['{expected}'], got {_names(got)}",
        ]
        if expected not in counts:
            faults.append(f"missing ['{expected}']")
        if extra := [name for name in counts if name != expected]:
            faults.append(f"unexpected {_names(extra)}")
        if twice := [name for name, count in counts.items() if count > 1]:
            faults.append(f"given more than once {_names(twice)}")
        raise InvalidRequestError("; ".join(faults))
    if _SHARED_MEMORY in inputs[0].parameters:
        raise InvalidRequestError(f"input '{expected}': shared memory is not enabled")
    if raw and len(raw) != 1:
        raise InvalidRequestError(
            f"raw_input_contents must have one entry an input for model '{served.name}'. "
            f"Expected 1, got {len(raw)}"
        )
    return inputs[0]


def _checked_shape(served: ServedModel, tensor: Any, what: str) -> tuple[int, ...]:
    sizes = tensor.shape
    if tensor.datatype == "BYTES":
        fits = len(sizes) in (1, 2) and list(sizes[1:]) in ([], [1])
        expected = "[-1] or [-1,1]"
    else:
        dims = served.model.input_shape
        fits = len(sizes) == len(dims) + 1 and tuple(sizes[1:]) == tuple(dims)
        expected = _shape([-1, *dims])
    if not fits:
        raise InvalidRequestError(
            f"unexpected shape for {what}. Expected {expected}, got {_shape(sizes)}"
        )
    limit = served.scheduler.batching.max_batch_size
    if not 1 <= sizes[0] <= limit:
        bound = f"<= {limit}" if sizes[0] > limit else ">= 1"
        raise InvalidRequestError(
            f"inference request batch-size must be {bound} for '{served.name}', got {sizes[0]}"
        )
    return tuple(sizes)


def read_wanted(served: ServedModel, message: Any) -> list[Wanted]:
    """The outputs that a ModelInferRequest asks for; all of them if it names none."""
    known = served.model.output_names
    wanted: dict[str, Wanted] = {}
    for output in message.outputs:
        if output.name not in known:
            raise InvalidRequestError(
                f"unexpected inference output {_shown(output.name)} for model '{served.name}': "
                f"known are {_names(known)}"
            )
        if output.name in wanted:
            raise InvalidRequestError(
                f"output '{output.name}' is requested more than once from model '{served.name}'"
            )
        if _SHARED_MEMORY in output.parameters:
            raise InvalidRequestError(f"output '{output.name}': shared memory is not enabled")
        wanted[output.name] = Wanted(output.name, _classes(output))
    return list(wanted.values()) or [Wanted(name) for name in known]


def _classes(output: Any) -> int:
    if "classification" not in output.parameters:
        return 0
    parameter = output.parameters["classification"]
    choice = parameter.WhichOneof("parameter_choice")
    if choice not in ("int64_param", "uint64_param"):
        raise InvalidRequestError(
            f"invalid value type for 'classification' parameter of output '{output.name}': "
            f"expected int64_param, got {choice}"
        )
    count = int(getattr(parameter, choice))
    if count < 0:
        raise InvalidRequestError(
            f"'classification' parameter of output '{output.name}' must be >= 0, got {count}"
        )
    return count


def response(
    served: ServedModel, request_id: str, wanted: Iterable[Wanted], outputs: Mapping[str, Array]
) -> Any:
    """The ModelInferResponse with `outputs`, always in raw form."""
    answer = protocol.ModelInferResponse(
        model_name=served.name, model_version=served.version, id=request_id
    )
    for name, classes in wanted:
        scores = outputs[name]
        if classes:
            rows = classify(scores, classes, served.model.labels)
            answer.outputs.add(name=name, datatype="BYTES", shape=[len(rows), len(rows[0])])
            answer.raw_output_contents.append(
                tensors.encode_bytes(text for row in rows for text in row)
            )
        else:
            answer.outputs.add(name=name, datatype="FP32", shape=scores.shape)
            answer.raw_output_contents.append(scores.astype("<f4", copy=False).tobytes())
    return answer


def _shown(name: str) -> str:
    """A name from the wire as part of a message, which must stay short."""
    return f"'{name}'" if len(name) <= 64 else f"'{name[:64]}…'"


def _names(names: Sequence[str]) -> str:
    shown = [_shown(name) for name in names[:8]]
    return f"[{', '.join(shown)}{', …' if len(names) > 8 else ''}]"


def _shape(sizes: Sequence[int]) -> str:
    shown = ",".join(str(size) for size in sizes[:8])
    return f"[{shown}]" if len(sizes) <= 8 else f"[{shown},…] of rank {len(sizes)}"
