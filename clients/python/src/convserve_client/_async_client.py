"""The asynchronous client: performs the flows' steps on grpc.aio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any

import grpc

from convserve_client._base import CLOSE_SECONDS, ClientBase, Remaining
from convserve_client._checks import check_whole
from convserve_client._control import Files, Setting
from convserve_client._flows import IN_FLIGHT, Ranking, Result, output_names
from convserve_client._hedging import hedged
from convserve_client._many import Stream, check_items
from convserve_client._model import Array, Inputs
from convserve_client._request_options import Pairs
from convserve_client._requests import Request, read_answer
from convserve_client._security import Metadata
from convserve_client._shared_memory import Region
from convserve_client._steps import Call, Flow, Infer, Sleep, T
from convserve_client.errors import ConvserveClientError


class AsyncClient(ClientBase):
    """A client for asyncio; parameters, methods and errors are those of `Client`.

        async with AsyncClient("localhost:8001") as client:
            scores = await client.predict(x)
            async for result in client.predict_many(images):
                ...

    It connects in the event loop that makes its first call, and stays with that loop. Leaving a
    `predict_many` early cancels what is in flight once the iterator is closed: use
    `contextlib.aclosing` to have that at once.
    """

    _channel: Any = None
    _loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> AsyncClient:
        self._check_open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the calls in flight and closes the connection; further calls are refused."""
        if self._flows.regions is not None and not self._closed and self._channel is not None:
            with suppress(ConvserveClientError):  # a server that is gone has nothing to give back
                await self._run(self._flows.release(), CLOSE_SECONDS)
        self._closed = True
        if self._channel is not None:
            for channel in (self._channel, *self._again):
                await channel.close()

    def _ready_calls(self) -> dict[str, Any]:
        """The calls, connected to the running event loop."""
        self._check_open()
        loop = asyncio.get_running_loop()
        if self._channel is None:
            self._channel = self._options.open(grpc.aio)
            self._calls = self._stubs(self._channel)
            self._open_again(grpc.aio)
            self._loop = loop
        if self._loop is not loop:
            raise RuntimeError("this AsyncClient was first used in another event loop")
        return self._calls

    # ---- Server and models ----

    async def server_live(self, *, timeout: float | None = None) -> bool:
        """As `Client.server_live`."""
        return await self._run(self._flows.server_live(), timeout)

    async def server_ready(self, *, timeout: float | None = None) -> bool:
        """As `Client.server_ready`."""
        return await self._run(self._flows.server_ready(), timeout)

    async def model_ready(
        self, model: str | None = None, version: str = "", *, timeout: float | None = None
    ) -> bool:
        """As `Client.model_ready`."""
        return await self._run(self._flows.model_ready(model, version), timeout)

    async def model_metadata(
        self, model: str | None = None, version: str = "", *, timeout: float | None = None
    ) -> Any:
        """As `Client.model_metadata`."""
        return await self._run(self._flows.metadata(model, version), timeout)

    async def model_config(
        self, model: str | None = None, version: str = "", *, timeout: float | None = None
    ) -> Any:
        """As `Client.model_config`."""
        return await self._run(self._flows.config(model, version), timeout)

    async def server_metadata(self, *, timeout: float | None = None) -> Any:
        """As `Client.server_metadata`."""
        return await self._run(self._flows.server_metadata(), timeout)

    async def model_statistics(
        self, model: str | None = None, version: str = "", *, timeout: float | None = None
    ) -> list[Any]:
        """As `Client.model_statistics`."""
        return await self._run(self._flows.statistics(model, version), timeout)

    async def repository_index(
        self, ready: bool = False, *, timeout: float | None = None
    ) -> list[Any]:
        """As `Client.repository_index`."""
        return await self._run(self._flows.index(ready), timeout)

    async def load_model(
        self,
        model: str,
        *,
        config: Mapping[str, Any] | None = None,
        files: Files | None = None,
        timeout: float | None = None,
    ) -> None:
        """As `Client.load_model`."""
        await self._run(self._flows.load(model, config, files), timeout)

    async def unload_model(self, model: str, *, timeout: float | None = None) -> None:
        """As `Client.unload_model`."""
        await self._run(self._flows.unload(model), timeout)

    async def log_settings(self, *, timeout: float | None = None) -> dict[str, Setting]:
        """As `Client.log_settings`."""
        return await self._run(self._flows.log_settings({}), timeout)

    async def update_log_settings(
        self, settings: Mapping[str, Setting], *, timeout: float | None = None
    ) -> dict[str, Setting]:
        """As `Client.update_log_settings`."""
        return await self._run(self._flows.log_settings(settings), timeout)

    async def wait_ready(
        self, timeout: float | None = None, *, model: str | None = None, version: str = ""
    ) -> None:
        """As `Client.wait_ready`."""
        await self._run(self._flows.wait_ready(model, version), timeout)

    # ---- Inference ----

    async def predict(
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
        """As `Client.predict`."""
        options = self._options.request_options(priority, queue_timeout, request_id, metadata)
        flow = self._flows.predict(x, model, version, outputs, options)
        return await self._run(flow, timeout)

    async def classify(
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
        """As `Client.classify`."""
        options = self._options.request_options(priority, queue_timeout, request_id, metadata)
        flow = self._flows.classify(images, top_k, model, version, options)
        return await self._run(flow, timeout)

    def predict_many(
        self,
        items: Iterable[Array] | AsyncIterable[Array],
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
    ) -> AsyncGenerator[Result, None]:
        """As `Client.predict_many`."""
        check_whole("batch", batch, 1)
        check_whole("in_flight", in_flight, 1)
        check_items(items)
        limit = self._limit(timeout)
        names = output_names(outputs)
        options = self._options.request_options(priority, queue_timeout, request_id, metadata)
        self._check_open()

        async def results() -> AsyncGenerator[Result, None]:
            info = await self._run(self._flows.learn(model, version), timeout)
            used: list[Region] = []
            target = self._flows.target(info, version, names, options)
            try:
                target = await self._run(
                    self._flows.stream_target(target, batch, in_flight, used), timeout
                )
                stream = Stream(target, batch)
                requests = stream.requests_async(_each(items))
                async with aclosing(self._pipeline(requests, in_flight, lambda: limit)) as pairs:
                    async for request, response in pairs:
                        for result in stream.results(read_answer(target, request, response)):
                            yield result
                for result in stream.results(None):
                    yield result
            finally:
                self._flows.end_stream(used)

        return results()

    # ---- Performing steps ----

    async def _run(self, flow: Flow[T], timeout: float | None) -> T:
        self._check_open()
        remaining = self._remaining(timeout)
        try:
            step = next(flow)
            while True:
                try:
                    result = await self._perform(step, remaining)
                except ConvserveClientError as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def _perform(self, step: Call | Infer | Sleep, remaining: Remaining) -> Any:
        if isinstance(step, Call) and self._is_hedged(step.method):
            call = self._start(step.method, step.request, step.metadata, remaining)
            return await self._answer(call)
        if isinstance(step, Call):
            call = self._ready_calls()[step.method](
                step.request,
                timeout=remaining(),
                metadata=self._options.call_metadata(step.metadata),
                wait_for_ready=step.wait_for_ready or None,
            )
            return await self._answer(call)
        if isinstance(step, Infer):
            pipeline = self._pipeline(_each(step.requests), IN_FLIGHT, remaining)
            async with aclosing(pipeline) as pairs:
                return [step.read(request, response) async for request, response in pairs]
        left = remaining()
        await asyncio.sleep(step.seconds if left is None else max(0.0, min(step.seconds, left)))
        return None

    def _start(self, method: str, request: Any, own: Metadata, remaining: Remaining) -> Any:
        self._ready_calls()
        stub = self._attempts(method)

        def start(number: int) -> Any:
            metadata = self._options.call_metadata(own)
            return stub(number)(request, timeout=remaining(), metadata=metadata)

        return start(0) if self._hedging is None else hedged(self._hedging, start)

    async def _answer(self, call: Any) -> Any:
        try:
            return await call
        except grpc.RpcError as error:
            raise self._error(error) from None
        except asyncio.CancelledError as error:
            if self._closed and not _being_cancelled():  # close() has cancelled the call
                raise self._error(error) from None
            raise

    async def _pipeline(
        self, requests: AsyncIterator[Request], in_flight: int, remaining: Remaining
    ) -> AsyncGenerator[tuple[Request, Any], None]:
        """Makes the calls, up to `in_flight` at once, and yields their answers in order."""
        calls: deque[tuple[Request, Any]] = deque()
        failure: Exception | None = None
        more = True
        try:
            while more or calls:
                if calls and (not more or len(calls) == in_flight or calls[0][1].done()):
                    response = await self._answer(calls[0][1])
                    yield calls.popleft()[0], response
                    continue
                try:
                    request = await anext(requests, None)
                except Exception as error:  # raised below, after the answers that come before it
                    failure, request = error, None
                more = request is not None
                if request is not None:
                    call = self._start("ModelInfer", request.data, request.metadata, remaining)
                    calls.append((request, call))
                    await asyncio.sleep(0)  # lets the call go out before a slow source is asked
            if failure is not None:
                raise failure
        finally:
            for _, call in calls:
                call.cancel()


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def _being_cancelled() -> bool:
    """Whether the current task itself is being cancelled; False where Python can't tell (3.10)."""
    task: Any = asyncio.current_task()
    return bool(getattr(task, "cancelling", int)())
