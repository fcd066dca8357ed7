"""Who may call what: bearer tokens from a file, and calls that change the server.

    # token file: a scope and a token a line; lines that begin with # are comments
    infer  3f1c0b…          may ask about models and infer
    admin  9a77e2…          may load, unload, change the log and register shared memory too

The file is read again when it changes, so tokens are rotated without a restart; one that is then
malformed is reported in the log and the tokens before it stay. Health checks need no token: probes
of an orchestrator have none; the list of all that can be checked names the models, and needs one.
Tokens travel in the header `authorization: Bearer …` (RFC 6750).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from convserve.errors import ConfigError
from convserve.serving import health
from convserve.serving.observe import Observer
from convserve.serving.status import Status
from convserve.serving.watched import Watched
from convserve_client import protocol

__all__ = ["Access", "Tokens", "is_loopback"]

SCOPES = ("infer", "admin")
ADMIN = frozenset(
    protocol.path(name)
    for name in (
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "LogSettings",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
    )
)
_OPEN = frozenset(f"/{health.SERVICE}/{name}" for name in ("Check", "Watch"))
_SHORTEST = 16  # characters: 64 bits of a hexadecimal token
_LOOK = 1.0  # seconds between two looks at the file
_MAX_BYTES = 1 << 20


class Tokens:
    """The tokens of a file, by their digests. Raises ConfigError if it is missing or malformed."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._scopes = Watched([path], lambda: _read(path), f"token file {path}", _LOOK, clock)

    def scope(self, token: str) -> str | None:
        """What the token is for; None if it is none. Takes equally long whichever it is."""
        self._scopes.look()
        digest = _digest(token)
        found = None
        for known, scope in self._scopes.value.items():
            if hmac.compare_digest(known, digest):
                found = scope
        return found


class Access(grpc.ServerInterceptor):  # type: ignore[misc]
    """Turns calls away that have no token, or whose token is not for them.

    tokens: None lets everybody in. admin: whether calls that change the server are to be had at
    all by callers without a token.
    """

    def __init__(self, tokens: Tokens | None, admin: bool, observer: Observer | None) -> None:
        self._tokens, self._admin, self._observer = tokens, admin, observer

    def intercept_service(self, continuation: Any, details: grpc.HandlerCallDetails) -> Any:
        refusal = self.refusal(details.method, details.invocation_metadata)
        handler = continuation(details)
        if refusal is None:
            return handler
        name = details.method.removeprefix(protocol.path(""))
        return _refusing(handler, name, refusal, self._observer)

    def refusal(self, method: str, metadata: Any) -> Status | None:
        """Why the call may not be made; None if it may."""
        if method in _OPEN:
            return None
        if self._tokens is None:
            if method in ADMIN and not self._admin:
                return Status(
                    grpc.StatusCode.PERMISSION_DENIED,
                    "calls that change the server are switched off on addresses that others can "
                    "reach; start it with --token-file, or with --allow-admin",
                )
            return None
        given = [value for key, value in metadata or () if key == "authorization"]
        kind, _, token = (given[0] if len(given) == 1 else "").partition(" ")
        scope = self._tokens.scope(token.strip()) if kind.lower() == "bearer" else None
        if scope is None:
            problem = "the bearer token is not known" if given else "a bearer token is needed"
            return Status(grpc.StatusCode.UNAUTHENTICATED, problem)
        if method in ADMIN and scope != "admin":
            denied = grpc.StatusCode.PERMISSION_DENIED
            return Status(denied, "this call needs a token of the scope admin")
        return None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _refusing(handler: Any, name: str, refusal: Status, observer: Observer | None) -> Any:
    """A handler of the same kind of call that ends it at once."""

    def refuse(_: Any, context: grpc.ServicerContext) -> Any:
        if observer is not None:
            observer.refuses(name, context, refusal)
        context.abort(refusal.code, refusal.details)

    if handler is not None and handler.request_streaming:
        return grpc.stream_stream_rpc_method_handler(refuse)
    if handler is not None and handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler(refuse)
    return grpc.unary_unary_rpc_method_handler(refuse)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _read(path: Path) -> dict[bytes, str]:
    """Digest -> scope. No message shows a token, for messages go to logs."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        lines = data.decode("ascii").splitlines()
    except OSError as error:
        raise ConfigError(f"token file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"token file {path}: it must be plain ASCII text") from None
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"token file {path}: it is larger than {_MAX_BYTES} bytes")
    scopes: dict[bytes, str] = {}
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or fields[0].startswith("#"):
            continue
        where = f"token file {path}, line {number}"
        if len(fields) != 2 or fields[0] not in SCOPES:
            raise ConfigError(f"{where}: must be a scope ({' or '.join(SCOPES)}) and a token")
        if len(fields[1]) < _SHORTEST:
            raise ConfigError(f"{where}: a token must have at least {_SHORTEST} characters")
        if _digest(fields[1]) in scopes:
            raise ConfigError(f"{where}: the token stands there twice")
        scopes[_digest(fields[1])] = fields[0]
    if not scopes:
        raise ConfigError(f"token file {path}: it has no token, so nobody could call")
    return scopes
