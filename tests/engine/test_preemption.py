"""Threads that keep a core while others wait for it: moved away, and back at the end."""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
import time

import pytest
from server_process import wait_until

from convserve.errors import ShapeError
from convserve.kernels._preempt import Preemption

PR_SET_NAME = 15
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
needs_two_cores = pytest.mark.skipif(len(CORES) < 2, reason="there is no other core")


class Named:
    """A thread of the given name, bound to a core, that runs `work` again and again."""

    def __init__(self, name, core, work):
        self._name, self._core, self._work = name, core, work
        self._stop, started = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,))
        self._thread.start()
        started.wait()

    def _run(self, started):
        ctypes.CDLL(None).prctl(PR_SET_NAME, self._name.encode(), 0, 0, 0)
        os.sched_setaffinity(0, {self._core})
        started.set()
        while not self._stop.is_set():
            self._work()

    @property
    def cores(self):
        return os.sched_getaffinity(self._thread.native_id)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()


def compute():
    """Some 30 ms without a pause, and without Python's lock."""
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 60_000)


def nap():
    time.sleep(0.0005)


@needs_two_cores
def test_a_thread_that_keeps_the_core_is_moved_and_comes_back():
    home = CORES[0]
    with Named("transport-1", home, compute) as hog, Named("python", home, nap) as neighbour:
        preemption = Preemption(["transport", "other"], home)
        try:
            assert preemption.works
            wait_until(lambda: hog.cores == {CORES[1]})
            assert preemption.times == 1
            assert neighbour.cores == {home}
        finally:
            preemption.close()
        assert hog.cores == {home}


@needs_two_cores
def test_others_and_those_that_give_way_stay():
    home = CORES[0]
    with Named("transport-1", home, nap) as quick, Named("python", home, compute) as other:
        preemption = Preemption(["transport"], home)
        try:
            time.sleep(0.5)
            assert preemption.times == 0
            assert (quick.cores, other.cores) == ({home}, {home})
        finally:
            preemption.close()


def test_it_ends_more_than_once_and_by_itself():
    preemption = Preemption(["transport"], CORES[0])
    preemption.follow(CORES[-1])
    preemption.close()
    preemption.close()
    assert (preemption.works, preemption.times) == (False, 0)
    Preemption(["transport"], CORES[0])  # ended with the object


def test_the_core_is_a_number():
    with pytest.raises(ShapeError, match="home must be from 0"):
        Preemption(["transport"], -1)
