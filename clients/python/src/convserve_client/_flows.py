"""The flows of inference: what `predict` and `classify` do, step by step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, cycle
from typing import Any

import numpy as np

from convserve_client import protocol
from convserve_client._checks import check_name, check_whole
from convserve_client._model import (
    Array,
    Inputs,
    ModelInfo,
    check_dtype,
    check_dtypes,
    labels_of,
    top_k,
)
from convserve_client._request_options import RequestOptions
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
from convserve_client._server import ServerFlows
from convserve_client._shared_memory import NoRoomError, Region, Regions
from convserve_client._steps import Call, Flow, Infer, T
from convserve_client.errors import (
    ConvserveClientError,
    InvalidRequestError,
    InvalidResponseError,
    NotFoundError,
)

Result = Array | dict[str, Array]
Ranking = list[tuple[str, float]]

_log = logging.getLogger(__name__)

IN_FLIGHT = 8  # of the parts of one large batch


class Flows(ServerFlows):
    """The flows of one client."""

    def __init__(self, address: str, max_message_bytes: int, regions: Regions | None) -> None:
        super().__init__(address)
        self.max_message_bytes = max_message_bytes
        self.regions = regions
        self._warned = False  # that there is no shared memory
        self._labels: dict[tuple[str, str], tuple[str, ...] | None] = {}

    def _with_model(
        self, model: str | None, version: str, work: Callable[[ModelInfo], Flow[T]]
    ) -> Flow[T]:
        """Does `work` with what is known of the model; once more if that was out of date."""
        check_name("version", version, "1")
        if model is not None:
            check_name("model", model, "mnist")
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

    def forget(self, model: str) -> None:
        super().forget(model)
        for known in list(self._labels):
            if known[0] == model:
                self._labels.pop(known, None)

    def labels(self, name: str, version: str, classes: int) -> Flow[tuple[str, ...] | None]:
        """The labels of a version, for scores of `classes` columns."""
        key = (name, version)
        labels = self._labels.get(key, ())  # of no class: not asked for so far
        if labels is not None and len(labels) != classes:
            labels = labels_of((yield from self.config_or_none(name, version)))
            self._labels[key] = labels
        if labels is not None and len(labels) != classes:
            raise InvalidResponseError(
                f"model {name!r} has {len(labels)} labels and answers {classes} scores"
            )
        return labels

    def target(
        self,
        info: ModelInfo,
        version: str,
        outputs: tuple[str, ...] | None,
        options: RequestOptions,
    ) -> Target:
        return Target(info, version, outputs, self.max_message_bytes, options)

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
            call = Call("ModelInfer", first.data, metadata=first.metadata)
            return [read_answer(target, first, (yield call))]
        read = partial(read_answer, target)
        answers: list[Answer] = yield Infer(chain((first, second), requests), read)
        return answers

    # ---- Shared memory ----

    def lend(self, count: int, size: int, used: list[Region]) -> Flow[None]:
        """Fills `used` with registered regions of at least `size` bytes up to `count`.

        Raises NoRoomError.
        """
        regions = self.regions
        assert regions is not None
        for name in regions.take_abandoned():
            with suppress(ConvserveClientError):  # else the server forgot it by itself
                yield Call("SystemSharedMemoryUnregister", _unregister(name))
        while len(used) < count:
            region = Region(size)
            used.append(region)
            yield Call("SystemSharedMemoryRegister", region.registration())
            regions.registered(region)

    def _infer_arrays(self, target: Target, inputs: dict[str, Array]) -> Flow[list[Answer]]:
        """The answers for a batch, by shared memory where that gains something."""

        def work(target: Target) -> Flow[list[Answer]]:
            return (yield from self._infer(target, lambda target: target.split(inputs)))

        if len(inputs) > 1:
            return (yield from work(target))
        (x,) = inputs.values()
        rows, row_bytes = (len(x), x.nbytes // len(x)) if target.info.batched else (1, x.nbytes)
        rows_each = min(rows, target.rows_per_request(row_bytes))
        size = target.region_size(rows_each, row_bytes)
        if self.regions is None or not size:
            return (yield from work(target))
        count = min(IN_FLIGHT, -(-rows // rows_each))
        used = self.regions.take(count, size)
        known_before = bool(used)
        try:
            return (yield from self._within(target, count, size, used, work))
        except NoRoomError as error:
            self._no_room(error)
            return (yield from work(target))
        except (NotFoundError, InvalidRequestError):
            if not known_before:
                raise
            self.regions.forget()  # it was started anew
            try:
                return (yield from self._within(target, count, size, [], work))
            except NoRoomError as error:
                self._no_room(error)
                return (yield from work(target))

    def _within(
        self,
        target: Target,
        count: int,
        size: int,
        used: list[Region],
        work: Callable[[Target], Flow[T]],
    ) -> Flow[T]:
        assert self.regions is not None
        try:
            yield from self.lend(count, size, used)
            result = yield from work(replace(target, regions=cycle(used)))
        except BaseException:
            self.regions.discard(used)
            raise
        self.regions.give_back(used)
        return result

    def _no_room(self, error: NoRoomError) -> None:
        if not self._warned:
            self._warned = True
            _log.warning("tensors travel in messages: no shared memory is to be had: %s", error)

    def stream_target(
        self, target: Target, batch: int, in_flight: int, used: list[Region]
    ) -> Flow[Target]:
        """`target` for a stream of requests of up to `batch` images, with regions from `used`."""
        row_bytes = target.info.input.row_bytes
        size = target.region_size(min(batch, target.rows_per_request(row_bytes)), row_bytes)
        if self.regions is None or not size:
            return target
        try:
            yield from self.lend(in_flight, size, used)
        except NoRoomError as error:
            self._no_room(error)
            self.regions.discard(used)
            used.clear()
            return target
        return replace(target, regions=cycle(used))

    def end_stream(self, used: list[Region]) -> None:
        """Gives back what `stream_target` took; requests of a stream may still be under way."""
        if self.regions is not None:
            self.regions.discard(used)

    def release(self) -> Flow[None]:
        """Gives back all shared memory and tells the server."""
        if self.regions is not None:
            self.regions.close()
            for name in self.regions.take_abandoned():
                yield Call("SystemSharedMemoryUnregister", _unregister(name))

    # ---- Calls ----

    def predict(
        self,
        x: Inputs,
        model: str | None,
        version: str,
        outputs: Sequence[str] | None,
        options: RequestOptions,
    ) -> Flow[Result]:
        check_dtypes(x)
        names = output_names(outputs)

        def work(info: ModelInfo) -> Flow[Result]:
            target = self.target(info, version, names, options)
            inputs = info.arrays(x)
            if info.batched and len(next(iter(inputs.values()))) == 0:
                return present(info.empty(target.outputs), target.outputs)
            answers = yield from self._infer_arrays(target, inputs)
            return present(join(answers), target.outputs)

        return (yield from self._with_model(model, version, work))

    def classify(
        self, images: Any, top: int, model: str | None, version: str, options: RequestOptions
    ) -> Flow[list[Ranking]]:
        check_whole("top_k", top, 1, error=InvalidRequestError)
        batch = _image_batch(images)
        if len(batch) == 0:
            return []

        def work(info: ModelInfo) -> Flow[list[Ranking]]:
            first = tuple(output.name for output in info.outputs[:1])
            target = self.target(info, version, first, options)
            if isinstance(batch, np.ndarray):
                answers = yield from self._infer_arrays(target, info.arrays(batch))
            else:
                answers = yield from self._infer(target, lambda target: target.encoded(batch))
            rankings: list[Ranking] = []
            for answer in answers:
                (scores,) = answer.arrays.values()
                if scores.shape[2:] == (1, 1):
                    scores = scores[:, :, 0, 0]
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


def _unregister(name: str) -> Any:
    return protocol.SystemSharedMemoryUnregisterRequest(name=name)


def output_names(outputs: Sequence[str] | None) -> tuple[str, ...] | None:
    """The outputs asked for, each once; None for all that the model declares."""
    if outputs is None:
        return None
    if isinstance(outputs, str):
        raise TypeError(f"outputs must be a sequence of names, got the string {outputs!r}")
    if not isinstance(outputs, Iterable):
        raise TypeError(f"outputs must be a sequence of names, got {type(outputs).__name__}")
    names = tuple(outputs)
    for name in names:
        check_name("each of outputs", name, "output")
    if not names:
        raise InvalidRequestError("outputs must name at least one output, or be None for all")
    return tuple(dict.fromkeys(names))


def _image_batch(images: Any) -> Array | list[Any]:
    """A batch array, or a list of paths and bytes; TypeError for anything else or a mixture."""
    if isinstance(images, np.ndarray):
        check_dtype(images, "images")
        if images.ndim == 0:
            raise TypeError("images must be a list or an array [N, C, H, W], got a number")
        return images
    if is_encoded(images):
        raise TypeError("images must be a list of images or an array [N, C, H, W], got one image")
    if not isinstance(images, Iterable):
        raise TypeError(f"images must be a list of images, got {type(images).__name__}")
    items = list(images)
    if all(is_encoded(item) for item in items):
        # A file object can be read once only, and the work may be done twice.
        return [read_image(item) if hasattr(item, "read") else item for item in items]
    for index, item in enumerate(items):
        if is_encoded(item):
            raise TypeError("images must be either all arrays or all encoded images")
        if not isinstance(item, np.ndarray):
            raise TypeError(
                f"images[{index}] must be bytes, a path, a binary file or a numpy.ndarray, "
                f"got {type(item).__name__}"
            )
        check_dtype(item, f"images[{index}]")
    kinds = {(item.shape, item.dtype) for item in items}
    if len(kinds) > 1:
        raise InvalidRequestError(
            f"the arrays of a list must be alike, got {sorted(map(str, kinds))}"
        )
    return np.stack(items)
