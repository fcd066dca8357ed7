"""Many callers at once: right answers, bounded queue, deadlines, cancelling, health beside it."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from post_state import FULL, WAIT, PostState, report, wait_until

from convserve_client import protocol


def test_every_caller_gets_its_own_rows_bit_for_bit(server, infer_request, read_answer, digits):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (200, 1, 28, 28), np.uint8)
    floats = digits.preprocessing.normalise(pixels)
    expected = digits.predict(floats)

    def call(seed):
        rng = np.random.default_rng(seed)
        with server.connect() as channel:
            infer = channel.unary_unary(
                protocol.path("ModelInfer"),
                protocol.ModelInferRequest.SerializeToString,
                protocol.ModelInferResponse.FromString,
            )
            for n in range(40):
                start = rng.integers(0, 136)
                rows = slice(start, start + rng.integers(1, 65))
                request = infer_request((floats if n % 2 else pixels)[rows], id=f"{seed}-{n}")
                answer = infer(request, timeout=WAIT)
                assert answer.id == request.id
                np.testing.assert_array_equal(read_answer(answer)["output"], expected[rows])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))


def test_requests_are_batched_across_callers(gated, infer_request, read_answer, images, digits):
    server = gated()
    server.model.gate.clear()
    first = server.stub.ModelInfer.future(infer_request(images[:1]), timeout=WAIT)
    assert server.model.entered.acquire(timeout=WAIT)
    sizes = [1, 3, 2, 4, 1]
    calls = [
        server.stub.ModelInfer.future(infer_request(images[n : n + size]), timeout=WAIT)
        for n, size in enumerate(sizes)
    ]
    wait_until(lambda: server.scheduler.pending == 5)
    server.model.gate.set()
    first.result()
    for n, (size, call) in enumerate(zip(sizes, calls, strict=True)):
        answer = read_answer(call.result())["output"]
        np.testing.assert_array_equal(answer, digits.predict(images[n : n + size]))
    assert server.model.batches == [1, sum(sizes)]


@pytest.fixture
def busy(gated, infer_request, images):
    """A server with a queue of 8 whose model is held while it computes one request."""
    server = gated(max_queue_size=8)
    server.model.gate.clear()
    server.running = server.stub.ModelInfer.future(infer_request(images[:1]), timeout=WAIT)
    assert server.model.entered.acquire(timeout=WAIT)
    return server


def test_exactly_the_requests_beyond_the_bound_are_turned_away(busy, infer_request, images):
    calls = [
        busy.stub.ModelInfer.future(infer_request(images[:1]), timeout=WAIT) for _ in range(8 + 5)
    ]
    wait_until(lambda: sum(call.done() for call in calls) == 5)
    busy.model.gate.set()
    busy.running.result()
    rejected = [call for call in calls if call.code() == grpc.StatusCode.UNAVAILABLE]
    assert len(rejected) == 5
    assert sum(call.code() == grpc.StatusCode.OK for call in calls) == 8
    for call in rejected:
        assert call.details() == "Exceeds maximum queue size"
        assert 1 <= int(dict(call.trailing_metadata())["grpc-retry-pushback-ms"]) <= 1000
    assert busy.scheduler.statistics.snapshot().failures["REJECTED"] == 5
    assert sum(busy.model.batches) == 9


def test_expired_and_cancelled_requests_are_not_computed(busy, infer_request, images):
    gone = busy.stub.ModelInfer.future(infer_request(images[:1]), timeout=WAIT)
    wait_until(lambda: busy.scheduler.pending == 1)
    arrived = False
    for seconds in (0.5, 2.0, 8.0):  # until one comes to wait before its deadline
        late = busy.stub.ModelInfer.future(infer_request(images[:1]), timeout=seconds)
        wait_until(lambda: busy.scheduler.pending == 2 or late.done())  # noqa: B023
        arrived = not late.done()
        assert late.exception().code() == grpc.StatusCode.DEADLINE_EXCEEDED
        if arrived:
            break
    assert arrived
    gone.cancel()
    wait_until(lambda: busy.scheduler.pending == 0)
    fine = busy.stub.ModelInfer.future(infer_request(images[:2]), timeout=WAIT)
    wait_until(lambda: busy.scheduler.pending == 1)
    busy.model.gate.set()
    fine.result()
    busy.running.result()
    assert busy.model.batches == [1, 2]
    wait_until(lambda: busy.scheduler.statistics.snapshot().failures["CANCELED"] >= 2)


def test_cancelling_a_running_request_frees_its_caller(busy, infer_request, images):
    busy.running.cancel()
    other = busy.stub.ModelInfer.future(infer_request(images[:2]), timeout=WAIT)
    wait_until(lambda: busy.scheduler.pending == 1)
    busy.model.gate.set()
    assert other.result().outputs
    assert busy.model.batches == [1, 2]


def test_an_unexpected_fault_is_internal_and_tells_nothing(gated, infer_request, images, caplog):
    server = gated()
    server.model.fail = True
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.ModelInfer(infer_request(images[:1], id="my request"), timeout=WAIT)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "'my request'" in caught.value.details()
    assert "secret" not in caught.value.details()
    assert "secret of the house" in caplog.text
    assert "Traceback" in caplog.text
    assert server.scheduler.statistics.snapshot().failures["BACKEND"] == 1
    server.model.fail = False
    assert server.stub.ModelInfer(infer_request(images[:1]), timeout=WAIT).outputs


def test_control_calls_are_answered_while_every_inference_waits(gated, infer_request, images):
    waiting = 40  # more than there are threads for control calls
    server = gated(max_queue_size=waiting)
    server.model.gate.clear()
    calls = [server.stub.ModelInfer.future(infer_request(images[:1])) for _ in range(1 + waiting)]
    wait_until(lambda: server.scheduler.pending == waiting)
    for _ in range(50):
        assert server.stub.ServerLive(protocol.ServerLiveRequest(), timeout=WAIT).live
    assert server.scheduler.pending == waiting
    server.model.gate.set()
    for call in calls:
        call.result(WAIT)


@pytest.mark.usefixtures("unharmed")
def test_health_is_quick_while_a_load_runs(server, infer_request):
    x = np.zeros((64, 1, 28, 28), np.float32)
    stop = threading.Event()

    def load():
        with server.connect() as channel:
            infer = channel.unary_unary(protocol.path("ModelInfer"))
            data = infer_request(x).SerializeToString()
            while not stop.is_set():
                infer(data, timeout=WAIT)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        with server.connect() as channel:
            live = channel.unary_unary(protocol.path("ServerLive"))
            times = []
            for _ in range(200):
                began = time.monotonic()
                live(b"", timeout=WAIT)
                times.append(time.monotonic() - began)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    p99 = sorted(times)[len(times) * 99 // 100]
    report("also (health under load)", p99_ms=p99 * 1e3)
    if FULL:  # on a machine that does nothing else
        assert p99 < 0.05


def test_short_deadlines_and_cancels_leave_no_trace(server, infer_request, images):
    data = infer_request(images).SerializeToString()
    allowed = {
        grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED,
    }  # fmt: skip

    def call(seed):
        rng = np.random.default_rng(seed)
        infer = server.channel.unary_unary(protocol.path("ModelInfer"))
        for n in range(64):
            future = infer.future(data, timeout=rng.random() * 0.004 if n % 2 else WAIT)
            if n % 2 == 0 and rng.random() < 0.7:
                future.cancel()
            try:
                future.result(WAIT)
            except (grpc.RpcError, grpc.FutureCancelledError):
                assert future.code() in allowed, future

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(call, range(16)))
        before = PostState(server, infer_request(images[:3]))
        list(pool.map(call, range(16, 32)))
    before.check()
