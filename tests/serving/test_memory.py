"""When the server gives memory back to the system."""

from __future__ import annotations

import pytest

from convserve.serving.memory import Watch

MB = 1 << 20
IDLE, LIGHT, BUSY = 0.0, 0.03, 0.9  # seconds of processor time in a second


@pytest.fixture
def watch():
    return Watch(70 * MB)


def test_a_quiet_process_that_has_grown_gives_back(watch):
    assert not watch.is_due(70 * MB, IDLE)
    assert watch.is_due(71 * MB, LIGHT)
    watch.done(70 * MB, LIGHT)
    assert not watch.is_due(70 * MB, IDLE)


def test_a_busy_one_only_if_it_has_grown_much(watch):
    assert not watch.is_due(130 * MB, BUSY)
    assert watch.is_due(135 * MB, BUSY)
    watch.done(135 * MB, BUSY)
    assert not watch.is_due(190 * MB, BUSY)
    assert watch.is_due(200 * MB, BUSY)


def test_what_was_in_use_under_load_is_given_back_in_quiet(watch):
    assert watch.is_due(140 * MB, BUSY)
    watch.done(140 * MB, BUSY)  # a message that was being read
    assert watch.is_due(140 * MB, IDLE)
    watch.done(70 * MB, IDLE)
    assert not watch.is_due(70 * MB, IDLE)


def test_what_was_in_use_in_quiet_is_given_back_later(watch):
    assert watch.is_due(140 * MB, LIGHT)
    watch.done(140 * MB, LIGHT)  # a message that comes slowly
    due = [watch.is_due(140 * MB, LIGHT) for _ in range(10)]
    assert due == [False] * 9 + [True]
    watch.done(70 * MB, LIGHT)
    assert not watch.is_due(70 * MB, LIGHT)


def test_an_idle_one_is_left_alone(watch):
    assert watch.is_due(80 * MB, IDLE)
    watch.done(80 * MB, IDLE)  # a model that was loaded
    assert not any(watch.is_due(80 * MB, IDLE) for _ in range(100))


def test_less_memory_is_the_new_measure(watch):
    assert not watch.is_due(60 * MB, IDLE)
    assert watch.is_due(61 * MB, IDLE)
