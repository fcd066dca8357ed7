"""The models that a server serves, each in one or more versions, while they come and go.

    load    ── read, check, plan, warm up beside what is served ──> switch ──> old versions drain
                            └── any fault: nothing has changed

Who computes with a version holds it from `acquire` to `release`; a version that was replaced is
stopped when nobody holds it any more. So no request fails because of a switch, and each is answered
by one version from beginning to end.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from convserve.engine.budget import ThreadBudget
from convserve.engine.loader import Loader, Override, ServedModel
from convserve.engine.source import Source, check_name, shown
from convserve.errors import (
    ConvserveError,
    InvalidRequestError,
    ModelLoadError,
    ModelNotFoundError,
    ModelNotReadyError,
)
from convserve.kernels._cores import usable_cores

__all__ = ["IndexEntry", "ModelRepository", "ServedModel"]

_log = logging.getLogger(__name__)
READY, UNAVAILABLE, LOADING, UNLOADING = "READY", "UNAVAILABLE", "LOADING", "UNLOADING"


class IndexEntry(NamedTuple):
    """A line of the repository's index."""

    name: str
    version: str
    state: str
    reason: str


class _Entry:
    """A model of any state. `changing` is held while it loads or unloads."""

    def __init__(self) -> None:
        self.changing = threading.Lock()
        self.ready: dict[int, ServedModel] = {}
        self.others: dict[int, tuple[str, str]] = {}  # state and reason of versions not ready
        self.stamp: tuple[object, ...] | None = None  # on disk when it was last loaded or tried
        self.seen: tuple[object, ...] | None = None  # on disk at the last look
        self.overridden = False


class ModelRepository:
    """All models by name; every method may be called from any thread."""

    def __init__(self, models: Iterable[ServedModel] = (), loader: Loader | None = None) -> None:
        self._loader = loader
        self._lock = threading.Lock()  # guards all below, never for long
        self._changed = threading.Condition(self._lock)
        self._entries: dict[str, _Entry] = {}
        self._draining = 0
        self._listeners: list[Callable[[str, bool], None]] = []
        for served in models:
            entry = self._entries.setdefault(served.name, _Entry())
            entry.ready[int(served.version)] = served

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        defaults: Mapping[str, Any] | None = None,
        threads: int | None = None,
        names: Iterable[str] | None = None,
    ) -> ModelRepository:
        """Load what `path` holds, a model file or a directory of models.

        defaults: tables as in config.toml, for what a model's own does not say. threads: how many
        all models together may compute on; by default the cores that the process may use. names:
        the models to load; by default all, of which there must be one. Raises ModelFileError or
        ConfigError if any of them can't be served.
        """
        budget = ThreadBudget(min(threads or usable_cores(), usable_cores()))
        self = cls(loader=Loader(Source(Path(path)), defaults=defaults, budget=budget))
        try:
            self.load_all(names)
        except ConvserveError:
            self.stop()
            raise
        return self

    def load_all(self, names: Iterable[str] | None = None) -> None:
        """Load these models; by default all of the source, of which there must be one."""
        assert self._loader is not None
        source = self._loader.source
        found = source.names(strict=True) if names is None else list(dict.fromkeys(names))
        if names is None and not found:
            raise ModelLoadError(f"{source.path}: holds no <model>/<version>/model.npz")
        for name in found:
            self.load(name)

    def listen(self, listener: Callable[[str, bool], None]) -> None:
        """Call `listener(name, ready)` after every load and unload, and now for what is ready."""
        with self._changed:
            self._listeners.append(listener)
            names = [name for name, entry in self._entries.items() if entry.ready]
        for name in names:
            listener(name, True)

    # Requests

    def acquire(self, name: str, version: str = "") -> ServedModel:
        """The model's version to compute with; an empty one is the highest that is ready.

        It stays usable until `release`. Raises ModelNotFoundError, ModelNotReadyError, or
        InvalidRequestError if `version` is not a positive integer.
        """
        with self._lock:
            served = self._find(name, version)
            served.uses += 1
            return served

    def release(self, served: ServedModel) -> None:
        """The caller of `acquire` needs it no more."""
        with self._lock:
            served.uses -= 1
            if not served.uses and self._draining:
                self._changed.notify_all()

    def get(self, name: str, version: str = "") -> ServedModel:
        """As `acquire`, to look at and not to compute with."""
        with self._changed:
            return self._find(name, version)

    def _find(self, name: str, version: str) -> ServedModel:
        if version and not re.fullmatch(r"0{0,9}[1-9][0-9]{0,17}", version):
            raise InvalidRequestError(
                f"model version {shown(version)} is not valid: it should be an integer > 0"
            )
        entry = self._entries.get(name)
        if entry is not None and not version and entry.ready:
            return entry.ready[max(entry.ready)]
        unknown = f"Request for unknown model: {shown(name)}"
        if entry is None:
            raise ModelNotFoundError(f"{unknown} is not found")
        if not version:
            raise ModelNotFoundError(f"{unknown} has no available versions")
        number = int(version)
        if number in entry.ready:
            return entry.ready[number]
        if number in entry.others:
            raise ModelNotReadyError(f"{unknown} version {number} is not at ready state")
        served = ", ".join(map(str, sorted(entry.ready))) or "none"
        raise ModelNotFoundError(
            f"{unknown} version {number} is not found; versions that are ready: {served}"
        )

    # What there is

    def models(self) -> list[ServedModel]:
        """All versions that are ready, by name and version."""
        with self._changed:
            return [
                self._entries[name].ready[version]
                for name in sorted(self._entries)
                for version in sorted(self._entries[name].ready)
            ]

    def versions(self, name: str) -> list[str]:
        """The versions of a model that are ready, ascending."""
        with self._changed:
            entry = self._entries.get(name)
            return [] if entry is None else [str(version) for version in sorted(entry.ready)]

    def index(self, *, only_ready: bool = False) -> list[IndexEntry]:
        """Every known version with its state; models on disk that nobody loaded have none.

        While the disk can't be read these are left out.
        """
        with self._changed:
            lines = [
                IndexEntry(name, str(version), *entry.others.get(version, (READY, "")))
                for name, entry in self._entries.items()
                for version in sorted({*entry.ready, *entry.others})
            ]
        known = {line.name for line in lines}
        lines += [
            IndexEntry(name, "", UNAVAILABLE, "not loaded") for name in self._on_disk() - known
        ]
        lines.sort(key=lambda line: (line.name, int(line.version or 0)))
        return [line for line in lines if line.state == READY or not only_ready]

    def _on_disk(self) -> set[str]:
        if self._loader is None:
            return set()
        try:
            return set(self._loader.source.names())
        except ConvserveError as error:
            _log.warning("%s", error)
            return set()

    # Changes

    @property
    def changing(self) -> bool:
        """Whether a model is being loaded or unloaded at this moment."""
        with self._lock:
            return any(entry.changing.locked() for entry in self._entries.values())

    def load(self, name: str, override: Override | None = None) -> None:
        """Load or reload a model; what has not changed on disk stays as it is.

        The repository needs to hold no model of that name if `override` brings the files.
        Raises InvalidRequestError for a bad name, ConfigError for an `override` that is wrong in
        itself, ModelLoadError for any fault of the model; in all cases what was served is served
        on.
        """
        check_name(name)
        given = override is not None and bool(override.files)
        if self._loader is None or not (given or self._loader.source.has(name)):
            raise ModelLoadError(f"failed to load '{name}', failed to poll from model repository")
        if override is not None:
            self._loader.config(name, override)
        with self._changed:
            entry = self._entries.setdefault(name, _Entry())
        with entry.changing:
            self._load(name, entry, self._loader, override)
        self._tell(name)

    def _load(self, name: str, entry: _Entry, loader: Loader, override: Override | None) -> None:
        entry.stamp = entry.seen = loader.source.stamp(name)
        entry.overridden = override is not None
        fresh: dict[int, ServedModel] = {}
        version = None
        try:
            config = loader.config(name, override)
            for version in loader.wanted(name, config, override):
                known = entry.ready.get(version)
                if known is None:
                    self._mark(entry, version, LOADING)
                fresh[version] = loader.load(name, version, config, override, known)
            self._announce(name, entry, fresh)
        except Exception as error:
            self._drop(entry, fresh)
            reason = str(error) if isinstance(error, ConvserveError) else repr(error)
            if version is not None:
                self._mark(entry, version, UNAVAILABLE, reason)
            _log.warning("failed to load model %s: %s", name, reason)
            raise ModelLoadError(f"failed to load '{name}', {reason}") from error
        self._switch(name, entry, fresh)

    def unload(self, name: str) -> None:
        """Take a model out of service; requests that hold it are answered first.

        Returns at once. Raises InvalidRequestError for a bad name, ModelNotFoundError.
        """
        with self._changed:
            entry = self._entries.get(check_name(name))
        if entry is None:
            if self._loader is not None and self._loader.source.has(name):
                return
            raise ModelNotFoundError(f"Request for unknown model: {shown(name)} is not found")
        with entry.changing:
            if entry.ready:  # else what is known of its versions stays
                self._announce(name, entry, {})
                self._switch(name, entry, {})
        self._tell(name)

    def _announce(self, name: str, entry: _Entry, fresh: dict[int, ServedModel]) -> None:
        """What is about to be switched to; a fault leaves everything as it is."""

    def _drop(self, entry: _Entry, fresh: dict[int, ServedModel]) -> None:
        """End versions that were made ready and won't be served."""
        for number, served in fresh.items():
            if served is not entry.ready.get(number):
                served.scheduler.stop()
                self._forget(entry, number)

    def _switch(self, name: str, entry: _Entry, fresh: dict[int, ServedModel]) -> None:
        with self._changed:
            old, entry.ready = entry.ready, fresh
            retired = {v: m for v, m in old.items() if fresh.get(v) is not m}
            entry.others = {v: (UNLOADING, "") for v in retired if v not in fresh}
            self._draining += len(retired)
        for version, served in retired.items():
            if served.uses:
                thread = threading.Thread(
                    target=self._retire,
                    args=(entry, version, served),
                    name=f"unload {name}",
                    daemon=True,
                )
                try:
                    thread.start()
                except RuntimeError:  # there can't be more threads: this one waits
                    self._retire(entry, version, served)
            else:  # nobody can take it any more
                self._retire(entry, version, served)

    def _retire(self, entry: _Entry, version: int, served: ServedModel) -> None:
        """Wait until nobody holds a version, and end it."""
        with self._changed:
            self._changed.wait_for(lambda: not served.uses)
        served.scheduler.stop()
        with self._changed:
            self._draining -= 1
            if entry.others.get(version) == (UNLOADING, ""):
                del entry.others[version]
                if not entry.ready:
                    entry.others[version] = (UNAVAILABLE, "unloaded")
            self._changed.notify_all()
        _log.info("unloaded model %s version %s", served.name, served.version)

    def _mark(self, entry: _Entry, version: int, state: str, reason: str = "") -> None:
        with self._changed:
            if version not in entry.ready:
                entry.others[version] = (state, reason)

    def _forget(self, entry: _Entry, version: int) -> None:
        with self._changed:
            entry.others.pop(version, None)

    def _tell(self, name: str) -> None:
        with self._changed:
            ready = bool(self._entries[name].ready)
            listeners = list(self._listeners)
        for listener in listeners:
            listener(name, ready)

    def refresh(self, *, settled: bool = True, loaded_only: bool = False) -> None:
        """Take over what has changed on disk since it was loaded; faults are logged.

        settled: only what has not changed since the last look, so that a copy that is under way is
        left alone. loaded_only: no new models.
        """
        if self._loader is None:
            return
        source = self._loader.source
        with self._changed:
            entries = dict(self._entries)
        try:
            names = sorted(set(source.names()) | set(entries))
        except ConvserveError as error:
            _log.warning("%s", error)
            return
        for name in names:
            entry = entries.get(name)
            if entry is None:
                if loaded_only:
                    continue
                with self._changed:
                    entry = self._entries.setdefault(name, _Entry())
            try:
                self._refresh(name, entry, source, settled, loaded_only)
            except ConvserveError as error:
                _log.warning("model %s: %s", name, error)

    def _refresh(
        self, name: str, entry: _Entry, source: Source, settled: bool, loaded_only: bool
    ) -> None:
        if not source.has(name):
            gone, entry.seen = entry.seen is None, None
            from_disk = any(served.stamp is not None for served in entry.ready.values())
            if from_disk and (gone or not settled):
                entry.stamp = None  # so that it is loaded again if it comes back as it was
                self.unload(name)
            return
        stamp = source.stamp(name)
        changed, moving = stamp != entry.stamp, stamp != entry.seen
        entry.seen = stamp
        due = changed and not entry.overridden and not (settled and moving)
        if due and (entry.ready or not loaded_only):
            self.load(name)

    def stop(self, timeout: float | None = None) -> bool:
        """Finish the accepted requests and take no more; whether all ended in `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        ended = True
        for served in self.models():
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            ended &= served.scheduler.stop(left)
        with self._changed:
            left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
            ended &= self._changed.wait_for(lambda: not self._draining, left)
        return ended
