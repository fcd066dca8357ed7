"""The synchronous client: performs the flows' steps with blocking calls."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from types import TracebackType
from typing import Any

import grpc

from convserve_client._base import CLOSE_SECONDS, ClientBase, Remaining
from convserve_client._checks import check_whole
from convserve_client._control import Files, Setting
from convserve_client._flows import IN_FLIGHT, Ranking, Result, output_names
from convserve_client._hedging import HedgedCall, wait_for_first
from convserve_client._many import Stream, check_items
from convserve_client._model import Array, Inputs
from convserve_client._request_options import Pairs
from convserve_client._requests import Request, read_answer
from convserve_client._security import Metadata
from convserve_client._shared_memory import Region
from convserve_client._steps import Call, Flow, Infer, Sleep, T
from convserve_client.errors import ConvserveClientError


class Client(ClientBase):
    """A client of a server, or of several alike; safe to use from several threads at once.

        with Client("localhost:8001") as client:
            scores = client.predict(x)                      # x: float32 or uint8 [N, C, H, W]
            ranked = client.classify(["digit.png"], top_k=3)

    Args:
        address: "HOST:PORT" (or "unix:PATH"), or several of them, which take turns.
        timeout: seconds for each call, everything included; None for no limit. Every method also
            takes its own.
        connect_timeout: seconds that one attempt to connect may take.
        retries: how often a call that ends in UNAVAILABLE is made again, 0 to 4, with exponential
            back-off and jitter, and never beyond its timeout. A server's `grpc-retry-pushback-ms`
            sets the wait, or forbids the retry.
        retry_budget: how many failures in a row are retried at most, 1 to 500; each success gives a
            tenth of one back. It keeps retries from multiplying the load of a server in trouble.
        max_message_bytes: limit of a message in each direction. Batches are split to stay below;
            the server has a limit of its own.
        metadata: pairs sent with each call, such as `("x-team", "vision")`.
        token: sent with each call as `authorization: Bearer …`; a function is asked at each call.
            Without TLS only to this machine.
        tls: True, or a `Tls` with files and names.
        credentials: instead of `tls`, what gRPC itself takes.
        load_balancing: "round_robin" or "pick_first" over all that the address resolves to. By
            default several addresses take turns, and one name has one server. In turns, a server
            that says by `grpc.health.v1` that it is not serving is left out.
        compression: "gzip" or "deflate" for requests. Noise and JPEG files don't get smaller.
        keepalive: seconds between pings to a silent server, which is given up after as many more;
            None for no pings. Servers disconnect who pings too often: convserve allows 10.
        shared_memory: whether large tensors go through memory that a server on this machine also
            sees, and which must have that enabled.
        hedge_after: seconds without an answer after which an inference, or what is asked of the
            model before it, is sent once more, over a second connection, or to up to two of
            several servers one after the other. The first answer wins, the other calls are
            cancelled. None, the default: never. The 95th percentile of your latency is a good
            value. It is bounded as retries are: a tenth of the answered calls, and `retry_budget`
            more; not together with `shared_memory`.

    Every method raises a subclass of `errors.ConvserveClientError` when the call fails. Where a
    method takes `model`, None stands for the only model of the server, and an empty `version`
    lets the server choose. Where a method infers, it takes

        priority: the level in the model's queue, 1 the most urgent; 0 is the default one.
        queue_timeout: seconds that a request may wait in the queue, after which the server answers
            UNAVAILABLE; None for the server's own. The model's configuration must allow it.
        request_id: what the server's access log and error messages call the request.
        metadata: pairs sent with the requests of this call, beside those of the client.
    """

    def _open(self) -> None:
        self._channel = self._options.open(grpc)
        self._calls = self._stubs(self._channel)
        self._open_again(grpc)

    def __enter__(self) -> Client:
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the calls in flight and closes the connection; further calls are refused."""
        if self._flows.regions is not None and not self._closed:
            with suppress(ConvserveClientError):  # a server that is gone has nothing to give back
                self._run(self._flows.release(), CLOSE_SECONDS)
        self._closed = True
        for channel in (self._channel, *self._again):
            channel.close()

    # ---- Server and models ----

    def server_live(self, *, timeout: float | None = None) -> bool:
        """Whether the server runs; UnavailableError if it can't be reached."""
        return self._run(self._flows.server_live(), timeout)

    def server_ready(self, *, timeout: float | None = None) -> bool:
        """Whether the server takes requests; UnavailableError if it can't be reached."""
        return self._run(self._flows.server_ready(), timeout)

    def model_ready(
        self, model: str | None = None, version: str = "", *, timeout: float | None = None
    ) -> bool:
        """Whether a model takes requests; False also if the server does not know it."""
        return self._run(self._flows.model_ready(model, version), timeout)

    def model_metadata(
        self, model: str | None = None, version: str = "", *, timeout: float | None = None
    ) -> Any:
        """A `protocol.ModelMetadataResponse`: versions, names, datatypes and shapes."""
        return self._run(self._flows.metadata(model, version), timeout)

    def model_config(
        self, model: str | None = None, version: str = "", *, timeout: float | None = None
    ) -> Any:
        """A `protocol.ModelConfig`: batching, and among its parameters labels, preprocessing."""
        return self._run(self._flows.config(model, version), timeout)

    def server_metadata(self, *, timeout: float | None = None) -> Any:
        """A `protocol.ServerMetadataResponse`: name, version, extensions."""
        return self._run(self._flows.server_metadata(), timeout)

    def model_statistics(
        self, model: str | None = None, version: str = "", *, timeout: float | None = None
    ) -> list[Any]:
        """A `protocol.ModelStatistics` for each version of a model, or of all for None."""
        return self._run(self._flows.statistics(model, version), timeout)

    def repository_index(self, ready: bool = False, *, timeout: float | None = None) -> list[Any]:
        """Name, version, state and reason of all models, or of those that are `ready`.

        They are `protocol.RepositoryIndexResponse.ModelIndex` messages.
        """
        return self._run(self._flows.index(ready), timeout)

    def load_model(
        self,
        model: str,
        *,
        config: Mapping[str, Any] | None = None,
        files: Files | None = None,
        timeout: float | None = None,
    ) -> None:
        """Has the server load a model, or load it anew; returns when it is ready.

        Args:
            config: a ModelConfig as a dict, such as `{"max_batch_size": 8}`, to serve it by instead
                of what the repository says.
            files: with `config`, files that replace the model's own, by their paths in its folder:
                `{"5/model.npz": content}`; contents are bytes, paths or binary files.
        """
        self._run(self._flows.load(model, config, files), timeout)

    def unload_model(self, model: str, *, timeout: float | None = None) -> None:
        """Has the server unload all versions of a model."""
        self._run(self._flows.unload(model), timeout)

    def log_settings(self, *, timeout: float | None = None) -> dict[str, Setting]:
        """What the server logs: `{"log_info": True, "log_verbose_level": 0, …}`."""
        return self._run(self._flows.log_settings({}), timeout)

    def update_log_settings(
        self, settings: Mapping[str, Setting], *, timeout: float | None = None
    ) -> dict[str, Setting]:
        """Changes what the server logs, and returns all settings; with an error nothing changes.

        The names are Triton's: log_error, log_warning and log_info are True or False,
        log_verbose_level from 1 on lets debug messages through.
        """
        return self._run(self._flows.log_settings(settings), timeout)

    def wait_ready(
        self, timeout: float | None = None, *, model: str | None = None, version: str = ""
    ) -> None:
        """Waits until the server, and `model` if given, are ready; else DeadlineExceededError."""
        self._run(self._flows.wait_ready(model, version), timeout)

    # ---- Inference ----

    def predict(
        self,
        x: Inputs,
        model: str | None = None,
        version: str = "",
        outputs: Sequence[str] | None = None,
        *,
        timeout: float | None = None,
        priority: int = 0,
        queue_timeout: float | None = None,
        request_id: str = "",
        metadata: Pairs = (),
    ) -> Result:
        """The model's output for a batch.

        Args:
            x: float32 (already normalised) or uint8 (raw pixels) [N, C, H, W], any N ≥ 0. What is
                over the server's largest batch, or the limit of a message, goes in several
                requests at once. For a model with several inputs: a dict of arrays [N, …] by name,
                or a list of them in the model's order.
            outputs: names of outputs; None for all that the model declares.

        Returns:
            The output [N, …], or a dict of them by name if the model has several or `outputs` is
            given.
        """
        options = self._options.request_options(priority, queue_timeout, request_id, metadata)
        flow = self._flows.predict(x, model, version, outputs, options)
        return self._run(flow, timeout)

    def classify(
        self,
        images: Iterable[Any] | Array,
        top_k: int = 5,
        model: str | None = None,
        version: str = "",
        *,
        timeout: float | None = None,
        priority: int = 0,
        queue_timeout: float | None = None,
        request_id: str = "",
        metadata: Pairs = (),
    ) -> list[Ranking]:
        """The `top_k` best labels and scores of each image, best first.

        Args:
            images: encoded images (bytes, paths or binary file objects, which the server decodes
                and prepares), or arrays as `predict` takes them.

        Of equal scores the class of lower index comes first, and NaN last. A model without labels
        gives indices.
        """
        options = self._options.request_options(priority, queue_timeout, request_id, metadata)
        flow = self._flows.classify(images, top_k, model, version, options)
        return self._run(flow, timeout)

    def predict_many(
        self,
        items: Iterable[Array],
        batch: int = 32,
        in_flight: int = 8,
        *,
        model: str | None = None,
        version: str = "",
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
        priority: int = 0,
        queue_timeout: float | None = None,
        request_id: str = "",
        metadata: Pairs = (),
    ) -> Generator[Result, None, None]:
        """The results of many items, in their order, with requests overlapping.

        Args:
            items: arrays as `predict` takes them, each one image [C, H, W] or one batch
                [N, C, H, W]. Pulled only as requests need them.
            batch: images to a request; items are put together and split to fill it.
            in_flight: requests that are out at once, at most.
            timeout: of each request.

        An item that fails, or an error raised by `items`, comes up where its result would have
        been. Closing the iterator, or an error, cancels what is in flight.
        """
        check_whole("batch", batch, 1)
        check_whole("in_flight", in_flight, 1)
        check_items(items)
        limit = self._limit(timeout)
        names = output_names(outputs)
        options = self._options.request_options(priority, queue_timeout, request_id, metadata)
        self._check_open()

        def results() -> Generator[Result, None, None]:
            info = self._run(self._flows.learn(model, version), timeout)
            used: list[Region] = []
            target = self._flows.target(info, version, names, options)
            try:
                target = self._run(
                    self._flows.stream_target(target, batch, in_flight, used), timeout
                )
                stream = Stream(target, batch)
                requests = stream.requests(items)
                with closing(self._pipeline(requests, in_flight, lambda: limit)) as pairs:
                    for request, response in pairs:
                        yield from stream.results(read_answer(target, request, response))
                yield from stream.results(None)
            finally:
                self._flows.end_stream(used)

        return results()

    # ---- Performing steps ----

    def _run(self, flow: Flow[T], timeout: float | None) -> T:
        self._check_open()
        remaining = self._remaining(timeout)
        try:
            step = next(flow)
            while True:
                try:
                    result = self._perform(step, remaining)
                except ConvserveClientError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    def _perform(self, step: Call | Infer | Sleep, remaining: Remaining) -> Any:
        if isinstance(step, Call) and self._is_hedged(step.method):
            call = self._start(step.method, step.request, step.metadata, remaining)
            try:
                return self._wait([call])
            finally:
                call.cancel()
        if isinstance(step, Call):
            return self._one(step, remaining)
        if isinstance(step, Infer):
            with closing(self._pipeline(step.requests, IN_FLIGHT, remaining)) as pairs:
                return [step.read(request, response) for request, response in pairs]
        left = remaining()
        time.sleep(step.seconds if left is None else max(0.0, min(step.seconds, left)))
        return None

    def _one(self, step: Call, remaining: Remaining) -> Any:
        self._check_open()
        call = self._calls[step.method]
        metadata = self._options.call_metadata(step.metadata)
        try:
            return call(
                step.request,
                timeout=remaining(),
                metadata=metadata,
                wait_for_ready=step.wait_for_ready or None,
            )
        except (grpc.RpcError, ValueError) as error:  # ValueError: closed by another thread
            raise self._error(error) from None

    def _start(self, method: str, request: Any, own: Metadata, remaining: Remaining) -> Any:
        self._check_open()
        stub = self._attempts(method)

        def start(number: int) -> Any:
            metadata = self._options.call_metadata(own)
            try:
                return stub(number).future(request, timeout=remaining(), metadata=metadata)
            except ValueError as error:  # closed by another thread
                raise self._error(error) from None

        return start(0) if self._hedging is None else HedgedCall(self._hedging, start)

    def _wait(self, calls: Iterable[Any]) -> Any:
        """The answer to the first of the calls."""
        try:
            if self._hedging is None:
                return next(iter(calls)).result()
            return wait_for_first(list(calls))
        except (grpc.RpcError, grpc.FutureCancelledError) as error:
            raise self._error(error) from None

    def _pipeline(
        self, requests: Iterable[Request], in_flight: int, remaining: Remaining
    ) -> Generator[tuple[Request, Any], None, None]:
        """Makes the calls, up to `in_flight` at once, and yields their answers in order."""
        source = iter(requests)
        calls: deque[tuple[Request, Any]] = deque()
        failure: Exception | None = None
        more = True
        try:
            while more or calls:
                if calls and (not more or len(calls) == in_flight or calls[0][1].done()):
                    response = self._wait(call for _, call in calls)
                    yield calls.popleft()[0], response
                    continue
                try:
                    request = next(source, None)
                except Exception as error:  # raised below, after the answers that come before it
                    failure, request = error, None
                more = request is not None
                if request is not None:
                    call = self._start("ModelInfer", request.data, request.metadata, remaining)
                    calls.append((request, call))
            if failure is not None:
                raise failure
        finally:
            for _, call in calls:
                call.cancel()
