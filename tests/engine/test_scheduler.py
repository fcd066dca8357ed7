"""The scheduler with a model whose computing the tests hold and release."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from model_configs import make_config

from convserve.engine import scheduler as scheduler_module
from convserve.engine.budget import ThreadBudget
from convserve.engine.config import InstanceGroup
from convserve.engine.scheduler import HANDOVER, BatchScheduler, Request
from convserve.errors import (
    CancelledError,
    DeadlineExceededError,
    QueueFullError,
    ShapeError,
    StoppingError,
)

WAIT = 60.0  # seconds after which a test has failed; never waited for in full


class Model:
    """Doubles its input. While `hold()` is in force, predict waits at the gate."""

    output_names = ("output",)

    def __init__(self):
        self.batches = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.fail_if = lambda x: False

    def predict(self, x, outputs=None, *, threads=None):
        self.batches.append(x.copy())
        self.entered.release()
        assert self.gate.wait(WAIT)
        if self.fail_if(x):
            raise RuntimeError("the model broke")
        if outputs is None:
            return x * 2
        return {name: x * 2 if name == "output" else x * 3 for name in outputs}

    def hold(self):
        self.gate.clear()

    def wait_entered(self):
        assert self.entered.acquire(timeout=WAIT)


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def start(model):
    started = []

    def make(**batching):
        scheduler = BatchScheduler(model, make_config(**batching))
        started.append(scheduler)
        return scheduler

    yield make
    model.gate.set()
    for scheduler in started:
        assert scheduler.stop(WAIT)


def images(*values, dtype=np.float32):
    return np.array(values, dtype).reshape(len(values), 1, 1, 1)


def values(result):
    return result["output"].ravel().tolist()


def submit(scheduler, *numbers, **keywords):
    request = Request(images(*numbers), **keywords)
    scheduler.submit(request)
    return request


def occupy(scheduler, model):
    """Let one request run and hang at the gate, so that the next ones wait."""
    model.hold()
    running = submit(scheduler, 0)
    model.wait_entered()
    return running


def test_an_idle_model_answers_in_the_callers_thread(model, start):
    scheduler = start()
    threads = []
    model.fail_if = lambda x: threads.append(threading.current_thread())
    assert values(scheduler.run(Request(images(1, 2)))) == [2, 4]
    assert threads == [threading.current_thread()]


def test_waiting_requests_are_merged_and_split_exactly(model, start):
    scheduler = start(max_batch_size=8)
    running = occupy(scheduler, model)
    requests = [submit(scheduler, 1), submit(scheduler, 2, 3), submit(scheduler, 4, 5, 6)]
    assert scheduler.pending == 3
    model.gate.set()
    assert [values(r.result()) for r in (running, *requests)] == [[0], [2], [4, 6], [8, 10, 12]]
    assert [len(batch) for batch in model.batches] == [1, 6]
    assert scheduler.pending == 0
    counters = scheduler.statistics.snapshot()
    assert (counters.executions, counters.inferences) == (2, 7)
    assert counters.batch_sizes == {1: 1, 6: 1}


def test_a_batch_is_never_larger_than_the_limit(model, start):
    scheduler = start(max_batch_size=4)
    running = occupy(scheduler, model)
    requests = [submit(scheduler, *range(n)) for n in (3, 2, 2, 4, 1)]
    model.gate.set()
    for request in (running, *requests):
        request.result()
    assert [len(batch) for batch in model.batches] == [1, 3, 4, 4, 1]


def test_only_requests_of_one_dtype_and_the_same_outputs_share_a_batch(model, start):
    scheduler = start()
    running = occupy(scheduler, model)
    plain = [submit(scheduler, 1), submit(scheduler, 2)]
    bytes_ = Request(images(3, dtype=np.uint8))
    scheduler.submit(bytes_)
    named = submit(scheduler, 4, outputs=["thrice"])
    model.gate.set()
    running.result()
    assert [values(r.result()) for r in plain] == [[2], [4]]
    assert values(bytes_.result()) == [6]
    assert named.result()["thrice"].ravel().tolist() == [12]
    assert [len(batch) for batch in model.batches] == [1, 2, 1, 1]


def test_exactly_the_requests_beyond_the_bound_are_rejected_at_once(model, start):
    scheduler = start(max_queue_size=5, max_batch_size=4)
    running = occupy(scheduler, model)
    accepted = [submit(scheduler, n) for n in range(5)]
    for _ in range(3):
        with pytest.raises(QueueFullError, match="Exceeds maximum queue size") as caught:
            submit(scheduler, 9)
        assert 0 < caught.value.retry_after <= 1
    model.gate.set()
    for request in (running, *accepted):
        request.result()
    assert sum(map(len, model.batches)) == 6
    submit(scheduler, 1).result()


def test_an_expired_request_is_not_computed(model, start):
    scheduler = start()
    running = occupy(scheduler, model)
    late = submit(scheduler, 1, deadline=time.monotonic() + 0.02)
    fine = submit(scheduler, 2)
    with pytest.raises(DeadlineExceededError):
        late.result()  # at the deadline, not when the model is free again
    assert not fine.done
    assert scheduler.pending == 1
    model.gate.set()
    assert values(fine.result()) == [4]
    running.result()
    assert [batch.ravel().tolist() for batch in model.batches] == [[0], [2]]


def test_a_request_that_comes_expired_is_not_computed(model, start):
    scheduler = start()
    with pytest.raises(DeadlineExceededError):
        scheduler.run(Request(images(1), deadline=time.monotonic() - 1))
    assert not model.batches


def test_a_cancelled_request_is_not_computed_and_gives_its_place_up(model, start):
    scheduler = start(max_queue_size=1)
    running = occupy(scheduler, model)
    first = submit(scheduler, 1)
    first.cancel()
    with pytest.raises(CancelledError):
        first.result()
    second = submit(scheduler, 2)  # the queue's one place is free again
    model.gate.set()
    assert values(second.result()) == [4]
    running.result()
    assert [batch.ravel().tolist() for batch in model.batches] == [[0], [2]]


def test_cancelling_a_running_request_leaves_its_neighbours_alone(model, start):
    scheduler = start()
    running = occupy(scheduler, model)
    a, b = submit(scheduler, 1), submit(scheduler, 2)
    model.entered = threading.Semaphore(0)
    model.gate.set()
    running.result()
    model.wait_entered()
    a.cancel()
    assert values(b.result()) == [4]
    a.cancel()  # a second time, and after the end, changes nothing
    b.cancel()
    assert values(b.result()) == [4]


def test_a_delay_holds_a_batch_that_is_not_full(model, start):
    scheduler = start(max_batch_size=4, max_queue_delay=30.0)
    requests = [submit(scheduler, 1), submit(scheduler, 2), submit(scheduler, 3)]
    assert not model.entered.acquire(timeout=0.05)
    assert scheduler.pending == 3
    requests.append(submit(scheduler, 4))  # full: goes at once, 30 s early
    assert [values(r.result()) for r in requests] == [[2], [4], [6], [8]]
    assert [len(batch) for batch in model.batches] == [4]


def test_a_full_request_does_not_wait_for_the_delay(model, start):
    scheduler = start(max_batch_size=2, max_queue_delay=30.0)
    assert values(scheduler.run(Request(images(1, 2)))) == [2, 4]


def test_the_delay_is_measured_for_the_oldest_request(model, start):
    delay = 0.2
    scheduler = start(max_batch_size=8, max_queue_delay=delay)
    for _ in range(20):  # on a busy machine the second one may come too late, or both be late
        model.batches.clear()
        began = time.monotonic()
        first = submit(scheduler, 1)
        time.sleep(delay / 2)
        second, came = submit(scheduler, 2), time.monotonic()
        first.result()
        ended = time.monotonic()
        second.result()
        assert ended - began >= delay
        if len(model.batches) == 1 and ended < came + delay:
            return
    pytest.fail("no batch has gone before the delay of its second request was over")


def test_a_failing_batch_harms_only_the_request_that_fails(model, start, caplog):
    scheduler = start()
    running = occupy(scheduler, model)
    requests = [submit(scheduler, n) for n in (1, 13, 2)]
    model.fail_if = lambda x: (x == 13).any()
    model.gate.set()
    running.result()
    assert values(requests[0].result()) == [2]
    assert values(requests[2].result()) == [4]
    with pytest.raises(RuntimeError, match="the model broke"):
        requests[1].result()
    assert [len(batch) for batch in model.batches] == [1, 3, 1, 1, 1]
    assert "a batch of 3 requests failed" in caplog.text
    assert values(scheduler.run(Request(images(5)))) == [10]


def test_a_failure_in_the_callers_thread_frees_the_model(model, start):
    scheduler = start()
    model.fail_if = lambda x: True
    with pytest.raises(RuntimeError):
        scheduler.run(Request(images(1)))
    model.fail_if = lambda x: False
    assert values(scheduler.run(Request(images(1)))) == [2]


def test_stopping_answers_what_was_accepted_and_takes_no_more(model, start):
    scheduler = start(max_batch_size=2, max_queue_delay=30.0)
    running = occupy_with_full_batch(scheduler, model)
    waiting = [submit(scheduler, n) for n in (1, 2, 3)]
    assert not scheduler.stop(0.01)
    with pytest.raises(StoppingError, match="has stopped accepting"):
        submit(scheduler, 4)
    model.gate.set()
    assert scheduler.stop(WAIT)  # and the last, lone request did not wait for the delay
    assert all(request.done for request in (running, *waiting))


def occupy_with_full_batch(scheduler, model):
    model.hold()
    running = submit(scheduler, 8, 9)
    model.wait_entered()
    return running


def test_sizes_beyond_the_limits_are_refused(start):
    scheduler = start(max_batch_size=2)
    for x in (images(), images(1, 2, 3)):
        with pytest.raises(ShapeError, match="1 to 2 images"):
            scheduler.run(Request(x))


@pytest.mark.parametrize(
    "wrong", [{"max_batch_size": 0}, {"max_queue_delay": -1.0}, {"max_queue_size": 0}]
)
def test_senseless_knobs_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_config(**wrong)


def test_many_threads_each_get_their_own_rows(start):
    scheduler = start(max_batch_size=8)

    def call(seed):
        rng = np.random.default_rng(seed)
        for _ in range(50):
            x = rng.random((rng.integers(1, 9), 1, 2, 2), np.float32)
            np.testing.assert_array_equal(scheduler.run(Request(x))["output"], x * 2)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))
    assert scheduler.statistics.snapshot().batch_sizes.keys() <= set(range(1, 9))
    assert scheduler.pending == 0


def test_random_cancels_and_deadlines_leave_nothing_behind(start):
    scheduler = start(max_batch_size=4, max_queue_size=10_000)

    def call(seed):
        rng = np.random.default_rng(seed)
        for n in range(100):
            deadline = time.monotonic() + rng.random() * 1e-3 if n % 3 == 0 else None
            request = Request(images(n), deadline=deadline)
            scheduler.submit(request)
            if n % 3 == 1:
                request.cancel()
            try:
                assert values(request.result()) == [2 * n]
            except (DeadlineExceededError, CancelledError):
                assert n % 3 != 2

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))
    assert scheduler.pending == 0


def test_the_delay_can_be_ended(model, start):
    scheduler = start(max_batch_size=4, max_queue_delay=30.0)
    request = submit(scheduler, 1)
    scheduler.end_delay()
    assert values(request.result()) == [2]
    assert values(submit(scheduler, 2).result()) == [4]


@pytest.fixture
def thread_of(model):
    """Where, and on how many threads, requests are computed: thread names and `threads`."""
    seen = []
    predict = model.predict

    def predict_and_tell(x, outputs=None, *, threads=None):
        seen.append((threading.current_thread(), threads))
        return predict(x, outputs, threads=threads)

    model.predict = predict_and_tell
    return seen


@pytest.mark.parametrize(
    ("binds", "alone", "number", "by_caller"),
    [
        (True, False, 8, False),
        (True, False, 2, True),  # takes less than to hand it over
        (True, True, 8, True),
        (False, False, 8, True),  # the caller's core is not shared
    ],
)
def test_long_work_is_handed_over_when_others_need_the_callers_core(
    model, thread_of, monkeypatch, binds, alone, number, by_caller
):
    monkeypatch.setattr(scheduler_module, "binds", lambda: binds)
    scheduler = BatchScheduler(
        model, make_config(), estimate=lambda images, threads: images * HANDOVER / 4
    )
    result = scheduler.run(Request(images(*range(number))), alone=alone)
    assert values(result) == [2 * value for value in range(number)]
    [(thread, _)] = thread_of
    assert (thread is threading.current_thread()) == by_caller
    assert scheduler.stop(WAIT)


@pytest.mark.parametrize(
    ("crowded", "wanted", "threads"),
    [(False, 0, 4), (True, 0, 3), (True, 2, 2), (True, 4, 3)],
)
def test_batches_leave_a_crowded_core_to_those_who_share_it(
    model, thread_of, monkeypatch, crowded, wanted, threads
):
    monkeypatch.setattr(scheduler_module, "crowded", lambda: crowded)
    config = replace(make_config(), instance_group=InstanceGroup(1, wanted))
    scheduler = BatchScheduler(model, config, budget=ThreadBudget(4))
    request = Request(images(1, 2))
    scheduler.submit(request)
    assert values(request.result()) == [2, 4]
    assert [granted for _, granted in thread_of] == [threads]
    assert scheduler.stop(WAIT)


def test_a_request_that_is_handed_over_takes_no_place_in_the_queue(model, monkeypatch):
    monkeypatch.setattr(scheduler_module, "binds", lambda: True)
    budget = ThreadBudget(1)
    scheduler = BatchScheduler(
        model, make_config(max_queue_size=1), budget=budget, estimate=lambda *_: 1.0
    )
    held = budget.take(1)  # so that the compute thread can't take it yet
    requests = [Request(images(value)) for value in (1, 2, 3)]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(scheduler.run, requests[0], alone=False)
        while not scheduler.pending:
            time.sleep(0.001)
        scheduler.submit(requests[1])
        with pytest.raises(QueueFullError):
            scheduler.submit(requests[2])
        budget.give_back(held)
        assert values(first.result(WAIT)) == [2]
    assert values(requests[1].result()) == [4]
    assert scheduler.stop(WAIT)
