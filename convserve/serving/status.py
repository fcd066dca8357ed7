"""The one place where an exception becomes a gRPC status."""

from __future__ import annotations

import logging
import secrets
from typing import NamedTuple

import grpc

from convserve import errors

__all__ = ["Status", "of", "reason"]

_log = logging.getLogger(__name__)
_MAX_DETAILS = 1500  # a status travels in a header block, and many peers take 8 KiB of those

# class -> (code, reason that the failure counter gives)
_STATUS: dict[type[Exception], tuple[grpc.StatusCode, str]] = {
    errors.InvalidRequestError: (grpc.StatusCode.INVALID_ARGUMENT, "OTHER"),
    errors.ModelNotFoundError: (grpc.StatusCode.NOT_FOUND, "OTHER"),
    errors.ModelNotReadyError: (grpc.StatusCode.UNAVAILABLE, "OTHER"),
    errors.ModelLoadError: (grpc.StatusCode.INTERNAL, "OTHER"),
    errors.ConfigError: (grpc.StatusCode.INVALID_ARGUMENT, "OTHER"),
    errors.RepositoryControlError: (grpc.StatusCode.UNAVAILABLE, "OTHER"),
    errors.RegionNotFoundError: (grpc.StatusCode.NOT_FOUND, "OTHER"),
    errors.AlreadyExistsError: (grpc.StatusCode.ALREADY_EXISTS, "OTHER"),
    errors.SwitchedOffError: (grpc.StatusCode.PERMISSION_DENIED, "OTHER"),
    errors.QueueFullError: (grpc.StatusCode.UNAVAILABLE, "REJECTED"),
    errors.QueueTimeoutError: (grpc.StatusCode.UNAVAILABLE, "REJECTED"),
    errors.StoppingError: (grpc.StatusCode.UNAVAILABLE, "REJECTED"),
    errors.WorkerGoneError: (grpc.StatusCode.UNAVAILABLE, "OTHER"),
    errors.DeadlineExceededError: (grpc.StatusCode.DEADLINE_EXCEEDED, "CANCELED"),
    errors.CancelledError: (grpc.StatusCode.CANCELLED, "CANCELED"),
}


class Status(NamedTuple):
    """How a call fails."""

    code: grpc.StatusCode
    details: str
    trailers: tuple[tuple[str, str], ...] = ()


def reason(error: Exception) -> str:
    """Why a request failed, in the words of the failure counter."""
    known = _STATUS.get(type(error))
    return "BACKEND" if known is None else known[1]


def of(error: Exception, request_id: str = "") -> Status:
    """The status of an exception; what nobody foresaw is logged and answered INTERNAL.

    Such an answer names the request (by the caller's id, or one made up here) and hides the rest,
    which may hold what is none of the caller's business.
    """
    known = _STATUS.get(type(error))
    if known is None:
        request_id = request_id[:64] or secrets.token_hex(6)
        _log.error("request %r failed", request_id, exc_info=error)
        details = f"internal error while answering request '{request_id}'; the server's log has it"
        return Status(grpc.StatusCode.INTERNAL, details)
    code, _ = known
    details = str(error)
    if len(details) > _MAX_DETAILS:
        details = details[:_MAX_DETAILS] + "…"
    if isinstance(error, errors.QueueFullError):
        pushback = str(max(round(error.retry_after * 1000), 1))
        return Status(code, details, (("grpc-retry-pushback-ms", pushback),))
    return Status(code, details)
