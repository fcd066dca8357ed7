"""Parquet rows of `convserve classify`: finished parts in a side folder, joined at the end.

A Parquet file can't be read before its footer is written, so rows go to small files of their own,
`OUTPUT.parts/000000.parquet` …, each complete when it gets its name. The end of the run joins them
to OUTPUT in one step. `resume` goes on after the last part; an OUTPUT that is complete becomes the
first part. Whenever OUTPUT and the folder are both there, OUTPUT holds everything.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convserve.cli._row_writers import NotOurFileError, Row, columns, take

if TYPE_CHECKING:
    import pyarrow as pa

PART_ROWS = 8192
PART_SECONDS = 10.0  # what a killed run of a slow model can lose
GROUP_ROWS = 64 * 1024  # row group of the joined file


class ParquetWriter:
    """Columns: path and labels as strings, scores as float32; `path` in UTF-8.

    Bytes of a path that are no UTF-8 are written as `\\xNN`.
    """

    def __init__(self, path: Path, top_k: int, *, resume: bool) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise click.ClickException(
                "Parquet output needs pyarrow: pip install 'convserve[parquet]'"
            ) from error
        self.top_k = top_k
        self._pq = pq
        self._path = path
        self._folder = parts_folder(path)
        self._schema = pa.schema(
            (name, pa.float32() if name.startswith("score_") else pa.string())
            for name in columns(top_k)
        )
        self._rows: list[Row] = []
        self._last_part = time.monotonic()
        self._done = Counter[str]()
        if resume:
            self._resume()
        else:
            shutil.rmtree(self._folder, ignore_errors=True)
            path.unlink(missing_ok=True)
        self._folder.mkdir(parents=False, exist_ok=True)
        if path.exists():
            path.replace(self._part(0))
        self._next = len(self._parts())

    def is_done(self, path: str) -> bool:
        return take(self._done, _utf8(path))

    def write(self, rows: Sequence[Row]) -> None:
        self._rows += rows
        late = time.monotonic() - self._last_part > PART_SECONDS
        if len(self._rows) >= PART_ROWS or (self._rows and late):
            self._write_part()

    def close(self, *, complete: bool) -> None:
        if self._rows:
            self._write_part()
        if complete:
            self._join()

    def _resume(self) -> None:
        for part in [self._path] if self._path.exists() else self._parts():
            try:
                schema = self._pq.read_schema(part)
                if not schema.equals(self._schema):
                    raise NotOurFileError(part, "other columns")
                self._done.update(self._pq.read_table(part, columns=["path"])["path"].to_pylist())
            except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
                raise NotOurFileError(part, f"not readable as Parquet ({error})") from error
        if self._path.exists():
            shutil.rmtree(self._folder, ignore_errors=True)  # joined, and not removed in time

    def _part(self, number: int) -> Path:
        return self._folder / f"{number:06d}.parquet"

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("*.parquet"))

    def _write_part(self) -> None:
        rows, self._rows = self._rows, []
        self._write_file(self._part(self._next), [self._table(rows)])
        self._next += 1
        self._last_part = time.monotonic()

    def _table(self, rows: Sequence[Row]) -> pa.Table:
        import pyarrow as pa

        values: list[list[str | float]] = [[] for _ in self._schema]
        for path, ranking in rows:
            flat = [_utf8(path), *(value for pair in ranking for value in pair)]
            for column, value in zip(values, flat, strict=True):
                column.append(value)
        arrays = [
            pa.array(column, field.type) for column, field in zip(values, self._schema, strict=True)
        ]
        return pa.Table.from_arrays(arrays, schema=self._schema)

    def _join(self) -> None:
        """Write OUTPUT from the parts, in row groups of a useful size."""
        import pyarrow as pa

        def groups() -> list[list[Path]]:
            result: list[list[Path]] = []
            rows = GROUP_ROWS
            for part in self._parts():
                if rows >= GROUP_ROWS:
                    result.append([])
                    rows = 0
                result[-1].append(part)
                rows += self._pq.read_metadata(part).num_rows
            return result

        tables = (
            pa.concat_tables([self._pq.read_table(part) for part in group]) for group in groups()
        )
        self._write_file(self._path, tables)
        shutil.rmtree(self._folder)

    def _write_file(self, path: Path, tables: object) -> None:
        temporary = self._folder / f"{path.stem}.tmp"
        with temporary.open("wb") as file:
            with self._pq.ParquetWriter(file, self._schema) as writer:
                for table in tables:  # type: ignore[attr-defined]
                    writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def parts_folder(path: Path) -> Path:
    """Return the folder where the parts of an unfinished `path` are."""
    return path.with_name(path.name + ".parts")


def _utf8(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")
