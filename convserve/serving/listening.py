"""Connections that say nothing are left to the kernel, where they cost next to nothing."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

__all__ = ["defer_silent"]

# In a connection of gRPC the client speaks first, with or without TLS. One that has not done so
# for this long is handed over all the same, and ended two minutes later by gRPC.
_SECONDS = 30
_FILES = Path("/proc/self/fd")


def defer_silent(port: int) -> None:
    """Have connections to the port accepted when their first bytes have come (`TCP_DEFER_ACCEPT`).

    gRPC gives nobody its sockets, so they are looked for among the open files. Linux only.
    """
    option = getattr(socket, "TCP_DEFER_ACCEPT", None)
    if option is None or not _FILES.is_dir():
        return
    for entry in _FILES.iterdir():
        with suppress(OSError):  # closed meanwhile, or no more files can be opened
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as listener:
                internet = listener.family in (socket.AF_INET, socket.AF_INET6)
                if internet and listener.getsockname()[1] == port:
                    listener.setsockopt(socket.IPPROTO_TCP, option, _SECONDS)
