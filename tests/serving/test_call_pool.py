"""The pool that inference calls run on."""

from __future__ import annotations

import threading

import pytest

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
