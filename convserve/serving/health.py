"""grpc.health.v1: what the library has, with `List`, and without a trace in the log for bad bytes.

Health checks need no token, so whoever reaches the port may send them anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

__all__ = ["SERVICE", "Health", "or_none"]

SERVICE: str = health.SERVICE_NAME


class Health(health.HealthServicer):  # type: ignore[misc]
    """The state of the server ("") and of what was `set`. All methods may be called anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self._names = {"": None}  # a dict, since it can be copied while it grows

    def set(self, service: str, status: Any) -> None:
        """Say how a service fares, now and to all who watch it."""
        super().set(service, status)
        self._names[service] = None

    def List(self, request: Any, context: grpc.ServicerContext) -> Any:
        """The state of everything whose name is known."""
        del request
        answer = health_pb2.HealthListResponse()
        for name in list(self._names):
            check = health_pb2.HealthCheckRequest(service=name)
            answer.statuses[name].CopyFrom(self.Check(check, context))
        return answer

    def handler(self) -> grpc.GenericRpcHandler:
        """The service's handler."""
        check = or_none(health_pb2.HealthCheckRequest)
        calls = {
            "Check": grpc.unary_unary_rpc_method_handler(self.Check, check, _serialized),
            "Watch": grpc.unary_stream_rpc_method_handler(self.Watch, check, _serialized),
        }
        if hasattr(health_pb2, "HealthListRequest"):  # of grpcio-health-checking 1.72 and later
            empty = or_none(health_pb2.HealthListRequest)
            calls["List"] = grpc.unary_unary_rpc_method_handler(self.List, empty, _serialized)
        return grpc.method_handlers_generic_handler(SERVICE, calls)


def or_none(request: Any) -> Callable[[bytes], Any]:
    """A deserializer of messages of a type. None, at which gRPC ends the call with INTERNAL, for
    bytes that are none: an exception would end it likewise, and fill the log with traces."""

    def deserialize(data: bytes) -> Any:
        try:
            return request.FromString(data)
        except DecodeError:
            return None

    return deserialize


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
