"""Calls on bytes around calls on messages: every end is an answer or a status of `status.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from convserve.errors import InvalidRequestError
from convserve.serving import status

__all__ = ["Call", "guarded", "parse", "unimplemented"]

Call = Callable[[Any, grpc.ServicerContext], Any]


def parse(request: Any, data: bytes) -> Any:
    """The message of type `request`; InvalidRequestError if the bytes are none."""
    try:
        return request.FromString(data)
    except DecodeError:
        name = request.DESCRIPTOR.name
        raise InvalidRequestError(f"the request is not a valid {name} message") from None


def guarded(call: Call, request: Any) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """A unary call on bytes that always ends in an answer or in a status."""

    def behaviour(data: bytes, context: grpc.ServicerContext) -> bytes:
        message = None
        try:
            message = parse(request, data)
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


def unimplemented(name: str) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    """A unary call that this server does not have."""

    def behaviour(_: bytes, context: grpc.ServicerContext) -> NoReturn:
        details = f"'{name}' is not implemented by this server"
        _abort(context, status.Status(grpc.StatusCode.UNIMPLEMENTED, details))

    return behaviour
