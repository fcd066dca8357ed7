"""Priorities, queue timeouts, preferred sizes, several instances: Triton's rules, by the knobs."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from model_configs import make_config

from convserve.engine.batch import select
from convserve.engine.budget import ThreadBudget
from convserve.engine.config import QueuePolicy
from convserve.engine.scheduler import BatchScheduler, Request
from convserve.errors import QueueFullError, QueueTimeoutError

WAIT = 60.0


class Model:
    """Answers its input and notes the order. Each batch waits for a release of `gate`."""

    output_names = ("output",)

    def __init__(self):
        self.batches, self.threads = [], []
        self.entered, self.gate = threading.Semaphore(0), threading.Semaphore(0)

    def predict(self, x, outputs=None, *, threads=None):
        self.batches.append(x.ravel().astype(int).tolist())
        self.threads.append(threads)
        self.entered.release()
        assert self.gate.acquire(timeout=WAIT)
        return x


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def start(model):
    """A scheduler whose first instance is busy with a batch of zeros, [0] or a full one."""
    started = []

    def make(budget=None, first=(0,), estimate=None, **knobs):
        scheduler = BatchScheduler(model, make_config(**knobs), budget=budget, estimate=estimate)
        started.append(scheduler)
        submit(scheduler, *first)
        assert model.entered.acquire(timeout=WAIT)
        return scheduler

    yield make
    model.gate.release(1000)
    for scheduler in started:
        assert scheduler.stop(WAIT)


def submit(scheduler, *numbers, **keywords):
    x = np.array(numbers, np.float32).reshape(len(numbers), 1, 1, 1)
    request = Request(x, **keywords)
    scheduler.submit(request)
    return request


def finish(model, *requests):
    model.gate.release(1000)
    for request in requests:
        request.result()
    return model.batches[1:]


def test_the_more_urgent_go_first(model, start):
    scheduler = start(max_batch_size=2, priority_levels=3, default_priority_level=2)
    levels = [3, 2, 1, 0, 9, 3]  # 0 and 9 are the default, 2
    requests = [submit(scheduler, n + 1, priority=level) for n, level in enumerate(levels)]
    assert finish(model, *requests) == [[3, 2], [4, 5], [1, 6]]


def test_each_level_has_its_own_bound(model, start):
    policies = {1: QueuePolicy(max_queue_size=1)}
    scheduler = start(
        max_queue_size=2,
        priority_levels=2,
        default_priority_level=2,
        priority_queue_policy=policies,
    )
    submit(scheduler, 1, priority=1)
    submit(scheduler, 2), submit(scheduler, 3)
    for priority in (1, 2):
        with pytest.raises(QueueFullError):
            submit(scheduler, 4, priority=priority)
    assert scheduler.pending == 3


def test_reject_ends_a_request_at_its_timeout_and_never_computes_it(model, start):
    scheduler = start(policy={"default_timeout_microseconds": 300_000})
    began = time.monotonic()
    with pytest.raises(QueueTimeoutError, match="Request timeout expired"):
        scheduler.run(Request(np.ones((1, 1, 1, 1), np.float32)))
    assert 0.3 <= time.monotonic() - began < WAIT  # while the model is busy still
    assert scheduler.pending == 0
    fine = submit(scheduler, 5)
    assert finish(model, fine) == [[5]]
    assert scheduler.statistics.snapshot().executions == 2


def test_delay_puts_a_request_behind_those_in_time(model, start):
    scheduler = start(
        max_batch_size=1,
        priority_levels=2,
        default_priority_level=1,
        policy={"timeout_action": "DELAY", "allow_timeout_override": True},
    )
    late = submit(scheduler, 1, timeout=0.001)
    others = [submit(scheduler, 2), submit(scheduler, 3), submit(scheduler, 4, priority=2)]
    time.sleep(0.01)
    assert scheduler.pending == 4
    assert finish(model, late, *others) == [[2], [3], [1], [4]]


def test_a_request_may_shorten_its_timeout_and_only_where_that_is_allowed(start):
    x = np.ones((1, 1, 1, 1), np.float32)
    forbidden = start(policy={"default_timeout_microseconds": 0})
    request = submit(forbidden, 1, timeout=1e-6)
    assert request.expiry is None
    allowed = BatchScheduler(
        Model(),
        make_config(
            policy={"default_timeout_microseconds": 3_600_000_000, "allow_timeout_override": True}
        ),
    )
    for timeout, expected in ((0.0, 3600), (5.0, 5), (9000.0, 3600)):
        request = Request(x, timeout=timeout)
        allowed._queues.add(request, 100.0)
        assert request.expiry == 100 + expected
        request.cancel()
    assert allowed.stop(WAIT)


def test_preferred_sizes_go_at_once_and_the_largest_that_can_be_made(model, start):
    full = (0,) * 8
    scheduler = start(
        None, full, max_batch_size=8, max_queue_delay=60.0, preferred_batch_size=(2, 4)
    )
    requests = [submit(scheduler, n) for n in range(1, 6)]
    model.gate.release(2)
    for request in requests[:4]:
        request.result()
    assert model.batches[1] == [1, 2, 3, 4]
    assert not requests[4].done
    scheduler.end_delay()
    assert finish(model, *requests)[1] == [5]


@pytest.mark.parametrize(
    ("sizes", "chosen", "full"),
    [
        ([1], 1, False),
        ([1, 1], 2, True),
        ([1, 1, 1], 2, True),
        ([1, 1, 1, 1, 1], 4, True),
        ([3, 1, 1], 2, True),
        ([3, 3], 2, False),
        ([3, 5], 2, True),  # exactly the largest batch
        ([5, 5], 1, True),  # nothing can join
    ],
)
def test_select_with_preferred_sizes(sizes, chosen, full):
    class Item:
        key = "a"

        def __init__(self, size):
            self.size = size

    waiting = [Item(size) for size in sizes]
    assert select(waiting, 8, (2, 4)) == (waiting[:chosen], full)


def test_instances_compute_side_by_side(model, start):
    scheduler = start(max_batch_size=1, instances=3, budget=ThreadBudget(4))
    requests = [submit(scheduler, n) for n in (1, 2, 3)]
    for _ in range(2):
        assert model.entered.acquire(timeout=WAIT)
    assert scheduler.pending == 1
    assert sorted(finish(model, *requests)) == [[1], [2], [3]]  # begun at the same time
    assert model.threads[:3] == [4, 1, 1]


def wait_for_turn_taker(budget):
    deadline = time.monotonic() + WAIT
    while not budget._turns:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_models_take_turns(model, start):
    budget = ThreadBudget(1)
    scheduler = start(budget=budget, max_batch_size=1)
    other = Model()
    second = BatchScheduler(other, make_config(), budget=budget)
    waiting = submit(second, 7)
    wait_for_turn_taker(budget)
    more = [submit(scheduler, n) for n in (1, 2)]
    assert not other.entered.acquire(timeout=0.05)
    model.gate.release()
    assert other.entered.acquire(timeout=WAIT)  # although the first model has more to do
    assert model.batches == [[0]]
    other.gate.release()
    assert waiting.result()["output"].item() == 7
    assert finish(model, *more) == [[1], [2]]
    assert second.stop(WAIT)


def test_what_expires_while_waiting_for_threads_is_not_computed(model, start):
    budget = ThreadBudget(1)
    start(budget=budget)
    other = Model()
    second = BatchScheduler(other, make_config(), budget=budget)
    gone = submit(second, 7)
    wait_for_turn_taker(budget)
    gone.cancel()
    fine = submit(second, 8)
    model.gate.release()
    other.gate.release()
    assert fine.result()["output"].item() == 8
    assert other.batches == [[8]]
    assert second.stop(WAIT)


def rounds(images, threads):
    """Seconds of a model that deals images out to threads."""
    return float(-(-images // threads))


def test_what_would_start_another_round_waits_for_the_next_batch(model, start):
    scheduler = start(ThreadBudget(2), estimate=rounds)
    requests = [submit(scheduler, n) for n in range(1, 6)]
    assert finish(model, *requests) == [[1, 2, 3, 4], [5]]


def test_a_request_is_passed_over_once(model, start):
    scheduler = start(ThreadBudget(2), estimate=rounds, priority_levels=2, default_priority_level=1)
    low = submit(scheduler, 9, priority=2)
    high = [submit(scheduler, n) for n in range(1, 5)]
    model.gate.release()
    assert model.entered.acquire(timeout=WAIT)  # the batch without it
    high += [submit(scheduler, n) for n in range(5, 9)]
    assert finish(model, low, *high) == [[1, 2, 3, 4], [5, 6, 7, 8, 9]]


@pytest.mark.parametrize("end", ["deadline", "timeout"])
def test_what_would_end_meanwhile_is_not_left_out(model, start, end):
    scheduler = start(ThreadBudget(2), estimate=rounds, policy={"allow_timeout_override": True})
    requests = [submit(scheduler, n) for n in range(1, 5)]
    soon = 5.0  # of six seconds that two batches of five images take by the estimate
    ends = {"deadline": time.monotonic() + soon} if end == "deadline" else {"timeout": soon}
    requests.append(submit(scheduler, 5, **ends))
    assert finish(model, *requests) == [[1, 2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("knobs", "threads"), [({"preferred_batch_size": (5,)}, 2), ({}, 1), ({"max_batch_size": 5}, 5)]
)
def test_a_batch_is_taken_whole(model, start, knobs, threads):
    """Where sizes are told, where nothing is dealt out, where it is a whole round."""
    scheduler = start(ThreadBudget(threads), estimate=rounds, **knobs)
    requests = [submit(scheduler, n) for n in range(1, 6)]
    assert finish(model, *requests) == [[1, 2, 3, 4, 5]]
