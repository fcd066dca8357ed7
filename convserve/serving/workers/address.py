"""A port that stays ours while workers come and go."""

from __future__ import annotations

import socket

from convserve.errors import ConvserveError

__all__ = ["PortReservation"]


class PortReservation:
    """Holds a port by a socket that is bound and does not listen: no connection comes to it.

    Whoever binds the port with SO_REUSEPORT as the same user may listen on it. Port 0 takes a free
    one. Raises ConvserveError if the port is in use.
    """

    def __init__(self, host: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            if port:
                # Without SO_REUSEPORT first: a second server must not share the port by accident.
                with socket.socket(family, socket.SOCK_STREAM) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((host, port))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind((host, port))
        except (OSError, OverflowError) as error:
            self._socket.close()
            reason = getattr(error, "strerror", None) or str(error)
            raise ConvserveError(f"cannot listen on {host}:{port}: {reason}") from None
        self.port: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Give the port up."""
        self._socket.close()
