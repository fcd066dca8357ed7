"""The memory for decoding: shared, first come, first served."""

from __future__ import annotations

import threading

import pytest

from convserve.errors import CancelledError
from convserve.serving.images import DecodeMemory

WAIT = 60.0


class Holder:
    """A thread that reserves memory and holds it until told to let go."""

    def __init__(self, memory, size, order):
        self.has, self.gone, self._go = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(memory, size, order), daemon=True)
        self._thread.start()

    def _run(self, memory, size, order):
        with memory.reserve(size):
            order.append(size)
            self.has.set()
            assert self._go.wait(WAIT)
        self.gone.set()

    def release(self):
        assert self.has.wait(WAIT)
        self._go.set()
        assert self.gone.wait(WAIT)


def queued(memory, count):
    """Wait until so many wait."""
    while len(memory._turns) < count:
        threading.Event().wait(0.001)


def test_who_finds_too_little_waits_and_is_not_passed():
    memory, order = DecodeMemory(10), []
    first, second = Holder(memory, 6, order), None
    assert first.has.wait(WAIT)
    second = Holder(memory, 8, order)
    queued(memory, 1)
    third = Holder(memory, 3, order)  # there would be room, but the second came before
    queued(memory, 2)
    assert not second.has.is_set()
    assert not third.has.is_set()
    with memory.reserve(0):  # nothing needs no turn
        pass
    first.release()
    assert second.has.wait(WAIT)
    assert not third.has.is_set()
    second.release()
    third.release()
    assert order == [6, 8, 3]


def test_several_have_it_together():
    memory, order = DecodeMemory(10), []
    holders = [Holder(memory, size, order) for size in (2, 3, 5)]
    for holder in holders:
        assert holder.has.wait(WAIT)
    for holder in holders:
        holder.release()


def test_who_is_not_wanted_any_more_gives_it_back():
    memory = DecodeMemory(10)

    def gone():
        raise CancelledError("the request was cancelled")

    for size in (0, 10):
        with pytest.raises(CancelledError), memory.reserve(size, gone):
            raise AssertionError("it must not run")
    with memory.reserve(10):
        pass


@pytest.mark.parametrize("size", [-1, 11])
def test_sizes_out_of_range(size):
    with pytest.raises(ValueError, match="0 to 10"), DecodeMemory(10).reserve(size):
        pass
    with pytest.raises(ValueError, match="at least 1"):
        DecodeMemory(0)
