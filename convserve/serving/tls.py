"""TLS for the gRPC port; certificates are read again when their files change."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc

from convserve.errors import ConfigError
from convserve.serving.watched import Watched

__all__ = ["TlsFiles", "server_credentials"]


@dataclass(frozen=True)
class TlsFiles:
    """PEM files. client_ca: with it, clients must show a certificate that it has signed."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> list[Path]:
        return [self.certificate, self.key, *([self.client_ca] if self.client_ca else [])]


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials of the files, read anew before a handshake if they have changed.

    Raises ConfigError for files that can't be read or don't belong together. Later ones that don't
    are reported in the log, and the certificate before them stays.
    """
    watched = Watched(files.paths, lambda: _load(files), f"certificate {files.certificate}")
    return grpc.dynamic_ssl_server_credentials(
        watched.value,
        lambda: watched.value if watched.look() else None,  # before each handshake
        require_client_authentication=files.client_ca is not None,
    )


def _load(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    """gRPC takes any bytes and then refuses every handshake: Python's ssl looks at them first."""
    check = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    content = _content(files.paths)
    try:
        check.load_cert_chain(files.certificate, files.key, password=_no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ConfigError(
            f"TLS: {files.certificate} and {files.key} are not a certificate in PEM form and its "
            f"key: {error}"
        ) from None
    if files.client_ca is not None:
        try:
            check.load_verify_locations(files.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise ConfigError(f"TLS: {files.client_ca} holds no CA in PEM form: {error}") from None
    if _content(files.paths) != content:  # replaced meanwhile: what was checked is something else
        return _load(files)
    certificate, key, *ca = content
    return grpc.ssl_server_certificate_configuration(
        [(key, certificate)], root_certificates=ca[0] if ca else None
    )


def _content(paths: Sequence[Path]) -> list[bytes]:
    content = []
    for path in paths:
        try:
            content.append(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"TLS: {path}: {error.strerror or error}") from None
    return content


def _no_password() -> str:
    raise ValueError("the key is encrypted, which is not supported")
