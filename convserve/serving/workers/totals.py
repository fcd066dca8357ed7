"""Counters summed over the workers, and over those that have died: counters never go backwards."""

from __future__ import annotations

import threading
from typing import NamedTuple, Protocol

from convserve.engine.statistics import Counters
from convserve.serving.metrics import ModelFigures

__all__ = ["Account", "Report", "Totals"]


class Report(NamedTuple):
    """What a worker says of a model version; `id` tells one loading of it from another."""

    name: str
    version: str
    id: str
    counters: Counters
    pending: int
    limit: int  # of pending ones


class Account(NamedTuple):
    """What a worker says of itself; dropped: calls that its access log or traces lack.

    number: later accounts have higher ones. They come two ways, and may overtake each other.
    """

    models: list[Report]
    dropped: int
    number: int


class _Worker(Protocol):
    gone: bool  # set before `died` is called


class Totals:
    """The workers' last accounts and their sums. All methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._accounts: dict[_Worker, Account] = {}
        self._dead_dropped = 0
        self._dead: dict[tuple[str, str, str], Counters] = {}  # by name, version and id

    def update(self, worker: _Worker, account: Account) -> None:
        """An account of a worker; the newest one counts."""
        with self._lock:
            if worker.gone:  # it has been counted among the dead
                return
            known = self._accounts.get(worker)
            if known is None or account.number > known.number:
                self._accounts[worker] = account

    def died(self, worker: _Worker) -> None:
        """What the worker has last said is kept, as long as others serve the same versions."""
        with self._lock:
            account = self._accounts.pop(worker, Account([], 0, 0))
            self._dead_dropped += account.dropped
            for report in account.models:
                key = report.name, report.version, report.id
                self._dead.setdefault(key, Counters()).add(report.counters)

    def dropped(self) -> int:
        """Calls that access logs or traces lack."""
        with self._lock:
            return self._dead_dropped + sum(a.dropped for a in self._accounts.values())

    def figures(self) -> list[ModelFigures]:
        """The sums, by name and version."""
        with self._lock:
            sums: dict[tuple[str, str], Counters] = {}
            queues: dict[tuple[str, str], tuple[int, int]] = {}
            ids = set()
            for report in (r for account in self._accounts.values() for r in account.models):
                key = report.name, report.version
                ids.add((*key, report.id))
                sums.setdefault(key, Counters()).add(report.counters)
                pending, limit = queues.get(key, (0, 0))
                queues[key] = pending + report.pending, limit + report.limit
            if ids:
                self._dead = {key: counted for key, counted in self._dead.items() if key in ids}
            for (name, version, _), counted in self._dead.items():
                sums.setdefault((name, version), Counters()).add(counted)
            return [
                ModelFigures(*key, counters, *queues.get(key, (0, 0)))
                for key, counters in sorted(sums.items(), key=lambda i: (i[0][0], int(i[0][1])))
            ]
