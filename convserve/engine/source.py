"""What a model repository holds on disk: one file, or DIR/<model>/<version>/model.npz.

    DIR/digits/config.toml          optional
    DIR/digits/3/model.npz          a version is a positive number; other names are left alone

Names are checked before they touch the file system, and a link that leads outside the directory is
refused, so nothing outside it is ever opened.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from convserve.engine import config_file
from convserve.errors import InvalidRequestError, ModelFileError

__all__ = ["CONFIG_FILENAME", "MODEL_FILENAME", "Source", "Stamp", "check_name", "shown"]

MODEL_FILENAME = "model.npz"
CONFIG_FILENAME = "config.toml"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")


class Stamp(NamedTuple):
    """Tells one state of a file from another: a copy, an edit or a rename changes it."""

    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, path: Path) -> Stamp | None:
        """The file's stamp now; None if there is no such file."""
        try:
            status = path.stat()
        except OSError:
            return None
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


def shown(name: str) -> str:
    """A name from the wire as part of a message, which must stay short."""
    return f"'{name}'" if len(name) <= 128 else f"'{name[:128]}…'"


def check_name(name: str) -> str:
    """The name of a model; InvalidRequestError for what can be none."""
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(
            f"model name {shown(name)!s} is not valid: it may hold only letters, digits, '.', '_' "
            "and '-', must not start with '.' or '-', and has at most 128 of them"
        )
    return name


class Source:
    """The models at `path`, a model file or a directory. Nothing is remembered: all is read anew.

    Raises ModelFileError if there is nothing at `path`.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise ModelFileError(f"{path}: no such file or directory")
        self.path = path
        self._is_file = not path.is_dir()
        if self._is_file and not _NAME.fullmatch(path.stem):
            raise ModelFileError(
                f"{path}: the file's name without its suffix is the model's name, and that may "
                f"hold only letters, digits, '.', '_' and '-': rename the file"
            )

    def names(self, *, strict: bool = False) -> list[str]:
        """The models, by name. `strict`: ModelFileError for a directory that can't be one."""
        if self._is_file:
            return [self.path.stem]
        found = []
        try:
            folders = sorted(self.path.iterdir())
        except OSError as error:
            raise ModelFileError(f"{self.path}: {error.strerror}") from None
        for folder in folders:
            if folder.name.startswith(".") or not folder.is_dir():
                continue
            if _NAME.fullmatch(folder.name):
                found.append(folder.name)
            elif strict:
                raise ModelFileError(
                    f"{folder}: a model's name may hold only letters, digits, '.', '_' and '-'"
                )
        return found

    def has(self, name: str) -> bool:
        """Whether there is such a model; `name` is checked."""
        if self._is_file:
            return name == self.path.stem and self.path.is_file()
        return (self.path / name).is_dir()

    def versions(self, name: str) -> list[int]:
        """The versions of a model, ascending, whether their files are there or not."""
        if self._is_file:
            return [1]
        folder = self.path / name
        found = [entry.name for entry in folder.iterdir() if _VERSION.fullmatch(entry.name)]
        if not found:
            raise ModelFileError(f"{folder}: has no version, a directory named 1, 2, 3, …")
        return sorted(map(int, found))

    def model_path(self, name: str, version: int) -> Path:
        """The file of a version, which exists and lies inside the repository."""
        if self._is_file:
            return self.path
        file = self._inside(self.path / name / str(version) / MODEL_FILENAME)
        if not file.is_file():
            raise ModelFileError(f"{file}: no such file")
        return file

    def warmup_path(self, name: str, file: str) -> Path:
        """A file of warm-up data; ModelFileError where it is missing or lies elsewhere."""
        if self._is_file:
            raise ModelFileError(f"{self.path}: a single file has no warm-up data beside it")
        folder = self._inside(self.path / name / "warmup")
        path = folder / file
        if not path.resolve().is_relative_to(folder.resolve()) or not path.is_file():
            raise ModelFileError(f"{path}: no such file inside {folder}")
        return path

    def config(self, name: str) -> dict[str, Any]:
        """The tables of the model's config.toml; empty without one."""
        if self._is_file:
            return {}
        return config_file.read(self._inside(self.path / name / CONFIG_FILENAME))

    def config_path(self, name: str) -> Path:
        """Where the model's configuration would be."""
        return self.path if self._is_file else self.path / name / CONFIG_FILENAME

    def stamp(self, name: str) -> tuple[object, ...]:
        """Everything that a change of the model on disk would change."""
        if self._is_file:
            return (Stamp.of(self.path),)
        folder = self.path / name
        try:
            versions = sorted(v.name for v in folder.iterdir() if _VERSION.fullmatch(v.name))
        except OSError:
            versions = []
        files = [folder / version / MODEL_FILENAME for version in versions]
        return (Stamp.of(folder / CONFIG_FILENAME), *versions, *map(Stamp.of, files))

    def holds(self, path: Path) -> bool:
        """Whether the path leads into the repository; beside a single file any does."""
        return self._is_file or path.resolve().is_relative_to(self.path.resolve())

    def _inside(self, path: Path) -> Path:
        if not self.holds(path):
            raise ModelFileError(f"{path}: leads outside the model repository {self.path}")
        return path
