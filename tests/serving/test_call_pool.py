"""The pool that inference calls run on."""

from __future__ import annotations

import threading
import time

import pytest

from convserve.serving import pool as serving_pool
from convserve.serving.pool import CallPool

WAIT = 30.0


@pytest.fixture
def pool():
    made = CallPool("test", 2)
    made.start()
    yield made
    made.shutdown(wait=False, cancel_futures=True)


def test_runs_calls_and_tells_of_their_end(pool):
    ended = threading.Event()
    seen = []
    task = pool.submit(lambda a, b: seen.append((a, b)), 1, b=2)
    task.add_done_callback(lambda which: (seen.append(which), ended.set()))
    assert ended.wait(WAIT)
    assert seen == [(1, 2), task]
    late = []
    task.add_done_callback(late.append)
    assert late == [task], "a callback after the end is called at once"


def test_never_more_threads_than_its_bound(pool):
    gate, ended = threading.Event(), threading.Semaphore(0)
    running, most, lock = set(), [0], threading.Lock()

    def call():
        with lock:
            running.add(threading.get_ident())
            most[0] = max(most[0], len(running))
        gate.wait(WAIT)
        with lock:
            running.discard(threading.get_ident())
        ended.release()

    for _ in range(20):
        pool.submit(call)
    gate.set()
    for _ in range(20):
        assert ended.acquire(timeout=WAIT), "a call was lost"
    assert most[0] <= 2


def test_grows(pool):
    pool.grow(5)
    barrier, ended = threading.Barrier(5), threading.Semaphore(0)
    for _ in range(5):
        pool.submit(lambda: (barrier.wait(WAIT), ended.release()))
    for _ in range(5):
        assert ended.acquire(timeout=WAIT), "five calls did not run at the same time"


def test_no_call_is_lost_between_busy_and_idle(pool):
    count, ended, lock = [0], threading.Event(), threading.Lock()

    def call():
        with lock:
            count[0] += 1
            if count[0] == 4000:
                ended.set()

    callers = [
        threading.Thread(target=lambda: [pool.submit(call) for _ in range(1000)]) for _ in range(4)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(WAIT)
    assert ended.wait(WAIT), f"{4000 - count[0]} of 4000 calls were lost"


def test_an_exception_does_not_cost_the_thread(pool, caplog):
    ended = threading.Semaphore(0)
    for _ in range(5):
        pool.submit(lambda: 1 / 0).add_done_callback(lambda _: ended.release())
    for _ in range(5):
        assert ended.acquire(timeout=WAIT)
    assert "ZeroDivisionError" in caplog.text


def test_takes_nothing_after_shutdown_and_ends_its_threads():
    pool = CallPool("ending", 3)
    pool.start()
    barrier = threading.Barrier(4)
    for _ in range(3):
        pool.submit(barrier.wait, WAIT)
    barrier.wait(WAIT)
    threads = [t for t in threading.enumerate() if t.name.startswith("ending_")]
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(print)
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


@pytest.fixture
def turns():
    """Forty threads, of which two may compute at a time."""
    made = CallPool("turns", 40, at_once=2)
    made.start()
    yield made
    made.shutdown(wait=False, cancel_futures=True)


@pytest.fixture
def patient(monkeypatch):
    """No call is taken for late."""
    monkeypatch.setattr(serving_pool, "PATIENCE", 2 * WAIT)


def test_as_many_compute_at_a_time_as_may_and_in_their_order(patient, turns):
    begun, running, most = [], set(), [0]
    lock, ended = threading.Lock(), threading.Semaphore(0)

    def call(number):
        with lock:
            begun.append(number)
            running.add(number)
            most[0] = max(most[0], len(running))
        time.sleep(0.0005)
        with lock:
            running.discard(number)
        ended.release()

    for number in range(200):
        turns.submit(call, number)
    for _ in range(200):
        assert ended.acquire(timeout=WAIT), "a call was lost"
    assert most[0] == 2
    assert max(abs(place - number) for place, number in enumerate(begun)) <= 1


def test_a_call_that_waits_lets_others_compute(patient, turns):
    barrier, ended = threading.Barrier(40), threading.Semaphore(0)

    def call():
        with turns.waiting():
            barrier.wait(WAIT)
        ended.release()

    for _ in range(40):
        turns.submit(call)
    for _ in range(40):
        assert ended.acquire(timeout=WAIT), "forty calls did not wait at the same time"


def test_after_waiting_a_call_goes_on_and_counts(patient, turns):
    gate, ended = threading.Event(), threading.Event()
    went_on = threading.Semaphore(0)

    def waits():
        with turns.waiting():
            pass
        went_on.release()
        gate.wait(WAIT)

    for _ in range(2):
        turns.submit(waits)
    for _ in range(2):
        assert went_on.acquire(timeout=WAIT)
    turns.submit(ended.set)
    assert not ended.wait(0.05), "a third computed beside two"
    gate.set()
    assert ended.wait(WAIT)


def test_calls_that_are_late_do_not_keep_others_from_computing(turns):
    """As those do whose messages gRPC still waits for."""
    gate, ended = threading.Event(), threading.Event()
    for _ in range(10):
        turns.submit(gate.wait, WAIT)
    turns.submit(ended.set)
    assert ended.wait(WAIT / 2), "calls that wait took all turns"
    gate.set()


def test_waiting_outside_of_its_threads_changes_nothing(patient, turns):
    ended = threading.Event()
    with turns.waiting():
        turns.submit(ended.set)
        assert ended.wait(WAIT)


def test_turns_end_with_the_pool():
    pool = CallPool("closing", 3, at_once=1)
    pool.start()
    (watch,) = (t for t in threading.enumerate() if t.name == "closing turns")
    pool.shutdown(wait=False)
    watch.join(WAIT)
    assert not watch.is_alive()
