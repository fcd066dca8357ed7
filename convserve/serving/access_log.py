"""The access log: a line a request, as text or JSON.

    2026-11-24T15:01:02.345678Z ModelInfer OK model=digits version=3 id=7f-1 peer=127.0.0.1:40112
        images=2 batch=8 bytes_in=6341 bytes_out=158 queue_us=84 compute_us=190 total_us=402

(in one line). What callers send is escaped, so that no name can forge a line or steer a terminal;
tokens and tensors are never in it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from convserve.errors import ConfigError
from convserve.serving.observe import Record

__all__ = ["FORMATS", "AccessLog"]

_log = logging.getLogger(__name__)
_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+\[\]-]+")
_encode = json.JSONEncoder(separators=(",", ":")).encode
_MODE = 0o640  # names and addresses of callers are not everybody's business


class AccessLog:
    """Appends lines to a file, or to standard output. A sink of `observe.Observer`.

    Lines that can't be written, on a full disk, are counted and reported once; then it is tried
    again. Raises ConfigError if the file can't be opened.

    path: None for standard output. form: one of FORMATS. worker: the number of this process, which
    lines then name, where several write to the file.
    """

    metadata = frozenset[str]()

    def __init__(self, path: Path | None, form: str = "text", worker: int | None = None) -> None:
        self._path = path
        self._origin = {} if worker is None else {"worker": worker, "pid": os.getpid()}
        self._format = FORMATS[form]
        self._reopen = False
        self._failing = 0  # lines lost since the last one that was written
        self._torn = False  # whether the file ends within a line
        try:
            self._file = self._open()
        except OSError as error:
            raise ConfigError(f"access log {path}: {error.strerror or error}") from None

    def reopen(self) -> None:
        """Before the next lines open the file anew, since it has been moved away."""
        self._reopen = self._path is not None

    def take(self, records: Sequence[Record]) -> int:
        """Write a line for each; returns how many could not be written."""
        if self._reopen:
            self._reopen = False
            self._switch()
        if not records:
            return 0
        lines = [self._format(fields(record) | self._origin) for record in records]
        return self._write("".join(line + "\n" for line in lines).encode("ascii"))

    def close(self) -> None:
        """Close the file."""
        if self._path is not None:
            os.close(self._file)

    def _open(self) -> int:
        if self._path is None:
            return sys.stdout.fileno()
        # Appending, so that processes may share a file and a rotation may truncate it.
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _MODE)

    def _switch(self) -> None:
        try:
            file = self._open()
        except OSError as error:
            _log.error("access log %s stays the open one: %s", self._path, error.strerror)
            return
        os.close(self._file)
        self._file, self._torn = file, False

    def _write(self, data: bytes) -> int:
        rest = b"\n" * self._torn + data
        try:
            while rest:
                written = os.write(self._file, rest)
                self._torn = rest[written - 1 : written] != b"\n"
                rest = rest[written:]
        except OSError as error:
            lost = min(rest.count(b"\n"), data.count(b"\n"))
            if not self._failing:
                _log.error("access log: %s; lines are lost until it works again", error.strerror)
            self._failing += lost
            return lost
        if self._failing:
            _log.warning("access log: it works again; %d lines were lost", self._failing)
            self._failing = 0
        return 0


def fields(record: Record) -> dict[str, Any]:
    """What a line says; what there was not is left out."""
    queue, compute, total = (None if t is None else t // 1000 for t in record.durations)
    seconds, rest = divmod(record.time // 1000, 1_000_000)
    values = {
        "time": f"{_second(seconds)}.{rest:06d}Z",
        "method": record.method,
        "code": record.code.name,
        "model": record.model,
        "version": record.version,
        "id": record.id,
        "peer": _peer(record.peer),
        "images": record.images,
        "batch": record.batch,
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "queue_us": queue,
        "compute_us": compute,
        "total_us": total,
        "trace_id": record.trace_id,
        "error": record.details,
    }
    return {name: value for name, value in values.items() if value not in (None, "")}


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, timezone.utc):%Y-%m-%dT%H:%M:%S}"


@lru_cache(maxsize=256)
def _peer(peer: str) -> str:
    return unquote(peer).partition(":")[2] or peer


def _text(values: Mapping[str, Any]) -> str:
    first = (str(values[name]) for name in ("time", "method", "code"))
    rest = list(values.items())[3:]
    return " ".join((*first, *(f"{name}={_word(value)}" for name, value in rest)))


def _word(value: Any) -> str:
    """As it is, or as a JSON string if it holds spaces, quotes or worse."""
    text = str(value)
    return text if type(value) is int or _PLAIN.fullmatch(text) else _json(text)


def _json(value: Any) -> str:
    """ASCII only; JSON itself leaves DEL as it is."""
    return _encode(value).replace("\x7f", "\\u007f")


FORMATS: dict[str, Callable[[Mapping[str, Any]], str]] = {"text": _text, "json": _json}
