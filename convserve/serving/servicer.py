"""The calls of the inference service: convert, call, convert back.

Requests arrive here as bytes and leave as bytes, so that malformed ones are answered like every
other wrong request, and parsing does not hold up gRPC's polling thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import grpc

import convserve
from convserve.engine.repository import ModelRepository
from convserve.engine.statistics import Counters
from convserve.errors import ModelNotFoundError, ModelNotReadyError
from convserve.serving import describe
from convserve.serving.calls import Call, guarded, unimplemented
from convserve.serving.control import Control
from convserve.serving.inference import Inferences
from convserve.serving.observe import Observer
from convserve.serving.pool import CallPool
from convserve_client import protocol

__all__ = ["EXTENSIONS", "Pools", "Servicer"]

# Exactly what works; `system_shared_memory` only where it is switched on.
EXTENSIONS = (
    "classification",
    "model_repository",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "logging",
)


class Pools(NamedTuple):
    """Threads for the calls that may take long. A call keeps its thread until it is answered, so
    inferences, streams and loading can't take the threads that health and metadata need."""

    inference: CallPool
    streams: CallPool
    loading: CallPool


class Servicer:
    """Answers for a repository's models. `ready` is what ServerReady and ModelReady report.

    totals: what the versions have done in all processes; None where this one is alone.
    """

    def __init__(
        self,
        repository: ModelRepository,
        inferences: Inferences,
        control: Control,
        observer: Observer | None = None,
        totals: Callable[[], Mapping[tuple[str, str], Counters]] | None = None,
    ) -> None:
        self._totals = totals
        self._repository = repository
        self._inferences = inferences
        self._control = control
        self._observer = observer
        self.ready = False

    def handler(self, pools: Pools) -> grpc.GenericRpcHandler:
        """The service's handler; what none of `pools` is for runs on the server's own pool."""
        calls: dict[str, Call] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._inferences.infer,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            **self._control.calls(),
        }
        own_pools = {
            "ModelInfer": pools.inference,
            "RepositoryModelLoad": pools.loading,
            "RepositoryModelUnload": pools.loading,
        }
        handlers = {}
        for name, method in protocol.METHODS.items():
            if name == "ModelStreamInfer":
                handlers[name] = self._stream_handler(pools.streams)
                continue
            behaviour = self._behaviour(name, calls.get(name), method)
            if name in own_pools:
                behaviour.experimental_thread_pool = own_pools[name]
            handlers[name] = grpc.unary_unary_rpc_method_handler(behaviour)
        return grpc.method_handlers_generic_handler(protocol.SERVICE, handlers)

    def _behaviour(self, name: str, call: Call | None, method: protocol.Method) -> Any:
        observer = self._observer
        if call is not None and observer is not None:
            call = observer.reading(call)
        behaviour = unimplemented(name) if call is None else guarded(call, method.request)
        return behaviour if observer is None else observer.unary(name, behaviour)

    def _stream_handler(self, pool: CallPool) -> grpc.RpcMethodHandler:
        def behaviour(data: Any, context: grpc.ServicerContext) -> Any:
            return self._inferences.stream(data, context)

        behaviour.experimental_thread_pool = pool  # type: ignore[attr-defined]
        return grpc.stream_stream_rpc_method_handler(behaviour)

    def _server_live(self, _: Any, __: grpc.ServicerContext) -> Any:
        return protocol.ServerLiveResponse(live=True)

    def _server_ready(self, _: Any, __: grpc.ServicerContext) -> Any:
        return protocol.ServerReadyResponse(ready=self.ready)

    def _model_ready(self, message: Any, _: grpc.ServicerContext) -> Any:
        try:
            self._repository.get(message.name, message.version)
        except (ModelNotFoundError, ModelNotReadyError):
            return protocol.ModelReadyResponse(ready=False)
        return protocol.ModelReadyResponse(ready=self.ready)

    def _server_metadata(self, _: Any, __: grpc.ServicerContext) -> Any:
        return protocol.ServerMetadataResponse(
            name="convserve",
            version=convserve.__version__,
            extensions=[*EXTENSIONS, *self._control.extensions],
        )

    def _model_metadata(self, message: Any, _: grpc.ServicerContext) -> Any:
        served = self._repository.get(message.name, message.version)
        return describe.metadata(served, self._repository.versions(served.name))

    def _model_config(self, message: Any, _: grpc.ServicerContext) -> Any:
        return describe.config(self._repository.get(message.name, message.version))

    def _model_statistics(self, message: Any, _: grpc.ServicerContext) -> Any:
        if message.name and message.version:
            chosen = [self._repository.get(message.name, message.version)]
        else:
            chosen = self._repository.models()
            if message.name:
                self._repository.get(message.name)  # it must exist
                chosen = [served for served in chosen if served.name == message.name]
        totals = {} if self._totals is None else self._totals()
        stats = []
        for served in chosen:
            counters = totals.get((served.name, served.version)) or served.statistics.snapshot()
            stats.append(describe.statistics(served, counters))
        return protocol.ModelStatisticsResponse(model_stats=stats)
