"""ModelInfer messages to checked arrays, and named outputs to a message.

Nothing reaches a model that does not fit it: all of a request is checked here, cheapest test
first, before anything of its size is allocated. Faults raise InvalidRequestError with the inference
protocol's usual words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from convserve.engine.repository import ServedModel
from convserve.errors import InvalidRequestError, UnknownNameError
from convserve.serving.classification import classify
from convserve.serving.describe import input_datatypes
from convserve_client import protocol, tensors

__all__ = [
    "Schedule",
    "Wanted",
    "layers",
    "read_input",
    "read_schedule",
    "read_wanted",
    "response",
    "wants_final_response",
]

Array = npt.NDArray[Any]
_FP32 = np.dtype("<f4")
_DTYPES: dict[str, np.dtype[Any]] = {"FP32": _FP32, "UINT8": np.dtype("u1")}
_SHARED_MEMORY = "shared_memory_region"


class Wanted(NamedTuple):
    """An output that the caller asks for; `classes` > 0 asks for its best classes as text."""

    name: str
    classes: int = 0


class Schedule(NamedTuple):
    """When the caller wants to be served: see `Request`."""

    priority: int
    timeout: float


_ANY_TIME = Schedule(0, 0.0)


def read_input(served: ServedModel, message: Any) -> Array | dict[str, Array] | list[bytes]:
    """The images of a ModelInferRequest.

    float32[N, C, H, W] (normalised), uint8[N, C, H, W] (raw pixels) or N encoded images, with
    1 <= N <= the model's largest batch; for a model with several inputs one array for each by
    name. Arrays are read-only views on the message where possible.
    """
    x = _plain(served, message)
    if x is not None:
        return x
    places = _checked_inputs(served, message)
    shapes = served.model.inputs
    read = {name: _read_tensor(served, message, places[name], shapes[name]) for name in shapes}
    if len(read) == 1:
        return next(iter(read.values()))
    arrays = {name: value for name, value in read.items() if isinstance(value, np.ndarray)}
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{_shown(name)}: {size}" for name, size in sizes.items())
        raise InvalidRequestError(
            f"all inputs must have the same batch-size for model '{served.name}', got {shown}"
        )
    return arrays


def _plain(served: ServedModel, message: Any) -> Array | None:
    """The images of the usual request, one raw FP32 tensor, if all of it is as it must be.

    Whatever is not quite so, right or wrong, is for the thorough way.
    """
    raws, tensors_ = message.raw_input_contents, message.inputs
    if len(raws) != 1 or len(tensors_) != 1:
        return None
    tensor, raw, model = tensors_[0], raws[0], served.model
    shape = tuple(tensor.shape)
    if (
        tensor.name == model.input_name
        and tensor.datatype == "FP32"
        and model.takes_one
        and shape[1:] == model.input_shape
        and 1 <= shape[0] <= served.config.max_batch_size
        and len(raw) == 4 * math.prod(shape)
        and not tensor.HasField("contents")
        and not tensor.parameters
    ):
        return np.frombuffer(raw, _FP32).reshape(shape)
    return None


def _read_tensor(
    served: ServedModel, message: Any, place: int, dims: tuple[int, ...]
) -> Array | list[bytes]:
    """Input number `place` of the message, whose images have the sizes `dims`."""
    tensor = message.inputs[place]
    what = f"input '{tensor.name}' for model '{served.name}'"
    allowed = input_datatypes(served.model)
    if tensor.datatype not in allowed:
        raise InvalidRequestError(
            f"unexpected datatype {_shown(tensor.datatype)} for {what}: expected {_names(allowed)}"
        )
    shape = _checked_shape(served, tensor, dims, what)
    raw = message.raw_input_contents[place] if message.raw_input_contents else None
    if raw is not None and tensor.contents.ByteSize():
        raise InvalidRequestError(
            f"contents field must not be specified when using raw_input_contents for {what}"
        )
    try:
        if tensor.datatype == "BYTES":
            if raw is not None:
                return tensors.decode_bytes(raw, shape[0])
            return list(tensors.from_contents("BYTES", shape, tensor.contents).flat)
        if raw is None:
            return tensors.from_contents(tensor.datatype, shape, tensor.contents)
    except ValueError as error:
        raise InvalidRequestError(f"{what}: {error}") from None
    dtype = _DTYPES[tensor.datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        raise InvalidRequestError(
            f"input byte size mismatch for {what}. Expected {expected}, got {len(raw)}"
        )
    return np.frombuffer(raw, dtype).reshape(shape)


def _checked_inputs(served: ServedModel, message: Any) -> dict[str, int]:
    """Where each of the model's inputs is in the message: all of them, in one form, no others."""
    inputs, raw = message.inputs, message.raw_input_contents
    expected = list(served.model.inputs)
    got = [tensor.name for tensor in inputs]
    if len(got) != len(expected) or set(got) != set(expected):
        counts = Counter(got)
        faults = [
            f"expected {len(expected)} inputs but got {len(got)} inputs for model '{served.name}'",
            f"expected {_names(expected)}, got {_names(got)}",
        ]
        if missing := [name for name in expected if name not in counts]:
            faults.append(f"missing {_names(missing)}")
        if extra := [name for name in counts if name not in expected]:
            faults.append(f"unexpected {_names(extra)}")
        if twice := [name for name, count in counts.items() if count > 1]:
            faults.append(f"given more than once {_names(twice)}")
        raise InvalidRequestError("; ".join(faults))
    for tensor in inputs:
        if _SHARED_MEMORY in tensor.parameters:
            raise InvalidRequestError(f"input '{tensor.name}': shared memory is not enabled")
    if raw and len(raw) != len(inputs):
        raise InvalidRequestError(
            f"raw_input_contents must have one entry an input for model '{served.name}'. "
            f"Expected {len(inputs)}, got {len(raw)}"
        )
    return {name: place for place, name in enumerate(got)}


def _checked_shape(
    served: ServedModel, tensor: Any, dims: tuple[int, ...], what: str
) -> tuple[int, ...]:
    sizes = tensor.shape
    if tensor.datatype == "BYTES":
        fits = len(sizes) in (1, 2) and list(sizes[1:]) in ([], [1])
        expected = "[-1] or [-1,1]"
    else:
        fits = len(sizes) == len(dims) + 1 and tuple(sizes[1:]) == dims
        expected = _shape([-1, *dims])
    if not fits:
        raise InvalidRequestError(
            f"unexpected shape for {what}. Expected {expected}, got {_shape(sizes)}"
        )
    limit = served.config.max_batch_size
    if not 1 <= sizes[0] <= limit:
        bound = f"<= {limit}" if sizes[0] > limit else ">= 1"
        raise InvalidRequestError(
            f"inference request batch-size must be {bound} for '{served.name}', got {sizes[0]}"
        )
    return tuple(sizes)


@lru_cache(maxsize=64)
def _all(names: tuple[str, ...]) -> tuple[Wanted, ...]:
    return tuple(map(Wanted, names))


def read_wanted(served: ServedModel, message: Any) -> Sequence[Wanted]:
    """The outputs that a ModelInferRequest asks for; all of them if it names none."""
    known = served.model.output_names
    if not message.outputs:
        return _all(known)
    wanted: dict[str, Wanted] = {}
    for output in message.outputs:
        if output.name not in known and not _is_open_layer(served, output.name):
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
    return list(wanted.values())


def _is_open_layer(served: ServedModel, name: str) -> bool:
    """Whether it is a layer, of a model whose configuration lets callers ask for layers."""
    if not served.config.layer_outputs:
        return False
    try:
        served.model.graph.resolve(name)
    except UnknownNameError:
        return False
    return True


def layers(served: ServedModel, wanted: Iterable[Wanted]) -> list[str] | None:
    """The layers to compute; None for the model's own outputs, which most requests share."""
    own = served.model.output_names
    if wanted is _all(own):
        return None
    names = [output.name for output in wanted]
    return None if all(name in own for name in names) else names


def read_schedule(message: Any) -> Schedule:
    """The `priority` and `timeout` parameters of a ModelInferRequest."""
    if not message.parameters:
        return _ANY_TIME
    priority = _whole(message.parameters, "priority", "the request") or 0
    timeout = _whole(message.parameters, "timeout", "the request") or 0
    return Schedule(priority, timeout * 1e-6)


def wants_final_response(message: Any) -> bool:
    """Whether the caller of a stream wants to be told which answer to a request is the last."""
    name = "triton_enable_empty_final_response"
    if name not in message.parameters:
        return False
    parameter = message.parameters[name]
    choice = parameter.WhichOneof("parameter_choice")
    if choice != "bool_param":
        raise InvalidRequestError(
            f"invalid value type for '{name}' parameter of the request: expected bool_param, "
            f"got {choice}"
        )
    return bool(parameter.bool_param)


def _whole(parameters: Any, name: str, what: str) -> int | None:
    """A parameter that is a whole number from 0; None if it is not given."""
    if name not in parameters:
        return None
    parameter = parameters[name]
    choice = parameter.WhichOneof("parameter_choice")
    if choice not in ("int64_param", "uint64_param"):
        raise InvalidRequestError(
            f"invalid value type for '{name}' parameter of {what}: expected int64_param, "
            f"got {choice}"
        )
    value = int(getattr(parameter, choice))
    if value < 0:
        raise InvalidRequestError(f"'{name}' parameter of {what} must be >= 0, got {value}")
    return value


def _classes(output: Any) -> int:
    return _whole(output.parameters, "classification", f"output '{output.name}'") or 0


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
