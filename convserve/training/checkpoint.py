"""Checkpoints: all that a run needs to go on as if it had never stopped.

One uncompressed .npz, written atomically and read without pickle: float32 arrays, and one entry
`__checkpoint__` with UTF-8 JSON. The JSON says which run it is of (`identity`), and a checkpoint
of another network, data set or setting is refused, naming what differs. Random streams need no
place in it: each is made anew from the seed and the numbers of the epoch and the step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from convserve._npz import FAULTS, NpzFault, Reader, reading, write
from convserve.datasets import Dataset
from convserve.errors import CheckpointError
from convserve.graph import Graph
from convserve.training.config import TrainConfig
from convserve.training.step import Array

__all__ = ["ENTRY", "earlier", "identity", "is_unfinished", "read", "save"]

ENTRY = "__checkpoint__"
FORMAT_VERSION = 2  # 2 brought checkpoints within an epoch
MAX_JSON = 64 << 20  # bytes


def identity(
    graph: Graph, dataset: Dataset, config: TrainConfig, origin: str | None = None
) -> dict[str, Any]:
    """What a run's result depends on, as JSON values; origin: of its first parameters."""
    return {
        "graph": graph.to_dict(),
        "data": {
            "name": dataset.name,
            "labels": list(dataset.labels),
            "images": list(dataset.train.x.shape),
            "crc32": dataset.train.crc32(),
        },
        "config": config.to_dict(),
        "origin": origin,
    }


def save(
    path: Path,
    run: Mapping[str, Any],
    progress: Mapping[str, Any],
    arrays: Mapping[str, Array],
    ready: Callable[[], object] = lambda: None,
) -> None:
    """Write a checkpoint of the run with that identity; CheckpointError if that fails.

    ready: called when it is written, but has not taken the place of an earlier one yet.
    """
    document = {"version": FORMAT_VERSION, "run": run, "progress": progress}
    text = json.dumps(document, allow_nan=False).encode()
    try:
        write(path, {ENTRY: np.frombuffer(text, np.uint8), **arrays}, ready)
    except FAULTS as error:
        raise CheckpointError(f"{path}: can't be written: {error}") from error


def read(
    path: Path, run: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Any], dict[str, Array]]:
    """The progress and arrays of a checkpoint of this very run.

    shapes: the arrays that it must hold, and may not hold others beside `best.…` ones of the same
    shape as `params.…`. Raises CheckpointError for a file that is missing, damaged or of another
    run.
    """
    try:
        with reading(path) as reader:
            document = _document(reader)
            if document["version"] != FORMAT_VERSION:
                raise NpzFault(f"its format version is {document['version']!r:.20}")
            if differences := _differences(json.loads(json.dumps(run)), document["run"]):
                raise NpzFault(f"it is of another run: {'; '.join(differences)}")
            wanted = dict(shapes)
            if document["progress"]["run"]["best_epoch"] is not None:
                wanted |= {
                    name.replace("params.", "best.", 1): shape
                    for name, shape in shapes.items()
                    if name.startswith("params.")
                }
            found = set(reader.names) - {ENTRY}
            if odd := sorted(found ^ wanted.keys()):
                raise NpzFault(f"its arrays do not fit: {', '.join(odd[:5])}")
            arrays = {name: reader.array(name, "<f4", shape) for name, shape in wanted.items()}
            return document["progress"], arrays
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no checkpoint to resume from") from error
    except FAULTS as error:
        raise CheckpointError(f"{path}: can't be resumed from: {error}") from error
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: can't be resumed from: its entry {error}") from error


def is_unfinished(path: Path) -> bool:
    """Whether a checkpoint is there of a run that has not come to its end, its last export."""
    try:
        with reading(path) as reader:
            document = _document(reader)
        return document["progress"]["finished"] is not True
    except FAULTS:
        return False
    except (KeyError, TypeError):
        return True  # of another version: better kept


def earlier(path: Path) -> Path:
    """Where the checkpoint of an unfinished run is kept when another run has one to write.

    The first of NAME.earlier.npz, NAME.earlier2.npz and so on that is not there yet.
    """
    for number in count(1):
        other = path.with_name(f"{path.stem}.earlier{number if number > 1 else ''}{path.suffix}")
        if not os.path.lexists(other):
            break
    return other


def _document(reader: Reader) -> dict[str, Any]:
    if ENTRY not in reader.names:
        raise NpzFault("it is not a checkpoint")
    document = json.loads(reader.array(ENTRY, "|u1", max_bytes=MAX_JSON).tobytes().decode())
    if not isinstance(document, dict):
        raise NpzFault("its description must be an object")
    return document


def _differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """What this run and the checkpoint's differ in, for a person to read."""
    if wanted == found:
        return []
    lines = ["the network"] if wanted["graph"] != found["graph"] else []
    if wanted["origin"] != found["origin"]:
        lines.append("the model that it started from")
    for part in ("data", "config"):
        for key, value in wanted[part].items():
            if found[part].get(key) != value:
                was, now = found[part].get(key), value
                brief = len(repr(was)) + len(repr(now)) < 80
                lines.append(f"{key} was {was!r}, is {now!r}" if brief else key)
    return lines or ["its settings"]
