"""The wire protocol's messages and calls, in a descriptor pool of our own.

Other packages register messages of the same full names in protobuf's default pool, which takes
each name once. Here the compiled `protos/` are loaded into a private pool, so that all of them
can live in one process. Message classes and enums are attributes by name:

    request = protocol.ModelInferRequest(model_name="mnist")
    protocol.DataType.TYPE_FP32
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"


class Method(NamedTuple):
    """One call of the service; the classes are those of its request and response messages."""

    request: Any
    response: Any
    client_streaming: bool
    server_streaming: bool


def _load_pool() -> DescriptorPool:
    pool = DescriptorPool()
    compiled = files(__package__).joinpath("protocol.binpb").read_bytes()
    for file in FileDescriptorSet.FromString(compiled).file:  # a file comes after those it imports
        pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL = _load_pool()


def _named_types() -> dict[str, Any]:
    types: dict[str, Any] = {}
    service = POOL.FindServiceByName(SERVICE).file
    for file in (service, *service.dependencies):
        for name, message in file.message_types_by_name.items():
            types[name] = GetMessageClass(message)
        for name, enum in file.enum_types_by_name.items():
            types[name] = EnumTypeWrapper(enum)
    return types


globals().update(_named_types())

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: Method(
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
            method.client_streaming,
            method.server_streaming,
        )
        for method in POOL.FindServiceByName(SERVICE).methods
    }
)


def path(method: str) -> str:
    """The HTTP/2 path of a call: `/inference.GRPCInferenceService/ModelInfer`."""
    return f"/{SERVICE}/{method}"


if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
