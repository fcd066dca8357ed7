"""Where `convserve classify` puts its rows: CSV or JSON lines, text that grows row by row.

A row is a path and its ranking, [(label, score), ...] from the best down. Every format has the
columns path, label_1, score_1, label_2, … A score is written as the shortest decimal that gives
the same float32 back. Parquet is in `_parquet_writer`.

A run that is interrupted, by a signal or a power cut, leaves whole rows and at most one torn one;
`resume` cuts that off and tells which paths are done.
"""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

import click
import numpy as np

_TO_QUOTE = re.compile(r'[,"\r\n]')

Ranking: TypeAlias = Sequence[tuple[str, float]]
Row: TypeAlias = tuple[str, Ranking]


class RowWriter(Protocol):
    """What `classify` needs of an output."""

    top_k: int  # label and score columns in each row

    def is_done(self, path: str) -> bool:
        """Tell whether an earlier run wrote a row of `path`; each such row counts once."""

    def write(self, rows: Sequence[Row]) -> None: ...

    def close(self, *, complete: bool) -> None:
        """Make everything written so far durable; `complete` says that no row is missing."""


class TextFormat(Protocol):
    """How rows are lines of text, and how to find them again."""

    top_k: int
    header: str
    start: str  # every file begins with it

    def line(self, row: Row) -> str: ...

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield the whole records in a file, each with its line end."""

    def path(self, record: str) -> str | None:
        """Return the path of a record, None for the header; raise ValueError for anything else."""


class NotOurFileError(click.ClickException):
    """The file to resume holds something else: it stays as it is."""

    def __init__(self, path: Path, fault: str) -> None:
        super().__init__(
            f"{path}: {fault}; --resume continues a file that this command wrote with the same "
            "--top-k (--overwrite starts a new one)"
        )


def columns(top_k: int) -> list[str]:
    """Return the names of the columns: path, label_1, score_1, …"""
    return ["path", *(f"{what}_{i}" for i in range(1, top_k + 1) for what in ("label", "score"))]


def take(done: Counter[str], path: str) -> bool:
    """Take one row of `path` off `done`, so that a path given twice gets its two rows."""
    count = done[path]
    if count > 1:
        done[path] = count - 1
    elif count:
        del done[path]
    return count > 0


class CsvFormat:
    """RFC 4180 with `\\n` line ends; a path that is no UTF-8 keeps its bytes."""

    def __init__(self, top_k: int) -> None:
        self.top_k = top_k
        self._columns = columns(top_k)
        self.header = ",".join(self._columns) + "\n"
        self.start = self.header

    def line(self, row: Row) -> str:
        path, ranking = row
        fields = [_quoted(path)]
        for label, score in ranking:
            fields += [_quoted(label), str(np.float32(score))]
        return ",".join(fields) + "\n"

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        # A line break inside quotes does not end a record.
        lines: list[bytes] = []
        quotes = 0
        for line in file:
            lines.append(line)
            quotes += line.count(b'"')
            if line.endswith(b"\n") and quotes % 2 == 0:
                yield b"".join(lines)
                lines.clear()

    def path(self, record: str) -> str | None:
        if record == self.header:
            return None
        try:
            [fields] = csv.reader([record], strict=True)
        except csv.Error as error:
            raise ValueError(str(error)) from error
        if len(fields) != len(self._columns):
            raise ValueError(f"{len(fields)} columns instead of {len(self._columns)}")
        return fields[0]


def _quoted(text: str) -> str:
    if _TO_QUOTE.search(text):
        return '"' + text.replace('"', '""') + '"'
    return text


class JsonLinesFormat:
    """One object a line, in ASCII; a score that is no number is null."""

    header = ""
    start = '{"path": "'

    def __init__(self, top_k: int) -> None:
        self.top_k = top_k
        self._columns = columns(top_k)

    def line(self, row: Row) -> str:
        path, ranking = row
        values = [json.dumps(path)]
        for label, score in ranking:
            values.append(json.dumps(label))
            values.append(str(np.float32(score)) if np.isfinite(score) else "null")
        pairs = zip(self._columns, values, strict=True)
        return "{" + ", ".join(f'"{name}": {value}' for name, value in pairs) + "}\n"

    def records(self, file: BinaryIO) -> Iterator[bytes]:
        return (line for line in file if line.endswith(b"\n"))

    def path(self, record: str) -> str | None:
        values = json.loads(record)
        if not isinstance(values, dict) or list(values) != self._columns:
            raise ValueError("other columns")
        return str(values["path"])


class TextWriter:
    """Appends rows to a file, or writes them to standard output where `path` is None."""

    def __init__(self, path: Path | None, form: TextFormat, *, resume: bool):
        self._done = Counter[str]()  # path -> rows of earlier runs
        self.top_k = form.top_k
        self._form = form
        self._path = path
        if path is None:
            self._file: BinaryIO = sys.stdout.buffer
            end = 0
        else:
            end = self._read_done(path) if resume and path.exists() else 0
            self._file = path.open("r+b" if end else "wb", buffering=0)
            self._file.seek(end)
            self._file.truncate()
        if end == 0:
            self._put(form.header)

    def is_done(self, path: str) -> bool:
        return take(self._done, path)

    def write(self, rows: Sequence[Row]) -> None:
        self._put("".join(map(self._form.line, rows)))

    def close(self, *, complete: bool) -> None:
        if self._path is not None and not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def _put(self, text: str) -> None:
        rest = memoryview(text.encode("utf-8", "surrogateescape"))
        while rest:  # unbuffered: a write may be short
            rest = rest[self._file.write(rest) :]
        self._file.flush()

    def _read_done(self, path: Path) -> int:
        """Note the paths of all whole records; return where the last one ends."""
        end = 0
        start = self._form.start.encode()
        with path.open("rb") as file:
            if not start.startswith(head := file.read(len(start))):
                raise NotOurFileError(path, f"does not begin with {self._form.start.rstrip()}")
            if len(head) < len(start):
                return 0
            file.seek(0)
            for number, record in enumerate(self._form.records(file), 1):
                try:
                    done = self._form.path(record.decode("utf-8", "surrogateescape"))
                except ValueError as error:
                    raise NotOurFileError(path, f"record {number}: {error}") from error
                if done is not None:
                    self._done[done] += 1
                end += len(record)
        return end
