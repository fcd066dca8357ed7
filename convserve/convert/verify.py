"""How far a converted model's outputs are from ONNX Runtime's, on random images."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from convserve.errors import ConversionError
from convserve.graph import Graph

__all__ = ["Difference", "verify"]

Array: TypeAlias = npt.NDArray[np.float32]
Predict: TypeAlias = "Callable[[dict[str, Array]], Mapping[str, Array]]"


class Difference(NamedTuple):
    """Of one output: the largest absolute one, and that relative to the largest value."""

    output: str
    absolute: float
    relative: float


def verify(
    source: str | os.PathLike[str], graph: Graph, predict: Predict, *, batch: int = 3, seed: int = 0
) -> list[Difference]:
    """Runs `batch` random images through the ONNX file and through `predict`.

    `graph` is the converted one; `predict` takes float32 arrays by input name ([N, C, H, W], or
    [N, F]) to outputs by wire name.
    Errors: ConversionError where ONNX Runtime is not installed, or can't run the file.
    """
    try:
        import onnxruntime  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError as error:
        raise ConversionError("verifying needs ONNX Runtime: pip install onnxruntime") from error
    try:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            os.fspath(source), options, providers=["CPUExecutionProvider"]
        )
        declared = {given.name: given.shape for given in session.get_inputs()}
        fixed = [sizes[0] for sizes in declared.values() if isinstance(sizes[0], int)]
        count = fixed[0] if fixed and fixed[0] > 0 else batch
        rng = np.random.default_rng(seed)
        x = {
            name: rng.standard_normal((count, *shape), np.float32)
            for name, shape in graph.inputs.items()
        }
        names = list(graph.outputs)
        expected = session.run(names, {name: _as_declared(x[name], declared[name]) for name in x})
    except Exception as error:  # onnxruntime's own exceptions have no public base
        detail = " ".join(str(error).split())
        raise ConversionError(f"ONNX Runtime can't run the model: {detail:.500}") from error
    actual = predict(x)
    return [_difference(name, actual[name], e) for name, e in zip(names, expected, strict=True)]


def _as_declared(x: Array, declared: list[Any]) -> Array:
    """The images with their channels last, where the ONNX model has them so."""

    def fits(sizes: tuple[int, ...]) -> bool:
        return len(sizes) + 1 == len(declared) and all(
            not isinstance(d, int) or d == size for d, size in zip(declared[1:], sizes, strict=True)
        )

    turned = np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if x.ndim == 4 else x
    return turned if not fits(x.shape[1:]) and fits(turned.shape[1:]) else x


def _difference(name: str, actual: Array, expected: Array) -> Difference:
    if actual.shape != expected.shape:
        raise ConversionError(
            f"the output {name!r} has the shape {actual.shape}, ONNX Runtime's has {expected.shape}"
        )
    if not actual.size:
        return Difference(name, 0.0, 0.0)
    difference = np.abs(actual.astype(np.float64) - expected)
    absolute = float(difference.max()) if not np.isnan(difference).any() else float("inf")
    largest = float(np.abs(expected).max())
    return Difference(name, absolute, absolute / largest if largest else absolute)
