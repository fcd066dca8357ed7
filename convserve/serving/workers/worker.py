"""A worker's end: it follows the others, leads them if it is told to, and reports how it fares."""

from __future__ import annotations

import itertools
import os
import socket
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from convserve.engine.budget import ThreadBudget
from convserve.engine.loader import Loader
from convserve.engine.shared_repository import Change, SharedRepository
from convserve.engine.source import Source
from convserve.engine.statistics import Counters
from convserve.errors import ConvserveError
from convserve.serving.calls import parse
from convserve.serving.logs import LogSettings
from convserve.serving.server import Group, Options, Server
from convserve.serving.shared_memory import Regions
from convserve.serving.workers import pieces
from convserve.serving.workers.peer import Descriptor, Peer
from convserve.serving.workers.totals import Account, Report
from convserve_client import protocol

__all__ = ["Worker"]


class Worker:
    """Serves with the others from `run()` on until the supervisor ends it.

    socket_fd: of the socket pair. path, defaults, threads, names: as ModelRepository.open has them,
    threads being those of this worker.
    """

    def __init__(
        self,
        socket_fd: int,
        path: Path,
        options: Options,
        logs: LogSettings,
        *,
        defaults: Mapping[str, Any],
        threads: int,
        names: Iterable[str] | None,
    ) -> None:
        self._path, self._options, self._logs = path, options, logs
        self._defaults, self._names = defaults, names
        self._budget = ThreadBudget(threads)
        self._regions = Regions()
        self._server: Server | None = None
        self._repository: SharedRepository | None = None
        self._finish: Callable[[bool], None] = lambda _: None  # what was prepared
        self._ordered = threading.Lock()  # changes of log and regions, which are sent in order
        self._accounting, self._accounts = threading.Lock(), itertools.count()
        self._up, self._drained = threading.Event(), threading.Event()
        self._exit_timeout = 0.0
        self._peer = Peer(
            socket.socket(fileno=socket_fd),
            {
                "adopt": self._adopt,
                "prepare": self._prepare,
                "commit": lambda: self._finish(True),
                "discard": lambda: self._finish(False),
                "control": self._control,
                "refresh": self._refresh,
                "account": self._account,
            },
            {"drain": self._drain, "reopen": self._reopen_log},
            gone=lambda: os._exit(1),  # nobody would restart or stop us
        )

    def run(self) -> int:
        """Join, serve, drain; returns the exit status. Raises ConvserveError if it can't serve."""
        self._peer.start()
        try:
            return self._run()
        except (ConvserveError, OSError) as error:
            self._peer.call("failed", str(error))
            return 1

    def _run(self) -> int:
        number, port, beat_seconds = self._peer.call("join")
        threading.Thread(target=self._beat, args=(beat_seconds,), name="beat", daemon=True).start()
        loader = Loader(
            Source(self._path), defaults=self._defaults, budget=self._budget, shared=True
        )
        repository = self._repository = SharedRepository(loader, self._send_model)
        if self._peer.call("enter") == "lead":
            repository.load_all(self._names)
            names = list(dict.fromkeys(served.name for served in repository.models()))
            self._peer.call("loaded", names)
        self._server = Server(
            repository,
            replace(
                self._options,
                port=port,
                metrics_port=None,
                reuse_port=True,
                poll_seconds=None,
                core=number - 1,
                worker=number,
            ),
            self._logs,
            group=Group(self._regions, self._everywhere, self._totals),
        )
        self._up.set()
        self._peer.tell("ready")
        self._drained.wait()
        return self._server.end(self._exit_timeout)

    def _reopen_log(self) -> None:
        if self._server is not None:
            self._server.reopen_log()

    def _drain(self, timeout: float) -> None:
        self._exit_timeout = timeout
        self._drained.set()

    # What all workers hold alike

    def _prepare(self, kind: str, data: bytes, files: list[Descriptor] | None = None) -> None:
        value = pieces.unpack(data, files or [])
        if kind == "model":
            self._prepare_model(value)
        elif kind == "logs":
            self._finish = lambda good: self._logs.adopt(value) if good else None
        else:
            self._finish = lambda good: self._regions.adopt(value) if good else None

    def _prepare_model(self, change: Change) -> None:
        repository = self._repository
        assert repository is not None  # a worker asks for the state when it has one
        fresh = repository.prepare(change)
        self._finish = lambda good: (
            repository.commit(change, fresh) if good else repository.discard(change, fresh)
        )

    def _adopt(self, kind: str, data: bytes, files: list[Descriptor] | None = None) -> None:
        self._prepare(kind, data, files)
        self._finish(True)

    def _send(self, kind: str, name: str, value: Any) -> None:
        data, fds = pieces.pack(value)
        self._peer.call("change", kind, name, data, fds=fds)

    def _send_model(self, change: Change) -> None:
        self._send("model", change.name, change)

    # Calls that change something: whoever gets one has the leader carry it out

    def _everywhere(self, name: str, message: bytes) -> bytes:
        answer: bytes = self._peer.call("control", name, message)
        return answer

    def _control(self, name: str, message: bytes) -> bytes:
        self._up.wait()  # others may serve a moment earlier than their leader
        assert self._server is not None
        call = self._server.control.local_calls()[name]
        request = parse(protocol.METHODS[name].request, message)
        if name.startswith("Repository"):
            answer: bytes = call(request, None).SerializeToString()
            return answer
        with self._ordered:
            answer = call(request, None).SerializeToString()
            if name == "LogSettings":
                self._send("logs", "", self._logs.values())
            else:
                self._send("regions", "", self._regions.status(""))
        return answer

    def _refresh(self, settled: bool, loaded_only: bool) -> None:
        assert self._repository is not None
        self._repository.refresh(settled=settled, loaded_only=loaded_only)

    # Accounts

    def _totals(self) -> dict[tuple[str, str], Counters]:
        return {
            (figures.name, figures.version): figures.counters
            for figures in self._peer.call("figures")
        }

    def _account(self) -> Account:
        with self._accounting:  # a higher number never has lower counters
            models = [] if self._repository is None else self._repository.models()
            reports = [
                Report(
                    m.name,
                    m.version,
                    "" if m.segment is None else m.segment.id,
                    m.statistics.snapshot(),
                    m.scheduler.pending,
                    m.config.dynamic_batching.max_waiting,
                )
                for m in models
            ]
            dropped = 0 if self._server is None else self._server.dropped()
            return Account(reports, dropped, next(self._accounts))

    def _beat(self, seconds: float) -> None:
        stopped = threading.Event()
        while not stopped.wait(seconds):
            try:
                self._peer.tell("beat", self._budget.longest(), self._account())
            except OSError:
                return  # the process is ending
