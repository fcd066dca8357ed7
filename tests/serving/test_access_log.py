"""The access log: what a line says, what it never says, and what a bad disk does to requests."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import threading
import time

import grpc
import pytest

from convserve.errors import ConfigError
from convserve.serving.access_log import FORMATS, AccessLog, fields
from convserve.serving.observe import Observer, Record
from convserve_client import protocol

WAIT = 120.0
TOKEN = "secret-0123456789abcdef"
HOSTILE = 'x" code=OK\n2026 forged\r\x1b[31m\x7f\u2028'


def wait_until(condition):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def logged(start_server, digits_path, tmp_path):
    """Start a server with an access log; the lines are read when it has been stopped."""
    path = tmp_path / "access.log"

    def start(*options):
        server = start_server(digits_path, "--access-log", path, *options)

        def lines():
            server.signal()
            assert server.wait() == 0
            return path.read_text("ascii").splitlines()

        return server, lines

    return start


def failing(call, *arguments, **keywords):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **keywords)
    return caught.value.details()


def test_json_lines(logged, tmp_path, infer_request, images):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"infer {TOKEN}\n")
    server, lines = logged("--access-log-format", "json", "--token-file", tokens)
    ours = [("authorization", f"Bearer {TOKEN}")]
    request = infer_request(images[:3], model="model", id="mine")
    answer = server.stub.ModelInfer(request, metadata=ours)
    assert answer.id == "mine"
    request.id = ""
    answer = server.stub.ModelInfer(request, metadata=[*ours, ("x-request-id", "proxy's")])
    assert answer.id == ""  # as Triton: the answer has the id of the request
    server.stub.ModelInfer(request, metadata=ours)
    nobody = infer_request(images[:1], model="nobody", model_version="7")
    unknown = failing(server.stub.ModelInfer, nobody, metadata=ours)
    ready = protocol.ModelReadyRequest(name="model", version="1")
    server.stub.ModelReady(ready, metadata=ours)
    for one in (request, nobody):
        assert len(list(server.stub.ModelStreamInfer(iter([one]), metadata=ours))) == 1
    refused = failing(server.stub.ServerLive, protocol.ServerLiveRequest())
    first, second, third, fourth, fifth, sixth, seventh, eighth = map(json.loads, lines())

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first["time"])
    assert re.fullmatch(r"127\.0\.0\.1:\d+", first["peer"])
    expected = {
        "method": "ModelInfer", "code": "OK", "model": "model", "version": "1", "id": "mine",
        "images": 3, "batch": 3, "bytes_in": len(request.SerializeToString()) + 6,
        "bytes_out": answer.ByteSize() + 6,
    }  # fmt: skip
    assert {key: first[key] for key in expected} == expected
    assert 0 <= first["queue_us"] < first["total_us"]
    assert 0 < first["compute_us"] <= first["total_us"]
    assert "error" not in first and "trace_id" not in first
    assert second["id"] == "proxy's"
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]+", third["id"])
    assert (fourth["code"], fourth["model"], fourth["version"]) == ("NOT_FOUND", "nobody", "7")
    assert fourth["error"] == unknown
    assert "queue_us" not in fourth and "bytes_out" not in fourth
    assert (fifth["method"], fifth["model"], fifth["version"]) == ("ModelReady", "model", "1")
    assert (sixth["method"], sixth["code"], sixth["batch"]) == ("ModelStreamInfer", "OK", 3)
    assert (seventh["method"], seventh["code"]) == ("ModelStreamInfer", "NOT_FOUND")
    assert (eighth["method"], eighth["code"]) == ("ServerLive", "UNAUTHENTICATED")
    assert eighth["error"] == refused


def test_no_line_can_be_forged_and_no_content_is_shown(
    start_server, digits_path, infer_request, images
):
    server = start_server(digits_path, "--access-log", "-")
    infer = server.stub.ModelInfer
    infer(infer_request(images[:1], model="model", id=HOSTILE))
    infer(infer_request(images[:1], model="model", id="i" * 9999))
    failing(infer, infer_request(images[:1], model=HOSTILE, model_version=HOSTILE))
    secret = infer_request(images[:1], model="model", raw=False)
    secret.inputs[0].contents.bytes_contents.append(b"tensor-content")
    failing(infer, secret, metadata=[("authorization", f"Bearer {TOKEN}")])
    server.signal()
    assert server.wait() == 0
    text = server.process.stdout.read()
    first, _, third, _ = text.splitlines()
    assert not re.search(r"[^\n -~]", text)
    assert TOKEN not in text and "tensor-content" not in text and "i" * 129 not in text
    start = r"\S+Z ModelInfer OK model=model version=1 id="
    escaped = json.dumps(HOSTILE).replace("\x7f", r"\u007f")
    assert re.match(start + re.escape(escaped) + " peer=", first)
    assert re.match(r"\S+Z ModelInfer INVALID_ARGUMENT model=\"x", third)


def test_json_escapes_too():
    record = Record("ModelInfer", 0, "unix:", [("x-request-id", HOSTILE)])
    record.close(frozenset())
    line = FORMATS["json"](fields(record))
    assert not re.search(r"[^ -~]", line)
    assert json.loads(line)["id"] == HOSTILE


def test_a_full_disk_stops_no_request(start_server, digits_path, infer_request, images):
    server = start_server(digits_path, "--access-log", "/dev/full")
    for _ in range(3):
        server.stub.ModelInfer(infer_request(images[:1], model="model"))
        wait_until(lambda: server.metric("convserve_call_records_dropped_total") > 0)
    wait_until(lambda: server.metric("convserve_call_records_dropped_total") == 3)
    assert server.log.count("No space left on device; lines are lost") == 1
    server.signal()
    assert server.wait() == 0


def test_a_rotated_log_is_opened_anew(logged, tmp_path, infer_request, images):
    server, lines = logged()
    old, path = tmp_path / "access.log.1", tmp_path / "access.log"
    server.stub.ModelInfer(infer_request(images[:1], model="model", id="before"))
    wait_until(path.read_text)
    path.rename(old)
    server.signal(signal.SIGHUP)
    wait_until(path.exists)
    server.stub.ModelInfer(infer_request(images[:1], model="model", id="after"))
    (line,) = lines()
    assert "id=after" in line
    assert "id=before" in old.read_text() and "id=after" not in old.read_text()
    assert path.stat().st_mode & 0o777 == 0o640


def test_nothing_is_observed_unless_asked_for(gated):
    assert gated()._observer is None


def test_a_log_that_can_not_be_opened(tmp_path):
    with pytest.raises(ConfigError, match=r"none/access\.log: No such file or directory"):
        AccessLog(tmp_path / "none" / "access.log")
    log = AccessLog(tmp_path / "log")
    (tmp_path / "log").unlink()
    (tmp_path / "log").mkdir()
    log.reopen()
    assert log.take([Record("ServerLive", 0, "ipv4:127.0.0.1:1", ())]) == 0  # the open one stays
    log.close()


def test_a_line_that_was_cut_off_is_ended(tmp_path, monkeypatch):
    log = AccessLog(tmp_path / "log")
    record = Record("ServerLive", 0, "unix:", ())
    write, room = os.write, [30, 0]

    def full(file, data):
        if not room:
            return write(file, data)
        n = room.pop(0)
        if not n:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:n])

    monkeypatch.setattr(os, "write", full)
    assert log.take([record, record]) == 2
    assert log.take([record]) == 0
    log.close()
    cut, whole = (tmp_path / "log").read_text().splitlines()
    assert len(cut) == 30 and "ServerLive OK" in whole


class SlowSink:
    metadata = frozenset({"traceparent"})

    def __init__(self):
        self.gate, self.taken = threading.Event(), []

    def take(self, records):
        assert self.gate.wait(WAIT)
        self.taken += records
        return 0

    def close(self):
        self.taken.append(None)


class Context:
    def peer(self):
        return "ipv4:127.0.0.1:1"

    def invocation_metadata(self):
        return (("authorization", TOKEN), ("traceparent", "00-…"))


def test_a_slow_disk_holds_up_no_request():
    sink = SlowSink()
    observer = Observer([sink], limit=5)
    call = observer.unary("ServerLive", lambda data, context: data)
    calls = 0
    while observer.dropped < 3:  # the sink holds what it was given first, the queue the next five
        assert call(b"x", Context()) == b"x"
        calls += 1
    sink.gate.set()
    observer.close()
    assert sink.taken.pop() is None
    assert len(sink.taken) == calls - 3
    assert all(record.request is None for record in sink.taken)
    assert all(record.metadata == [("traceparent", "00-…")] for record in sink.taken)


class FaultySink(SlowSink):
    def take(self, records):
        raise RuntimeError("a fault of the sink's own")


def test_a_sink_that_fails_harms_neither_calls_nor_other_sinks(caplog):
    sound = SlowSink()
    sound.gate.set()
    observer = Observer([FaultySink(), sound])
    call = observer.unary("ServerLive", lambda data, context: data)
    for count in (1, 2):
        assert call(b"x", Context()) == b"x"
        wait_until(lambda: len(sound.taken) == count)  # noqa: B023
    observer.close()
    assert observer.dropped == 2
    assert caplog.messages[:2] == ["1 records were lost"] * 2


def test_a_batch_and_its_waiting(gated, infer_request, images):
    sink = SlowSink()
    sink.gate.set()
    server = gated(sinks=[sink])
    server.model.gate.clear()
    calls = [server.stub.ModelInfer.future(infer_request(images[:1]))]
    assert server.model.entered.acquire(timeout=WAIT)
    calls += [server.stub.ModelInfer.future(infer_request(images[:n])) for n in (2, 3)]
    wait_until(lambda: server.scheduler.pending == 2)
    server.model.gate.set()
    for call in calls:
        assert call.result(WAIT).outputs
    wait_until(lambda: len(sink.taken) == 3)
    assert sorted((record.images, record.batch) for record in sink.taken) == [
        (1, 1),
        (2, 5),
        (3, 5),
    ]
    for record in sink.taken:
        queue, compute, total = record.durations
        assert queue >= 0 and compute > 0 and queue + compute <= total
