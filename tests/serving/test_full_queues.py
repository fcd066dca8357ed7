"""Rows 11 to 14 of the reliability table: full queues, timeouts, deadlines, cancelled calls.

Through a real process, whose computing the test can hold up: then it is known what waits.
`make reliability` runs ten times as many calls.
"""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import numpy as np
import pytest
from post_state import FULL, WAIT, PostState, report, wait_until

CALLS = 10_000 if FULL else 1_024
CALLERS, THREADS = 64, 300
QUEUE = 8

CONFIG = """
[dynamic_batching.default_queue_policy]
max_queue_size = {}
allow_timeout_override = true
"""

# Batches of three images are computed when the test allows it.
HOLD = """
import pathlib, time
from convserve.engine.model import Model
predict, held = Model.predict, pathlib.Path({path!r})
def wait(self, x, *arguments, **keywords):
    if len(x) == 3 and held.exists():
        held.with_suffix(".entered").touch()
        while held.exists():
            time.sleep(0.002)
    return predict(self, x, *arguments, **keywords)
Model.predict = wait
"""


class Held:
    """A server of the models "digits" and "narrow" (a queue of 8), and the means to hold it up."""

    def __init__(self, server, file, images, make):
        self.server, self.stub = server, server.stub
        self._file, self._images, self._make = file, images, make

    def hold(self, model="digits"):
        """Start a request that is computed until `release`; returns its call."""
        entered = self._file.with_suffix(".entered")
        entered.unlink(missing_ok=True)
        self._file.touch()
        call = self.stub.ModelInfer.future(self.request(3, model), timeout=WAIT)
        wait_until(entered.exists)
        return call

    def release(self):
        self._file.unlink(missing_ok=True)

    def request(self, count, model="digits", **parameters):
        message = self._make(self._images[:count], model=model)
        for name, value in parameters.items():
            message.parameters[name].int64_param = value
        return message

    def metric(self, name, model="digits", **labels):
        labels = {"model": model, **labels, "version": "1"}
        text = ",".join(f'{key}="{value}"' for key, value in labels.items())
        return self.server.metric(f"{name}{{{text}}}")

    def executions(self, model="digits"):
        return self.metric("nv_inference_exec_count", model)

    def failures(self, reason, model="digits"):
        return self.metric("nv_inference_request_failure", model, reason=reason)

    def pending(self, model="digits"):
        return self.metric("nv_inference_pending_request_count", model)


@pytest.fixture(scope="module")
def process(digits_path, tmp_path_factory, launch, images, infer_request):
    root = tmp_path_factory.mktemp("held")
    for name, queue in {"digits": 4096, "narrow": QUEUE}.items():
        folder = root / "models" / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.npz").write_bytes(digits_path.read_bytes())
        (folder.parent / "config.toml").write_text(CONFIG.format(queue))
    file = root / "held"
    prelude = HOLD.format(path=str(file))
    server = launch("--model-repository", root / "models", prelude=prelude)
    # Each call that waits has a thread, so let there be some; and let calls end in every way, so
    # that what grows once has grown.
    held = Held(server, file, images, infer_request)
    running = held.hold()
    calls = [server.stub.ModelInfer.future(held.request(1), timeout=WAIT) for _ in range(THREADS)]
    wait_until(lambda: held.pending() == THREADS)
    with ThreadPoolExecutor(CALLERS) as pool:
        list(
            pool.map(
                lambda seed: make_late_calls(held, seed, CALLS // 5 // CALLERS), range(CALLERS)
            )
        )
    wait_until(lambda: held.pending() == THREADS)
    held.release()
    for call in (running, *calls):
        call.result()

    def call_in_haste(_):
        for _ in range(CALLS // 5 // CALLERS):
            with suppress(grpc.RpcError):
                held.stub.ModelInfer(held.request(2), timeout=0.001)

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(call_in_haste, range(CALLERS)))
    return held


def make_late_calls(held, seed, count):
    """Of deadlines from 1 to 31 ms, while nothing is computed."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        with pytest.raises(grpc.RpcError) as caught:
            held.stub.ModelInfer(held.request(1), timeout=0.001 + rng.random() * 0.03)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.fixture
def held(process, images, digits):
    before = PostState(process.server, process.request(2), digits.predict(images[:2]))
    yield process
    process.release()
    before.check()
    report("11 to 14", memory_grown=f"{before.grown:+.2%}")


def test_row_11_exactly_what_is_too_much_is_turned_away_at_once(held):
    more = 5
    rejected = held.failures("REJECTED", "narrow")
    running = held.hold("narrow")
    calls = [
        held.stub.ModelInfer.future(held.request(1, "narrow"), timeout=WAIT)
        for _ in range(QUEUE + more)
    ]
    wait_until(lambda: sum(call.done() for call in calls) == more)
    # the queue is full: from now on each is turned away, though nothing is computed
    times = []
    for _ in range(20):
        began = time.monotonic()
        with pytest.raises(grpc.RpcError) as caught:
            held.stub.ModelInfer(held.request(1, "narrow"), timeout=WAIT)
        times.append((time.monotonic() - began) * 1e3)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "Exceeds maximum queue size"
    report(11, rejected_within_ms=statistics.median(times))
    if FULL:  # on a machine that does nothing else
        assert statistics.median(times) < 5
    held.release()
    codes = [call.code() for call in [running, *calls]]
    assert codes.count(grpc.StatusCode.OK) == QUEUE + 1
    assert codes.count(grpc.StatusCode.UNAVAILABLE) == more
    assert held.failures("REJECTED", "narrow") == rejected + more + 20


def test_row_12_what_waited_too_long_is_refused_and_never_computed(held):
    executions, rejected = held.executions(), held.failures("REJECTED")
    running = held.hold()
    for _ in range(5):
        with pytest.raises(grpc.RpcError) as caught:
            held.stub.ModelInfer(held.request(1, timeout=2_000), timeout=WAIT)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "Request timeout expired"
    held.release()
    running.result()
    assert held.executions() == executions + 1
    assert held.failures("REJECTED") == rejected + 5


def test_row_13_late_calls_are_dropped_before_they_are_computed(held):
    """Deadlines of milliseconds from many threads, while nothing is computed."""
    executions, cancelled = held.executions(), held.failures("CANCELED")
    running = held.hold()

    with ThreadPoolExecutor(CALLERS) as pool:
        list(
            pool.map(
                lambda seed: make_late_calls(held, seed, CALLS // 2 // CALLERS), range(CALLERS)
            )
        )
    for seconds in (0.1, 0.5, 2.0, 8.0):  # on a busy machine none may have come to wait
        if held.failures("CANCELED") > cancelled:
            break
        with pytest.raises(grpc.RpcError):
            held.stub.ModelInfer(held.request(1), timeout=seconds)
    wait_until(lambda: held.pending() == 0)
    held.release()
    running.result()
    assert held.failures("CANCELED") > cancelled
    assert held.executions() == executions + 1


def test_row_13_late_calls_while_it_computes(held, images, read_answer, digits):
    expected = digits.predict(images[:2])

    def call(_):
        late = 0
        for _ in range(CALLS // 2 // CALLERS):
            try:
                answer = held.stub.ModelInfer(held.request(2), timeout=0.001)
                np.testing.assert_array_equal(read_answer(answer)["output"], expected)
            except grpc.RpcError as error:
                assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
                late += 1
        return late

    with ThreadPoolExecutor(CALLERS) as pool:
        late = sum(pool.map(call, range(CALLERS)))
    report(13, calls=CALLS // 2 // CALLERS * CALLERS, late=late)


def test_row_14_cancelled_calls_are_not_computed_and_harm_no_neighbour(
    held, images, read_answer, digits
):
    executions, cancelled = held.executions(), held.failures("CANCELED")
    running = held.hold()
    kept = [held.stub.ModelInfer.future(held.request(size), timeout=WAIT) for size in (1, 2, 4, 8)]
    gone = [held.stub.ModelInfer.future(held.request(1), timeout=WAIT) for _ in range(100)]
    wait_until(lambda: held.pending() == len(kept) + len(gone))
    for call in gone:
        call.cancel()
    running.cancel()  # while it is computed
    wait_until(lambda: held.pending() == len(kept))
    held.release()
    for size, call in zip((1, 2, 4, 8), kept, strict=True):
        answer = read_answer(call.result(WAIT))["output"]
        np.testing.assert_array_equal(answer, digits.predict(images[:size]))
    # the running one, and one batch of those that were kept
    assert held.executions() == executions + 2
    wait_until(lambda: held.failures("CANCELED") == cancelled + len(gone) + 1)


def test_row_14_calls_cancelled_at_any_moment(held, images, read_answer, digits):
    expected = digits.predict(images[:2])

    def call(seed):
        rng = np.random.default_rng(seed)
        answered = 0
        for _ in range(CALLS // CALLERS):
            future = held.stub.ModelInfer.future(held.request(2), timeout=WAIT)
            time.sleep(rng.random() * 0.05)
            future.cancel()
            try:
                np.testing.assert_array_equal(read_answer(future.result())["output"], expected)
                answered += 1
            except grpc.FutureCancelledError:
                assert future.code() == grpc.StatusCode.CANCELLED
        return answered

    with ThreadPoolExecutor(CALLERS) as pool:
        answered = sum(pool.map(call, range(CALLERS)))
    report(14, calls=CALLS // CALLERS * CALLERS, answered_before_it_was_cancelled=answered)
