"""Decoded images kept in a file, memory-mapped: a folder larger than memory trains too.

    DIR/<folder>-<which folder, which recipe>-<state of its files>.npy     uint8 [N, C, H, W]
    DIR/<the same>.json                                                    what it is of, bad files

The name says all that the pixels depend on, so a file that is there is right: any change of a name,
a size, a date, the image size or Pillow gives another name, and takes the place of the older state
of the same folder and recipe. A file appears under its name only once it is whole; its room on the
disk is taken before the first pixel is written, since a full disk would otherwise kill the process
that writes to the mapped memory.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from convserve.datasets.base import Pixels, as_text
from convserve.datasets.decode import Outcome, check_faults, decode
from convserve.errors import DatasetError
from convserve.preprocessing import Preprocessing

__all__ = ["CacheFile", "default_cache"]

FORMAT = 1
STALE_SECONDS = 60  # age from which an unfinished file that nobody holds is removed
COMPACT_CHUNK = 1024  # images moved at a time


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/convserve`, or `~/.cache/convserve`."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path("~/.cache").expanduser()) / "convserve"


@dataclass(frozen=True)
class CacheFile:
    """The decoded images of `paths`, all below `root`, in a file in `directory`."""

    directory: Path
    root: Path
    paths: Sequence[str]
    wanted: Preprocessing
    skip_bad_files: bool = False
    one_size: bool = False  # images of another size than `wanted` are an error

    def load(self) -> tuple[Pixels, Outcome]:
        """The images that can be read, uint8 [N, C, H, W], C 1 if all are grey; and the others.

        Decodes them if the file is not there yet. Images with faults have no row. Raises
        DatasetError for images of another size than they must have, or if the folder can't be
        written to, or the disk is full.
        """
        prefix, state = self._keys()
        path = self.directory / f"{prefix}-{state}.npy"
        try:
            found = self._open(path)
            if found is None:
                self.directory.mkdir(parents=True, exist_ok=True)
                self._clean()
                self._make(path)
                self._remove_older(prefix, path)
                found = self._open(path)
        except OSError as error:
            raise DatasetError(
                f"{self.directory}: decoded images can't be kept there: "
                f"{error.strerror or error} (another place, or none, can be chosen: --cache DIR, "
                "--no-cache)"
            ) from error
        if found is None:
            raise DatasetError(f"{path}: was changed or removed while it was read")
        return found

    def _keys(self) -> tuple[str, str]:
        """Of the folder and recipe, and of the state of the files; for names."""
        from PIL import __version__

        recipe: list[Any] = [FORMAT, os.fspath(self.root.resolve()), self.wanted.to_dict()]
        if self.one_size:
            recipe.append("of one size")
        state = hashlib.sha256(f"Pillow {__version__}\n".encode())
        for path in self.paths:
            try:
                status = os.stat(path)  # noqa: PTH116  (a string, a million times)
                told: Any = [os.path.relpath(path, self.root), status.st_size, status.st_mtime_ns]
            except OSError:  # its absence is found and told by the decoding
                told = [path, "absent"]
            state.update(json.dumps(told).encode())
        name = re.sub(r"[^\w.-]+", "_", as_text(self.root.resolve().name))[:40] or "images"
        whose = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]
        return f"{name}-{whose}", state.hexdigest()[:20]

    def _open(self, path: Path) -> tuple[Pixels, Outcome] | None:
        """What the file holds; None unless it is there, whole and fits."""
        try:
            told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            faults = {int(row): str(fault) for row, fault in told["faults"].items()}
            pixels = np.load(path, mmap_mode="r", allow_pickle=False)
            count = len(self.paths) - len(faults)
            shape = (count, told["channels"], self.wanted.height, self.wanted.width)
            if pixels.dtype != np.uint8 or pixels.shape != shape:
                return None
            return pixels, Outcome(faults, told["channels"] == 1, [])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError, EOFError):
            return None  # damaged: it is made again

    def _make(self, path: Path) -> None:
        wanted = self.wanted
        shape = (len(self.paths), wanted.channels, wanted.height, wanted.width)
        with self._unfinished(path) as (temporary, file):
            offset = _write_header(file, shape)
            _take_room(file, offset + prod(shape))
            pixels = np.memmap(temporary, np.uint8, "r+", offset, shape)
            outcome = decode(self.paths, self.wanted, pixels, self.one_size)
            check_faults(outcome, len(pixels), self.skip_bad_files)
            channels = 1 if outcome.grey else 3
            kept = [row for row in range(len(pixels)) if row not in outcome.faults]
            if len(kept) < len(pixels) or channels == 1:
                _compact(pixels, kept, channels)
            pixels.flush()
            shape = (len(kept), channels, *shape[2:])
            file.seek(0)
            if _write_header(file, shape) != offset:
                raise DatasetError(f"{path}: its header changed its length")
            file.truncate(offset + prod(shape))
            told = {
                "folder": as_text(os.fspath(self.root.resolve())),
                "images": len(kept),
                "channels": channels,
                "preprocessing": self.wanted.to_dict(),
                "faults": outcome.faults,
            }
            path.with_suffix(".json").write_text(json.dumps(told, indent=1), encoding="utf-8")
            temporary.replace(path)

    @contextmanager
    def _unfinished(self, path: Path) -> Iterator[tuple[Path, BinaryIO]]:
        """A locked file beside `path`, removed if the block fails."""
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            with temporary.open("w+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield temporary, file
        finally:
            temporary.unlink(missing_ok=True)

    def _clean(self) -> None:
        """Remove unfinished files of processes that were killed: nobody holds their lock."""
        for path in self.directory.glob("*.tmp"):
            with suppress(OSError), path.open("rb") as file:
                if time.time() - os.fstat(file.fileno()).st_mtime > STALE_SECONDS:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()

    def _remove_older(self, prefix: str, path: Path) -> None:
        """Remove what was decoded of an older state of the same folder."""
        for older in self.directory.glob(f"{prefix}-*"):
            if older.stem != path.stem and older.suffix in (".npy", ".json"):
                older.unlink(missing_ok=True)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    """Write the header of an .npy and return its length, which is the same for any fewer images."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _take_room(file: BinaryIO, size: int) -> None:
    disk = os.fstatvfs(file.fileno())
    free = disk.f_bavail * disk.f_frsize
    try:
        # Asked for more, file systems fill the whole disk before they say no. Those that have no
        # size of their own say 0 blocks, all and free.
        if disk.f_blocks and size > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise DatasetError(
            f"{file.name}: {size / 1e6:,.1f} MB are needed for the decoded images and "
            f"{free / 1e6:,.1f} MB are free: {error.strerror} (choose another place, --cache DIR, "
            "or a smaller image size)"
        ) from error


def _compact(pixels: Pixels, kept: Sequence[int], channels: int) -> None:
    """Move the rows that stay, and their first channels, to the front of the same memory."""
    flat, size = pixels.reshape(-1), channels * prod(pixels.shape[2:])
    for start in range(0, len(kept), COMPACT_CHUNK):
        rows = kept[start : start + COMPACT_CHUNK]
        moved = pixels[rows, :channels].reshape(-1)  # a copy, from behind where it goes
        flat[start * size : start * size + len(moved)] = moved
