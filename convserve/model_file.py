"""The model file: one uncompressed .npz that holds a network, its weights and what they mean.

    conv1.weight        float32, as any NumPy opens it: numpy.load("model.npz")["conv1.weight"]
    conv1.bias
    …
    __convserve__       uint8: UTF-8 JSON with the graph, labels, preprocessing, provenance, a hash

Files are written atomically. Reading trusts nothing: every malformed case is a `ModelFileError`
that names the file and the fault, and no memory is taken for what does not fit the graph.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from convserve._npz import FAULTS, NpzFault, Reader, reading, write
from convserve.errors import ModelFileError
from convserve.graph import Graph
from convserve.preprocessing import Preprocessing

__all__ = [
    "FORMAT_VERSION",
    "ModelFile",
    "Preprocessing",
    "format_version",
    "load",
    "save",
    "weights_hash",
]

FORMAT_VERSION = (
    2  # the newest that is read; 2 brought several inputs, and crops and more in preprocessing
)
ENTRY = "__convserve__"
MAX_JSON = 8 << 20  # bytes

Params = dict[str, npt.NDArray[np.float32]]


@dataclass(eq=False)
class ModelFile:
    """What a model file holds.

    params: float32 arrays by "<layer>.<param>", as `graph.parameter_specs()` asks for.
    labels: one name a class, for the graph's first output. provenance: any JSON values.
    """

    graph: Graph
    params: Params
    labels: tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def save(path: str | os.PathLike[str], model_file: ModelFile) -> None:
    """Writes the model, atomically: the file is there whole or as it was before.

    ModelFileError for anything that `load` would refuse, and when it can't be written.
    """
    try:
        _check_meaning(model_file)
        _check_names(model_file.graph, model_file.params)
        for name, spec in model_file.graph.parameter_specs().items():
            value = model_file.params[name]
            if not isinstance(value, np.ndarray) or value.dtype != np.float32:
                raise NpzFault(f"{name!r} must be an array of float32")
            if value.shape != spec.shape:
                raise NpzFault(f"{name!r} must have the shape {spec.shape}, it has {value.shape}")
            _check_values(name, value)
        document = _to_json(model_file)
        params = {name: model_file.params[name] for name in model_file.graph.parameter_specs()}
        write(Path(path), {ENTRY: np.frombuffer(document, np.uint8), **params})
    except FAULTS as error:
        _refuse(path, error)


def load(path: str | os.PathLike[str]) -> ModelFile:
    """Reads and checks a model; its arrays are new, writable and C-contiguous.

    ModelFileError for every fault, naming the file.
    """
    try:
        with reading(Path(path)) as reader:
            return _read(reader)
    except FAULTS as error:
        _refuse(path, error)


def weights_hash(params: Mapping[str, npt.NDArray[np.float32]]) -> str:
    """A hash of names, shapes and values, whatever their order: "sha256:…"."""
    digest = _Digest()
    for name in sorted(params):
        value = np.ascontiguousarray(params[name], "<f4")
        digest.name(name, value.shape)
        digest.data(value.reshape(-1).view(np.uint8).data)
    return digest.result()


class _Digest:
    """The hash of the weights, fed one array after another in the order of their names."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def name(self, name: str, shape: tuple[int, ...]) -> None:
        self._sha256.update(f"{name} {shape}\n".encode())

    def data(self, data: memoryview) -> None:
        self._sha256.update(data)

    def result(self) -> str:
        return f"sha256:{self._sha256.hexdigest()}"


def _read(reader: Reader) -> ModelFile:
    if ENTRY not in reader.names:
        raise NpzFault(f"it has no entry {ENTRY!r}: it is not a convserve model")
    document = _parse(reader.array(ENTRY, "|u1", max_bytes=MAX_JSON).tobytes())
    model = _from_json(document)
    _check_meaning(model)
    _check_names(model.graph, [name for name in reader.names if name != ENTRY])
    specs = model.graph.parameter_specs()
    digest = _Digest()
    params: Params = {}
    for name in sorted(specs):
        digest.name(name, specs[name].shape)
        params[name] = reader.array(name, "<f4", specs[name].shape, visit=digest.data)
        _check_values(name, params[name])
    if digest.result() != document["weights_hash"]:
        raise NpzFault("its weights do not match their hash: the file is damaged or was edited")
    model.params = {name: params[name] for name in specs}
    return model


def _check_meaning(model: ModelFile) -> None:
    """That labels and preprocessing fit the graph."""
    graph, labels, preprocessing = model.graph, model.labels, model.preprocessing
    if not graph.nodes:
        raise NpzFault("its graph has no layers")
    if labels is not None:
        classes = graph.shape(next(iter(graph.outputs.values())))
        if not all(isinstance(label, str) for label in labels):
            raise NpzFault("its labels must be strings")
        if classes not in ((len(labels),), (len(labels), 1, 1)):
            raise NpzFault(f"it has {len(labels)} labels for an output of shape {classes}")
        if any(0xD800 <= ord(c) <= 0xDFFF for label in labels for c in label):
            raise NpzFault("its labels hold surrogates, which are no characters")
    if preprocessing is not None:
        if len(graph.inputs) > 1:
            raise NpzFault("it has several inputs, so that preprocessing fits none alone")
        makes = (preprocessing.channels, preprocessing.height, preprocessing.width)
        if makes != graph.input_shape:
            raise NpzFault(
                f"its preprocessing makes images of {makes}, its graph takes {graph.input_shape}"
            )


def _check_names(graph: Graph, names: Iterable[str]) -> None:
    expected, found = graph.parameter_specs(), set(names)
    for what, wrong in (
        ("it lacks the array", [name for name in expected if name not in found]),
        ("it has an unexpected array", sorted(found - expected.keys())),
    ):
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise NpzFault(f"{what} {wrong[0]!r:.300}{more}")


def _check_values(name: str, value: npt.NDArray[np.float32]) -> None:
    flat = value.reshape(-1)
    for start in range(0, flat.size, 1 << 16):  # in cache
        if not np.isfinite(flat[start : start + (1 << 16)]).all():
            raise NpzFault(f"{name!r} holds NaN or infinity")
    if name.endswith(".running_var") and flat.min() < 0:
        raise NpzFault(f"{name!r} holds a negative variance")


def _to_json(model: ModelFile) -> bytes:
    try:
        text = json.dumps(
            {
                "version": format_version(model),
                "graph": model.graph.to_dict(),
                **_tensor_specs(model.graph),
                "labels": None if model.labels is None else list(model.labels),
                "preprocessing": model.preprocessing and model.preprocessing.to_dict(),
                "provenance": model.provenance,
                "weights_hash": weights_hash(model.params),
            },
            allow_nan=False,
            ensure_ascii=False,
        )
        document = text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise NpzFault(f"its provenance must be JSON values: {error}") from None
    if len(document) > MAX_JSON:
        raise NpzFault(f"its description has {len(document)} bytes, over the limit of {MAX_JSON}")
    return document


def format_version(model: ModelFile) -> int:
    """The version that a file of this model has: the oldest that can hold it."""
    basic = model.preprocessing is None or model.preprocessing.is_basic
    return 1 if basic and len(model.graph.inputs) == 1 else 2


def _parse(document: bytes) -> dict[str, Any]:
    """The JSON object, of a version that this release reads."""
    try:
        data = json.loads(
            document.decode(),
            object_pairs_hook=_object,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except RecursionError:
        raise NpzFault("its description is nested too deeply") from None
    except ValueError as error:
        raise NpzFault(f"its description is no valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise NpzFault("its description must be a JSON object")
    version = data.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise NpzFault(f"its format version must be a number from 1, got {version!r:.80}")
    if version > FORMAT_VERSION:
        raise NpzFault(
            f"its format version is {version!r:.40}, this convserve reads up to {FORMAT_VERSION}: "
            "a newer one is needed"
        )
    return data


def _from_json(data: dict[str, Any]) -> ModelFile:
    """The model without its arrays."""
    keys = {
        "version", "graph", "inputs", "outputs", "labels", "preprocessing", "provenance",
        "weights_hash",
    }  # fmt: skip
    for what, wrong in (("lacks", keys - data.keys()), ("has an unknown", data.keys() - keys)):
        if wrong:
            raise NpzFault(f"its description {what} entry {min(wrong)!r:.80}")
    graph = Graph.from_dict(data["graph"])
    for key, specs in _tensor_specs(graph).items():
        if data[key] != specs:
            raise NpzFault(f"its {key} do not fit its graph: {data[key]!r:.200}")
    labels, preprocessing, provenance = (
        data[key] for key in ("labels", "preprocessing", "provenance")
    )
    if labels is not None and not isinstance(labels, list):
        raise NpzFault(f"its labels must be a list, got {labels!r:.80}")
    if not isinstance(provenance, dict):
        raise NpzFault(f"its provenance must be an object, got {provenance!r:.80}")
    return ModelFile(
        graph=graph,
        params={},
        labels=None if labels is None else tuple(labels),
        preprocessing=None if preprocessing is None else Preprocessing.from_dict(preprocessing),
        provenance=provenance,
    )


def _tensor_specs(graph: Graph) -> dict[str, list[dict[str, Any]]]:
    """Inputs and outputs by wire name, for readers that do not want to work out the graph."""

    def spec(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
        return {"name": name, "dtype": "float32", "shape": list(shape)}

    return {
        "inputs": [spec(name, shape) for name, shape in graph.inputs.items()],
        "outputs": [spec(name, graph.shape(layer)) for name, layer in graph.outputs.items()],
    }


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise NpzFault("an object has the same key twice")
    return data


def _finite(text: str) -> float:
    value = float(text)
    if not np.isfinite(value):
        raise NpzFault(f"{text:.40} is not a finite number")
    return value


def _refuse(path: object, error: BaseException) -> NoReturn:
    """Raises the one error that callers see, in one line."""
    if isinstance(error, OSError) and error.strerror:
        fault = error.strerror[0].lower() + error.strerror[1:]
    else:
        fault = " ".join(str(error).split()) or type(error).__name__
    raise ModelFileError(f"{os.fspath(path)}: {fault}") from error  # type: ignore[call-overload]
