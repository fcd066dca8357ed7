"""Image files decoded into one array: by threads, or by worker processes where there are many.

    paths ─ tasks of 64 ─▶ threads of this process                      ┐
                       ├─▶ `python -m convserve.datasets.decode_worker` ├─▶ pixels, faults
                       └─▶ …, each writing its own rows of the file     ┘

Pillow gives the GIL away while it decodes, but not while it opens a file and makes an array of it,
which takes longer for small images: threads do not get beyond one core there. The workers are
programs of their own, so that a script which trains needs no `if __name__ == "__main__"`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convserve.errors import DatasetError, ImageError
from convserve.images import image_size, to_pixels
from convserve.kernels._cores import usable_cores
from convserve.preprocessing import Preprocessing

__all__ = ["LISTED", "Outcome", "check_faults", "decode", "decode_task"]

LISTED = 10  # unreadable files that a message names
FILES_PER_TASK = 64  # enough that handing a task over costs nothing beside it
WORKERS_FROM = 4096  # files: starting a worker takes as long as decoding a thousand small ones


class Outcome(NamedTuple):
    """Of decoding: which rows could not be read and why, whether all others are grey, and which
    files have another size than they should (only if that was asked for)."""

    faults: dict[int, str]
    grey: bool
    odd: list[str]


def check_faults(outcome: Outcome, images: int, skip: bool) -> str:
    """What is to be said of files that can't be read; DatasetError unless they may be skipped, and
    for files of another size."""
    if outcome.odd:
        raise DatasetError(
            f"{len(outcome.odd)} of {images} images have another size than the first: "
            f"{_listed(outcome.odd)} (--image-size brings all images to one, --resize-shorter too)"
        )
    if not outcome.faults:
        return ""
    faults = list(outcome.faults.values())
    said = f"{len(faults)} of {images} images can't be read: {_listed(faults)}"
    if not skip or len(faults) == images:
        raise DatasetError(said)
    return f"skipped: {said}"


def _listed(told: list[str]) -> str:
    more = f"; and {len(told) - LISTED} more" if len(told) > LISTED else ""
    return "; ".join(told[:LISTED]) + more


class _Task(NamedTuple):
    start: int
    paths: Sequence[str]


def decode(
    paths: Sequence[str], wanted: Preprocessing, pixels: NDArray[np.uint8], one_size: bool = False
) -> Outcome:
    """Fill pixels, uint8 [len(paths), 3, height, width], with the files in their order.

    one_size: list the images that do not have that size already as odd. A memory-mapped `pixels` is
    filled by worker processes if there are many files. Raises DatasetError if a worker dies. An
    exception meanwhile, as of Ctrl-C, ends threads and workers after the image under way.
    """
    tasks = [
        _Task(start, paths[start : start + FILES_PER_TASK])
        for start in range(0, len(paths), FILES_PER_TASK)
    ]
    cores = usable_cores()
    if isinstance(pixels, np.memmap) and len(paths) >= WORKERS_FROM:
        outcomes = _by_workers(tasks, wanted, pixels, one_size, cores)
    else:
        outcomes = _by_threads(tasks, wanted, pixels, one_size, cores)
    faults = {row: fault for outcome in outcomes for row, fault in outcome.faults.items()}
    odd = sorted(told for outcome in outcomes for told in outcome.odd)
    return Outcome(dict(sorted(faults.items())), all(outcome.grey for outcome in outcomes), odd)


def decode_task(
    task: tuple[int, Sequence[str]],
    wanted: Preprocessing,
    pixels: NDArray[np.uint8],
    one_size: bool,
    ended: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Decode (first row, paths) into its rows; those that can't be read are left as they are.

    ended: asked before each image; once it is true the rest are left out.
    """
    start, paths = task
    faults, grey, odd = {}, True, []
    for row, path in enumerate(paths, start):
        if ended():
            break
        try:
            if one_size:
                height, width = image_size(path, exif=wanted.exif)
                if (height, width) != (wanted.height, wanted.width):
                    odd.append(f"{path}: {height}×{width}, not {wanted.height}×{wanted.width}")
                    continue
            image = to_pixels(path, wanted)
        except ImageError as error:
            faults[row] = str(error)
            continue
        pixels[row] = image
        grey = grey and bool((image == image[:1]).all())
    return Outcome(faults, grey, odd)


def _by_threads(
    tasks: Sequence[_Task],
    wanted: Preprocessing,
    pixels: NDArray[np.uint8],
    one_size: bool,
    count: int,
) -> list[Outcome]:
    ended = threading.Event()
    with ThreadPoolExecutor(count, thread_name_prefix="decode") as pool:
        try:
            parts = [
                pool.submit(decode_task, task, wanted, pixels, one_size, ended.is_set)
                for task in tasks
            ]
            return [part.result() for part in parts]
        except BaseException:
            ended.set()
            pool.shutdown(wait=False, cancel_futures=True)  # the block's end waits for the rest
            raise


def _by_workers(
    tasks: Sequence[_Task],
    wanted: Preprocessing,
    pixels: np.memmap,
    one_size: bool,
    count: int,
) -> list[Outcome]:
    told = {
        "file": str(pixels.filename),
        "offset": pixels.offset,
        "shape": pixels.shape,
        "preprocessing": wanted.to_dict(),
        "one_size": one_size,
    }
    crew = _Crew(tasks)
    with ThreadPoolExecutor(count, thread_name_prefix="decode") as pool:
        try:
            parts = [pool.submit(_drive, json.dumps(told), crew) for _ in range(count)]
            return [outcome for part in parts for outcome in part.result()]
        except BaseException:
            crew.end()
            raise


class _Crew:
    """The tasks that are left, and the processes that do them."""

    def __init__(self, tasks: Sequence[_Task]) -> None:
        self._tasks, self._workers = iter(tasks), list[subprocess.Popen[str]]()
        self._lock, self._ended = threading.Lock(), False

    def take(self) -> _Task | None:
        """The next task; None if there are none left, or the work is over."""
        with self._lock:
            return None if self._ended else next(self._tasks, None)

    def join(self, worker: subprocess.Popen[str]) -> None:
        with self._lock:
            self._workers.append(worker)
            if self._ended:
                worker.kill()

    def end(self) -> None:
        """What is under way is given up."""
        with self._lock:
            self._ended = True
            for worker in self._workers:
                worker.kill()


def _drive(told: str, crew: _Crew) -> list[Outcome]:
    """Hand tasks to a worker of one's own until there are none left."""
    outcomes: list[Outcome] = []
    task = crew.take()
    if task is None:
        return outcomes
    command = [sys.executable, "-m", "convserve.datasets.decode_worker"]
    pipe = subprocess.PIPE
    # A session of its own: Ctrl-C is for this process, which ends its workers.
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as worker:
        crew.join(worker)
        assert worker.stdin is not None and worker.stdout is not None
        try:
            reply = _ask(worker.stdin, worker.stdout, told, json.dumps(task))
            while reply:
                faults, grey, odd = json.loads(reply)
                faults = {int(row): fault for row, fault in faults.items()}
                outcomes.append(Outcome(faults, grey, odd))
                task = crew.take()
                if task is None:
                    return outcomes
                reply = _ask(worker.stdin, worker.stdout, json.dumps(task))
            worker.wait()  # for its status: it has closed its output
        finally:
            worker.kill()  # it has nothing to finish, and Ctrl-C waits for nobody
    raise DatasetError(
        f"a process that decodes images ended with status {worker.returncode}, at one of those "
        f"from {task.paths[0]} to {task.paths[-1]}"
    )


def _ask(stdin: IO[str], stdout: IO[str], *lines: str) -> str:
    """The worker's line; empty if it has ended."""
    try:
        stdin.write("".join(f"{line}\n" for line in lines))
        stdin.flush()
    except BrokenPipeError:
        with suppress(BrokenPipeError):
            stdin.close()  # here: it tries to write once more
        return ""
    return stdout.readline()
