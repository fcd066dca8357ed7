"""One budget of threads for all models: in turn, never more batches than threads."""

from __future__ import annotations

import threading
import time

import pytest

from convserve.engine.budget import ThreadBudget

WAIT = 60.0


def test_one_that_is_alone_gets_all():
    budget = ThreadBudget(4)
    assert budget.take(9) == 4
    budget.give_back(4)
    assert budget.try_take(3) == 3


def test_those_that_join_in_get_at_least_one_and_soon_their_share():
    budget = ThreadBudget(2)
    first = budget.take(2)
    second = budget.take(2)
    assert (first, second) == (2, 1)  # no waiting for a long batch
    budget.give_back(first)
    assert budget.take(2) == 1
    assert budget.try_take(1) == 0  # as many batches as threads


def test_first_come_first_served():
    budget = ThreadBudget(1)
    held = budget.take(1)
    order, threads = [], []

    def work(number):
        with budget.turn(1):
            order.append(number)

    for number in range(5):
        threads.append(threading.Thread(target=work, args=(number,)))
        threads[-1].start()
        deadline = time.monotonic() + WAIT
        while len(budget._turns) <= number:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    assert budget.try_take(1) == 0
    budget.give_back(held)
    for thread in threads:
        thread.join(WAIT)
    assert order == list(range(5))
    assert budget.try_take(1) == 1


def test_all_is_given_back_after_any_number_of_turns():
    budget = ThreadBudget(3)
    running, most = 0, 0
    lock = threading.Lock()

    def work():
        nonlocal running, most
        for wanted in range(60):
            with budget.turn(wanted % 4 + 1):
                with lock:
                    running += 1
                    most = max(most, running)
                with lock:
                    running -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    assert 1 <= most <= 3
    assert budget.take(3) == 3


def test_no_threads_is_no_budget():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ThreadBudget(0)
