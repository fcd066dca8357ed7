"""TLS, and the token that goes with each call."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

# A token, or what gives the one to use now (so that it can be renewed without a new client).
Token = str | Callable[[], str]
Metadata = tuple[tuple[str, str | bytes], ...]

_KEY = re.compile(r"[a-z0-9._-]+")
# gRPC drops them, or takes them for what it has set itself: a status would end the call.
_RESERVED = {"content-type", "grpc-accept-encoding", "grpc-encoding", "grpc-message", "te"}
_RESERVED |= {"grpc-status", "grpc-timeout"}


@dataclass(frozen=True)
class Tls:
    """An encrypted connection to a server that proves who it is; the files are PEM.

    Args:
        ca: certificates to trust; None for the public authorities that gRPC knows.
        certificate: the client's own, with what leads up to the authority, for mutual TLS.
        key: of `certificate`.
        server_name: the name in the server's certificate, where that is not the address's host.

    OSError if a file can't be read, ValueError for a certificate without its key, TypeError for
    what is no path or no name.
    """

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        for name in ("ca", "certificate", "key"):
            path = getattr(self, name)
            if not isinstance(path, str | os.PathLike | None):
                raise TypeError(f"Tls {name} must be a path, got {type(path).__name__}")
        if not isinstance(self.server_name, str | None):
            kind = type(self.server_name).__name__
            raise TypeError(f"Tls server_name must be a string, got {kind}")
        if (self.certificate is None) != (self.key is None):
            lacking = "key" if self.key is None else "certificate"
            raise ValueError(f"TLS takes certificate and key together; {lacking} is missing")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files."""
        ca, key, certificate = (_read(path) for path in (self.ca, self.key, self.certificate))
        return grpc.ssl_channel_credentials(ca, key, certificate)


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()


def check_metadata(metadata: Any) -> Metadata:
    """The pairs as a tuple; gRPC's own complaint comes late and names nothing."""
    try:
        pairs = tuple((key, value) for key, value in metadata)
    except (TypeError, ValueError):
        raise TypeError(
            f"metadata must be pairs such as [('x-team', 'vision')], got {metadata!r}"
        ) from None
    for key, value in pairs:
        binary = isinstance(key, str) and key.endswith("-bin")
        if not isinstance(key, str) or not isinstance(value, bytes if binary else str):
            kind = "bytes" if binary else "a string"
            raise TypeError(f"metadata {key!r} must be {kind}, got {type(value).__name__}")
        if not _KEY.fullmatch(key):
            raise ValueError(
                f"a metadata key is lower case: a-z, 0-9, '-', '_' and '.', got {key!r}"
            )
        if key in _RESERVED:
            raise ValueError(f"metadata {key!r} is gRPC's own, and not the caller's to set")
        if isinstance(value, str) and not (value.isascii() and value.isprintable()):
            raise ValueError(f"metadata {key!r} must be printable ASCII")
    return pairs


def bearer(token: Token) -> tuple[str, str]:
    """The metadata of a token."""
    text = token() if callable(token) else token
    if not isinstance(text, str):
        raise TypeError(f"token must be a string, got {type(text).__name__}")
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("token must be printable ASCII without spaces")  # and stays out of logs
    return ("authorization", f"Bearer {text}")
