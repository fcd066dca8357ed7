"""Threads that run Python on one core; the rest goes where there is room."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest

from convserve.engine import affinity
from convserve.engine.affinity import CoreWatch
from convserve.kernels._threads import bound_times

CORES = sorted(os.sched_getaffinity(0))
pytestmark = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(affinity, "_core", None)


def cores_in_thread(*before):
    """The cores of a thread that calls `before` first."""
    seen = []

    def run():
        for call in before:
            call()
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return seen[0]


def test_choice():
    assert affinity.choose(0) == CORES[0]
    assert affinity.choose(len(CORES) + 1) == CORES[1]
    assert affinity.choose() in CORES


def test_only_what_is_started_bound_is_bound():
    assert affinity.bound(CORES[1], cores_in_thread) == {CORES[1]}
    assert affinity.bound(CORES[1], lambda: cores_in_thread(affinity.roam)) == set(CORES)
    assert os.sched_getaffinity(0) == set(CORES)
    assert cores_in_thread() == set(CORES)


def test_nothing_is_bound_without_a_core():
    assert affinity.bound(None, cores_in_thread) == set(CORES)
    with affinity.anywhere():
        assert os.sched_getaffinity(0) == set(CORES)


def test_long_work_goes_anywhere_and_comes_back():
    seen = []

    def work():
        with pytest.raises(ValueError), affinity.anywhere():
            seen.append(os.sched_getaffinity(0))
            raise ValueError
        seen.append(os.sched_getaffinity(0))

    thread = threading.Thread(target=work)
    affinity.bound(CORES[0], thread.start)
    thread.join()
    assert seen == [set(CORES), {CORES[0]}]


def test_a_thread_that_is_not_bound_stays_free_after_long_work():
    affinity.bound(CORES[0], lambda: None)
    with affinity.anywhere():
        pass
    assert os.sched_getaffinity(0) == set(CORES)


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="needs Linux")
def test_bound_threads_take_turns_unless_they_compute():
    policy = os.sched_getscheduler(0)
    if policy != os.SCHED_OTHER:
        pytest.skip("somebody has chosen a policy")
    seen = []

    def work():
        seen.append(os.sched_getscheduler(0))
        with affinity.anywhere():
            seen.append(os.sched_getscheduler(0))
        seen.append(os.sched_getscheduler(0))
        affinity.roam()
        seen.append(os.sched_getscheduler(0))

    for in_turns in (True, False):
        thread = threading.Thread(target=work)
        affinity.bound(CORES[0], thread.start, in_turns=in_turns)
        thread.join()
    free, turns = os.SCHED_OTHER, os.SCHED_BATCH
    assert seen == [turns, free, turns, free, free, free, free, free]
    assert os.sched_getscheduler(0) == policy


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="needs Linux")
def test_a_policy_that_somebody_has_chosen_stays(monkeypatch):
    monkeypatch.setattr(os, "sched_getscheduler", lambda _: os.SCHED_IDLE)
    changed = []
    monkeypatch.setattr(os, "sched_setscheduler", lambda *given: changed.append(given))
    affinity.bound(CORES[1], affinity.roam)
    assert not changed


def test_a_sandbox_without_scheduling_policies_is_no_obstacle(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    assert affinity.bound(CORES[1], cores_in_thread) == {CORES[1]}


def test_the_engine_uses_all_cores_from_a_bound_thread():
    from convserve.kernels._cores import usable_cores

    expected, seen = usable_cores(), []
    thread = threading.Thread(target=lambda: seen.append(usable_cores()))
    affinity.bound(CORES[0], thread.start)
    thread.join()
    assert seen == [expected]


def test_how_long_bound_threads_have_run():
    stop, seen = threading.Event(), {}

    def run():
        while time.thread_time() < 0.02:
            pass
        seen[threading.get_native_id()] = time.thread_time_ns()
        done.release()
        stop.wait(30)

    done = threading.Semaphore(0)
    free = threading.Thread(target=run)
    free.start()
    many = [threading.Thread(target=run) for _ in range(70)]  # more than there is room for at first
    for thread in many:
        affinity.bound(CORES[1], thread.start)
    for _ in range(71):
        assert done.acquire(timeout=30)
    times = bound_times(CORES[1])
    assert not bound_times(CORES[0])
    stop.set()
    for thread in (free, *many):
        thread.join(30)
    assert times.keys() == seen.keys() - {free.native_id}
    assert all(seen[id] <= ran < seen[id] + 20e6 for id, ran in times.items())
    end = time.monotonic() + 30
    while times.keys() & bound_times(CORES[1]).keys():  # `join` returns a little earlier
        assert time.monotonic() < end


class Proc:
    """A /proc/stat of two cores that the test writes."""

    def __init__(self, path):
        self.path = path
        self.ticks = np.zeros((len(CORES), 2), int)
        self.write()

    def add(self, **by_core):
        for name, (busy, idle) in by_core.items():
            self.ticks[int(name[1:])] += busy, idle
        self.write()

    def write(self):
        lines = ["cpu 0 0 0 0 0 0 0 0 0 0"]
        for core, (busy, idle) in zip(CORES, self.ticks, strict=True):
            lines.append(f"cpu{core} {busy} 0 0 {idle} 0 0 0 0 0 0")
        (self.path / "stat").write_text("\n".join([*lines, "intr 1", ""]))


def ticks(count):
    """Seconds of so many ticks."""
    return count / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def proc(tmp_path):
    (tmp_path / "self/task").mkdir(parents=True)
    return Proc(tmp_path)


@pytest.mark.parametrize(
    ("ours", "others", "moves"),
    [
        ((90, 10), (5, 95), True),  # others are busy on ours, and the other is idle
        ((90, 10), (80, 20), False),  # the other is as busy
        ((20, 80), (5, 95), False),  # there is room enough
    ],
)
def test_when_to_move(proc, monkeypatch, ours, others, moves):
    watch = CoreWatch(proc.path)
    monkeypatch.setattr(affinity, "_core", CORES[0])
    before = watch._usage()
    proc.add(c0=ours, c1=others)
    assert watch._better(before, watch._usage()) == (CORES[1] if moves else None)


def test_own_work_is_no_reason_to_move(proc, monkeypatch):
    watch = CoreWatch(proc.path)
    monkeypatch.setattr(affinity, "_core", CORES[0])
    cores, _ = watch._usage()
    proc.add(c0=(90, 10), c1=(0, 100))
    before, now = affinity._Usage(cores, {1: 0}), affinity._Usage(watch._cores(), {1: ticks(85)})
    assert watch._better(before, now) is None


def test_only_the_time_of_threads_that_are_and_were_bound_is_our_own(proc, monkeypatch):
    watch = CoreWatch(proc.path)
    monkeypatch.setattr(affinity, "_core", CORES[0])
    cores = watch._cores()
    proc.add(c0=(90, 10), c1=(0, 100))
    before = affinity._Usage(cores, {1: ticks(500), 2: ticks(20), 3: 0.0})
    # 3 has ended, 4 is new here
    now = affinity._Usage(watch._cores(), {1: ticks(540), 2: ticks(55), 4: ticks(800)})
    assert watch._own_share(before, now) == pytest.approx(0.75)


def test_bound_threads_are_crowded_while_they_need_most_of_their_core(proc, monkeypatch):
    watch = CoreWatch(proc.path)
    monkeypatch.setattr(affinity, "_core", CORES[0])
    monkeypatch.setattr(affinity, "_crowded", False)
    own = iter([{1: ticks(count)} for count in (0, 60, 100, 100)])
    seen = []

    def look(_):  # instead of waiting
        seen.append(affinity.crowded())
        proc.add(c0=(100, 0), c1=(100, 0))
        return len(seen) == 4

    monkeypatch.setattr(watch, "_own", lambda: next(own))
    monkeypatch.setattr(watch._closed, "wait", look)
    thread = threading.Thread(target=watch._watch)
    thread.start()
    thread.join(30)
    assert seen == [False, True, False, False]
    assert not affinity.crowded()


def test_a_move_takes_all_bound_threads_and_no_other():
    stop, started = threading.Event(), threading.Barrier(4)
    seen = {}

    def run(name):
        started.wait(30)
        stop.wait(30)
        seen[name] = os.sched_getaffinity(0)

    threads = [threading.Thread(target=run, args=("free",))]
    threads[0].start()
    for name in ("a", "b"):
        threads.append(threading.Thread(target=run, args=(name,)))
        affinity.bound(CORES[0], threads[-1].start)
    started.wait(30)
    watch = CoreWatch(seconds=3600)
    watch.move(CORES[1])
    watch.close()
    stop.set()
    for thread in threads:
        thread.join(30)
    assert seen == {"free": set(CORES), "a": {CORES[1]}, "b": {CORES[1]}}
