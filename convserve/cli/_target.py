"""`--server` and what goes with it: the server that a command calls, and how it proves itself."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import grpc

    from convserve_client import Client, Tls

__all__ = ["Metadata", "Target", "server_options"]

Metadata = list[tuple[str, str]]

_FILE = click.Path(path_type=Path, dir_okay=False)


@dataclass(frozen=True)
class Target:
    """A server's address; tls: None for a plain connection; token: None for none."""

    address: str
    tls: Tls | None = None
    token: str | None = None

    def client(self) -> Client:
        """A client of it; a usage error for what is no address."""
        from convserve_client import Client

        try:
            return Client(self.address, tls=self.tls or False, token=self.token)
        except ValueError as error:
            raise click.UsageError(f"--server: {error}") from None

    def channel(self, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """A bare connection to it; calls on it need `metadata`."""
        import grpc

        if self.tls is None:
            return grpc.insecure_channel(self.address, options)
        return grpc.secure_channel(self.address, self.tls.credentials(), options)

    @property
    def metadata(self) -> Metadata:
        """What each call on a bare connection carries."""
        return [] if self.token is None else [("authorization", f"Bearer {self.token}")]


def server_options(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options of a command that may call a server, as its parameter `server`, Target or None.

    text: the help of --server.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def called(
            *,
            server: str | None,
            tls: bool,
            tls_ca: Path | None,
            tls_certificate: Path | None,
            tls_key: Path | None,
            token_file: Path | None,
            **others: Any,
        ) -> Any:
            files = (tls_ca, tls_certificate, tls_key)
            if server is None:
                if tls or token_file or any(files):
                    raise click.UsageError("--tls… and --token-file go with --server")
                return command(server=None, **others)
            secured = _tls(*files) if tls or any(files) else None
            token = None if token_file is None else _token(token_file)
            return command(server=Target(server, secured, token), **others)

        for option in reversed(_options(text)):
            called = option(called)
        return called

    return decorate


def _options(text: str) -> list[Callable[[Callable[..., Any]], Callable[..., Any]]]:
    return [
        click.option("--server", metavar="HOST:PORT", help=text),
        click.option("--tls", is_flag=True, help="Call the server over TLS; implied by --tls-…."),
        click.option(
            "--tls-ca",
            type=_FILE,
            metavar="FILE",
            help="PEM: authorities to trust.  [default: the public ones]",
        ),
        click.option(
            "--tls-certificate", type=_FILE, metavar="FILE", help="PEM: ours, for mutual TLS."
        ),
        click.option("--tls-key", type=_FILE, metavar="FILE", help="PEM: its key."),
        click.option(
            "--token-file",
            type=_FILE,
            metavar="FILE",
            help="The bearer token to show to the server, alone in a file.",
        ),
    ]


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> Tls:
    from convserve_client import Tls

    if (certificate is None) != (key is None):
        raise click.UsageError("--tls-certificate and --tls-key go together")
    return Tls(ca=ca, certificate=certificate, key=key)


def _token(path: Path) -> str:
    try:
        words = path.read_text("ascii").split()
    except UnicodeDecodeError:
        words = []
    if len(words) != 1:
        raise click.UsageError(f"--token-file: {path} must hold a token and nothing else")
    return words[0]
