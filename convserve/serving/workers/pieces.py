"""What workers hold alike, as bytes and descriptors for a worker to make the same of."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

from convserve.engine.segment import Segment
from convserve.serving.shared_memory import Region
from convserve.serving.workers.peer import Descriptor

__all__ = ["pack", "unpack"]


class _File(int):
    """A descriptor inside of what is packed."""


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.fds: list[int] = []

    def persistent_id(self, obj: Any) -> int | None:
        if type(obj) is not _File:
            return None
        self.fds.append(int(obj))
        return len(self.fds) - 1

    def reducer_override(self, obj: Any) -> Any:
        reduce = _REDUCERS.get(type(obj))
        return NotImplemented if reduce is None else reduce(obj)


def _read_only(items: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(items)  # which has no name that a pickle could give


_REDUCERS: dict[type, Callable[[Any], Any]] = {
    Segment: lambda s: (Segment, (_File(s.fd),)),
    Region: lambda r: (Region, (r.name, r.key, r.offset, r.byte_size, _File(r.file))),
    MappingProxyType: lambda m: (_read_only, (dict(m),)),
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, files: Sequence[Descriptor]) -> None:
        super().__init__(file)
        self._files = files

    def persistent_load(self, pid: Any) -> int:
        fd: int = self._files[pid].detach()
        return fd


def pack(value: Any) -> tuple[bytes, list[int]]:
    """The value without its open files, and these, which `value` keeps."""
    file = io.BytesIO()
    pickler = _Pickler(file)
    pickler.dump(value)
    return file.getvalue(), pickler.fds


def unpack(data: bytes, files: Sequence[Descriptor]) -> Any:
    """The same value in another process; it owns the files."""
    return _Unpickler(io.BytesIO(data), files).load()
