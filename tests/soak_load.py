"""The load of row 20: twenty callers who infer, cancel, run late, send nonsense and drop dead."""

from __future__ import annotations

import collections
import contextlib
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time

import grpc
import numpy as np

from convserve_client import protocol, tensors

CALLERS, BATCH = 20, 8
HANG = 120.0  # seconds after which a call hangs
FLAT_SHARE, FLAT_BYTES = 0.01, 20_000_000
KINDS = ("infer", "cancel", "late", "bad", "killed")
SHARES = (0.6, 0.1, 0.1, 0.1, 0.1)

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_HEADERS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": protocol.path("ModelInfer"),
    ":authority": "soak",
    "te": "trailers",
    "content-type": "application/grpc",
}
# A client that calls for ever; it is killed while it does.
_VICTIM = """
import sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
infer = channel.unary_unary(sys.argv[2])
data = sys.stdin.buffer.read()
while True:
    infer(data, wait_for_ready=True)
    print(flush=True)
"""


def growth(samples):
    """Bytes gained in the second half: medians of its first and its last fifth."""
    second = samples[len(samples) // 2 :]
    part = max(len(second) // 5, 1)
    return statistics.median(second[-part:]) - statistics.median(second[:part])


def is_flat(samples):
    """Whether memory, sampled evenly, has stayed what it was: the check of row 20."""
    return growth(samples) < max(FLAT_SHARE * samples[len(samples) // 2], FLAT_BYTES)


def http2_request(data):
    """A whole connection's bytes of one call, as a client sends them."""

    def frame(kind, flags, payload):
        return len(payload).to_bytes(3, "big") + bytes((kind, flags, 0, 0, 0, 1)) + payload

    def text(value):
        return bytes((len(value),)) + value.encode()

    headers = b"".join(b"\0" + text(name) + text(value) for name, value in _HEADERS.items())
    message = b"\0" + len(data).to_bytes(4, "big") + data
    pieces = [message[start : start + 16384] for start in range(0, len(message), 16384)]
    frames = [frame(0, piece is pieces[-1], piece) for piece in pieces]
    return _PREFACE + frame(1, 4, headers) + b"".join(frames)


def die_on(address, data):
    """Connect, send, and be gone as a killed process is: without a word, by a reset."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=HANG) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)


class Soak:
    """Loads `server` until `stop`; counts by kind, `wrong` and `hung` list what must not be.

    make(x) is a request for images x, answered by expected's rows; `bad` are requests as bytes, to
    be refused. Health is asked beside it: `health` has the seconds that each answer took.
    """

    def __init__(self, server, make, images, expected, bad):
        self._server, self._make, self._bad = server, make, bad
        self._images, self._expected = images, expected
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self.counts = collections.Counter()
        self.codes = collections.Counter()
        self.wrong, self.hung, self.health = [], [], []
        self.kills = 0
        self._threads = [
            threading.Thread(target=self._call, args=(seed,)) for seed in range(CALLERS)
        ]
        self._threads += [threading.Thread(target=run) for run in (self._probe, self._kill)]
        for thread in self._threads:
            thread.start()

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * HANG)
            if thread.is_alive():
                self.hung.append("a caller")

    def _call(self, seed):
        rng = np.random.default_rng(seed)
        with self._server.connect() as channel:
            infer = channel.unary_unary(
                protocol.path("ModelInfer"),
                response_deserializer=protocol.ModelInferResponse.FromString,
            )
            while not self._stop.is_set():
                kind = rng.choice(KINDS, p=SHARES)
                self._one(kind, infer, rng)
                with self._lock:
                    self.counts[kind] += 1

    def _one(self, kind, infer, rng):
        start = int(rng.integers(len(self._images) - BATCH))
        rows = slice(start, start + BATCH)
        data = self._make(self._images[rows]).SerializeToString()
        if kind == "bad":
            data = self._bad[rng.integers(len(self._bad))]
        elif kind == "killed":
            data = http2_request(data)
            die_on(self._server.address, data[: rng.integers(1, len(data) + 1)])
            return
        began = time.monotonic()
        future = infer.future(data, timeout=rng.random() * 0.005 if kind == "late" else HANG)
        if kind == "cancel":
            time.sleep(rng.random() * 0.005)
            future.cancel()
        code, wrong = grpc.StatusCode.CANCELLED, None
        try:
            answer = future.result()
            (scores,) = tensors.read_tensors(answer.outputs, answer.raw_output_contents).values()
            code = grpc.StatusCode.OK
            if kind == "bad" or scores.tobytes() != self._expected[rows].tobytes():
                wrong = f"{kind}: another answer for rows {start} to {start + BATCH}"
        except grpc.RpcError as error:
            code = error.code()
        except grpc.FutureCancelledError:
            wrong = None if kind == "cancel" else f"{kind}: cancelled"
        allowed = {
            "infer": {grpc.StatusCode.OK},
            "cancel": {grpc.StatusCode.OK, grpc.StatusCode.CANCELLED},
            "late": {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED},
            "bad": {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND},
        }[kind]
        with self._lock:
            self.codes[kind, code.name] += 1
            if time.monotonic() - began >= HANG:
                self.hung.append(f"{kind}: {code.name}")
            elif wrong or code not in allowed:
                self.wrong.append(wrong or f"{kind}: {code.name}")

    def _probe(self):
        with self._server.connect() as channel:
            live = channel.unary_unary(protocol.path("ServerLive"))
            while not self._stop.wait(0.05):
                began = time.monotonic()
                live(b"", timeout=HANG)
                self.health.append(time.monotonic() - began)

    def _kill(self):
        """A real client process, killed while it calls, every ten seconds."""
        data = self._make(self._images[:BATCH]).SerializeToString()
        while not self._stop.is_set():
            arguments = [self._server.address, protocol.path("ModelInfer")]
            victim = subprocess.Popen(
                [sys.executable, "-c", _VICTIM, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            with victim:
                victim.stdin.write(data)
                victim.stdin.close()
                victim.stdout.readline()  # it has had an answer
                victim.kill()
            self.kills += 1
            self._stop.wait(10)
