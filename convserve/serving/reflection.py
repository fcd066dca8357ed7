"""gRPC reflection, so that tools such as grpcurl can ask what the server offers.

The inference messages live in a private descriptor pool, those of health and reflection in
protobuf's default pool; a tool must find all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection, reflection_pb2

from convserve_client import protocol

__all__ = ["SERVICES", "handler"]

SERVICES = (protocol.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)


class _Pools:
    """The lookups of a descriptor pool, answered by the first of several pools that can."""

    def __init__(self, *pools: Any) -> None:
        self._pools = pools

    def __getattr__(self, name: str) -> Callable[..., Any]:
        lookups = [getattr(pool, name) for pool in self._pools]

        def find(*arguments: Any) -> Any:
            for lookup in lookups[:-1]:
                try:
                    return lookup(*arguments)
                except KeyError:
                    continue
            return lookups[-1](*arguments)

        return find


def handler(pool: ThreadPoolExecutor) -> grpc.GenericRpcHandler:
    """The reflection service; its streams stay open at will, so they keep to threads of `pool`."""
    servicer = reflection.ReflectionServicer(
        SERVICES, _Pools(protocol.POOL, descriptor_pool.Default())
    )

    def behaviour(requests: Any, context: grpc.ServicerContext) -> Any:
        return servicer.ServerReflectionInfo(requests, context)

    behaviour.experimental_thread_pool = pool  # type: ignore[attr-defined]
    method = grpc.stream_stream_rpc_method_handler(
        behaviour,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(
        reflection.SERVICE_NAME, {"ServerReflectionInfo": method}
    )
