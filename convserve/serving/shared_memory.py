"""System shared memory: tensors that callers on this machine leave in /dev/shm.

Regions are read with pread and written with pwrite, never mapped: whoever truncates a region that
is in use gets an error, where a mapping would end the server by SIGBUS. That is one copy at the
speed of memory, and what is computed on can't change under way.
"""

from __future__ import annotations

import os
import re
import stat
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path

from convserve.errors import AlreadyExistsError, InvalidRequestError, RegionNotFoundError

__all__ = ["Region", "Regions"]

ROOT = Path("/dev/shm")
MAX_REGIONS = 1024
MAX_TENSOR_BYTES = 1 << 30
_KEY = re.compile(r"/?([A-Za-z0-9_][A-Za-z0-9._-]{0,253})")


class Region:
    """`byte_size` bytes at `offset` of a shared memory object, open as long as anyone uses it.

    file: its descriptor, if another process has opened it; the region then owns that.
    """

    def __init__(
        self, name: str, key: str, offset: int, byte_size: int, file: int | None = None
    ) -> None:
        matched = _KEY.fullmatch(key)
        if not matched:
            raise InvalidRequestError(
                f"shared memory key {key[:64]!r} is not valid: it is one name, with letters, "
                "digits, '.', '_' and '-', and may begin with '/'"
            )
        if not byte_size or offset + byte_size >= 2**63:
            raise InvalidRequestError(
                f"shared memory region '{name[:64]}' must have 1 to 2**63 - 1 bytes, got "
                f"{byte_size} at offset {offset}"
            )
        self.name = name
        self.key = key
        self.offset = offset
        self.byte_size = byte_size
        self.file = _opened(matched[1], key) if file is None else file
        weakref.finalize(self, os.close, self.file)
        status = os.fstat(self.file)
        if not stat.S_ISREG(status.st_mode) or offset + byte_size > status.st_size:
            raise InvalidRequestError(
                f"shared memory region '{key[:64]}' has {status.st_size} bytes, fewer than "
                f"{byte_size} at offset {offset}"
            )

    def is_removed(self) -> bool:
        """Whether its key is gone, so that nobody can open it any more."""
        return os.fstat(self.file).st_nlink == 0

    def read(self, offset: int, size: int) -> bytearray:
        """`size` bytes from `offset` of the region on."""
        self.check(offset, size)
        data = bytearray(size)
        done = 0
        while done < size:
            count = os.preadv(self.file, [memoryview(data)[done:]], self.offset + offset + done)
            if not count:
                raise InvalidRequestError(f"shared memory region '{self.name[:64]}' was truncated")
            done += count
        return data

    def write(self, offset: int, data: memoryview) -> None:
        """Put `data` at `offset` of the region."""
        self.check(offset, len(data))
        start = self.offset + offset
        if os.fstat(self.file).st_size < start + len(data):
            raise InvalidRequestError(f"shared memory region '{self.name[:64]}' was truncated")
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self.file, data[done:], start + done)
        except OSError as error:
            raise InvalidRequestError(
                f"unable to write to shared memory region '{self.name[:64]}': {error.strerror}"
            ) from None

    def check(self, offset: int, size: int) -> None:
        """InvalidRequestError if such a piece does not lie within the region."""
        if size > MAX_TENSOR_BYTES:
            raise InvalidRequestError(
                f"a tensor in shared memory may have {MAX_TENSOR_BYTES} bytes, got {size}"
            )
        if offset + size > self.byte_size:
            raise InvalidRequestError(
                f"Invalid offset + byte size for shared memory region: '{self.name[:64]}' has "
                f"{self.byte_size} bytes, got {size} at offset {offset}"
            )


def _opened(name: str, key: str) -> int:
    try:
        return os.open(ROOT / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidRequestError(
            f"unable to open shared memory region '{key[:64]}': {error.strerror}"
        ) from None


class Regions:
    """The registered regions by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register a region; AlreadyExistsError, or InvalidRequestError for what can't be used."""
        if not name or len(name) > 256:
            raise InvalidRequestError("a shared memory region's name must have 1 to 256 characters")
        region = Region(name, key, offset, byte_size)
        with self._lock:
            if name in self._regions:
                raise AlreadyExistsError(f"shared memory region '{name[:64]}' already in manager")
            if len(self._regions) >= MAX_REGIONS:
                self._forget_removed()
            if len(self._regions) >= MAX_REGIONS:
                raise InvalidRequestError(
                    f"more than {MAX_REGIONS} shared memory regions: unregister some"
                )
            self._regions[name] = region

    def _forget_removed(self) -> None:
        """Forget what callers have left behind that were killed before they could unregister it."""
        self._regions = {
            name: region for name, region in self._regions.items() if not region.is_removed()
        }

    def get(self, name: str) -> Region:
        """The region, which stays usable for whoever has got it."""
        with self._lock:
            region = self._regions.get(name)
        if region is None:
            raise RegionNotFoundError(f"Unable to find shared memory region: '{name[:64]}'")
        return region

    def status(self, name: str) -> list[Region]:
        """The region of that name; of an empty name all."""
        if name:
            return [self.get(name)]
        with self._lock:
            return list(self._regions.values())

    def adopt(self, regions: Iterable[Region]) -> None:
        """Take over the regions of another process in place of those known."""
        with self._lock:
            self._regions = {region.name: region for region in regions}

    def unregister(self, name: str) -> None:
        """Forget the region of that name, if there is one; of an empty name all."""
        with self._lock:
            if name:
                self._regions.pop(name, None)
            else:
                self._regions.clear()
