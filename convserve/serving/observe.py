"""What became of each call, for the access log and traces: none of this runs unless one is on.

    call ──> Record ── answered, refused or failed ──> bounded queue ──> own thread ──> sinks

A request pays for filling in its record; formatting, disks and spans are another thread's business.
That thread wakes once for many records, since waking it for each would cost requests more than the
records do. What does not fit into the queue is dropped and counted.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import grpc

from convserve.engine.repository import ServedModel
from convserve.engine.request import Request
from convserve.serving.calls import Call
from convserve.serving.status import Status

__all__ = ["Observer", "Record", "Sink"]

_log = logging.getLogger(__name__)
_LIMIT = 8192  # records that wait; at most a few KiB each
_GATHER = 0.05  # seconds in which records gather after the first one
_CLOSE = 2.0  # seconds that a sink may take at the end
_SHORT, _LONG = 128, 512  # characters kept of a name and of an error
_PREFIX, _NUMBERS = secrets.token_hex(4), itertools.count(1)


class Record:
    """One call, or one request of a stream. Times in nanoseconds; None is what there was not."""

    __slots__ = (
        "batch",
        "began",
        "bytes_in",
        "bytes_out",
        "code",
        "computed",
        "details",
        "ended",
        "id",
        "images",
        "metadata",
        "method",
        "model",
        "peer",
        "queued",
        "request",
        "started",
        "time",
        "trace_id",
        "version",
    )

    def __init__(self, method: str, bytes_in: int | None, peer: str, metadata: Any) -> None:
        self.method = method
        self.bytes_in = bytes_in
        self.peer = peer
        self.metadata = metadata or ()
        self.time = time.time_ns()  # since the epoch; the others are readings of monotonic_ns
        self.began = self.ended = time.monotonic_ns()
        self.queued: int | None = None  # when it was ready to be computed
        self.started: int | None = None  # when its batch was taken up, and was done
        self.computed: int | None = None
        self.code = grpc.StatusCode.OK
        self.details = ""
        self.model = self.version = self.id = self.trace_id = ""
        self.images: int | None = None  # its own, and those of its batch
        self.batch: int | None = None
        self.bytes_out: int | None = None
        self.request: Request | None = None

    def read(self, message: Any) -> None:
        """Take over what the request's message says of itself."""
        self.id = getattr(message, "id", "")[:_SHORT]
        if not self.method.startswith("System"):  # their `name` is a region's
            model = getattr(message, "model_name", "") or getattr(message, "name", "")
            self.model = model[:_SHORT]
            version = getattr(message, "model_version", "") or getattr(message, "version", "")
            self.version = version[:_SHORT]

    def close(self, wanted: frozenset[str]) -> None:
        """The call is over: let go of its images, and of all metadata but what is wanted."""
        self.ended = time.monotonic_ns()
        if not self.id:
            given = [value for key, value in self.metadata if key == "x-request-id"]
            self.id = given[0][:_SHORT] if given else f"{_PREFIX}-{next(_NUMBERS)}"
        self.metadata = [pair for pair in self.metadata if pair[0] in wanted] if wanted else ()
        request, self.request = self.request, None
        if request is not None:
            self.images, self.queued = request.size, request.arrival
            if request.ran is not None:
                self.started, self.computed, self.batch = request.ran

    @property
    def durations(self) -> tuple[int | None, int | None, int]:
        """Nanoseconds in the queue, in the computing of its batch, and in all."""
        total = self.ended - self.began
        if self.queued is None or self.started is None or self.computed is None:
            return None, None, total
        return self.started - self.queued, self.computed - self.started, total


class Sink(Protocol):
    """What records go to; it is called by one thread only, after `close()` no more."""

    @property
    def metadata(self) -> frozenset[str]:
        """The keys of the calls' metadata that it reads."""

    def take(self, records: Sequence[Record]) -> int:
        """Keep what is needed of them; returns how many were lost."""

    def close(self) -> None:
        """Write what is left."""


class Observer:
    """Makes a record of each call and gives it to the sinks, in their order, from one thread."""

    def __init__(self, sinks: Iterable[Sink], limit: int = _LIMIT) -> None:
        self._sinks = tuple(sinks)
        self._metadata = frozenset[str]().union(*(sink.metadata for sink in self._sinks))
        self._limit = limit
        self._current = threading.local()
        self._waiting: deque[Record] = deque()
        self._awake = threading.Event()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Records that were lost: the queue was full, or a sink could not write them."""
        return self._dropped

    def reading(self, call: Call) -> Call:
        """A call that notes what its message says."""

        def read(message: Any, context: grpc.ServicerContext) -> Any:
            self._current.record.read(message)
            return call(message, context)

        return read

    def unary(self, method: str, behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """A behaviour, on bytes, whose calls are recorded."""

        def observed(data: Any, context: grpc.ServicerContext) -> Any:
            record = self._begin(method, len(data), context.peer(), context.invocation_metadata())
            try:
                answer = behaviour(data, context)
                record.bytes_out = len(answer)
            except Exception:
                _read_status(record, context)
                raise
            finally:
                self._end(record)
            return answer

        return observed

    def refuses(self, method: str, context: grpc.ServicerContext, failure: Status) -> None:
        """A call ends with this before anything of it was read."""
        self._begin(method, None, context.peer(), context.invocation_metadata())
        self.fails(failure)
        self._end(self._current.record)

    def each(
        self, method: str, context: grpc.ServicerContext, answer: Callable[..., bytes]
    ) -> Callable[..., bytes]:
        """A function from a request of a stream to its answer, with a record for each."""
        peer, metadata = context.peer(), context.invocation_metadata()

        def observed(data: bytes, *arguments: Any) -> bytes:
            record = self._begin(method, len(data), peer, metadata)
            try:
                result = answer(data, *arguments)
                record.bytes_out = len(result)
            finally:
                self._end(record)
            return result

        return observed

    def reads(self, message: Any) -> None:
        """The current call has this message."""
        self._current.record.read(message)

    def computes(self, served: ServedModel, request: Request) -> None:
        """The current call waits for this."""
        record = self._current.record
        record.model, record.version, record.request = served.name, served.version, request

    def fails(self, failure: Status) -> None:
        """The current call is answered so; a unary one that aborts need not say it."""
        record = self._current.record
        record.code, record.details = failure.code, failure.details[:_LONG]

    def close(self) -> None:
        """Give the sinks what waits, for a short time at most, and close them."""
        self._closing.set()
        self._awake.set()
        self._thread.join(_CLOSE)

    def wake(self) -> None:
        """Let the sinks be called soon, with or without records."""
        self._awake.set()

    def _begin(self, method: str, size: int | None, peer: str, metadata: Any) -> Record:
        record = self._current.record = Record(method, size, peer, metadata)
        return record

    def _end(self, record: Record) -> None:
        record.close(self._metadata)
        if len(self._waiting) >= self._limit:
            self._drop(1)
            return
        self._waiting.append(record)
        if not self._awake.is_set():
            self._awake.set()

    def _drop(self, count: int) -> None:
        with self._lock:
            self._dropped += count

    def _run(self) -> None:
        while not self._closing.is_set():
            self._awake.wait()
            self._closing.wait(_GATHER)
            self._awake.clear()
            self._pass_on()
        self._pass_on()
        for sink in self._sinks:
            sink.close()

    def _pass_on(self) -> None:
        records = [self._waiting.popleft() for _ in range(len(self._waiting))]
        for sink in self._sinks:
            try:
                lost = sink.take(records)
            except Exception:
                _log.exception("%d records were lost", len(records))
                lost = len(records)
            if lost:
                self._drop(lost)


def _read_status(record: Record, context: grpc.ServicerContext) -> None:
    """What `context.abort` has left; without it, an error that nobody foresaw."""
    record.code = context.code() or grpc.StatusCode.UNKNOWN
    details = context.details() or b""
    text = details.decode("utf-8", "replace") if isinstance(details, bytes) else str(details)
    record.details = text[:_LONG]
