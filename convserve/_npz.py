"""Uncompressed .npz archives: written atomically, and read without trusting a byte of them.

NumPy's own reader allocates what a header claims and inflates what an archive claims; here each
member must be stored plainly, be exactly as long as its header says, and have the dtype and shape
that the caller expects, before any memory is taken for it. Faults are `NpzFault` or OSError.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from convserve.errors import ConvserveError

__all__ = [
    "FAULTS",
    "NpzFault",
    "Reader",
    "atomic_file",
    "holds",
    "open_regular",
    "reading",
    "remove_leftovers",
    "write",
]

MAX_DIRECTORY = 16 << 20  # bytes of the archive's list of members
_CHUNK = 1 << 18  # bytes; small enough to stay in cache while it is copied, checked and hashed
_END_SIZE, _END_MAGIC = 22, b"PK\x05\x06"
_END64_LOCATOR_SIZE, _END64_LOCATOR_MAGIC, _END64_SIZE = 20, b"PK\x06\x07", 56
# What NumPy writes (with or without a last comma), and nothing that needs evaluating.
_HEADER = re.compile(
    r"\{'descr': (?P<descr>'[^'\n]{1,16}'|\[.*\]), 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>[0-9, ]{0,200})\),? ?\} *\n"
)
_MAX_HEADER = 4096


class NpzFault(ValueError):
    """What is wrong with an archive, in words."""


# All that reading a hostile archive, or writing one, can raise.
FAULTS = (
    zipfile.BadZipFile,
    NotImplementedError,  # zipfile: an unknown compression or version
    RuntimeError,  # zipfile: encrypted; and RecursionError
    EOFError,
    struct.error,
    OverflowError,
    ValueError,
    OSError,
)


class Reader:
    """The members of an open archive; names are without ".npy"."""

    def __init__(self, file: BinaryIO) -> None:
        size = file.seek(0, os.SEEK_END)
        _check_directory(file, size)
        self._zip = zipfile.ZipFile(file)
        total = 0
        self._infos: dict[str, zipfile.ZipInfo] = {}
        for info in self._zip.infolist():
            name = info.filename.removesuffix(".npy")
            if name in self._infos:
                raise NpzFault(f"the member {name!r:.300} is there twice")
            if name == info.filename:
                raise NpzFault(f"the member {name!r:.300} is no .npy array")
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise NpzFault(
                    f"the member {name!r:.300} is compressed; write it with numpy.savez, "
                    "not savez_compressed"
                )
            total += info.file_size
            self._infos[name] = info
        if total > size:
            raise NpzFault(f"its members claim {total} bytes, the file has {size}")

    @property
    def names(self) -> list[str]:
        return list(self._infos)

    def array(
        self,
        name: str,
        descr: str,
        shape: tuple[int, ...] | None = None,
        *,
        max_bytes: int | None = None,
        visit: Callable[[memoryview], object] | None = None,
    ) -> npt.NDArray[Any]:
        """A member of exactly this dtype and shape (None: any of one axis), new and writable.

        `visit` sees its bytes in order, a piece at a time.
        """
        with self._zip.open(self._infos[name]) as member:
            found_descr, fortran, found_shape = _read_header(member, name)
            if found_descr != descr:
                raise NpzFault(f"{name!r} must have the dtype {descr!r}, it has {found_descr:.60}")
            if shape is None and len(found_shape) == 1:
                shape = found_shape
            if found_shape != shape:
                raise NpzFault(f"{name!r} must have the shape {shape}, it has {found_shape}")
            if fortran and len(found_shape) > 1:
                raise NpzFault(f"{name!r} must be in C order, it is in Fortran order")
            length = prod(shape) * np.dtype(descr).itemsize
            if max_bytes is not None and length > max_bytes:
                raise NpzFault(f"{name!r} has {length} bytes, over the limit of {max_bytes}")
            if member.tell() + length != self._infos[name].file_size:
                raise NpzFault(
                    f"{name!r} must have {length} bytes of data for its shape {shape}, "
                    f"it has {self._infos[name].file_size - member.tell()}"
                )
            array = np.empty(shape, descr)
            data = array.reshape(-1).view(np.uint8).data
            at = 0
            while piece := member.read(_CHUNK):  # the last read checks the CRC
                data[at : at + len(piece)] = piece
                if visit is not None:
                    visit(data[at : at + len(piece)])
                at += len(piece)
            if at != length:
                raise NpzFault(f"{name!r} is truncated: {at} bytes of {length}")
        return array


def write(
    path: Path,
    arrays: Mapping[str, npt.NDArray[Any]],
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Writes the arrays in C order, atomically; the same arrays give the same bytes.

    ready: see `atomic_file`.
    """
    with (
        atomic_file(path, ready) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")  # its date is fixed
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


@contextmanager
def atomic_file(path: Path, ready: Callable[[], object] = lambda: None) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block ends, and is gone if it fails.

    ready: called before it does, when all of it is on the disk.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):
            raise NpzFault("it exists and is not a regular file")
    temporary = path.parent / f".{_stem(path)}.{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            with suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
        ready()
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(path: Path) -> None:
    """Remove what writers of `path` that were killed have left beside it, if that can be done.

    What another process is writing is locked, and stays.
    """
    pattern = re.compile(rf"\.{re.escape(_stem(path))}\.[0-9a-f]{{16}}\.tmp")
    with suppress(OSError):
        for other in path.parent.iterdir():
            if pattern.fullmatch(other.name):
                with suppress(OSError), other.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    other.unlink()


def _stem(path: Path) -> str:
    """Of the name, what leaves room for more in the longest name that a file may have."""
    return path.name[:50]


@contextmanager
def reading(path: Path) -> Iterator[Reader]:
    """The archive, open for reading; what zipfile finds wrong is an NpzFault too."""
    with open_regular(path) as file:
        try:
            yield Reader(file)
        except (NpzFault, ConvserveError):
            raise
        except FAULTS as error:
            detail = " ".join(str(error).split()) or type(error).__name__
            raise NpzFault(f"the archive is damaged: {detail:.200}") from error


def holds(path: Path, name: str) -> bool:
    """Whether the file is an archive with a member of that name; False for one that is damaged."""
    try:
        with reading(path) as reader:
            return name in reader.names
    except FAULTS:
        return False


def open_regular(path: Path) -> BinaryIO:
    """Opens a file for reading; refuses folders, and pipes that would block."""
    if "\0" in str(path):
        raise NpzFault("the path holds a null byte")
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise NpzFault("it is a folder")
    if not stat.S_ISREG(mode):
        raise NpzFault("it is not a regular file")
    return path.open("rb")


def _check_directory(file: BinaryIO, size: int) -> None:
    """Bounds the archive's list of members before zipfile reads it whole."""
    file.seek(0)
    if size < _END_SIZE or file.read(2) != b"PK":
        raise NpzFault("it is not an .npz archive" if size else "it is empty")
    tail_size = min(size, _END_SIZE + _END64_LOCATOR_SIZE + _END64_SIZE)
    file.seek(size - tail_size)
    tail = file.read(tail_size)
    end = tail[-_END_SIZE:]
    if end[:4] != _END_MAGIC:
        raise NpzFault("its end is missing: it is truncated, or not an .npz archive")
    directory = int.from_bytes(end[12:16], "little")
    before = tail[:-_END_SIZE]
    if before[-_END64_LOCATOR_SIZE:][:4] == _END64_LOCATOR_MAGIC:
        directory = max(directory, int.from_bytes(before[40:48], "little"))
    if directory > MAX_DIRECTORY:
        raise NpzFault(f"its list of members has {directory} bytes, over {MAX_DIRECTORY}")


def _read_header(member: Any, name: str) -> tuple[str, bool, tuple[int, ...]]:
    """dtype, Fortran order and shape from the start of an .npy."""
    magic = member.read(8)
    if magic[:6] != b"\x93NUMPY" or magic[6:] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise NpzFault(f"{name!r:.300} is no .npy array")
    length = int.from_bytes(member.read(2 if magic[6] == 1 else 4), "little")
    if length > _MAX_HEADER:
        raise NpzFault(f"{name!r:.300} has a header of {length} bytes, over {_MAX_HEADER}")
    match = _HEADER.fullmatch(member.read(length).decode("latin-1"))
    if match is None:
        raise NpzFault(f"{name!r:.300} has a malformed header")
    shape = tuple(int(size) for size in match["shape"].replace(" ", "").split(",") if size)
    return match["descr"].strip("'"), match["fortran"] == "True", shape
