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


def defer_silent(port: int, descriptors: Path = Path("/proc/self/fd")) -> bool:
    """Have connections to the port accepted when their first bytes have come (`TCP_DEFER_ACCEPT`).

    gRPC gives nobody its sockets, so they are looked for among the open files. Returns whether
    there is such a thing on this system, and the port's socket was found.
    """
    option = getattr(socket, "TCP_DEFER_ACCEPT", None)
    if option is None or not descriptors.is_dir():
        return False
    found = False
    for entry in descriptors.iterdir():
        with suppress(OSError):  # closed meanwhile, or no more files can be opened
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as listener:
                if listener.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                if listener.getsockname()[1] == port:
                    listener.setsockopt(socket.IPPROTO_TCP, option, _SECONDS)
                    found = True
    return found
