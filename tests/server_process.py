"""A real `convserve serve` process, and the bare calls to talk to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import grpc

from convserve_client import protocol, tensors

WAIT = 120.0  # seconds after which a test has failed; never waited for in full


FREE_PORTS = ("--port", "0", "--metrics-port", "0")


def wait_until(condition, seconds=WAIT):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def open_files(pid):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def suspend(pid):
    """SIGSTOP, and wait until all threads have stopped: on busy cores they go on for a while."""
    os.kill(pid, signal.SIGSTOP)
    tasks = Path(f"/proc/{pid}/task")
    wait_until(lambda: all(_state(task) in "tTZX" for task in tasks.iterdir()))


def _state(task):
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


class Stub:
    """The service's calls by name: `stub.ModelInfer(request)`."""

    def __init__(self, channel):
        self.channel = channel
        for name, method in protocol.METHODS.items():
            make = channel.stream_stream if method.server_streaming else channel.unary_unary
            call = make(
                protocol.path(name),
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            setattr(self, name, call)


class ServerProcess:
    """`convserve serve` with the given arguments, ready; `prelude` is code that runs before."""

    def __init__(self, *arguments, log, prelude="", ports=()):
        code = f"{prelude}\nfrom convserve.cli import main; main()"
        self._log = log
        with log.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, "serve", *map(str, arguments), *FREE_PORTS, *ports],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        watchdog = threading.Timer(WAIT, self.process.kill)
        watchdog.start()
        self.line = self.process.stdout.readline()
        watchdog.cancel()
        match = re.fullmatch(r"ready grpc=(\S+) metrics=(\S+) model=(\S+)\n", self.line)
        if not match:
            self.close()
            raise AssertionError(f"no ready line but {self.line!r}; log:\n{self.log}")
        self.address, self.metrics_address, self.model = match.groups()
        self.channel = self.connect()
        self.stub = Stub(self.channel)

    @property
    def log(self):
        return self._log.read_text() if self._log.is_file() else ""

    def connect(self):
        """A channel with a connection of its own."""
        return grpc.insecure_channel(self.address, [("grpc.use_local_subchannel_pool", 1)])

    def page(self, path="/metrics"):
        with urllib.request.urlopen(f"http://{self.metrics_address}{path}", timeout=WAIT) as reply:
            return reply.read().decode()

    def metric(self, sample):
        """The value of a sample: `nv_inference_count{model="digits",version="2"}`."""
        lines = self.page().splitlines()
        values = [line.split()[-1] for line in lines if line.startswith(sample + " ")]
        assert len(values) == 1, f"{sample}: {values}"
        return float(values[0])

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self):
        return self.process.wait(WAIT)

    def close(self):
        if hasattr(self, "channel"):
            self.channel.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT)
        self.process.stdout.close()


def make_request(x, *, model="digits", name="input", datatype=None, raw=True, **fields):
    """A ModelInferRequest with one input."""
    datatype = datatype or tensors.datatype_of(x)
    request = protocol.ModelInferRequest(model_name=model, **fields)
    tensor = request.inputs.add(name=name, datatype=datatype, shape=x.shape)
    if raw:
        request.raw_input_contents.append(tensors.to_raw(x))
    else:
        tensor.contents.CopyFrom(tensors.to_contents(x))
    return request
