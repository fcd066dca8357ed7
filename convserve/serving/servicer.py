"""The calls of the inference service: convert, call, convert back.

Requests arrive here as bytes and leave as bytes, so that malformed ones are answered like every
other wrong request, and parsing does not hold up gRPC's polling thread.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

import convserve
from convserve.engine.repository import ModelRepository, ServedModel
from convserve.engine.scheduler import Request
from convserve.errors import (
    CancelledError,
    DeadlineExceededError,
    InvalidRequestError,
    ModelNotFoundError,
    StoppingError,
)
from convserve.serving import codec, describe, status
from convserve.serving.images import ImageDecoder
from convserve_client import protocol

__all__ = ["EXTENSIONS", "Servicer"]

# Exactly what works. `schedule_policy` is not in it: `priority` and `timeout` are ignored, as
# the protocol has it for a model without priority levels and timeout override.
EXTENSIONS = ("classification", "model_configuration", "binary_tensor_data", "parameters")
_NO_DEADLINE = 365 * 86400.0  # gRPC says "none" by a time far ahead

Call = Callable[[Any, grpc.ServicerContext], Any]


class Servicer:
    """Answers for a repository's models. `ready` is what ServerReady and ModelReady report."""

    def __init__(self, repository: ModelRepository, decoder: ImageDecoder) -> None:
        self._repository = repository
        self._decoder = decoder
        self.ready = False
        self._idle = threading.Condition(threading.Lock())
        self._active = 0  # ModelInfer calls that are not wholly answered
        self._stopping = False
        self._refused = 0  # ModelInfer calls that came while stopping

    def handler(self, infer_pool: ThreadPoolExecutor) -> grpc.GenericRpcHandler:
        """The service's handler. ModelInfer runs on `infer_pool`, all else on the server's pool.

        A call keeps its thread until it is answered; with a pool of their own, inferences can't
        take the threads that health and control calls need.
        """
        calls: dict[str, Call] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
            "ModelConfig": self._model_config,
            "RepositoryIndex": self._repository_index,
        }
        handlers = {}
        for name, method in protocol.METHODS.items():
            if name in calls:
                behaviour = _guarded(calls[name], method.request)
                if name == "ModelInfer":
                    behaviour.experimental_thread_pool = infer_pool  # type: ignore[attr-defined]
                handlers[name] = grpc.unary_unary_rpc_method_handler(behaviour)
            else:
                handlers[name] = _unimplemented(name, method)
        return grpc.method_handlers_generic_handler(protocol.SERVICE, handlers)

    def drain(self, timeout: float) -> bool:
        """Take no more inferences and wait for the accepted ones; whether all ended in time."""
        self.ready = False
        with self._idle:
            self._stopping = True
            return self._idle.wait_for(lambda: not self._active, timeout)

    def wait_quiet(self, quiet: float, timeout: float) -> None:
        """Wait until for `quiet` seconds no inference had to be refused, at most `timeout`.

        gRPC cancels the calls that reach it at the instant when it shuts down; callers who were
        told UNAVAILABLE before, and have turned elsewhere, do not meet that.
        """
        deadline = time.monotonic() + timeout
        with self._idle:
            while time.monotonic() < deadline:
                seen = self._refused
                if not self._idle.wait_for(lambda: self._refused != seen, quiet):  # noqa: B023
                    return

    def _enter(self) -> None:
        with self._idle:
            if self._stopping:
                self._refused += 1
                self._idle.notify_all()
                raise StoppingError("Server is stopping and takes no new inference requests")
            self._active += 1

    def leave(self) -> None:
        """Count a ModelInfer call as wholly answered."""
        with self._idle:
            self._active -= 1
            if not self._active:
                self._idle.notify_all()

    def _server_live(self, _: Any, __: grpc.ServicerContext) -> Any:
        return protocol.ServerLiveResponse(live=True)

    def _server_ready(self, _: Any, __: grpc.ServicerContext) -> Any:
        return protocol.ServerReadyResponse(ready=self.ready)

    def _model_ready(self, message: Any, _: grpc.ServicerContext) -> Any:
        try:
            self._repository.get(message.name, message.version)
        except ModelNotFoundError:
            return protocol.ModelReadyResponse(ready=False)
        return protocol.ModelReadyResponse(ready=self.ready)

    def _server_metadata(self, _: Any, __: grpc.ServicerContext) -> Any:
        return protocol.ServerMetadataResponse(
            name="convserve", version=convserve.__version__, extensions=EXTENSIONS
        )

    def _model_metadata(self, message: Any, _: grpc.ServicerContext) -> Any:
        return describe.metadata(self._repository.get(message.name, message.version))

    def _model_config(self, message: Any, _: grpc.ServicerContext) -> Any:
        return describe.config(self._repository.get(message.name, message.version))

    def _repository_index(self, _: Any, __: grpc.ServicerContext) -> Any:
        entry = protocol.RepositoryIndexResponse.ModelIndex
        index = self._repository.index()
        return protocol.RepositoryIndexResponse(models=[entry(**e._asdict()) for e in index])

    def _model_infer(self, message: Any, context: grpc.ServicerContext) -> Any:
        arrival = time.monotonic_ns()
        served = self._repository.get(message.model_name, message.model_version)
        try:
            self._enter()
            answer = self._infer(served, message, context, _Inference(self, context))
        except Exception as error:
            served.statistics.failed(status.reason(error))
            raise
        served.statistics.succeeded(time.monotonic_ns() - arrival)
        return answer

    def _infer(
        self, served: ServedModel, message: Any, context: grpc.ServicerContext, call: _Inference
    ) -> Any:
        remaining = context.time_remaining()
        has_deadline = remaining is not None and remaining < _NO_DEADLINE
        deadline = time.monotonic() + remaining if has_deadline else None
        x = codec.read_input(served, message)
        wanted = codec.read_wanted(served, message)
        if isinstance(x, list):
            preprocessing = served.model.preprocessing
            assert preprocessing is not None  # else the codec takes no BYTES
            x = self._decoder.decode(x, preprocessing, lambda: call.check_wanted(deadline))
        request = Request(x, deadline=deadline)
        call.cancels(request)
        return codec.response(served, message.id, wanted, served.scheduler.run(request))


class _Inference:
    """One ModelInfer call, told by gRPC when it is over: answered, cancelled, or timed out."""

    __slots__ = ("_over", "_request", "_servicer")

    def __init__(self, servicer: Servicer, context: grpc.ServicerContext) -> None:
        self._servicer = servicer
        self._request: Request | None = None
        self._over = False
        if not context.add_callback(self._end):
            self._end()

    def _end(self) -> None:
        self._over = True
        if self._request is not None:
            self._request.cancel()
        self._servicer.leave()

    def cancels(self, request: Request) -> None:
        """From now on the end of the call cancels `request`, if it has not run by then."""
        self._request = request
        if self._over:
            request.cancel()

    def check_wanted(self, deadline: float | None) -> None:
        """Raise if nobody waits for an answer any more."""
        if deadline is not None and time.monotonic() >= deadline:
            raise DeadlineExceededError("the request's deadline passed before it was answered")
        if self._over:
            raise CancelledError("the request was cancelled")


def _guarded(call: Call, request: Any) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """A call on bytes that always ends in an answer or in a status of `status.py`."""

    def behaviour(data: bytes, context: grpc.ServicerContext) -> bytes:
        message = None
        try:
            try:
                message = request.FromString(data)
            except DecodeError:
                name = request.DESCRIPTOR.name
                raise InvalidRequestError(f"the request is not a valid {name} message") from None
            answer: bytes = call(message, context).SerializeToString()
            return answer
        except Exception as error:
            failure = status.of(error, getattr(message, "id", ""))
        _abort(context, failure)

    return behaviour


def _abort(context: grpc.ServicerContext, failure: status.Status) -> NoReturn:
    if failure.trailers:
        context.set_trailing_metadata(failure.trailers)
    context.abort(failure.code, failure.details)
    raise AssertionError("abort raises")


def _unimplemented(name: str, method: protocol.Method) -> grpc.RpcMethodHandler:
    def behaviour(_: Any, context: grpc.ServicerContext) -> NoReturn:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, f"'{name}' is not implemented by this server")
        raise AssertionError("abort raises")

    if method.client_streaming and method.server_streaming:
        return grpc.stream_stream_rpc_method_handler(behaviour)
    return grpc.unary_unary_rpc_method_handler(behaviour)
