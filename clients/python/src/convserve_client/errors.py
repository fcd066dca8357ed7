"""Every exception that the client raises on purpose, in one tree.

ConvserveClientError                     base; also a status that has no class of its own
├── InvalidRequestError (also ValueError)   INVALID_ARGUMENT, or refused before it was sent
├── NotFoundError                           NOT_FOUND: no such model or version
├── UnavailableError                        UNAVAILABLE: no connection, stopping, or overloaded
├── DeadlineExceededError (also TimeoutError)   DEADLINE_EXCEEDED
├── ResourceExhaustedError                  RESOURCE_EXHAUSTED: a message is over the limit
├── UnauthenticatedError                    UNAUTHENTICATED: missing or bad credentials
├── PermissionDeniedError                   PERMISSION_DENIED
├── UnimplementedError                      UNIMPLEMENTED: the server does not have this call
├── RequestCancelledError                   CANCELLED
├── InternalError                           INTERNAL: a fault in the server
├── InvalidResponseError                    the answer is not what the protocol says
└── ClientClosedError                       the client was used after close()

Each has `code` (a grpc.StatusCode, or None where no call was made) and `details`.
A wrong dtype or type of argument raises the built-in TypeError.
"""

from __future__ import annotations

from typing import Any

from grpc import StatusCode

__all__ = [
    "ClientClosedError",
    "ConvserveClientError",
    "DeadlineExceededError",
    "InternalError",
    "InvalidRequestError",
    "InvalidResponseError",
    "NotFoundError",
    "PermissionDeniedError",
    "RequestCancelledError",
    "ResourceExhaustedError",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
]


class ConvserveClientError(Exception):
    """Base of every error of this client; `code` is the gRPC status, `details` the text."""

    code: StatusCode | None = None

    def __init__(self, details: str, code: StatusCode | None = None) -> None:
        super().__init__(details)
        self.details = details
        if code is not None:
            self.code = code


class InvalidRequestError(ConvserveClientError, ValueError):
    """The request does not fit the model; the text names what was expected and what was given."""

    code = StatusCode.INVALID_ARGUMENT


class NotFoundError(ConvserveClientError):
    """The server has no such model or version."""

    code = StatusCode.NOT_FOUND


class UnavailableError(ConvserveClientError):
    """No connection, or a server that stops or is overloaded; the retries are used up."""

    code = StatusCode.UNAVAILABLE


class DeadlineExceededError(ConvserveClientError, TimeoutError):
    """The call's timeout passed."""

    code = StatusCode.DEADLINE_EXCEEDED


class ResourceExhaustedError(ConvserveClientError):
    """A message is over the limit of the client or of the server."""

    code = StatusCode.RESOURCE_EXHAUSTED


class UnauthenticatedError(ConvserveClientError):
    """The server wants credentials, or others than those given."""

    code = StatusCode.UNAUTHENTICATED


class PermissionDeniedError(ConvserveClientError):
    """The credentials do not allow this call, or the server has it switched off."""

    code = StatusCode.PERMISSION_DENIED


class UnimplementedError(ConvserveClientError):
    """The server does not have this call."""

    code = StatusCode.UNIMPLEMENTED


class RequestCancelledError(ConvserveClientError):
    """The call was cancelled before it was answered."""

    code = StatusCode.CANCELLED


class InternalError(ConvserveClientError):
    """A fault in the server."""

    code = StatusCode.INTERNAL


class InvalidResponseError(ConvserveClientError):
    """The server's answer is not what the protocol or the model's metadata says."""


class ClientClosedError(ConvserveClientError):
    """The client was used after `close()`."""


_BY_CODE: dict[StatusCode, type[ConvserveClientError]] = {
    error.code: error for error in ConvserveClientError.__subclasses__() if error.code is not None
}


def from_rpc_error(error: Any) -> ConvserveClientError:
    """The error of this tree for a grpc.RpcError, of the sync or of the async API."""
    code: StatusCode = error.code()
    details = error.details() or code.name.lower().replace("_", " ")
    return _BY_CODE.get(code, ConvserveClientError)(details, code)
