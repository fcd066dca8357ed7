"""Starts, watches, restarts and drains the workers; answers the metrics port."""

from __future__ import annotations

import logging
import pickle
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from convserve.errors import ConvserveError, WorkerGoneError
from convserve.serving.logs import LogSettings
from convserve.serving.metrics import MetricsServer, ModelFigures
from convserve.serving.workers import pages
from convserve.serving.workers.address import PortReservation
from convserve.serving.workers.peer import Descriptor, Peer
from convserve.serving.workers.process import ENDINGS, WorkerProcess
from convserve.serving.workers.state import SharedState
from convserve.serving.workers.totals import Account, Totals

__all__ = ["Plan", "Supervisor"]

_log = logging.getLogger(__name__)
_TICK = 0.1  # seconds between two looks at the workers
_ACCOUNT_TIMEOUT = 1.0
_START_ATTEMPTS = 3  # of a worker that never gets ready
_HEALTHY = 10.0  # seconds of serving after which earlier deaths are forgotten
_FIRST_DELAY = 0.5  # seconds between starts, from the second restart in a row on
_MAX_DELAY = 2.0, 30.0  # of a worker that has served, and of one that has not
_GRACE = 3.0  # for a worker to end after its exit timeout


@dataclass(frozen=True)
class Plan:
    """What to supervise. command: starts a worker, with --worker-socket FD appended."""

    command: Sequence[str]
    workers: int
    host: str
    port: int
    metrics_port: int
    watchdog_seconds: float | None
    exit_timeout: float
    poll_seconds: float | None


class _Slot:
    """The place of a worker, which others take when it has died."""

    def __init__(self) -> None:
        self.worker: WorkerProcess | None = None
        self.failures = 0  # in a row
        self.attempts = 0  # those of them since a worker has last got ready
        self.due: float | None = 0.0  # when to start a worker

    def ended(self, started: float, ready_since: float | None, now: float) -> float:
        """The seconds until the next worker is started; each death in a row doubles the time
        between two starts, so that one which has served for that long is followed at once."""
        if ready_since is not None and now - ready_since > _HEALTHY:
            self.failures = 0
        self.worker, self.failures = None, self.failures + 1
        self.attempts = 0 if ready_since is not None else self.attempts + 1
        between = 0.0
        if self.failures > 1:
            between = _FIRST_DELAY * 2.0 ** (self.failures - 2)
            between = min(between, _MAX_DELAY[ready_since is None])
        self.due = max(now, started + between)
        return self.due - now


class Supervisor:
    """Listens on the metrics port and holds the other one from construction on.

    logs: this process's, which follow those of the workers.

    Raises ConvserveError if a port can't be had.
    """

    def __init__(self, plan: Plan, logs: LogSettings) -> None:
        self._plan, self._logs = plan, logs
        self._address = PortReservation(plan.host, plan.port)
        self.port = self._address.port
        self._events: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._slots = [_Slot() for _ in range(plan.workers)]
        # All from 0 on: a series that appears at 1 has not increased, as Prometheus sees it.
        self._restarts: Counter[str] = Counter(dict.fromkeys(ENDINGS, 0))
        self._totals = Totals()
        self._state = SharedState(self._diverged)
        self._turn = threading.Condition()  # guards what follows
        self._leader: WorkerProcess | None = None
        self._models: list[str] | None = None  # names, once the first leader has loaded them
        self._stopping = False
        beat = min(1.0, plan.watchdog_seconds / 4) if plan.watchdog_seconds else 1.0
        self._beat_seconds = beat
        source = pages.registry(
            self._figures,
            lambda: [worker.process.pid for worker in self._workers()],
            lambda: len(self._ready()),
            self._restarts,
            self._totals.dropped,
        )
        try:
            self._pages = MetricsServer(
                plan.host,
                plan.metrics_port,
                source,
                lambda: bool(self._ready()) and not self._stopping,
            )
        except OSError as error:
            self._address.close()
            reason = error.strerror or str(error)
            raise ConvserveError(
                f"cannot listen on {plan.host}:{plan.metrics_port}: {reason}"
            ) from None
        self.metrics_port = self._pages.port

    # From any thread

    def stop(self) -> None:
        """Drain the workers and end; a second time end at once."""
        self._events.put(("stop", None))

    def reload(self) -> None:
        """Take over what has changed in the repository, and open access logs anew, soon: once all
        workers serve."""
        self._events.put(("reload", None))

    def _workers(self) -> list[WorkerProcess]:
        return [slot.worker for slot in self._slots if slot.worker is not None]

    def _ready(self) -> list[WorkerProcess]:
        return [worker for worker in self._workers() if worker.ready]

    # The main thread

    def run(self, started: Callable[[list[str]], None]) -> int:
        """Supervise until `stop()`; `started(models)` is called when all workers serve.

        Returns the exit status. Raises ConvserveError if the workers can't be started.
        """
        next_look = time.monotonic() + (self._plan.poll_seconds or 0.0)
        announced = hung_up = False
        try:
            while True:
                self._start_due(announced)
                try:
                    kind, what = self._events.get(timeout=_TICK)
                except queue.Empty:
                    kind, what = "tick", None
                if kind == "gone":
                    self._ended(what, announced)
                elif kind == "failed":
                    self._failed(what[0], what[1], announced)
                elif kind == "reload":
                    hung_up = True
                elif kind == "stop":
                    return self._stop()
                if not announced and len(self._ready()) == len(self._slots):
                    announced = True
                    started(self._models or [])
                if announced and hung_up:
                    hung_up = False
                    self._refresh(settled=False, reopen=True)
                self._watch()
                if announced and self._plan.poll_seconds and time.monotonic() >= next_look:
                    next_look = time.monotonic() + self._plan.poll_seconds
                    self._refresh(settled=True)
        finally:
            for worker in self._workers():
                worker.process.kill()
                worker.process.wait()
            self._pages.close()
            self._address.close()

    def _start_due(self, announced: bool) -> None:
        now = time.monotonic()
        for number, slot in enumerate(self._slots, 1):
            if slot.due is not None and now >= slot.due:
                slot.due = None
                try:
                    slot.worker = WorkerProcess(
                        number, self._plan.command, self._handlers, self._told, self._gone
                    )
                except (OSError, RuntimeError) as error:
                    reason = f"cannot start worker {number}: {error}"
                    if not announced:
                        raise ConvserveError(reason) from None
                    delay = slot.ended(now, None, now)
                    _log.error("%s; tried again in %.1f s", reason, delay)

    def _ended(self, worker: WorkerProcess, announced: bool) -> None:
        """Have a worker that has died followed by another one."""
        slot = self._slots[worker.number - 1]
        how = worker.ending()
        delay = slot.ended(worker.started, worker.ready_since, time.monotonic())
        if slot.attempts >= _START_ATTEMPTS and not (announced and self._ready()):
            raise ConvserveError(
                f"worker {worker.number} did not get ready in {slot.attempts} attempts; the last "
                f"one ended with {how}"
            )
        reason = how.partition(":")[0]
        self._restarts[reason if reason in ENDINGS else "other"] += 1
        _log.error("%s ended with %s; the next one starts in %.1f s", worker, how, delay)

    def _failed(self, worker: WorkerProcess, reason: str, announced: bool) -> None:
        """A worker says why it can't serve: at the start nobody can."""
        if not announced:
            raise ConvserveError(reason)
        _log.error("%s can't serve: %s", worker, reason)

    _looked = 0.0

    def _watch(self) -> None:
        """Kill what is stuck."""
        now = time.monotonic()
        pause, self._looked = now - self._looked, now
        limit = self._plan.watchdog_seconds
        for worker in self._workers():
            if pause > 10 * _TICK:  # this process was held up, and so perhaps were the others
                worker.beat = max(worker.beat, now)
            why = worker.fault(limit) if limit else ""
            if why and not worker.why:
                _log.error("%s is stuck (%s) and is killed", worker, why)
                worker.kill("killed, " + why)

    def _stop(self) -> int:
        """Drain all workers; the exit status."""
        self._stopping = True
        deadline = time.monotonic() + self._plan.exit_timeout + _GRACE
        left = self._workers()
        for worker in left:
            self._drain(worker)
        drained = [worker for worker in left if worker.ready]
        codes: dict[WorkerProcess, int] = {}
        while len(codes) < len(left):
            try:
                kind, what = self._events.get(timeout=max(deadline - time.monotonic(), 0.0))
            except queue.Empty:
                _log.error("Exit timeout expired. Exiting immediately.")
                return 1
            if kind == "stop":
                _log.error("stopped at once")
                return 1
            if kind == "gone":
                codes[what] = what.exit_code()
        return int(any(codes[worker] != 0 for worker in drained))

    def _drain(self, worker: WorkerProcess) -> None:
        def drain() -> None:
            if not (worker.ready and worker.tell("drain", self._plan.exit_timeout)):
                worker.kill("")

        try:  # a worker that is stuck may take no news
            threading.Thread(target=drain, name="drain", daemon=True).start()
        except RuntimeError:  # there can't be more threads
            drain()

    # What workers call, in threads of their own

    def _handlers(self, worker: WorkerProcess) -> dict[str, Callable[..., Any]]:
        def change(
            kind: str, name: str, data: bytes, files: list[Descriptor] | None = None
        ) -> None:
            self._state.change(worker.peer, kind, name, data, files or [])
            if kind == "logs":
                self._logs.adopt(pickle.loads(data))

        return {
            "join": lambda: (worker.number, self.port, self._beat_seconds),
            "enter": lambda: self._enter(worker),
            "loaded": self._loaded,
            "failed": lambda reason: self._events.put(("failed", (worker, reason))),
            "change": change,
            "control": self._control,
            "figures": self._figures,
        }

    def _told(self, worker: WorkerProcess) -> dict[str, Callable[..., None]]:
        def beat(longest: float, account: Account) -> None:
            worker.reported(longest)
            if worker.ready:
                self._totals.update(worker, account)

        def ready() -> None:
            worker.ready_since = time.monotonic()
            worker.reported(0.0)
            self._events.put(("ready", worker))

        return {"beat": beat, "ready": ready}

    def _gone(self, worker: WorkerProcess) -> None:
        self._state.leave(worker.peer)
        self._totals.died(worker)
        with self._turn:
            if self._leader is worker:
                self._leader = None
            self._turn.notify_all()
        self._events.put(("gone", worker))

    def _enter(self, worker: WorkerProcess) -> str:
        """The first worker loads the models; the others wait, and are given what it has made."""
        with self._turn:
            while self._models is None:
                if worker.gone:
                    raise WorkerGoneError("the worker is gone")
                if self._leader is None:
                    self._leader = worker
                    self._state.begin(worker.peer)
                    return "lead"
                self._turn.wait()
        self._state.bring_up(worker.peer)
        return "follow"

    def _loaded(self, names: list[str]) -> None:
        with self._turn:
            self._models = names
            self._turn.notify_all()

    def _lead(self) -> Peer:
        """The worker that carries out changes: the same one as long as it lives."""
        with self._turn:
            if self._leader is None:
                ready = self._ready()
                if not ready:
                    raise WorkerGoneError("no worker is ready")
                self._leader = ready[0]
            return self._leader.peer

    def _control(self, name: str, message: bytes) -> Any:
        return self._lead().call("control", name, message)

    def _refresh(self, *, settled: bool, reopen: bool = False) -> None:
        def look() -> None:
            for worker in self._ready() if reopen else ():
                worker.tell("reopen")
            try:
                self._lead().call("refresh", settled, self._plan.poll_seconds is None)
            except ConvserveError as error:
                _log.error("looking at the model repository failed: %s", error)

        try:
            threading.Thread(target=look, name="refresh", daemon=True).start()
        except RuntimeError as error:  # there can't be more threads
            _log.error("looking at the model repository failed: %s", error)

    def _figures(self) -> list[ModelFigures]:
        """The sums over all workers, as of now for those that answer."""
        for worker in self._ready():
            try:
                account = worker.peer.call("account", timeout=_ACCOUNT_TIMEOUT)
            except WorkerGoneError:
                continue  # its last one counts
            self._totals.update(worker, account)
        return self._totals.figures()

    def _diverged(self, peer: Peer) -> None:
        for worker in self._workers():
            if worker.peer is peer:
                worker.kill("killed, it did not follow the others")
