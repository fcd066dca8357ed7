"""What a server keeps of shared memory when its callers go away without a word."""

from __future__ import annotations

from multiprocessing.shared_memory import SharedMemory

import pytest

from convserve.errors import InvalidRequestError
from convserve.serving import shared_memory
from convserve.serving.shared_memory import Regions


@pytest.fixture
def memories():
    made = [SharedMemory(create=True, size=64) for _ in range(3)]
    yield made
    for memory in made:
        memory.close()
        if memory.name in {path.name for path in shared_memory.ROOT.iterdir()}:
            memory.unlink()


def test_regions_that_were_removed_make_room_for_others(memories, monkeypatch):
    monkeypatch.setattr(shared_memory, "MAX_REGIONS", 2)
    regions = Regions()
    first, second, third = memories
    for memory in (first, second):
        regions.register(memory.name, memory.name, 0, 64)
    with pytest.raises(InvalidRequestError, match="more than 2 shared memory regions"):
        regions.register(third.name, third.name, 0, 64)
    first.unlink()
    held = regions.get(first.name)  # usable as long as there is room
    regions.register(third.name, third.name, 0, 64)
    assert {region.name for region in regions.status("")} == {second.name, third.name}
    assert held.read(0, 4) == bytes(4)
