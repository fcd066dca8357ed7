"""TLS, and the token that goes with each call."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

# A token, or what gives the one to use now (so that it can be renewed without a new client).
Token = str | Callable[[], str]
Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True)
class Tls:
    """An encrypted connection to a server that proves who it is; the files are PEM.

    Args:
        ca: certificates to trust; None for the public authorities that gRPC knows.
        certificate: the client's own, with what leads up to the authority, for mutual TLS.
        key: of `certificate`.
        server_name: the name in the server's certificate, where that is not the address's host.

    OSError if a file can't be read, ValueError for a certificate without its key.
    """

    ca: str | os.PathLike[str] | None = None
    certificate: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
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
        if key != key.lower() or not key.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"a metadata key is lower case without spaces, got {key!r}")
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
