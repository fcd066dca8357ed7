"""A server of several workers under test, and callers whose connections reach all of them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import indent

import grpc
import numpy as np
from server_process import WAIT, Stub, make_request, wait_until
from tiny_models import image

from convserve_client import protocol, tensors

WORKER = "'--worker-socket' in sys.orig_argv"


def children(pid):
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def run_at_start(code, folder, monkeypatch):
    """Have workers run this code before anything else; `folder` is one for it."""
    (folder / "sitecustomize.py").write_text(f"import sys\nif {WORKER}:\n{indent(code, '    ')}")
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def value(stub, name="m"):
    """The version of a tiny model that answers, and its answer."""
    answer = stub.ModelInfer(make_request(image(), model=name), timeout=WAIT)
    (rows,) = tensors.read_tensors(answer.outputs, answer.raw_output_contents).values()
    return int(answer.model_version), float(rows[0, 0])


def index(stub):
    """(name, version, state, reason) of what the repository knows."""
    answer = stub.RepositoryIndex(protocol.RepositoryIndexRequest(), timeout=WAIT)
    return [(m.name, m.version, m.state, m.reason) for m in answer.models]


class Crowd:
    """A server of several workers, and connections that reach every one of them."""

    def __init__(self, server, workers):
        self.server, self.count = server, workers
        self.channels, self.pids = [], {}  # connection -> its worker
        self.port = int(server.address.rpartition(":")[2])

    def workers(self):
        return children(self.server.process.pid)

    def connect(self):
        """One more connection; returns its number."""
        before = self._connections()
        channel = self.server.connect()
        Stub(channel).ServerLive(protocol.ServerLiveRequest(), timeout=WAIT)
        (new,) = set(self._connections().items()) - set(before.items())
        self.channels.append(channel)
        self.pids[len(self.channels) - 1] = new[1]
        return len(self.channels) - 1

    def reach_all(self, each=1):
        """Connections to all workers, `each` to every one at least."""
        self.close()
        while len(self.pids) < 100:
            self.connect()
            found = Counter(self.pids.values())
            if all(found[pid] >= each for pid in self.workers()):
                return [Stub(channel) for channel in self.channels]
        raise AssertionError(self.pids)

    def _connections(self):
        """Socket -> worker that has accepted it."""
        ours = set()
        tables = [Path("/proc/net") / name for name in ("tcp", "tcp6")]
        for line in "".join(table.read_text() for table in tables).splitlines():
            fields = line.split()
            if fields[1].endswith(f":{self.port:04X}") and fields[3] == "01":
                ours.add(f"socket:[{fields[9]}]")
        found = {}
        for pid in self.workers():
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    target = str(fd.readlink())
                except FileNotFoundError:
                    continue
                if target in ours:
                    found[target] = pid
        return found

    def wait_for_workers(self, gone=()):
        wait_until(
            lambda: (
                not set(gone) & set(self.workers())
                and self.server.metric("convserve_workers") == self.count
            )
        )

    def kill(self, pid):
        os.kill(pid, signal.SIGKILL)
        self.wait_for_workers([pid])

    def close(self):
        for channel in self.channels:
            channel.close()
        self.channels, self.pids = [], {}


class Load:
    """A caller for each connection that asks again and again; every answer is checked.

    patient: a call waits for its connection, as that of a client with retries does.
    """

    def __init__(self, crowd, images, expected, *, patient):
        self._patient = patient
        self.stop, self.outcomes, self.failed = threading.Event(), [], []
        self._request, self._expected = make_request(images), expected
        self.asking = [0.0] * len(crowd.channels)
        self._pool = ThreadPoolExecutor(len(crowd.channels))
        stubs = map(Stub, crowd.channels)
        self._callers = [self._pool.submit(self._call, n, stub) for n, stub in enumerate(stubs)]
        wait_until(lambda: len(self.outcomes) > 5 * len(self._callers))

    def _call(self, number, stub):
        while not self.stop.is_set():
            self.asking[number] = time.monotonic()
            try:
                answer = stub.ModelInfer(self._request, timeout=WAIT, wait_for_ready=self._patient)
            except grpc.RpcError as error:
                self.failed.append((number, error.code(), time.monotonic()))
                if "stopping" in error.details():
                    return
                continue
            (rows,) = tensors.read_tensors(answer.outputs, answer.raw_output_contents).values()
            np.testing.assert_array_equal(rows, self._expected)
            self.outcomes.append(number)

    def end(self):
        self.stop.set()
        for caller in self._callers:
            caller.result(WAIT)
        self._pool.shutdown()
