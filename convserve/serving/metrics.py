"""Prometheus metrics under Triton's names, and the small HTTP server that gives them out.

/metrics  Prometheus text      /healthz  200 while the process runs      /readyz  200 or 503
"""

from __future__ import annotations

import errno
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import accumulate
from socket import AF_INET6, SHUT_RDWR, socket
from typing import TYPE_CHECKING, Any, NamedTuple
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, ThreadingWSGIServer
from prometheus_client.registry import Collector

from convserve.engine.statistics import LATENCY_BUCKETS, Counters

if TYPE_CHECKING:  # the supervisor of several workers has no models
    from convserve.engine.repository import ModelRepository

__all__ = [
    "MetricsServer",
    "ModelCollector",
    "ModelFigures",
    "RecordCollector",
    "exposition",
    "registry",
]

_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_LABELS = ("model", "version")
_CONNECTIONS = 64  # to the pages, at a time
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE = 0.1  # seconds, when no connection can be taken

# name -> (help, value of a counter)
_COUNTERS: dict[str, tuple[str, Callable[[Counters], float]]] = {
    "nv_inference_request_success": ("Requests answered", lambda c: c.success),
    "nv_inference_count": ("Images inferred; a batch of n counts n", lambda c: c.inferences),
    "nv_inference_exec_count": ("Batches executed", lambda c: c.executions),
    "nv_inference_request_duration_us": (
        "Summed time of answered requests, from arrival to answer",
        lambda c: c.request_ns // 1000,
    ),
    "nv_inference_queue_duration_us": (
        "Summed time that requests waited for execution",
        lambda c: c.queue_ns // 1000,
    ),
    "nv_inference_compute_input_duration_us": (
        "Summed time of requests in the merging of batches",
        lambda c: c.compute_input_ns // 1000,
    ),
    "nv_inference_compute_infer_duration_us": (
        "Summed time of requests in the execution of the model",
        lambda c: c.compute_infer_ns // 1000,
    ),
    "nv_inference_compute_output_duration_us": (
        "Summed time of requests in the splitting of batches",
        lambda c: c.compute_output_ns // 1000,
    ),
}


class ModelFigures(NamedTuple):
    """What is known of a model version: its counters, the requests that wait, and that may wait."""

    name: str
    version: str
    counters: Counters
    pending: int
    limit: int


class ModelCollector(Collector):
    """Reads the models' figures when they are scraped; a request pays nothing for it."""

    def __init__(self, models: Callable[[], Iterable[ModelFigures]]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        models = [(m, [m.name, m.version], m.counters) for m in self._models()]
        for name, (text, value) in _COUNTERS.items():
            metric = Metric(name, text, "counter")
            for _, labels, counters in models:
                metric.add_sample(name, dict(zip(_LABELS, labels, strict=True)), value(counters))
            yield metric
        failures = Metric("nv_inference_request_failure", "Requests that failed", "counter")
        pending = Metric("nv_inference_pending_request_count", "Requests that wait", "gauge")
        limit = Metric("convserve_queue_limit", "Requests that may wait", "gauge")
        latency = HistogramMetricFamily(
            "convserve_request_duration_seconds",
            "Time of answered requests, from arrival to answer",
            labels=_LABELS,
        )
        sizes = HistogramMetricFamily(
            "convserve_batch_size", "Images in an executed batch", labels=_LABELS
        )
        for figures, labels, counters in models:
            named = dict(zip(_LABELS, labels, strict=True))
            for reason, count in counters.failures.items():
                failures.add_sample(failures.name, {**named, "reason": reason}, count)
            pending.add_sample(pending.name, named, figures.pending)
            limit.add_sample(limit.name, named, figures.limit)
            latency.add_metric(labels, _latency_buckets(counters), counters.request_ns / 1e9)
            sizes.add_metric(labels, _size_buckets(counters), counters.inferences)
        yield from (failures, pending, limit, latency, sizes)


def _latency_buckets(counters: Counters) -> list[tuple[str, float]]:
    bounds = [*map(str, LATENCY_BUCKETS), "+Inf"]
    return list(zip(bounds, accumulate(counters.latencies), strict=True))


def _size_buckets(counters: Counters) -> list[tuple[str, float]]:
    sizes = counters.batch_sizes.items()
    buckets = [(str(b), float(sum(n for s, n in sizes if s <= b))) for b in _BATCH_BUCKETS]
    return [*buckets, ("+Inf", float(counters.executions))]


class RecordCollector(Collector):
    """What the access log and the traces lack."""

    def __init__(self, dropped: Callable[[], int]) -> None:
        self._dropped = dropped

    def collect(self) -> Iterator[Metric]:
        text = "Calls that the access log or the traces lack: the disk was full, or too slow"
        yield CounterMetricFamily("convserve_call_records_dropped", text, self._dropped())


def registry(
    repository: ModelRepository, dropped: Callable[[], int] = lambda: 0
) -> CollectorRegistry:
    """A registry of its own with the models' and the process's metrics.

    dropped: counts the calls that the access log or the traces lack.
    """

    def figures() -> list[ModelFigures]:
        return [
            ModelFigures(
                m.name,
                m.version,
                m.statistics.snapshot(),
                m.scheduler.pending,
                m.config.dynamic_batching.max_waiting,
            )
            for m in repository.models()
        ]

    own = CollectorRegistry()
    own.register(ModelCollector(figures))
    own.register(RecordCollector(dropped))
    ProcessCollector(registry=own)
    GCCollector(registry=own)
    return own


def exposition(source: CollectorRegistry) -> bytes:
    """The registry as Prometheus text.

    prometheus_client announces every counter as `<name>_total`; Triton's counters have no such
    suffix, and their announcements must match their samples.
    """
    text = generate_latest(source)
    return re.sub(rb"(?m)^(# (?:HELP|TYPE) nv_\w+)_total ", rb"\1 ", text)


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds that a connection may stay silent

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: probes and scrapes come every few seconds."""


class _HTTPServer(ThreadingWSGIServer):
    """A thread a connection, as long as that lasts; the oldest one makes room for a new one beyond
    `_CONNECTIONS`, so that silent ones keep no probe out."""

    request_queue_size = 1024  # one that finds no room tries again after a second

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        self._lock = threading.Lock()
        self._open: dict[socket, None] = {}  # the oldest first
        super().__init__(*arguments, **keywords)

    def get_request(self) -> Any:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in _EXHAUSTED:  # else this would be tried again at once, over and over
                with self._lock:
                    self._make_room()
                time.sleep(_PAUSE)
            raise

    def _make_room(self) -> None:
        if self._open:
            oldest = next(iter(self._open))
            del self._open[oldest]
            with suppress(OSError):  # it may have ended by itself
                oldest.shutdown(SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = None
            if len(self._open) > _CONNECTIONS:
                self._make_room()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is not worth a traceback."""


class _HTTPServer6(_HTTPServer):
    address_family = AF_INET6


class MetricsServer:
    """Serves the pages on a thread of its own, from construction until `close()`.

    Raises OSError if it can't listen on the address.
    """

    def __init__(self, host: str, port: int, source: CollectorRegistry, ready: Callable[[], bool]):
        pages: dict[str, Callable[[], tuple[str, bytes]]] = {
            "/metrics": lambda: ("200 OK", exposition(source)),
            "/healthz": lambda: ("200 OK", b"ok\n"),
            "/readyz": lambda: ("200 OK", b"ready\n") if ready() else _NOT_READY,
        }

        def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
            page = pages.get(environ["PATH_INFO"])
            if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
                status, body = "405 Method Not Allowed", b"only GET\n"
            elif page is None:
                status, body = "404 Not Found", b"/metrics, /healthz, /readyz\n"
            else:
                status, body = page()
            headers = [
                ("Content-Type", CONTENT_TYPE_PLAIN_0_0_4),
                ("Content-Length", str(len(body))),  # of what GET would give, also for HEAD
            ]
            if status.startswith("405"):
                headers.append(("Allow", "GET, HEAD"))
            start_response(status, headers)
            return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

        kind = _HTTPServer6 if ":" in host else _HTTPServer
        self._server = make_server(host, port, application, kind, handler_class=_Handler)
        self.port: int = self._server.server_port
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


_NOT_READY = ("503 Service Unavailable", b"not ready\n")
