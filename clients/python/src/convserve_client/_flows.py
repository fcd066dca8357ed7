"""What each call of the client does, step by step, without doing any I/O.

A flow is a generator. It yields steps (make this call, sleep) and gets their results back, or has
their errors thrown in; its return value is the call's result. The sync and the async client differ
only in how they perform the steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np

from convserve_client import protocol
from convserve_client._model import Array, ModelInfo, check_dtype, labels_of, top_k
from convserve_client._requests import (
    Answer,
    Request,
    Target,
    is_encoded,
    join,
    present,
    read_answer,
    read_image,
)
from convserve_client.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    InvalidResponseError,
    NotFoundError,
    UnavailableError,
    UnimplementedError,
)

T = TypeVar("T")
Result = Array | dict[str, Array]
Ranking = list[tuple[str, float]]


@dataclass(frozen=True)
class Call:
    """Make one call; the result is the response message."""

    method: str
    request: Any
    wait_for_ready: bool = False


@dataclass(frozen=True)
class Infer:
    """Make ModelInfer calls, several in flight; the result is a list of (request, response)."""

    requests: Iterable[Request]


@dataclass(frozen=True)
class Sleep:
    seconds: float


Flow = Generator[Call | Infer | Sleep, Any, T]


class Flows:
    """The flows of one client, with what it remembers of the server's models."""

    def __init__(self, address: str, max_message_bytes: int) -> None:
        self.address = address
        self.max_message_bytes = max_message_bytes
        self._only_model: str | None = None
        self._models: dict[tuple[str, str], ModelInfo] = {}
        self._labels: dict[tuple[str, str], tuple[str, ...] | None] = {}

    # ---- What there is on the server ----

    def server_live(self) -> Flow[bool]:
        return bool((yield Call("ServerLive", protocol.ServerLiveRequest())).live)

    def server_ready(self, wait: bool = False) -> Flow[bool]:
        return bool((yield Call("ServerReady", protocol.ServerReadyRequest(), wait)).ready)

    def model_name(self, model: str | None) -> Flow[str]:
        """`model`, or the name of the server's only model, which is asked for and remembered."""
        if model is not None:
            return model
        try:
            index = yield Call("RepositoryIndex", protocol.RepositoryIndexRequest())
        except UnimplementedError:
            raise InvalidRequestError(
                f"the server at {self.address} does not list its models; name one with model="
            ) from None
        names = sorted({entry.name for entry in index.models})
        if not names:
            raise NotFoundError(f"the server at {self.address} has no models")
        if len(names) > 1:
            raise InvalidRequestError(
                f"the server at {self.address} has several models, name one of {names}"
            )
        self._only_model = only = str(names[0])
        return only

    def metadata(self, model: str | None, version: str) -> Flow[Any]:
        name = yield from self.model_name(model)
        request = protocol.ModelMetadataRequest(name=name, version=version)
        return (yield Call("ModelMetadata", request))

    def config(self, model: str | None, version: str) -> Flow[Any]:
        name = yield from self.model_name(model)
        request = protocol.ModelConfigRequest(name=name, version=version)
        return (yield Call("ModelConfig", request)).config

    def model_ready(self, model: str | None, version: str) -> Flow[bool]:
        name = yield from self.model_name(model)
        request = protocol.ModelReadyRequest(name=name, version=version)
        return bool((yield Call("ModelReady", request)).ready)

    def wait_ready(self, model: str | None, version: str) -> Flow[None]:
        """Returns when the server, and `model` if it is given, are ready; the timeout ends it."""
        reason = "no answer"
        try:
            while True:
                with contextlib.suppress(UnavailableError):
                    if not (yield from self.server_ready(wait=True)):
                        reason = "the server says that it is not ready"
                    elif model is None or (yield from self.model_ready(model, version)):
                        return
                    else:
                        reason = f"model {model!r} is not ready"
                yield Sleep(0.05)
        except DeadlineExceededError:
            raise DeadlineExceededError(f"{self.address} is not ready: {reason}") from None

    def _config_or_none(self, name: str, version: str) -> Flow[Any | None]:
        try:
            return (yield from self.config(name, version))
        except UnimplementedError:  # other servers of the protocol may have no ModelConfig
            return None

    def learn(self, model: str | None, version: str) -> Flow[ModelInfo]:
        """Asks the server about a model, and remembers the answer."""
        name = yield from self.model_name(model)
        metadata = yield from self.metadata(name, version)
        config = yield from self._config_or_none(name, version)
        info = ModelInfo.from_messages(metadata, config)
        self._models[name, version] = info
        return info

    def _with_model(
        self, model: str | None, version: str, work: Callable[[ModelInfo], Flow[T]]
    ) -> Flow[T]:
        """Does `work` with what is known of the model; once more if that was out of date."""
        name = self._only_model if model is None else model
        known = None if name is None else self._models.get((name, version))
        if known is None:
            return (yield from work((yield from self.learn(model, version))))
        try:
            return (yield from work(known))
        except (NotFoundError, InvalidRequestError):
            now = yield from self.learn(model, version)
            if now == known:
                raise
            return (yield from work(now))

    def labels(self, name: str, version: str, classes: int) -> Flow[tuple[str, ...] | None]:
        """The labels of a version, for scores of `classes` columns."""
        key = (name, version)
        labels = self._labels.get(key)
        if key not in self._labels or (labels is not None and len(labels) != classes):
            labels = labels_of((yield from self._config_or_none(name, version)))
            self._labels[key] = labels
        if labels is not None and len(labels) != classes:
            raise InvalidResponseError(
                f"model {name!r} has {len(labels)} labels and answers {classes} scores"
            )
        return labels

    # ---- Inference ----

    def target(self, info: ModelInfo, version: str, outputs: tuple[str, ...] | None) -> Target:
        return Target(info, version, outputs, self.max_message_bytes)

    def _infer(
        self, target: Target, requests: Callable[[Target], Iterator[Request]]
    ) -> Flow[list[Answer]]:
        """The answers to all requests, from one version of the model."""
        answers = yield from self._send(target, requests(target))
        if len({answer.version for answer in answers}) > 1:  # it was reloaded meanwhile
            target = replace(target, version=answers[-1].version)
            answers = yield from self._send(target, requests(target))
        return answers

    def _send(self, target: Target, requests: Iterator[Request]) -> Flow[list[Answer]]:
        """Sends one request by itself, several of them pipelined."""
        first = next(requests)
        second = next(requests, None)
        if second is None:
            pairs = [(first, (yield Call("ModelInfer", first.data)))]
        else:
            pairs = yield Infer(chain((first, second), requests))
        return [read_answer(target, request, response) for request, response in pairs]

    def predict(
        self, x: Array, model: str | None, version: str, outputs: Sequence[str] | None
    ) -> Flow[Result]:
        check_dtype(x)
        names = output_names(outputs)

        def work(info: ModelInfo) -> Flow[Result]:
            target = self.target(info, version, names)
            info.check(x)
            if info.batched and len(x) == 0:
                return present(info.empty(target.outputs), target.outputs)
            answers = yield from self._infer(target, lambda target: target.split(x))
            return present(join(answers), target.outputs)

        return (yield from self._with_model(model, version, work))

    def classify(
        self, images: Any, top: int, model: str | None, version: str
    ) -> Flow[list[Ranking]]:
        if top < 1:
            raise InvalidRequestError(f"top_k must be at least 1, got {top}")
        batch = _image_batch(images)
        if len(batch) == 0:
            return []

        def work(info: ModelInfo) -> Flow[list[Ranking]]:
            target = self.target(info, version, tuple(output.name for output in info.outputs[:1]))
            if isinstance(batch, np.ndarray):
                info.check(batch)
            answers = yield from self._infer(
                target,
                lambda target: (
                    target.split(batch) if isinstance(batch, np.ndarray) else target.encoded(batch)
                ),
            )
            rankings: list[Ranking] = []
            for answer in answers:
                (scores,) = answer.arrays.values()
                if scores.ndim != 2 or scores.dtype.kind != "f":
                    raise InvalidRequestError(
                        f"model {info.name!r} is no classifier: its first output is "
                        f"{scores.dtype} {list(scores.shape)}, not one row of scores an image"
                    )
                served = answer.version or version
                labels = yield from self.labels(info.name, served, scores.shape[1])
                rankings += top_k(scores, top, labels)
            return rankings

        return (yield from self._with_model(model, version, work))


def output_names(outputs: Sequence[str] | None) -> tuple[str, ...] | None:
    """The outputs asked for, each once; None for all that the model declares."""
    if outputs is None:
        return None
    if isinstance(outputs, str):
        raise TypeError(f"outputs must be a sequence of names, got the string {outputs!r}")
    if not outputs:
        raise InvalidRequestError("outputs must name at least one output, or be None for all")
    return tuple(dict.fromkeys(outputs))


def _image_batch(images: Any) -> Array | list[Any]:
    """A batch array, or a list of paths and bytes; TypeError for anything else or a mixture."""
    if isinstance(images, np.ndarray):
        check_dtype(images, "images")
        return images
    if is_encoded(images):
        raise TypeError("images must be a list of images or an array [N, C, H, W], got one image")
    items = list(images)
    if all(is_encoded(item) for item in items):
        # A file object can be read once only, and the work may be done twice.
        return [read_image(item) if hasattr(item, "read") else item for item in items]
    for index, item in enumerate(items):
        if is_encoded(item):
            raise TypeError("images must be either all arrays or all encoded images")
        check_dtype(item, f"images[{index}]")
    kinds = {(item.shape, item.dtype) for item in items}
    if len(kinds) > 1:
        raise InvalidRequestError(
            f"the arrays of a list must be alike, got {sorted(map(str, kinds))}"
        )
    return np.stack(items)
