"""How many files a server may open: connections, models, segments and shared memory regions are."""

from __future__ import annotations

import resource
from contextlib import suppress

__all__ = ["allow_open_files"]


def allow_open_files() -> None:
    """Raise the soft limit to the hard one, for this process and those that it starts, if possible.

    The soft one, 1,024 by tradition, is for programs that use select(2), which takes no more.
    """
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != most:
        # A sandbox may forbid it, or fs.nr_open have been lowered below the hard limit.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
