"""Who computes the scores for `convserve classify`: a model in this process, or a server.

Both take a stream of uint8 batches and give a stream of scores in the same order, bit for bit the
same ones: an image's scores don't depend on its batch or on where they are computed.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click
import numpy as np
from numpy.typing import NDArray

from convserve.cli._target import Target
from convserve.preprocessing import Preprocessing

if TYPE_CHECKING:
    from convserve_client import Client

Pixels = NDArray[np.uint8]  # [N, C, H, W]
Scores = NDArray[np.float32]  # [N, classes]

IN_FLIGHT = 8  # requests on their way to and from a server


class Classifier(Protocol):
    @property
    def labels(self) -> Sequence[str] | None: ...

    @property
    def preprocessing(self) -> Preprocessing: ...

    @property
    def classes(self) -> int: ...

    def scores(self, batches: Iterable[Pixels]) -> Generator[Scores, None, None]: ...


class LocalClassifier:
    """A model file computed in this process."""

    def __init__(self, path: Path, threads: int | None) -> None:
        from convserve.engine.model import load

        self._model = load(path, threads=threads)
        _one_input(list(self._model.inputs), str(path))
        self._output = self._model.output_names[0]
        layer = self._model.graph.outputs[self._output]
        self.classes = _classes(row_shape(self._model.graph.shape(layer)), str(path))
        self.labels = self._model.labels
        self.preprocessing = _needed(self._model.preprocessing, str(path))

    def scores(self, batches: Iterable[Pixels]) -> Generator[Scores, None, None]:
        for batch in batches:
            yield _rows(self._model.predict(batch))


class ServedClassifier:
    """A model of a server, called with several requests in flight."""

    def __init__(self, client: Client, name: str | None, batch_size: int) -> None:
        config = client.model_config(name)
        metadata = client.model_metadata(name)
        what = f"model {config.name!r} of the server"
        _one_input([tensor.name for tensor in metadata.inputs], what)
        self._client = client
        self.name: str = config.name
        self._batch_size = batch_size
        # The first dimension is the batch, unless the server says that there is none.
        self.input_shape = tuple(metadata.inputs[0].shape)[1:]
        self.outputs = tuple(row_shape(tuple(tensor.shape)[1:]) for tensor in metadata.outputs)
        self.classes = _classes(self.outputs[0], what)
        labels = _parameter(config, "labels", what)
        self.labels = None if labels is None else [str(label) for label in labels]
        values = _parameter(config, "preprocessing", what)
        self.preprocessing = _needed(values and Preprocessing.from_dict(values), what)

    def scores(self, batches: Iterable[Pixels]) -> Generator[Scores, None, None]:
        results = self._client.predict_many(
            batches, model=self.name, batch=self._batch_size, in_flight=IN_FLIGHT
        )
        with closing(results):
            for result in results:
                yield _rows(result)


def open_classifier(
    model: Path | None,
    server: Target | None,
    name: str | None,
    batch_size: int,
    threads: int | None,
) -> AbstractContextManager[Classifier]:
    """Load the model, or connect to the server; one of the two is given."""
    if model is not None:
        return nullcontext(LocalClassifier(model, threads))
    assert server is not None
    return Connection(server, name, batch_size)


class Connection(AbstractContextManager[ServedClassifier]):
    """A server's model, until the end of the block. name: None for its only one."""

    def __init__(self, server: Target, name: str | None, batch_size: int) -> None:
        self._client = server.client()
        self._name, self._batch_size = name, batch_size

    def __enter__(self) -> ServedClassifier:
        try:
            return ServedClassifier(self._client, self._name, self._batch_size)
        except BaseException:
            self._client.close()
            raise

    def __exit__(self, *error: object) -> None:
        self._client.close()


def _one_input(names: Sequence[str], what: str) -> None:
    if len(names) > 1:
        raise click.ClickException(
            f"{what} has the inputs {', '.join(names)}: images alone can't be classified by it"
        )


def row_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an output of one pixel, (K, 1, 1), as that of a row of scores, (K,)."""
    return shape[:1] if shape[1:] == (1, 1) else shape


def _classes(shape: tuple[int, ...], what: str) -> int:
    if len(shape) != 1 or shape[0] < 1:
        raise click.ClickException(
            f"{what}: no classifier: its first output has shape {list(shape)}, not [classes]"
        )
    return shape[0]


def _needed(preprocessing: Preprocessing | None, what: str) -> Preprocessing:
    if preprocessing is None:
        raise click.ClickException(
            f"{what} has no preprocessing, so that images can't be made into its input"
        )
    return preprocessing


def _parameter(config: Any, name: str, what: str) -> Any:
    """Return a ModelConfig parameter, which is JSON, or None."""
    if name not in config.parameters:
        return None
    try:
        return json.loads(config.parameters[name].string_value)
    except ValueError as error:
        raise click.ClickException(f"{what}: parameter {name!r} is not JSON: {error}") from error


def _rows(result: Scores | dict[str, Scores]) -> Scores:
    """Return the first output of a model that may have several, each image's scores as a row."""
    scores = next(iter(result.values())) if isinstance(result, dict) else result
    return scores.reshape(scores.shape[:2])
