"""Tensors in shared memory: a local server reads and writes them where they lie.

A region is one POSIX segment, made and removed here and registered with the server under its
name. It serves one request at a time: input first, outputs behind it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from convserve_client import protocol, tensors

Array = npt.NDArray[Any]

SMALL = 16 * 1024  # bytes; tensors below travel in the message, which costs as little
ALIGNMENT = 64
PARAMETER = "shared_memory_region"


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class NoRoomError(Exception):
    """There is no shared memory to be had, or not as much."""


class Region:
    """A segment of at least `size` bytes. Raises NoRoomError."""

    def __init__(self, size: int) -> None:
        # To a power of two, so that requests of about the same size can follow each other in it.
        size = 1 << max(size - 1, 1).bit_length()
        try:
            self._memory = SharedMemory(create=True, size=size)
        except OSError as error:
            raise NoRoomError(str(error)) from None
        try:
            _reserve(self._memory.name, size)
        except OSError as error:
            self._memory.close()
            self._memory.unlink()
            raise NoRoomError(str(error)) from None
        # Also if nobody closes it, but not by a fork's child, whose parent goes on using it.
        self._unlink = weakref.finalize(self, _unlink, self._memory, os.getpid())
        self.size = self._memory.size
        self.name = self._memory.name
        self._used = 0

    @property
    def _buffer(self) -> memoryview:
        buffer = self._memory.buf
        assert buffer is not None  # it is until close()
        return buffer

    def registration(self) -> Any:
        """The request that makes it known to the server."""
        return protocol.SystemSharedMemoryRegisterRequest(
            name=self.name, key=f"/{self.name.lstrip('/')}", byte_size=self.size
        )

    def put(self, tensor: Any, array: Array) -> bool:
        """Begin a request: `array` into the region, and where it is into `tensor`, if it fits."""
        self._used = 0
        place = self._place(tensor, array.nbytes)
        if place is None:
            return False
        little = array.dtype.newbyteorder("<")
        target: Array = np.frombuffer(self._buffer, little, array.size, place)
        target.reshape(array.shape)[...] = array
        return True

    def reserve(self, tensor: Any, size: int) -> tuple[int, int] | None:
        """Have an output of `size` bytes written behind what is there; its offset and size."""
        place = self._place(tensor, size)
        return None if place is None else (place, size)

    def _place(self, tensor: Any, size: int) -> int | None:
        place = self._used
        if place + size > self.size:
            return None
        self._used += aligned(size)
        tensor.parameters[PARAMETER].string_param = self.name
        tensor.parameters["shared_memory_byte_size"].int64_param = size
        if place:
            tensor.parameters["shared_memory_offset"].int64_param = place
        return place

    def read(self, output: Any, place: tuple[int, int]) -> Array:
        """A copy of what the server wrote; ValueError if it says that it wrote more than asked."""
        offset, size = place
        dtype = tensors.DATATYPES.get(output.datatype, np.dtype(np.uint8))
        needed = tensors.element_count(output.shape) * dtype.itemsize
        if needed > size:
            raise ValueError(f"tensor {output.name!r} has {needed} bytes, {size} were reserved")
        data = bytes(self._buffer[offset : offset + needed])
        return tensors.from_raw(output.datatype, output.shape, data)

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        self._unlink()


def _reserve(name: str, size: int) -> None:
    """Have the system give the pages now: it ends a process that writes to one it can't give.

    OSError if there are not so many; does nothing where segments are no files in /dev/shm.
    """
    path = Path("/dev/shm") / name.lstrip("/")
    if path.exists():
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)


def _unlink(memory: SharedMemory, owner: int) -> None:
    if os.getpid() == owner:
        memory.unlink()


class Regions:
    """The regions of one client; safe to use from several threads."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._free: list[Region] = []
        self._registered: set[str] = set()
        self._closed = False
        self.abandoned: list[str] = []  # registered, and of no use any more
        self._process = os.getpid()  # last: who reads it in another thread has the rest

    def _leave_to_parent(self) -> None:
        """In a fork's child, begin anew: both processes would write into the same regions."""
        if self._process != os.getpid():
            self._begin()

    def take(self, count: int, size: int) -> list[Region]:
        """Up to `count` free regions of at least `size` bytes, the smallest first."""
        self._leave_to_parent()
        with self._lock:
            fitting = sorted((r for r in self._free if r.size >= size), key=lambda r: r.size)[
                :count
            ]
            taken = set(map(id, fitting))
            self._free = [region for region in self._free if id(region) not in taken]
        return fitting

    def registered(self, region: Region) -> None:
        with self._lock:
            self._registered.add(region.name)

    def give_back(self, regions: Sequence[Region]) -> None:
        """For the next request; the server has answered and touches them no more."""
        with self._lock:
            if not self._closed:
                self._free += regions
                return
        self.discard(regions)

    def discard(self, regions: Sequence[Region]) -> None:
        """Never use these again: a server that still works on a lost request may write there."""
        for region in regions:
            region.close()
        with self._lock:
            gone = [region.name for region in regions if region.name in self._registered]
            self._registered.difference_update(gone)
            self.abandoned += gone

    def forget(self) -> None:
        """Discard all that is free: the server that knew it is gone."""
        with self._lock:
            free, self._free = self._free, []
        self.discard(free)

    def take_abandoned(self) -> list[str]:
        """The names to unregister, once."""
        self._leave_to_parent()
        with self._lock:
            names, self.abandoned = self.abandoned, []
        return names

    def close(self) -> None:
        """Discard all that is free, now and from now on."""
        self._leave_to_parent()
        with self._lock:
            self._closed = True
        self.forget()
