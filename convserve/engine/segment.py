"""A model version in memory that processes share: its description, its weights, as read and packed.

    [weight, 64-byte aligned][weight] … [packed weights] … [header][length of the header]

The memory is a sealed anonymous file (memfd). Nobody can change it any more, whoever has its
descriptor can map it, and it is gone when nobody has it: no crash leaves anything behind. Models
that are made from it give the same bits as the one that it was made of. The header is a pickle, so
segments are taken from processes of the same server only.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
import secrets
import weakref
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from convserve.engine.model import Model
from convserve.model_file import ModelFile
from convserve.plan import Times

__all__ = ["Segment"]

Array = npt.NDArray[np.float32]
_ALIGNMENT = 64
# fcntl.h; the fcntl module has them from Python 3.11 on or not at all
_ADD_SEALS, _SEALS = 1033, 1 | 2 | 4 | 8  # no more seals, no shrinking, growing or writing


_Index = dict[Any, tuple[int, tuple[int, ...]]]  # by name or key: where it begins, its shape


class _Header(NamedTuple):
    id: str
    file: ModelFile  # without its arrays
    times: Mapping[str, Times]
    params: _Index
    packed: _Index  # as plan.Packed has them


class Segment:
    """The shared memory behind an open descriptor, which it owns."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        weakref.finalize(self, os.close, fd)
        memory = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        length = int.from_bytes(memory[-8:], "little")
        header: _Header = pickle.loads(memory[-8 - length : -8])
        self.id = header.id
        self._file, self._times = header.file, header.times
        self._params, self._packed = (
            {
                key: np.frombuffer(memory, np.float32, prod(shape), offset).reshape(shape)
                for key, (offset, shape) in index.items()
            }
            for index in (header.params, header.packed)
        )

    @classmethod
    def of(cls, file: ModelFile, times: Mapping[str, Times]) -> Segment:
        """A new one of a model file and a tuning record's `times`.

        Takes the arrays out of `file`, one by one, so that memory holds them once. Raises OSError
        where there is none for them.
        """
        fd = os.memfd_create("convserve-model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            _write(fd, file, times)
            fcntl.fcntl(fd, _ADD_SEALS, _SEALS)
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    def model(self, name: str, threads: int | None) -> Model:
        """The model, its weights lying in the segment."""
        file = ModelFile(
            self._file.graph,
            self._params,
            self._file.labels,
            self._file.preprocessing,
            self._file.provenance,
        )
        packed = dict(self._packed)
        return Model.from_file(file, name=name, threads=threads, times=self._times, packed=packed)


def _write(fd: int, file: ModelFile, times: Mapping[str, Times]) -> None:
    packed = Model.from_file(file, times=times).packed
    end = 0

    def put(data: Any) -> int:
        """Append, aligned; returns where."""
        nonlocal end
        start = end = -(-end // _ALIGNMENT) * _ALIGNMENT
        view = memoryview(data).cast("B")
        while view:
            done = os.pwrite(fd, view, end)
            view, end = view[done:], end + done
        return start

    def move_all(arrays: dict[Any, Any]) -> _Index:
        index = {}
        while arrays:
            key, value = arrays.popitem()
            array = value if isinstance(value, np.ndarray) else value.memory
            index[key] = put(np.ascontiguousarray(array).reshape(-1).data), array.shape
        return index

    params, ready = move_all(file.params), move_all(packed)
    header = _Header(secrets.token_hex(16), file, dict(times), params, ready)
    data = pickle.dumps(header)
    put(data + len(data).to_bytes(8, "little"))
