"""A repository that several processes of a server hold alike.

    one process    load ──> segment ── Change ──> prepare, in every other process ──> all switch
                                           └── a fault in any of them: nothing has changed anywhere

The process that loads sends what it is about to switch to, and the others make it ready from the
same memory. A process that comes later is given the last change of each model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from convserve.engine.config import ModelConfig
from convserve.engine.loader import Loader, Override, ServedModel
from convserve.engine.repository import UNAVAILABLE, ModelRepository, _Entry
from convserve.engine.segment import Segment
from convserve.engine.source import Stamp
from convserve.errors import ConvserveError, ModelLoadError

__all__ = ["Change", "SharedRepository", "Version"]

_log = logging.getLogger(__name__)


class Version(NamedTuple):
    """A version that is to be served."""

    config: ModelConfig
    stamp: Stamp | None
    segment: Segment


@dataclass(frozen=True)
class Change:
    """All that the processes hold alike of one model."""

    name: str
    versions: Mapping[int, Version]
    others: Mapping[int, tuple[str, str]]  # state and reason of versions that are not served
    stamp: tuple[object, ...] | None  # of the model on disk
    overridden: bool


class SharedRepository(ModelRepository):
    """Loads and unloads once `send` has had every other process prepare it, or follows another."""

    def __init__(self, loader: Loader, send: Callable[[Change], None]) -> None:
        super().__init__(loader=loader)
        self._shared_loader = loader
        self._send = send

    def load(self, name: str, override: Override | None = None) -> None:
        """As ModelRepository has it, in all processes."""
        try:
            super().load(name, override)
        except ModelLoadError:
            self._send_fault(name)
            raise

    def _send_fault(self, name: str) -> None:
        """Others too show why it was not loaded, and don't try the same files again."""
        with self._changed:
            entry = self._entries.get(name)
        if entry is None:
            return
        try:
            with entry.changing:
                self._announce(name, entry, entry.ready)
        except ConvserveError as error:
            _log.warning("model %s: %s", name, error)

    def _announce(self, name: str, entry: _Entry, fresh: dict[int, ServedModel]) -> None:
        with self._changed:
            others = {v: state for v, state in entry.others.items() if state[0] == UNAVAILABLE}
            if not fresh:
                others |= dict.fromkeys(entry.ready, (UNAVAILABLE, "unloaded"))
        versions = {}
        for number, served in fresh.items():
            assert served.segment is not None  # the loader makes one
            versions[number] = Version(served.config, served.stamp, served.segment)
        self._send(Change(name, versions, others, entry.stamp, entry.overridden))

    # Following

    def prepare(self, change: Change) -> dict[int, ServedModel]:
        """The versions of a change, ready to be switched to; those that are served stay."""
        with self._changed:
            entry = self._entries.setdefault(change.name, _Entry())
        fresh: dict[int, ServedModel] = {}
        try:
            for number, (config, stamp, segment) in change.versions.items():
                known = entry.ready.get(number)
                same = known and known.segment and known.segment.id == segment.id
                if known is not None and same and known.config == config:
                    fresh[number] = known
                else:
                    fresh[number] = self._shared_loader.adopt(
                        change.name, number, config, stamp, segment
                    )
        except Exception:
            self._drop(entry, fresh)
            raise
        return fresh

    def discard(self, change: Change, fresh: dict[int, ServedModel]) -> None:
        """What was prepared is not to be."""
        self._drop(self._entries[change.name], fresh)

    def commit(self, change: Change, fresh: dict[int, ServedModel]) -> None:
        """Switch to what was prepared."""
        entry = self._entries[change.name]
        with entry.changing:
            entry.stamp = entry.seen = change.stamp
            entry.overridden = change.overridden
            self._switch(change.name, entry, fresh)
            with self._changed:
                for number, state in change.others.items():
                    entry.others.setdefault(number, state)
        self._tell(change.name)
