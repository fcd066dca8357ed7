"""What the client knows of a served model, and what it checks before it sends."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from convserve_client import tensors
from convserve_client.errors import InvalidRequestError, InvalidResponseError

Array = npt.NDArray[Any]
# For a model with one input its array; for several a dict by name, or a list in the model's order.
Inputs = Array | Mapping[str, Array] | Sequence[Array]


@dataclass(frozen=True)
class Tensor:
    """One input or output; `shape` leaves the batch out where there is one, -1 is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the array that the tensor is read into."""
        if self.datatype == "BF16":
            return np.dtype(np.float32)
        return tensors.DATATYPES.get(self.datatype, np.dtype(np.float32))

    @property
    def row_bytes(self) -> int:
        """Bytes of one image's part, as far as its shape is known."""
        return math.prod(max(size, 0) for size in self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class ModelInfo:
    """A model as its metadata and its configuration describe it.

    `max_batch_size` is None where the server has no limit or does not tell, and 0 for a model
    without a batch dimension, which takes exactly one array of the shape in its metadata.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch_size: int | None

    @classmethod
    def from_messages(cls, metadata: Any, config: Any | None) -> ModelInfo:
        """From a ModelMetadataResponse and, where the server has the call, a ModelConfig."""
        limit = None if config is None else config.max_batch_size
        skip = 0 if limit == 0 else 1
        if not metadata.inputs:
            raise InvalidResponseError(f"model {metadata.name!r} has no inputs in its metadata")

        def tensor(message: Any) -> Tensor:
            return Tensor(message.name, message.datatype, tuple(message.shape)[skip:])

        inputs, outputs = (
            tuple(tensor(message) for message in messages)
            for messages in (metadata.inputs, metadata.outputs)
        )
        return cls(metadata.name, inputs, outputs, limit)

    @property
    def batched(self) -> bool:
        return self.max_batch_size != 0

    @property
    def input(self) -> Tensor:
        """The model's only input; InvalidRequestError if it has several."""
        if len(self.inputs) > 1:
            names = [tensor.name for tensor in self.inputs]
            raise InvalidRequestError(
                f"model {self.name!r} has the inputs {names}; give predict a dict of arrays"
            )
        return self.inputs[0]

    def arrays(self, x: Inputs) -> dict[str, Array]:
        """An array for each input by name; InvalidRequestError unless they make one batch."""
        if isinstance(x, np.ndarray):
            given = {self.input.name: x}
        elif isinstance(x, Mapping):
            given = dict(x)
        else:
            if len(x) != len(self.inputs):
                raise InvalidRequestError(
                    f"model {self.name!r} has {len(self.inputs)} inputs, got {len(x)} arrays"
                )
            given = {tensor.name: array for tensor, array in zip(self.inputs, x, strict=True)}
        names = [tensor.name for tensor in self.inputs]
        for what, wrong in (
            ("is not given", [name for name in names if name not in given]),
            ("is unknown", [name for name in given if name not in names]),
        ):
            if wrong:
                raise InvalidRequestError(
                    f"input {wrong[0]!r} {what}: model {self.name!r} has the inputs {names}"
                )
        for tensor in self.inputs:
            self.check(given[tensor.name], tensor)
        counts = {name: len(given[name]) for name in names} if self.batched else {}
        if len(set(counts.values())) > 1:
            raise InvalidRequestError(f"all inputs must have the same N, got {counts}")
        return {name: given[name] for name in names}

    def check(self, x: Array, tensor: Tensor, *, image: bool = False) -> None:
        """Raises InvalidRequestError unless `x` is one batch (or one `image`) for this input."""
        given = x.shape if image or not self.batched else x.shape[1:]
        wanted = tensor.shape
        fits = len(given) == len(wanted) and all(
            size in (-1, got) for size, got in zip(wanted, given, strict=True)
        )
        if x.ndim == 0 or not fits:
            sizes = ", ".join("any" if size < 0 else str(size) for size in wanted)
            batch = "" if image or not self.batched else "N, "
            which = "" if len(self.inputs) == 1 else f" as {tensor.name!r}"
            raise InvalidRequestError(
                f"model {self.name!r} takes{which} arrays of shape [{batch}{sizes}], "
                f"got {list(x.shape)}"
            )

    def empty(self, outputs: Sequence[str] | None) -> dict[str, Array]:
        """The answer to no images at all."""
        known = {tensor.name: tensor for tensor in self.outputs}
        names = list(known) if outputs is None else outputs
        if not names:
            raise InvalidRequestError(
                f"model {self.name!r} has no output in its metadata, so that the shape of an empty "
                "answer is not known"
            )
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InvalidRequestError(
                f"model {self.name!r} has no output {unknown[0]!r} in its metadata, so that the "
                f"shape of an empty answer is not known; it has {list(known)}"
            )
        return {
            name: np.empty(
                (0, *(max(size, 0) for size in known[name].shape)),
                known[name].dtype,
            )
            for name in names
        }


def check_dtypes(x: Any) -> None:
    """Raises TypeError unless `x` is what `predict` takes: arrays of float32 or uint8."""
    if isinstance(x, Mapping):
        for name, array in x.items():
            check_dtype(array, f"x[{name!r}]")
    elif isinstance(x, list | tuple) and any(isinstance(item, np.ndarray) for item in x):
        for place, array in enumerate(x):
            check_dtype(array, f"x[{place}]")
    else:
        check_dtype(x)


def check_dtype(x: Any, name: str = "x") -> None:
    """Raises TypeError unless `x` is an array of float32 or uint8."""
    if not isinstance(x, np.ndarray):
        raise TypeError(f"{name} must be a numpy.ndarray, got {type(x).__name__}")
    if isinstance(x, np.ma.MaskedArray):  # the wire has no mask: hidden values would be computed on
        raise TypeError(f"{name} must not be a masked array; fill it with {name}.filled(value)")
    if x.dtype not in (np.float32, np.uint8):
        advice = "; convert with x.astype(numpy.float32)" if x.dtype.kind in "fiu" else ""
        raise TypeError(
            f"{name} must be float32 (normalised) or uint8 (raw pixels), got {x.dtype}{advice}"
        )


def labels_of(config: Any | None) -> tuple[str, ...] | None:
    """The class labels in a ModelConfig's parameters, if it has them."""
    if config is None or "labels" not in config.parameters:
        return None
    text = config.parameters["labels"].string_value
    try:
        labels = json.loads(text)
    except (ValueError, RecursionError):
        labels = None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InvalidResponseError(
            f"the labels of model {config.name!r} are not a JSON array of strings: {text[:80]!r}"
        )
    return tuple(labels)


def top_k(scores: Array, k: int, labels: Sequence[str] | None) -> list[list[tuple[str, float]]]:
    """The `k` best classes of each row of `scores` [N, K], best first.

    Of equal scores the lower index comes first; NaN comes last. Without labels a class is named
    by its index.
    """
    names = labels if labels is not None else [str(index) for index in range(scores.shape[1])]
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    return [
        [(names[index], score) for index, score in zip(indices, row, strict=True)]
        for indices, row in zip(order.tolist(), best.tolist(), strict=True)
    ]
