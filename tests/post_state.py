"""What must hold of a server after each fault of the reliability table (docs/reliability.md)."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
from server_process import WAIT, wait_until

from convserve_client import protocol, tensors

FULL = os.environ.get("CONVSERVE_RELIABILITY") == "full"  # `make reliability`: all iterations
GROWTH = 0.02
HEAP_BYTES = 0 if FULL else 1 << 20  # what a load from many sides may leave in pieces of pages
THREAD_BYTES = 1 << 17  # each call that waits has a thread, which stays; the queue bounds them


def processes(pid):
    """The process and all below it."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(below for child in children for below in processes(int(child)))]


def state(pid):
    """One letter; Z is a zombie."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def resident_bytes(pid):
    """Of the process and all below it."""
    pages = sum(int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in processes(pid))
    return pages * os.sysconf("SC_PAGE_SIZE")


def count_threads(pid):
    """Of the process and all below it."""
    return sum(len(list(Path(f"/proc/{p}/task").iterdir())) for p in processes(pid))


def report(row, **figures):
    """A line for docs/reliability.md, shown by pytest -s."""
    shown = ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
    )
    print(f"\nrow {row}: {shown}")


class MemoryGrownError(AssertionError):
    """More is resident than was."""


class PostState:
    """The state of a server that has warmed up, and `check`, that it is the same again.

    Live and ready; a good request, `request`, answered to the same bits; nothing pending; no
    zombie; resident memory within `growth` and what new threads need. `server` is a ServerProcess.
    """

    def __init__(self, server, request, expected=None, *, growth=GROWTH):
        self._server, self._request, self._growth = server, request, growth
        found = self._answer()
        if expected is not None:
            np.testing.assert_array_equal(found, expected)
        self._expected = found
        self._bytes = self.bytes = resident_bytes(server.process.pid)
        self._threads = count_threads(server.process.pid)

    def _answer(self):
        answer = self._server.stub.ModelInfer(self._request, timeout=WAIT)
        (first, *_) = tensors.read_tensors(answer.outputs, answer.raw_output_contents).values()
        return first

    @property
    def grown(self):
        """By how much the memory has grown since, as a share."""
        return self.bytes / self._bytes - 1

    def check(self):
        server, pid = self._server, self._server.process.pid
        assert server.process.poll() is None
        assert server.stub.ServerLive(protocol.ServerLiveRequest(), timeout=WAIT).live
        assert server.stub.ServerReady(protocol.ServerReadyRequest(), timeout=WAIT).ready
        np.testing.assert_array_equal(self._answer(), self._expected)
        wait_until(lambda: self._pending() == 0)
        assert "Z" not in [state(p) for p in processes(pid)]
        # Memory is given back within a second or two of quiet. Looked at so many times rather than
        # for so long by the clock, which goes on while the machine does something else.
        for _ in range(300):
            threads = max(count_threads(pid) - self._threads, 0)
            self.bytes = resident_bytes(pid) - threads * THREAD_BYTES
            if self.bytes - HEAP_BYTES <= self._bytes * (1 + self._growth):
                return
            time.sleep(0.1)
        raise MemoryGrownError(f"memory has grown by {self.grown:.1%}")

    def _pending(self):
        lines = self._server.page().splitlines()
        name = "nv_inference_pending_request_count{"
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))
