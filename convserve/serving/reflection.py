"""gRPC reflection, so that tools such as grpcurl can ask what the server offers.

The inference messages live in a private descriptor pool, those of health and reflection in
protobuf's default pool; a tool must find all of them. Tools ask for version v1 first, which has the
messages of v1alpha under other names; the library has v1alpha only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

from convserve.serving import health
from convserve_client import protocol

__all__ = ["SERVICES", "handlers"]

_ALPHA = reflection.SERVICE_NAME
_V1 = _ALPHA.replace(".v1alpha.", ".v1.")
SERVICES = (protocol.SERVICE, health.SERVICE, _ALPHA, _V1)


class _Pools:
    """The lookups of a descriptor pool, answered by the first of several pools that can."""

    def __init__(self, *pools: Any) -> None:
        self._pools = pools

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(_first, [getattr(pool, name) for pool in self._pools])

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        """The file of what has that full name; a pool's own lookup knows no methods."""
        by_method = (partial(_file_of_method, pool) for pool in self._pools)
        return _first(
            [*(pool.FindFileContainingSymbol for pool in self._pools), *by_method], symbol
        )


def _first(lookups: Sequence[Callable[..., Any]], *arguments: Any) -> Any:
    for lookup in lookups[:-1]:
        try:
            return lookup(*arguments)
        except KeyError:
            continue
    return lookups[-1](*arguments)


def _file_of_method(pool: Any, name: str) -> Any:
    return pool.FindMethodByName(name).containing_service.file


def handlers(pool: ThreadPoolExecutor) -> tuple[grpc.GenericRpcHandler, ...]:
    """The reflection services; their streams stay open at will, and keep to threads of `pool`."""
    servicer = reflection.ReflectionServicer(
        SERVICES, _Pools(protocol.POOL, _v1_pool(), descriptor_pool.Default())
    )

    def behaviour(requests: Any, context: grpc.ServicerContext) -> Any:
        return servicer.ServerReflectionInfo(requests, context)

    behaviour.experimental_thread_pool = pool  # type: ignore[attr-defined]
    method = grpc.stream_stream_rpc_method_handler(
        behaviour,
        request_deserializer=health.or_none(reflection_pb2.ServerReflectionRequest),
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    calls = {"ServerReflectionInfo": method}
    return tuple(grpc.method_handlers_generic_handler(name, calls) for name in (_ALPHA, _V1))


def _v1_pool() -> descriptor_pool.DescriptorPool:
    """A pool with v1's descriptors, which are v1alpha's but for the version in their names."""
    alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    text = json_format.MessageToJson(alpha).replace("v1alpha", "v1")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(json_format.Parse(text, descriptor_pb2.FileDescriptorProto()))
    return pool
