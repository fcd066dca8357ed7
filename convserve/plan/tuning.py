"""The tuning record: what each layer's kernels take on this machine, in a file beside the model.

    model.npz   model.tune.json      made by `convserve bench model.npz --tune`

    {"format": 1, "convserve": "0.1.0", "isa": "avx512", "graph": "sha256:…",
     "layers": {"conv2": {"direct": {"1": 61800, "8": 494000}, "winograd4": {…}, …}, …}}

The times, in nanoseconds for so many images together, stand in for those of the cost model; what is
chosen from them, and so the bits of a result, is a function of model, instruction set and record.
Weights play no part: a model that is trained anew keeps its record. A record for another graph,
instruction set or release says nothing about what is to be run, and is not used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import convserve
from convserve._npz import FAULTS, NpzFault, atomic_file, open_regular
from convserve.errors import ModelFileError
from convserve.graph import Graph
from convserve.kernels._core import isa
from convserve.plan.choose import KERNELS, Choice, Times
from convserve.plan.compile import compile_plan
from convserve.plan.plan import Plan

__all__ = ["find", "read", "record_path", "tune", "write"]

_log = logging.getLogger(__name__)
FORMAT = 1
MAX_BYTES = 4 << 20
# Images that a group is measured with: more take long and tell little.
MAX_GROUP = 8
FEWEST_ROUNDS = 5

Record = Mapping[str, Times]


def record_path(model: str | os.PathLike[str]) -> Path:
    """Where the record of a model file lies."""
    return Path(model).with_suffix(".tune.json")


def tune(
    graph: Graph, params: Mapping[str, npt.NDArray[np.float32]], seconds: float = 2.0
) -> dict[str, Times]:
    """Times every kernel of every convolution inside the network, on one thread.

    The alternatives take turns for about `seconds` with one image and with a group, and the
    shortest time of each counts, so that a busy machine does little harm.
    """
    packed: dict[Any, Any] = {}
    plans = [compile_plan(graph, params, None, Choice(kernel=k), packed) for k in KERNELS]
    found: dict[str, dict[str, dict[int, float]]] = {}
    for images in (1, MAX_GROUP):
        best = _shortest(plans, graph, images, seconds)
        for plan, times in zip(plans, best, strict=True):
            for part, spent in zip(plan.parts, times, strict=True):
                if part.layers:
                    kernels = found.setdefault(part.layers[0], {})
                    # of a whole group, of which the call may have held several, or a part
                    group = min(images, part.group)
                    kernels.setdefault(part.kernel.name, {})[group] = spent * group / images
    return {layer: kernels for layer, kernels in found.items() if len(kernels) > 1}


def _shortest(
    plans: list[Plan], graph: Graph, images: int, seconds: float
) -> list[npt.NDArray[np.float64]]:
    """Nanoseconds of each step of each plan."""
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((images, *s), dtype=np.float32) for s in graph.inputs.values()]
    best = [np.full(len(plan.parts), np.inf) for plan in plans]
    end, rounds = time.monotonic() + seconds, 0
    while rounds < FEWEST_ROUNDS or time.monotonic() < end:
        for plan, times in zip(plans, best, strict=True):
            np.minimum(times, plan.profile(x, runs=1)[0] * 1e9, out=times)
        rounds += 1
    return best


def write(path: Path, graph: Graph, layers: Record) -> None:
    """Writes the record atomically; ModelFileError where that fails."""
    document = {
        "format": FORMAT,
        **_key(graph),
        "layers": {
            layer: {
                kernel: {str(n): round(t, 1) for n, t in times.items()}
                for kernel, times in kernels.items()
            }
            for layer, kernels in layers.items()
        },
    }
    try:
        with atomic_file(path) as file:
            file.write(json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")
    except FAULTS as error:
        raise _fault(path, error) from error


def read(path: Path, graph: Graph) -> Record:
    """The record's times; ModelFileError where it is malformed or for something else."""
    try:
        with open_regular(path) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise NpzFault(f"it is larger than {MAX_BYTES} bytes")
        return _checked(json.loads(data), graph)
    except (*FAULTS, RecursionError) as error:
        raise _fault(path, error) from error


def find(model: str | os.PathLike[str], graph: Graph) -> Record:
    """The times of the record beside a model file; none, and a warning, where it can't be used."""
    path = record_path(model)
    if not os.path.lexists(path):
        return {}
    try:
        return read(path, graph)
    except ModelFileError as error:
        _log.warning("the tuning record is not used: %s", error)
        return {}


def _key(graph: Graph) -> dict[str, str]:
    """What a record is good for."""
    text = json.dumps(graph.to_dict(), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return {"convserve": convserve.__version__, "isa": isa(), "graph": f"sha256:{digest}"}


def _checked(document: Any, graph: Graph) -> Record:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise NpzFault(f"it is no tuning record of format {FORMAT}")
    for key, value in _key(graph).items():
        if document.get(key) != value:
            raise NpzFault(
                f"it was made for {key} {document.get(key)!r:.80}, this is {value!r}; "
                "make it anew with: convserve bench MODEL --tune"
            )
    layers = document.get("layers")
    if not isinstance(layers, dict):
        raise NpzFault("its layers must be an object")
    return {layer: _checked_times(layer, kernels) for layer, kernels in layers.items()}


def _checked_times(layer: str, kernels: Any) -> Times:
    fault = NpzFault(
        f"its layer {layer!r:.80} must have, for each of {', '.join(KERNELS[1:])}, nanoseconds "
        "by the number of images"
    )
    # F(6, 3) is for some layers only
    if not isinstance(kernels, dict) or not set(KERNELS[1:]) <= set(kernels) <= set(KERNELS):
        raise fault
    times: dict[str, dict[int, float]] = {}
    for kernel, measured in kernels.items():
        if not isinstance(measured, dict) or not measured:
            raise fault
        for images, nanoseconds in measured.items():
            number = isinstance(nanoseconds, (int, float)) and not isinstance(nanoseconds, bool)
            if not (images.isascii() and images.isdigit() and len(images) < 6 and number):
                raise fault
            if not (isfinite(nanoseconds) and nanoseconds > 0):
                raise fault
            times.setdefault(kernel, {})[int(images)] = float(nanoseconds)
    return times


def _fault(path: Path, error: BaseException) -> ModelFileError:
    text = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
    return ModelFileError(f"{path}: {' '.join(text.split()) or type(error).__name__}")
