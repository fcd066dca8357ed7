"""The image files that the arguments of `convserve classify` name, and their pixels.

    arguments -> ImageFiles (paths, in a fixed order) -> Decoder (threads) -> batches of pixels

Both are streams: of a million files only the names of one folder and a few batches of pixels are
in memory at any time.

Paths are strings here and keep the form in which they were given: `Path` would change `./a.png`,
and cost as much as decoding a small image.
"""
# ruff: noqa: PTH112, PTH122, PTH207

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from convserve.errors import ImageError
from convserve.images import EXTENSIONS, to_pixels
from convserve.preprocessing import Preprocessing


@dataclass
class ImageFiles:
    """Iterates over the paths that `arguments` name: files, folders (recursive) and globs.

    The order is fixed: arguments as given, the matches of a glob sorted, and in a folder its
    sorted image files before its sorted subfolders. In folders only names with an image suffix
    count; hidden entries and links to other folders are passed over. A file that is named itself
    is always taken. What can't be listed goes to `report`.
    """

    arguments: tuple[str, ...]
    report: Callable[[str], None]
    found: int = field(default=0, init=False)  # so far; exact when the iteration ends

    def __iter__(self) -> Iterator[str]:
        for argument in self.arguments:
            if os.path.lexists(argument) or not glob.has_magic(argument):
                yield from self._expand([argument])
            elif matches := sorted(glob.glob(argument, recursive=True)):
                if "**" in argument:  # matches what is in the folders, too
                    matches = [match for match in matches if not os.path.isdir(match)]
                yield from self._expand(matches)
            else:
                self.report(f"{argument}: no file matches")

    def _expand(self, paths: list[str]) -> Iterator[str]:
        folders = {path for path in paths if os.path.isdir(path)}
        self.found += len(paths) - len(folders)
        for path in paths:
            if path in folders:
                yield from self._folder(path)
            else:
                yield path

    def _folder(self, top: str) -> Iterator[str]:
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            files: list[str] = []
            folders: list[str] = []
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
                        elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                            files.append(entry.path)
            except OSError as error:
                self.report(f"{folder}: {error.strerror}")
            waiting.extend(sorted(folders, reverse=True))
            self.found += len(files)
            yield from sorted(files)


@dataclass(frozen=True)
class Batch:
    """The readable images of up to `batch_size` consecutive paths."""

    paths: list[str]
    pixels: NDArray[np.uint8]  # [N, C, H, W], N = len(paths), may be 0
    faults: list[str]  # one message for each unreadable file


@dataclass(frozen=True)
class Decoder:
    """Decodes files in `threads` threads while the caller works on an earlier batch."""

    preprocessing: Preprocessing
    batch_size: int
    threads: int

    def batches(self, paths: Iterable[str]) -> Generator[Batch, None, None]:
        """Yield the batches in the order of `paths`, never more than a few ahead of the caller."""
        remaining = iter(paths)
        pending: deque[Future[Batch]] = deque()
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")
        try:
            while True:
                while len(pending) < self.threads + 1:
                    chunk = list(islice(remaining, self.batch_size))
                    if not chunk:
                        break
                    pending.append(pool.submit(self._decode, chunk))
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, paths: list[str]) -> Batch:
        wanted = self.preprocessing
        pixels = np.empty((len(paths), wanted.channels, wanted.height, wanted.width), np.uint8)
        readable: list[str] = []
        faults: list[str] = []
        for path in paths:
            try:
                pixels[len(readable)] = to_pixels(path, wanted)
                readable.append(path)
            except ImageError as error:
                faults.append(str(error))
        return Batch(readable, pixels[: len(readable)], faults)
