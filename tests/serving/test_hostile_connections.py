"""Row 10 of the reliability table, and a queue timeout over the wire (row 12)."""

from __future__ import annotations

import socket
import time

import grpc
import pytest

WAIT = 60.0
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


def open_stream(number):
    """A HEADERS frame without a single header, and a RST_STREAM behind it."""
    stream = number.to_bytes(4, "big")
    return bytes((0, 0, 0, 1, 4)) + stream + bytes((0, 0, 4, 3, 0)) + stream + bytes(4)


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 4096,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xff" * 512,  # a TLS hello
        PREFACE + b"\xff" * 4096,
        PREFACE + SETTINGS + b"".join(open_stream(n) for n in range(1, 2001, 2)),
    ],
    ids=["zeros", "http1", "tls", "frames", "rapid reset"],
)
def test_what_is_no_grpc_ends_the_connection(server, data):
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=WAIT) as connection:
        try:
            connection.sendall(data)
            while connection.recv(65536):
                pass
        except ConnectionError:
            return  # closed before it had read all: just as good


@pytest.mark.usefixtures("unharmed")
def test_half_open_connections_harm_nobody(server):
    host, _, port = server.address.rpartition(":")
    silent = []
    try:
        for n in range(1000):
            connection = socket.socket()
            connection.setblocking(False)
            connection.connect_ex((host, int(port)))
            silent.append(connection)
            if n % 2:  # closed again at once, the others stay and say nothing
                connection.close()
    finally:
        for connection in silent:
            connection.close()


def test_a_queue_timeout_is_unavailable_and_never_computed(gated, infer_request, images):
    server = gated(policy={"allow_timeout_override": True})
    server.model.gate.clear()
    running = server.stub.ModelInfer.future(infer_request(images[:1]), timeout=WAIT)
    assert server.model.entered.acquire(timeout=WAIT)
    request = infer_request(images[:1])
    request.parameters["timeout"].int64_param = 20_000
    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.ModelInfer(request, timeout=WAIT)
    assert time.monotonic() - began < WAIT / 2
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "Request timeout expired"
    server.model.gate.set()
    running.result()
    counters = server.scheduler.statistics.snapshot()
    assert (counters.executions, counters.failures["REJECTED"]) == (1, 1)


@pytest.mark.parametrize("name", ["priority", "timeout"])
@pytest.mark.parametrize(("kind", "value"), [("string_param", "1"), ("int64_param", -1)])
def test_wrong_schedule_parameters(refused, infer_request, images, name, kind, value):
    request = infer_request(images[:1])
    setattr(request.parameters[name], kind, value)
    refused(request, "INVALID_ARGUMENT", f"'{name}' parameter")
