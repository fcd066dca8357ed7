"""A small real server of the protocol that can be slow, fail, refuse and disappear on command."""

from __future__ import annotations

import asyncio
import functools
import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health, health_pb2_grpc
from tcp_wire import Wire

import convserve_client
from convserve_client import protocol, tensors

CLASSES = 3
WAIT = 60.0  # seconds after which a test has failed; never waited for in full


def scores_of(x: np.ndarray) -> np.ndarray:
    """What the toy model computes: per image its sum, its first element, and 1."""
    flat = x.reshape(len(x), math.prod(x.shape[1:])).astype(np.float32)
    return np.stack([flat.sum(axis=1), flat[:, 0], np.ones(len(x), np.float32)], axis=1)


def images(count: int, seed: int = 0, shape: tuple[int, ...] = (1, 2, 2)) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *shape), np.float32)


@dataclass
class Model:
    shape: tuple[int, ...] = (1, 2, 2)
    max_batch_size: int = 4
    labels: list[str] | None = field(default_factory=lambda: ["sum", "first", "one"])
    outputs: tuple[str, ...] = ("output",)
    version: str = "1"


class ToyServer:
    """Its knobs may be turned while it runs; `requests` keeps every ModelInferRequest."""

    Model = Model
    scores_of = staticmethod(scores_of)
    images = staticmethod(images)

    def __init__(
        self,
        port: int = 0,
        max_receive: int = -1,
        credentials: grpc.ServerCredentials | None = None,
    ) -> None:
        self.models: dict[str, Model] = {"toy": Model()}
        self.ready = True
        # Of the next calls: status, text, push-back; None for one that goes well.
        self.fail: list[tuple[grpc.StatusCode, str, str | None] | None] = []
        self.missing: set[str] = set()  # calls that it does not have
        self.delay = lambda request: 0.0
        self.hold: threading.Event | None = None
        self.held: set[str] = set()  # calls beside ModelInfer that wait for it
        self.requests: list[Any] = []
        self.loads: list[Any] = []
        self.calls: list[str] = []
        self.metadata: list[dict[str, Any]] = []
        self.arrived = threading.Semaphore(0)
        self.cancelled = threading.Semaphore(0)
        self.regions: dict[str, SharedMemory] = {}
        self.health = health.HealthServicer()
        self.deadlines: list[float | None] = []  # seconds that a call had left
        self.peers: list[str] = []
        self.running = self.most_running = 0
        self._lock = threading.Lock()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(24),
            options=[
                ("grpc.max_receive_message_length", max_receive),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ],
        )
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(
                self._handler(name),
                request_deserializer=method.request.FromString,
                response_serializer=method.response.SerializeToString,
            )
            for name, method in protocol.METHODS.items()
            if hasattr(self, name)
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(protocol.SERVICE, handlers),)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        address = f"127.0.0.1:{port}"
        self.port = (
            self._server.add_insecure_port(address)
            if credentials is None
            else self._server.add_secure_port(address, credentials)
        )
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self) -> None:
        if self.hold is not None:
            self.hold.set()
        self._server.stop(0).wait()
        self.lose_regions()

    def lose_regions(self) -> None:
        """As if it had been started anew."""
        for memory in self.regions.values():
            memory.close()
        self.regions.clear()

    def _handler(self, name: str) -> Any:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            with self._lock:
                self.calls.append(name)
                self.metadata.append(dict(context.invocation_metadata()))
                self.deadlines.append(context.time_remaining())
                self.peers.append(context.peer())
                failure = self.fail.pop(0) if self.fail else None
            if name in self.held and self.hold is not None:
                self.hold.wait(WAIT)
            if name in self.missing:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, f"no {name} here")
            if failure is not None:
                code, text, pushback = failure
                if pushback is not None:
                    context.set_trailing_metadata((("grpc-retry-pushback-ms", pushback),))
                context.abort(code, text)
            return getattr(self, name)(request, context)

        return handle

    def _model(self, name: str, context: grpc.ServicerContext) -> Model:
        if name not in self.models:
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found"
            )
        return self.models[name]

    def ServerLive(self, request: Any, context: Any) -> Any:
        return protocol.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Any) -> Any:
        return protocol.ServerReadyResponse(ready=self.ready)

    def ModelReady(self, request: Any, context: Any) -> Any:
        return protocol.ModelReadyResponse(ready=request.name in self.models)

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        response = protocol.RepositoryIndexResponse()
        for name, model in self.models.items():
            response.models.add(name=name, version=model.version, state="READY")
        return response

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return protocol.ServerMetadataResponse(name="toy", version="7", extensions=["parameters"])

    def ModelStatistics(self, request: Any, context: Any) -> Any:
        names = [request.name] if request.name else list(self.models)
        response = protocol.ModelStatisticsResponse()
        for name in names:
            model = self._model(name, context)
            response.model_stats.add(name=name, version=model.version, inference_count=3)
        return response

    def LogSettings(self, request: Any, context: Any) -> Any:
        response = protocol.LogSettingsResponse()
        for name, value in request.settings.items():
            response.settings[name].MergeFromString(value.SerializeToString())
        return response

    def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        self.loads.append(request)
        self.models[request.model_name] = Model()
        return protocol.RepositoryModelLoadResponse()

    def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        self._model(request.model_name, context)
        del self.models[request.model_name]
        return protocol.RepositoryModelUnloadResponse()

    def SystemSharedMemoryRegister(self, request: Any, context: grpc.ServicerContext) -> Any:
        memory = SharedMemory(request.key.removeprefix("/"))
        if request.name in self.regions or request.offset + request.byte_size > memory.size:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad registration")
        self.regions[request.name] = memory
        return protocol.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        self.regions.pop(request.name).close()
        return protocol.SystemSharedMemoryUnregisterResponse()

    def _place(self, tensor: Any, context: grpc.ServicerContext) -> memoryview | None:
        """Where in shared memory a tensor lies, if it does."""
        if "shared_memory_region" not in tensor.parameters:
            return None
        name = tensor.parameters["shared_memory_region"].string_param
        if name not in self.regions:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Unable to find shared memory region: {name}")
        size = tensor.parameters["shared_memory_byte_size"].int64_param
        offset = tensor.parameters["shared_memory_offset"].int64_param
        assert offset + size <= self.regions[name].size
        return self.regions[name].buf[offset : offset + size]

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        model = self._model(request.name, context)
        response = protocol.ModelMetadataResponse(name=request.name, versions=[model.version])
        batch = [-1] if model.max_batch_size else []
        response.inputs.add(name="input", datatype="FP32", shape=[*batch, *model.shape])
        for output in model.outputs:
            dims = model.shape if output == "copy" else (CLASSES,)
            response.outputs.add(name=output, datatype="FP32", shape=[*batch, *dims])
        return response

    def ModelConfig(self, request: Any, context: Any) -> Any:
        model = self._model(request.name, context)
        config = protocol.ModelConfig(name=request.name, max_batch_size=model.max_batch_size)
        if model.labels is not None:
            config.parameters["labels"].string_value = json.dumps(model.labels)
        return protocol.ModelConfigResponse(config=config)

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:
        model = self._model(request.model_name, context)
        with self._lock:
            self.requests.append(request)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        finished = threading.Event()

        def ended() -> None:
            if not finished.is_set():
                self.cancelled.release()

        context.add_callback(ended)
        self.arrived.release()
        try:
            if self.hold is not None:
                self.hold.wait(WAIT)
            time.sleep(self.delay(request))
            return self._infer(model, request, context)
        finally:
            finished.set()
            with self._lock:
                self.running -= 1

    def _infer(self, model: Model, request: Any, context: grpc.ServicerContext) -> Any:
        raw = list(request.raw_input_contents)
        place = self._place(request.inputs[0], context)
        if place is not None:
            raw = [bytes(place)]
            place.release()
        try:
            (x,) = tensors.read_tensors(request.inputs, raw).values()
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if x.dtype == object:  # an encoded image is, to this model, its length and first byte
            x = np.array([[len(data), data[0]] for data in x.ravel()], np.float32)
        elif x.shape[bool(model.max_batch_size) :] != model.shape:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"unexpected shape {list(x.shape)}")
        if model.max_batch_size and len(x) > model.max_batch_size:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "batch-size must be <= max")
        names = [output.name for output in request.outputs] or model.outputs
        response = protocol.ModelInferResponse(
            model_name=request.model_name, model_version=model.version, id=request.id
        )
        asked = {output.name: output for output in request.outputs}
        for name in names:
            scores = x if name == "copy" else scores_of(x)
            output = response.outputs.add(name=name, datatype="FP32", shape=scores.shape)
            data = tensors.to_raw(scores)
            place = self._place(asked[name], context) if name in asked else None
            if place is not None:
                place[: len(data)] = data
                place.release()
                output.parameters["shared_memory_region"].string_param = "here"
                data = b""
            response.raw_output_contents.append(data)
        return response


@functools.cache
def running_loop() -> asyncio.AbstractEventLoop:
    """One event loop for all tests: gRPC has one queue for all loops, which an event for one that
    has been closed meanwhile holds up."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


class Blocking:
    """An AsyncClient behind the methods of a Client, so that one test covers both."""

    def __init__(self, address: str, **options: Any) -> None:
        self._loop = running_loop()
        self.loop_errors: list[Any] = []
        self._loop.set_exception_handler(lambda loop, context: self.loop_errors.append(context))
        self.client = convserve_client.AsyncClient(address, **options)

    def _wait(self, awaitable: Any) -> Any:
        async def run() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(WAIT)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        return lambda *args, **kwargs: self._wait(method(*args, **kwargs))

    def predict_many(self, *args: Any, **kwargs: Any) -> Any:
        results = self.client.predict_many(*args, **kwargs)

        def pull() -> Any:
            try:
                while True:
                    try:
                        yield self._wait(anext(results))
                    except StopAsyncIteration:
                        return
            finally:
                self._wait(results.aclose())

        return pull()

    def shut(self) -> None:
        self._wait(self.client.close())
        self._wait(asyncio.sleep(0))
        assert self.loop_errors == []


@pytest.fixture
def server() -> Iterator[ToyServer]:
    toy = ToyServer()
    yield toy
    toy.stop()


@pytest.fixture
def make_server() -> Iterator[Callable[..., ToyServer]]:
    made: list[ToyServer] = []

    def make(**options: Any) -> ToyServer:
        made.append(ToyServer(**options))
        return made[-1]

    yield make
    for toy in made:
        toy.stop()


@pytest.fixture
def wire(server: ToyServer) -> Iterator[Wire]:
    made = Wire(server.port)
    yield made
    made.cut()


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Makes clients of either kind, with the methods of the sync one."""
    made: list[Any] = []

    def make(address: str, **options: Any) -> Any:
        kind = convserve_client.Client if request.param == "sync" else Blocking
        made.append(kind(address, **options))
        return made[-1]

    yield make
    for client in made:
        client.shut() if isinstance(client, Blocking) else client.close()


@pytest.fixture
def client(connect: Callable[..., Any], server: ToyServer) -> Any:
    return connect(server.address)
