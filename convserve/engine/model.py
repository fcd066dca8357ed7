"""A loaded model: checked inputs, plans for the outputs asked for, labels and preprocessing."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from convserve import model_file
from convserve.errors import ModelFileError, ShapeError, UnknownNameError
from convserve.graph import Graph
from convserve.graph.layers import Shape
from convserve.images import ImageSource, to_pixels
from convserve.kernels._arguments import integer
from convserve.kernels._cores import usable_cores
from convserve.plan import Choice, Packed, Plan, Times, compile_plan
from convserve.plan.choose import MANY
from convserve.plan.plan import Input
from convserve.plan.tuning import find, read
from convserve.preprocessing import Preprocessing

__all__ = ["Model", "load", "newest_version", "top_k"]

Array = npt.NDArray[np.float32]
Inputs: TypeAlias = "npt.NDArray[Any] | Mapping[str, npt.NDArray[Any]] | Sequence[npt.NDArray[Any]]"
# Plans for other outputs than the model's own, kept at a time.
MAX_PLANS = 16
# Images a thread up to which plans that may depend on the batch are told apart.
SMALL = 8


class Model:
    """A model ready to predict; made by `convserve.load`. All methods may be called by any thread.

    An image gives the same bits alone, in any batch, at any place in it and with any number of
    threads, unless it was loaded with `batch_invariant=False`.
    """

    def __init__(
        self,
        file: model_file.ModelFile,
        *,
        name: str = "model",
        threads: int | None = None,
        batch_invariant: bool = True,
        times: Mapping[str, Times] | None = None,
        packed: Packed | None = None,
    ) -> None:
        self.name = name
        self.graph: Graph = file.graph
        self.labels: tuple[str, ...] | None = file.labels
        self.preprocessing: Preprocessing | None = file.preprocessing
        self.provenance: dict[str, Any] = file.provenance
        cores = usable_cores()
        self.threads = cores if threads is None else min(integer(threads, "threads", 1), cores)
        self.params = file.params
        self.takes_one = len(self.graph.inputs) == 1  # and not several inputs
        self.batch_invariant = batch_invariant
        self._times = times or {}
        self._lock = threading.Lock()
        # By the layers asked for, and the images a thread that it is made for (None: any number).
        self._plans: dict[tuple[tuple[str, ...], int | None], Plan] = {}
        # What plans for the model's own outputs share.
        self.packed: Packed = {} if packed is None else packed
        self.plan(1)

    @classmethod
    def from_file(
        cls,
        file: model_file.ModelFile,
        *,
        name: str = "model",
        threads: int | None = None,
        times: Mapping[str, Times] | None = None,
        packed: Packed | None = None,
    ) -> Model:
        """A model from the contents of a model file (or one that was just trained).

        times: of a tuning record, as `plan.tuning.read` gives them. packed: weights that an equal
        model has packed.
        """
        return cls(file, name=name, threads=threads, times=times, packed=packed)

    @cached_property
    def inputs(self) -> dict[str, Shape]:
        """The input tensors by their names on the wire: (C, H, W) or (F,) of one image each."""
        return self.graph.inputs

    @cached_property
    def input_name(self) -> str:
        """The (first) input tensor's name on the wire."""
        return self.graph.input_name

    @cached_property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image, of the first input."""
        return self.graph.input_shape

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """The output tensors' names on the wire."""
        return self._own[0]

    def predict(
        self, x: Inputs, outputs: Sequence[str] | None = None, *, threads: int | None = None
    ) -> Array | dict[str, Array]:
        """Runs a batch of images, float32 or uint8 [N, C, H, W], N from 0 on.

        float32 is taken as already normalised; uint8 is raw pixels, 0 to 255, and gets the model's
        mean and std. A model with several inputs takes a dict of arrays by name, or a list of them
        in the order of `inputs`, of equal N. Returns the graph's output, such as
        float32[N, classes]; for a graph with several outputs, or where `outputs` names layers
        ("conv1", "pool1", "logits"), a dict of arrays by these names.
        threads: how many this call may use, at most the model's own.

        Raises ShapeError and TypeError for an x that does not fit or threads that are no number
        from 1 on, UnknownNameError for an output that does not exist.
        """
        if outputs is None:
            names, asked = self._own
        else:
            names = tuple(_names(outputs))
            asked = tuple(self.graph.resolve(name) for name in names)
        limit = self.threads
        if threads is not None:
            limit = min(integer(threads, "threads", 1), limit)
        given = self._checked_inputs(x)
        plan = self._plan(asked, len(given[0]))
        table = None
        for place, array in enumerate(given):
            if array.dtype == np.uint8:
                if plan.reads_bytes:
                    table = self._byte_values
                else:
                    normalise = self._needed_preprocessing("predict with uint8 pixels").normalise
                    given[place] = normalise(array)  # type: ignore[arg-type]
        results = plan.run(given, limit, table)
        if outputs is None and len(results) == 1:
            return results[0]
        return dict(zip(names, results, strict=True))

    @cached_property
    def _own(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The graph's outputs: their names on the wire, and their layers."""
        outputs = self.graph.outputs
        return tuple(outputs), tuple(outputs.values())

    def classify(
        self, images: Iterable[ImageSource], top_k: int = 5
    ) -> list[list[tuple[str, float]]]:
        """The `top_k` best (label, score) of each image, through the model's own preprocessing.

        images: PIL images, uint8 arrays [H, W] or [H, W, 3], paths, or encoded images as bytes.
        Raises ImageError for an image that can't be decoded.
        """
        if isinstance(images, (str, bytes, os.PathLike, np.ndarray)):
            raise TypeError("images must be a list of images; for a single one give [image]")
        if len(self.inputs) > 1:
            raise ShapeError(
                f"model {self.name!r} has the inputs {list(self.inputs)}; classify needs a model "
                "with one: use predict"
            )
        preprocessing = self._needed_preprocessing("classify")
        pixels = [to_pixels(image, preprocessing) for image in images]
        if not pixels:
            return []
        name, layer = next(iter(self.graph.outputs.items()))
        if self.graph.shape(layer)[1:] not in ((), (1, 1)):
            raise ShapeError(f"model {self.name!r}: its output {name!r} is not one score a class")
        scores = self.predict(np.stack(pixels), outputs=[name])
        assert isinstance(scores, dict)
        rows = scores[name]
        return _top_k(rows.reshape(rows.shape[:2]), top_k, self.labels)

    def plan(self, batch: int) -> Plan:
        """The plan that computes the graph's outputs for so many images in a call."""
        return self._plan(self._own[1], batch)

    def estimate(self, images: int, threads: int) -> float:
        """Seconds that `predict` should take for so many images, by the plan's cost model."""
        return self.plan(images).estimate(images, threads)

    def _plan(self, layers: tuple[str, ...], images: int) -> Plan:
        made_for = None if self.batch_invariant else _made_for(images, self.threads)
        key = layers, made_for
        plan = self._plans.get(key)
        if plan is None:
            with self._lock:
                plan = self._plans.get(key)
                if plan is None:
                    own = self._own[1]
                    choice = Choice(batch=made_for, times=self._times)
                    packed = self.packed if layers == own else None
                    plan = compile_plan(self.graph, self.params, layers, choice, packed)
                    others = [key for key in self._plans if key[0] != own]
                    if len(others) >= MAX_PLANS:
                        self._plans.pop(others[0])
                    self._plans[key] = plan
        return plan

    def _checked_inputs(self, x: Any) -> list[Input]:
        """One array for each input, in the graph's order."""
        if self.takes_one and not isinstance(x, Mapping):
            return [self._checked(x, "x", self.graph.input_shape)]
        inputs = self.graph.inputs
        if isinstance(x, Mapping):
            for what, names in (
                ("lacks", [name for name in inputs if name not in x]),
                ("has the unknown", [name for name in x if name not in inputs]),
            ):
                if names:
                    raise ShapeError(
                        f"x {what} input {names[0]!r:.80}: model {self.name!r} has the inputs "
                        f"{list(inputs)}"
                    )
            given = [x[name] for name in inputs]
        elif isinstance(x, np.ndarray) or not isinstance(x, Sequence):
            raise TypeError(
                f"x must be a dict or a list of arrays for the inputs {list(inputs)}, got "
                f"{type(x).__name__}"
            )
        elif len(x) != len(inputs):
            raise ShapeError(
                f"x must have {len(inputs)} arrays, one for each of {list(inputs)}, got {len(x)}"
            )
        else:
            given = list(x)
        checked = [
            self._checked(array, f"input {name!r}", shape)
            for array, (name, shape) in zip(given, inputs.items(), strict=True)
        ]
        counts = {name: len(array) for name, array in zip(inputs, checked, strict=True)}
        if len(set(counts.values())) > 1:
            raise ShapeError(f"all inputs must have the same N, got {counts}")
        return checked

    def _checked(self, x: Any, what: str, shape: Shape) -> Input:
        if not isinstance(x, np.ndarray):
            raise TypeError(f"{what} must be a numpy array, got {type(x).__name__}")
        if isinstance(x, np.ma.MaskedArray):  # what the mask hides would be computed on
            raise TypeError(f"{what} must not be a masked array; fill it with .filled(value)")
        if x.dtype not in (np.float32, np.uint8):
            raise TypeError(
                f"{what} must be float32 (normalised) or uint8 (raw pixels), got {x.dtype}; "
                "convert it with x.astype(numpy.float32)"
            )
        if x.shape[1:] != shape or x.ndim != len(shape) + 1:
            hint = "; for one image give x[None]" if x.shape == shape else ""
            expected = ", ".join(map(str, shape))
            raise ShapeError(
                f"{what} must have the shape [N, {expected}], got {list(x.shape)}{hint}"
            )
        if x.dtype == np.uint8:
            channels = self._needed_preprocessing("predict with uint8 pixels").channels
            if len(shape) != 3 or shape[0] != channels:
                raise ShapeError(
                    f"{what} may be uint8 only where it is images of {channels} channels"
                )
        flags = x.flags
        if flags.c_contiguous and flags.aligned:
            return x
        return np.ascontiguousarray(x if flags.aligned else x.copy())

    @cached_property
    def _byte_values(self) -> Array:
        return self._needed_preprocessing("predict with uint8 pixels").table()

    def _needed_preprocessing(self, what: str) -> Preprocessing:
        if self.preprocessing is None:
            raise TypeError(
                f"model {self.name!r} has no preprocessing, which {what} needs; "
                "give float32 arrays that are normalised as in its training"
            )
        return self.preprocessing


def load(
    path: str | os.PathLike[str],
    threads: int | None = None,
    *,
    batch_invariant: bool = True,
    tuning: str | os.PathLike[str] | Literal[False] | None = None,
) -> Model:
    """Loads a model file, or from a directory DIR/<version>/model.npz the highest version.

    threads: how many a call may use; by default the cores that this process may use.
    batch_invariant: an image gives the same bits in any batch. False: kernels may be chosen by the
    size of the batch where that is faster; results then differ in the last digits.
    tuning: a tuning record, as `convserve bench --tune` makes it. None: the one beside the model
    where there is one that fits, else a warning is logged; False: none.
    Raises ModelFileError for anything missing or malformed, also of a record that is named.
    """
    path = Path(path)
    name = path.stem
    try:
        is_directory = path.is_dir()
    except OSError as error:  # a name that is too long
        raise ModelFileError(f"{path!s:.200}: {error.strerror or error}") from error
    if is_directory:
        name = path.resolve().name
        path = newest_version(path)
    file = model_file.load(path)
    if tuning is None:
        times = find(path, file.graph)
    elif tuning is False:
        times = {}
    elif isinstance(tuning, (str, os.PathLike)):
        times = read(Path(tuning), file.graph)
    else:
        raise TypeError(f"tuning must be a path, None or False, got {tuning!r:.80}")
    return Model(file, name=name, threads=threads, batch_invariant=batch_invariant, times=times)


def newest_version(directory: Path) -> Path:
    """The highest version's DIR/<version>/model.npz; ModelFileError where there is none."""
    try:
        versions = [
            entry
            for entry in directory.iterdir()
            if entry.name.isascii() and entry.name.isdigit() and (entry / "model.npz").is_file()
        ]
    except OSError as error:
        raise ModelFileError(f"{directory}: {error.strerror or error}") from error
    if not versions:
        raise ModelFileError(f"{directory}: it has no <version>/model.npz")
    return max(versions, key=lambda entry: int(entry.name)) / "model.npz"


def top_k(
    scores: Array, k: int, labels: Sequence[str] | None = None
) -> list[list[tuple[str, float]]]:
    """The k best (label, score) of each row of float32[N, K], the highest first.

    Of equal scores the lower index comes first, NaN comes last. Without labels the index stands
    for them.
    """
    if not isinstance(scores, np.ndarray) or scores.ndim != 2:
        raise ShapeError(f"scores must have the shape [N, classes], got {np.shape(scores)}")
    k = min(integer(k, "top_k", 1), scores.shape[1])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    return [
        [(labels[i] if labels else str(i), float(s)) for i, s in zip(row, row_scores, strict=True)]
        for row, row_scores in zip(order.tolist(), best.tolist(), strict=True)
    ]


def _made_for(images: int, threads: int) -> int:
    """The images a thread that a plan for so many is made for: 1, 2, 4, or a large batch."""
    each = max(1, ceil(images / threads))
    return 1 << each.bit_length() - 1 if each < SMALL else MANY


_top_k = top_k  # where a parameter hides the name


def _names(outputs: Any) -> list[str]:
    if isinstance(outputs, str) or not isinstance(outputs, Sequence):
        raise TypeError(f"outputs must be a list of names, got {outputs!r:.80}")
    for name in outputs:
        if not isinstance(name, str):
            raise TypeError(f"outputs must be names, got {name!r:.80}")
    if not outputs:
        raise UnknownNameError("outputs must name at least one layer")
    return list(dict.fromkeys(outputs))
