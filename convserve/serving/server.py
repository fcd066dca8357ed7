"""The composition root: a repository behind gRPC and HTTP, started and stopped in order.

Transport: grpcio's synchronous server. Bare echo of 3 KB on 2 cores: sync 375 us serial and 4,100
to 5,100 calls a second at 32 in flight, aio 430 us and 2,100. What speaks against it, that calls
hold threads, is met by pools for each kind: inferences, streams, loading, reflection, all the rest.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2

from convserve.engine.affinity import CoreWatch, bound, choose, roam
from convserve.engine.repository import ModelRepository
from convserve.engine.statistics import Counters
from convserve.errors import ConvserveError
from convserve.images import MAX_PIXELS
from convserve.kernels._cores import usable_cores
from convserve.serving import metrics, reflection
from convserve.serving.access import Access, Tokens, is_loopback
from convserve.serving.access_log import AccessLog
from convserve.serving.control import Control
from convserve.serving.health import Health
from convserve.serving.images import MAX_DECODE_BYTES, ImageDecoder
from convserve.serving.inference import MAX_STREAMS, Inferences
from convserve.serving.listening import defer_silent
from convserve.serving.logs import LogSettings
from convserve.serving.memory import MemoryKeeper
from convserve.serving.observe import Observer, Sink
from convserve.serving.polling import Poller
from convserve.serving.pool import CallPool
from convserve.serving.servicer import Pools, Servicer
from convserve.serving.shared_memory import Regions
from convserve.serving.tls import TlsFiles, server_credentials
from convserve.serving.tracing import Tracing
from convserve_client import protocol

__all__ = ["Group", "Options", "Server"]

_log = logging.getLogger(__name__)
_SPARE_THREADS = 32  # calls that are parsed, checked, rejected or sent while all others wait
_AT_ONCE = 16  # inferences that need Python; see serving.pool
_CONTROL_THREADS = 16
_MAX_PENDING_CALLS = 10_000  # 10 to 20 KB each; in a flood the next call waits for so many
_LOADING_THREADS = 4
# gRPC's names; the second starts more of the first.
_TRANSPORT_THREADS = ("event_engine", "lifeguard")


@dataclass(frozen=True)
class Options:
    """How to serve; port 0 takes a free port."""

    host: str = "127.0.0.1"
    port: int = 8001
    metrics_port: int | None = 8002  # None: no pages over HTTP
    reuse_port: bool = False  # share the port with other processes of the same server
    max_message_bytes: int = 64 * 1024 * 1024
    max_pixels: int = MAX_PIXELS  # of an encoded image
    max_decode_bytes: int = MAX_DECODE_BYTES  # of memory, for all images that are being decoded
    decode_threads: int | None = None  # None: as many as cores
    explicit_control: bool = False  # whether callers may load and unload models
    poll_seconds: float | None = None  # between looks at the repository; None: no polling
    shared_memory: bool = False  # whether callers may register regions of /dev/shm
    tls: TlsFiles | None = None
    token_file: Path | None = None  # None: no token is needed
    allow_admin: bool = False  # without tokens, on addresses that others can reach
    max_connections: int = 10_000
    max_concurrent_streams: int | None = None  # calls at a time on one connection
    max_connection_age: float | None = None  # seconds, give or take a tenth; None: for ever
    max_connection_age_grace: float = 30.0  # seconds that calls then have to end
    access_log: Path | None = None  # Path("-") is standard output; None: no access log
    access_log_format: str = "text"  # or "json"
    trace: bool = False  # OpenTelemetry, as the OTEL_* environment variables say
    one_core: bool = True  # for the threads that run Python
    core: int | None = None  # which of those that the process may use; None: any
    worker: int | None = None  # the number of this one, if there are several


@dataclass(frozen=True)
class Group:
    """What a server needs of the other processes beside it, if it is one of several workers."""

    regions: Regions
    everywhere: Callable[[str, bytes], bytes]  # as in Control
    totals: Callable[[], Mapping[tuple[str, str], Counters]]  # as in Servicer


class Server:
    """Serves a repository from construction until `stop()`; `port`, `metrics_port` are real.

    Raises ConvserveError if an address can't be listened on.
    """

    def __init__(
        self,
        repository: ModelRepository,
        options: Options | None = None,
        logs: LogSettings | None = None,
        sinks: Iterable[Sink] = (),
        group: Group | None = None,
    ) -> None:
        options = options or Options()
        self._repository = repository
        self._access_log, self._observer = _observation(options, sinks)
        workers = options.decode_threads or usable_cores()
        self._decoder = ImageDecoder(
            workers, max_pixels=options.max_pixels, max_bytes=options.max_decode_bytes
        )
        self._control_pool = CallPool("control", _CONTROL_THREADS)
        self._reflection_pool = CallPool("reflection", 4)
        infer_pool = CallPool("infer", at_once=_AT_ONCE)
        self._infer_pool = infer_pool
        self._pools = Pools(
            inference=infer_pool,
            streams=CallPool("stream", MAX_STREAMS + 8),
            loading=CallPool("loading", _LOADING_THREADS, roam),
        )
        regions = None
        if options.shared_memory:
            regions = Regions() if group is None else group.regions
        self._inferences = Inferences(
            repository, self._decoder, infer_pool, regions, self._observer
        )
        self.control = Control(
            repository,
            explicit=options.explicit_control,
            logs=logs or LogSettings(),
            regions=regions,
            everywhere=None if group is None else group.everywhere,
        )
        totals = None if group is None else group.totals
        self._servicer = Servicer(
            repository, self._inferences, self.control, self._observer, totals
        )
        self._health = Health()
        self.host = options.host
        core = choose(options.core) if options.one_core else None
        # These start gRPC's own threads, `start` those that run Python.
        self._grpc = bound(core, lambda: self._make_grpc(options), in_turns=False)
        self.port = bound(core, lambda: self._bind(options), in_turns=False)
        self._metrics = None
        if options.metrics_port is not None:
            pages = metrics.registry(repository, self.dropped)
            try:
                self._metrics = metrics.MetricsServer(
                    options.host, options.metrics_port, pages, lambda: self._servicer.ready
                )
            except OSError as error:
                raise _cannot_listen(options.host, options.metrics_port, error) from None
        self.metrics_port = None if self._metrics is None else self._metrics.port
        defer_silent(self.port)
        bound(core, self._start)
        self._core_watch = CoreWatch(others=_TRANSPORT_THREADS)
        self._health.set(protocol.SERVICE, health_pb2.HealthCheckResponse.SERVING)
        self._grow()
        repository.listen(self._model_changed)
        self._servicer.ready = True
        self._poller = Poller(repository, options.poll_seconds)
        self._memory = MemoryKeeper()

    def _model_changed(self, name: str, ready: bool) -> None:
        """A model was loaded or unloaded."""
        state = health_pb2.HealthCheckResponse
        self._health.set(name, state.SERVING if ready else state.NOT_SERVING)
        self._grow()

    def _grow(self) -> None:
        """Have a thread for every inference that may run, wait, or be turned away."""
        configs = [served.config for served in self._repository.models()]
        waiting = sum(c.dynamic_batching.max_waiting + c.max_batch_size for c in configs)
        self._infer_pool.grow(waiting + self._decoder.max_requests + _SPARE_THREADS)

    def reload(self) -> None:
        """Take over what has changed in the repository, and open the access log anew, soon and in
        other threads."""
        self._poller.look_now()
        self.reopen_log()

    def reopen_log(self) -> None:
        """Open the access log anew, soon."""
        if self._access_log is not None and self._observer is not None:
            self._access_log.reopen()
            self._observer.wake()

    def dropped(self) -> int:
        """How many calls are missing in the access log or the traces."""
        return 0 if self._observer is None else self._observer.dropped

    def _make_grpc(self, options: Options) -> grpc.Server:
        server = grpc.server(
            self._control_pool,
            interceptors=_interceptors(options, self._observer),
            options=_channel_arguments(options),
        )
        server.add_generic_rpc_handlers(
            (
                self._servicer.handler(self._pools),
                *reflection.handlers(self._reflection_pool),
                self._health.handler(),
            )
        )
        return server

    def _bind(self, options: Options) -> int:
        # gRPC says only that it failed; a plain bind of the same kind says why.
        family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if options.reuse_port:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                probe.bind((options.host, options.port))
        except (OSError, OverflowError) as error:
            raise _cannot_listen(options.host, options.port, error) from None
        host = f"[{options.host}]" if family == socket.AF_INET6 else options.host
        try:
            address = f"{host}:{options.port}"
            if options.tls is not None:
                return int(self._grpc.add_secure_port(address, server_credentials(options.tls)))
            return int(self._grpc.add_insecure_port(address))
        except RuntimeError as error:
            raise _cannot_listen(options.host, options.port, error) from None

    def _start(self) -> None:
        for pool in (self._control_pool, self._reflection_pool, *self._pools):
            pool.start()
        self._grpc.start()

    def stop(self, timeout: float) -> bool:
        """Stop gracefully: not ready, no new inferences, the accepted ones answered, all closed.

        Returns whether every accepted inference was answered within `timeout` seconds; if not,
        threads may still be computing.
        """
        deadline = time.monotonic() + timeout
        self._servicer.ready = False
        self._poller.close()
        self._memory.close()
        # It waits until each watcher has read the news, and one may never do so.
        news = threading.Thread(target=self._health.enter_graceful_shutdown, daemon=True)
        with suppress(RuntimeError):  # there can't be more threads: Watch ends without the news
            news.start()
            news.join(min(timeout, 1.0))
        _log.info("stopping: waiting for accepted requests, at most %g s", timeout)
        for served in self._repository.models():
            served.scheduler.end_delay()
        drained = self._inferences.drain(timeout)
        drained &= self._repository.stop(max(deadline - time.monotonic(), 0.0))
        if drained:
            self._inferences.wait_quiet(0.1, min(timeout, 1.0))
        # What is still open are Watch and reflection streams, which never end by themselves.
        try:
            self._grpc.stop(grace=0.2 if drained else None).wait(1.0)
        except RuntimeError:  # a grace takes a thread, and there can't be more
            self._grpc.stop(grace=None).wait(1.0)
        if self._metrics is not None:
            self._metrics.close()
        self._core_watch.close()
        self._decoder.close()
        for pool in (*self._pools, self._control_pool, self._reflection_pool):
            pool.shutdown(wait=False, cancel_futures=True)
        if self._observer is not None:
            self._observer.close()
        return drained

    def end(self, timeout: float) -> int:
        """Stop; the process's exit status, unless threads would keep it: then it ends here."""
        drained = self.stop(timeout)
        if drained and not self._repository.changing:
            return 0
        if not drained:
            _log.error("Exit timeout expired. Exiting immediately.")
        logging.shutdown()
        # A load, or a thread that still computes, can't be ended in any other way.
        os._exit(0 if drained else 1)


def _channel_arguments(options: Options) -> list[tuple[str, int]]:
    """What gRPC is told of the connections."""
    arguments = [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # Without, a second server on the port fails, as it must.
        ("grpc.so_reuseport", int(options.reuse_port)),
        # Clients may ping every 10 s, and without calls; gRPC's defaults disconnect them.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_allowed_incoming_connections", _connections(options.max_connections)),
        # Beyond these gRPC cancels, by default some of 1,000 and more that wait for Python to take
        # them; too many inferences are for the queues to refuse, as UNAVAILABLE.
        ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
    ]
    if options.max_concurrent_streams is not None:
        arguments.append(("grpc.max_concurrent_streams", options.max_concurrent_streams))
    if options.max_connection_age is not None:
        arguments += [
            ("grpc.max_connection_age_ms", round(options.max_connection_age * 1000)),
            ("grpc.max_connection_age_grace_ms", round(options.max_connection_age_grace * 1000)),
        ]
    return arguments


def _connections(wanted: int) -> int:
    """At most so many that a quarter of the files which the process may open is left for models,
    logs and the metrics port."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    allowed = wanted if limit == resource.RLIM_INFINITY else min(wanted, max(1, limit * 3 // 4))
    if allowed < wanted:
        _log.info("at most %d connections, since %d files may be open", allowed, limit)
    return allowed


def _observation(
    options: Options, more: Iterable[Sink]
) -> tuple[AccessLog | None, Observer | None]:
    """The access log, and the observer where calls are recorded at all. Traces come first: the log
    names them."""
    sinks = list(more)
    if options.trace:
        sinks.append(Tracing())
    log = None
    if options.access_log is not None:
        path = None if options.access_log == Path("-") else options.access_log
        log = AccessLog(path, options.access_log_format, options.worker)
        sinks.append(log)
    return log, Observer(sinks) if sinks else None


def _interceptors(options: Options, observer: Observer | None) -> list[grpc.ServerInterceptor]:
    """None where everybody may call everything: each costs every call a little."""
    tokens = None if options.token_file is None else Tokens(options.token_file)
    admin = options.allow_admin or is_loopback(options.host)
    return [] if tokens is None and admin else [Access(tokens, admin, observer)]


def _cannot_listen(host: str, port: int, error: Exception) -> ConvserveError:
    reason = getattr(error, "strerror", None) or str(error)
    return ConvserveError(f"cannot listen on {host}:{port}: {reason}")
