"""Connections: how many, how old, how many calls on one, and how much a message may unpack to."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from server_process import WAIT, Stub, make_request, suspend
from tiny_models import image, save_tiny

from convserve.serving import server as server_module
from convserve_client import Client, errors, protocol


def wait_until(condition):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def connect(address):
    host, port = address.rsplit(":", 1)
    connection = socket.create_connection((host, int(port)), timeout=WAIT)
    connection.settimeout(WAIT)
    return connection


def is_served(connection):
    """Whether gRPC sends its settings; it closes what is too many."""
    try:
        return bool(connection.recv(1))
    except ConnectionResetError:
        return False


@pytest.mark.parametrize("workers", [1, 2])
def test_connections_beyond_the_limit_are_closed(start_server, digits_path, workers):
    server = start_server(digits_path, "--max-connections", 3, "--workers", workers)
    server.channel.close()

    def some_are_kept():
        with ExitStack() as stack:
            kept = served_together(server.address, stack, 20 * workers)
        assert len(kept) <= 3 * workers
        return len(kept) >= 2  # those closed before may still count

    wait_until(some_are_kept)
    with server.connect() as channel:
        stub = Stub(channel)
        wait_until(lambda: answers(stub))


def served_together(address, stack, count):
    opened = [stack.enter_context(connect(address)) for _ in range(count)]
    return [connection for connection in opened if is_served(connection)]


def answers(stub):
    try:
        return stub.ServerLive(protocol.ServerLiveRequest(), timeout=WAIT).live
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        return False


def test_files_are_left_for_other_things(monkeypatch):
    limits = lambda _: (1024, 4096)  # noqa: E731
    monkeypatch.setattr(server_module.resource, "getrlimit", limits)
    assert server_module._connections(10_000) == 768
    assert server_module._connections(100) == 100


def test_silent_connections_to_the_pages_take_few_threads(start_server, digits_path):
    server = start_server(digits_path)
    tasks = Path(f"/proc/{server.process.pid}/task")
    before = len(list(tasks.iterdir()))
    with ExitStack() as stack:
        silent = [stack.enter_context(connect(server.metrics_address)) for _ in range(200)]
        assert server.page("/healthz") == "ok\n"
        assert silent[0].recv(1) == b""  # it made room
        wait_until(lambda: len(list(tasks.iterdir())) <= before + 70)
        assert server.page("/readyz") == "ready\n"


def test_an_old_connection_is_replaced_and_no_request_fails(start_server, digits_path, pixels):
    """Calls one after the other and many at a time, without retries, on connections of 0.3 s."""
    server = start_server(
        digits_path, "--max-connection-age", 0.3, "--max-connection-age-grace", 10,
        "--access-log", "-",
    )  # fmt: skip
    peers, expected = set(), None
    reader = threading.Thread(
        target=lambda: peers.update(
            word for line in server.process.stdout for word in line.split() if "peer=" in word
        )
    )
    reader.start()
    with Client(server.address, retries=0) as client:
        deadline = time.monotonic() + WAIT
        while len(peers) < 5:
            assert time.monotonic() < deadline
            rows = client.predict(pixels[:2])
            expected = rows if expected is None else expected
            np.testing.assert_array_equal(rows, expected)
        enough = len(peers) + 3

        def until_enough():
            while len(peers) < enough:
                assert time.monotonic() < deadline
                yield pixels[:2]

        for rows in client.predict_many(until_enough(), in_flight=8):
            np.testing.assert_array_equal(rows, expected)
    server.signal()
    assert server.wait() == 0
    reader.join(WAIT)


@pytest.mark.parametrize(("grace", "delay"), [(0.1, 60), (30, 1.5)])
def test_a_call_that_outlasts_the_grace_is_unavailable(start_server, tmp_path, grace, delay):
    """It waits `delay` seconds for others to fill its batch."""
    save_tiny(tmp_path / "m" / "1" / "model.npz", 1)
    (tmp_path / "m" / "config.toml").write_text(
        "max_batch_size = 8\n"
        f"[dynamic_batching]\nmax_queue_delay_microseconds = {round(delay * 1e6)}\n"
    )
    server = start_server(
        "--model-repository", tmp_path,
        "--max-connection-age", 0.3, "--max-connection-age-grace", grace,
    )  # fmt: skip
    with Client(server.address, retries=0) as client:
        if grace > delay:
            assert len(client.predict(image())) == 1
        else:
            with pytest.raises(errors.UnavailableError):
                client.predict(image())


def test_calls_on_one_connection_may_be_bounded(start_server, digits_path):
    """A stream that stays open takes the only place; the next call waits at the client."""
    server = start_server(digits_path, "--max-concurrent-streams", 1)
    done = threading.Event()

    def silence():
        done.wait(WAIT)
        yield from ()

    live = protocol.ServerLiveRequest()
    assert server.stub.ServerLive(live, timeout=WAIT).live  # the settings have come
    stream = server.stub.ModelStreamInfer(silence())
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.ServerLive(live, timeout=0.5)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    with server.connect() as channel:
        assert Stub(channel).ServerLive(live, timeout=WAIT).live
    done.set()
    assert list(stream) == []
    assert server.stub.ServerLive(live, timeout=WAIT).live


def test_calls_that_come_all_at_once_are_all_taken(start_server, digits_path):
    """gRPC by itself cancels some of more than 1,000 calls that Python has not taken yet."""
    server = start_server(digits_path)
    live = protocol.ServerLiveRequest()
    with ExitStack() as stack:
        stubs = [Stub(stack.enter_context(server.connect())) for _ in range(8)]
        for stub in stubs:
            assert stub.ServerLive(live, timeout=WAIT).live
        suspend(server.process.pid)
        try:
            calls = [stubs[i % 8].ServerLive.future(live, timeout=WAIT) for i in range(4000)]
        finally:
            server.process.send_signal(signal.SIGCONT)
        codes = Counter(call.code() for call in calls)
    assert codes == {grpc.StatusCode.OK: 4000}


def test_a_flood_of_inferences_leaves_few_threads(start_server, digits_path):
    """More of them compute no more at a time, and only make each other slower."""
    server = start_server(digits_path)
    request = make_request(np.zeros((1, 1, 28, 28), np.float32), model="model")
    assert server.stub.ModelInfer(request, timeout=WAIT).outputs
    tasks = Path(f"/proc/{server.process.pid}/task")
    before = len(list(tasks.iterdir()))
    suspend(server.process.pid)
    try:
        calls = [server.stub.ModelInfer.future(request, timeout=WAIT) for _ in range(1000)]
    finally:
        server.process.send_signal(signal.SIGCONT)
    codes = Counter(call.code() for call in calls)
    assert codes.keys() <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
    assert codes[grpc.StatusCode.OK] > 100
    assert len(list(tasks.iterdir())) < before + 150


def test_calls_whose_messages_do_not_come_keep_none_from_its_turn(start_server, digits_path):
    server = start_server(digits_path)
    request = make_request(np.zeros((1, 1, 28, 28), np.float32), model="model")
    assert server.stub.ModelInfer(request, timeout=WAIT).outputs
    hold = threading.Event()

    def nothing():
        hold.wait(WAIT)
        yield from ()

    with server.connect() as channel:
        begin = channel.stream_unary(protocol.path("ModelInfer"))
        held = [begin.future(nothing(), timeout=WAIT) for _ in range(100)]
        try:
            end = time.monotonic() + 0.5  # in which they arrive
            while time.monotonic() < end:
                assert server.stub.ModelInfer(request, timeout=WAIT / 4).outputs
        finally:
            hold.set()
            for call in held:
                call.cancel()


@pytest.mark.parametrize("kind", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_a_message_that_unpacks_to_more_than_the_limit(start_server, digits_path, kind):
    server = start_server(digits_path, "--max-message-mb", 1)
    few = make_request(np.zeros((64, 1, 28, 28), np.float32), model="model")
    assert server.stub.ModelInfer(few, timeout=WAIT, compression=kind).outputs
    many = make_request(np.zeros((2000, 1, 28, 28), np.float32), model="model")
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.ModelInfer(many, timeout=WAIT, compression=kind)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.stub.ModelInfer(few, timeout=WAIT).outputs


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is only one core")
@pytest.mark.parametrize("option", ["--one-core", "--no-one-core"])
def test_threads_are_kept_on_one_core_or_not(start_server, digits_path, option):
    server = start_server(digits_path, option)
    single = False
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            single |= len(os.sched_getaffinity(int(task.name))) == 1
    assert single == (option == "--one-core")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is only one core")
def test_calls_one_by_one_run_where_grpc_does(gated, images, monkeypatch):
    """By the first of the pool's threads, which is made before there are calls."""
    server, seen = gated(), []
    run = server.scheduler.run

    def run_and_look(*given, **how):
        seen.append((os.sched_getaffinity(0), os.sched_getscheduler(0)))
        return run(*given, **how)

    monkeypatch.setattr(server.scheduler, "run", run_and_look)
    for _ in range(3):
        server.stub.ModelInfer(make_request(images[:1]), timeout=WAIT)
    (place,) = {(frozenset(cores), policy) for cores, policy in seen}
    assert len(place[0]) == 1
    assert place[1] == os.SCHED_BATCH or os.sched_getscheduler(os.getpid()) != os.SCHED_OTHER
