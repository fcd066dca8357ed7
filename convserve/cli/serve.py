"""`convserve serve`: models over gRPC until SIGTERM or SIGINT."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from convserve.cli._common import command_line, threads_option
from convserve.cli._signals import Signals, hold_hangups

if TYPE_CHECKING:
    from convserve.serving.logs import LogSettings

_MIB = 1024 * 1024
_PORT = click.IntRange(0, 65535)


@click.command()
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option(
    "--model-repository",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Serve the models in DIR/<model>/<version>/model.npz, as DIR/<model>/config.toml says.",
)
@click.option(
    "--model-control-mode",
    type=click.Choice(["none", "poll", "explicit"]),
    default="none",
    show_default=True,
    help="none: the models of the start. poll: follow changes of DIR. explicit: callers load and "
    "unload. In all of them SIGHUP reloads what has changed.",
)
@click.option(
    "--load-model",
    multiple=True,
    metavar="NAME",
    help="With explicit control, a model to load at the start; '*' is all. May be repeated.",
)
@click.option(
    "--repository-poll-secs",
    type=click.FloatRange(0.05, 86400),
    default=15.0,
    show_default=True,
    help="Seconds between two looks; a change is taken over when it has not moved in between.",
)
@click.option(
    "--system-shared-memory",
    is_flag=True,
    help="Let callers on this machine pass tensors through /dev/shm.",
)
@click.option(
    "--tls-certificate",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="PEM: the server's certificate and those that lead to its CA. Read again when it changes.",
)
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="PEM: its key.")
@click.option(
    "--tls-client-ca",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="PEM: clients must show a certificate of this CA (mutual TLS).",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Only callers with a bearer token of this file: a line is 'infer TOKEN' or 'admin TOKEN'.",
)
@click.option(
    "--allow-admin",
    is_flag=True,
    help="Without tokens, let callers of other machines load, unload and change settings.",
)
@click.option(
    "--max-concurrent-streams",
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Calls at a time on one connection; more wait at the client, or are UNAVAILABLE where "
    "gRPC is not yet through with earlier ones.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1, 1_000_000),
    default=10_000,
    show_default=True,
    help="Connections at a time, in each process; more are closed. Never more than 3/4 of the "
    "files that it may open (ulimit -Hn).",
)
@click.option(
    "--max-connection-age",
    type=click.FloatRange(0.1, 1e6),
    metavar="SECONDS",
    help="Have clients connect anew after so long, so that they find new replicas and spread over "
    "workers.",
)
@click.option(
    "--max-connection-age-grace",
    type=click.FloatRange(0.1, 1e6),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long calls on such a connection have to end; those that take longer are UNAVAILABLE.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=_PORT, default=8001, show_default=True, help="gRPC; 0: a free port.")
@click.option(
    "--metrics-port",
    type=_PORT,
    default=8002,
    show_default=True,
    help="/metrics, /healthz and /readyz over HTTP; 0: a free port.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Processes that share the port; the cores are divided among them, or each computes on "
    "--threads. See docs/operations.md.",
)
@click.option(
    "--watchdog-seconds",
    type=click.FloatRange(0, 86400),
    default=30.0,
    show_default=True,
    help="With several workers, how long one may stay silent or compute one batch before it is "
    "killed and started anew; 0: for ever.",
)
@click.option("--worker-socket", type=click.IntRange(0), hidden=True)
@click.option("--worker-number", type=click.IntRange(1), hidden=True)
@threads_option
@click.option(
    "--one-core/--no-one-core",
    default=True,
    show_default=True,
    help="Keep the threads of gRPC and Python on one core, where they hand over fastest, and move "
    "them when others need it. Computing uses all cores.",
)
@click.option(
    "--max-batch-size",
    type=click.IntRange(1, 65536),
    default=64,
    show_default=True,
    help="Images in a request, and in a batch that requests share; a model's config.toml wins.",
)
@click.option(
    "--max-queue-delay-us",
    type=click.IntRange(0, 60_000_000),
    default=0,
    show_default=True,
    help="Microseconds that a batch which is not full may wait for more requests.",
)
@click.option(
    "--max-queue-size",
    type=click.IntRange(1, 100_000),
    default=1024,
    show_default=True,
    help="Requests that may wait for a model; more are turned away.",
)
@click.option(
    "--max-message-mb",
    type=click.IntRange(1, 2047),
    default=64,
    show_default=True,
    help="Largest request, in MiB.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1, 178_956_970),  # Pillow takes no more
    default=64 * _MIB,
    show_default=True,
    help="Largest encoded image, width × height.",
)
@click.option(
    "--max-decode-mb",
    type=click.IntRange(1, 1_048_576),
    default=256,
    show_default=True,
    help="Memory for decoding images, in MiB, in each process; who needs more than is free waits.",
)
@click.option(
    "--exit-timeout",
    type=click.FloatRange(0, 3600),
    default=30.0,
    show_default=True,
    help="Seconds that accepted requests have to end after SIGTERM or Ctrl-C.",
)
@click.option(
    "--access-log",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE|-",
    help="Append a line for each request; - is standard output. SIGHUP opens the file anew.",
)
@click.option(
    "--access-log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="key=value text, or one JSON object a line.",
)
@click.option(
    "--trace",
    is_flag=True,
    help="OpenTelemetry spans of each request, as the OTEL_* environment variables say; needs "
    "convserve[otel].",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What to log, on standard error.",
)
def command(
    model: Path | None,
    model_repository: Path | None,
    model_control_mode: str,
    load_model: tuple[str, ...],
    repository_poll_secs: float,
    system_shared_memory: bool,
    tls_certificate: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    token_file: Path | None,
    allow_admin: bool,
    max_concurrent_streams: int | None,
    max_connections: int,
    max_connection_age: float | None,
    max_connection_age_grace: float,
    host: str,
    port: int,
    metrics_port: int,
    workers: int,
    watchdog_seconds: float,
    worker_socket: int | None,
    worker_number: int | None,
    threads: int | None,
    one_core: bool,
    max_batch_size: int,
    max_queue_delay_us: int,
    max_queue_size: int,
    max_message_mb: int,
    max_pixels: int,
    max_decode_mb: int,
    exit_timeout: float,
    access_log: Path | None,
    access_log_format: str,
    trace: bool,
    log_level: str,
) -> int:
    """Serve MODEL (an .npz file), or a directory of models, over gRPC.

    Speaks the Open Inference Protocol v2: convserve_client, tritonclient and other clients of that
    protocol can call it. When it can be called, one line appears on standard output:

    \b
      ready grpc=HOST:PORT metrics=HOST:PORT model=NAME[,NAME...]

    How a model is served (batching, queues, priorities, versions, warm-up) is said in its
    config.toml: see docs/configuration.md. The options below are for what that leaves open.

    SIGTERM or Ctrl-C stops it: requests that were accepted are answered, new ones are not taken.
    Exit status 0 if that was done within --exit-timeout, else 1. A second signal stops it at once.
    """
    if (model is None) == (model_repository is None):
        raise click.UsageError("give either MODEL or --model-repository DIR")
    path = model_repository or model
    assert path is not None
    if model_repository is not None and not path.is_dir():
        raise click.UsageError(f"--model-repository: {path} is not a directory")
    if model is not None and path.is_dir():
        raise click.UsageError(f"{path} is a directory: use --model-repository {path}")
    if not host:
        raise click.UsageError("--host must not be empty; 0.0.0.0 is every address")
    explicit = model_control_mode == "explicit"
    if load_model and not explicit:
        raise click.UsageError("--load-model needs --model-control-mode explicit")
    if (tls_certificate is None) != (tls_key is None):
        raise click.UsageError("--tls-certificate and --tls-key go together")
    if tls_client_ca is not None and tls_certificate is None:
        raise click.UsageError("--tls-client-ca needs --tls-certificate and --tls-key")
    names = None if "*" in load_model or not explicit else load_model

    if worker_socket is not None:
        from convserve.serving.workers.parent import end_with_parent

        end_with_parent()  # before the imports below, which take longest of a start
    hangups = hold_hangups()  # which would end the process until there is something to reload
    from convserve.serving.files import allow_open_files
    from convserve.serving.memory import bound_heaps, spare_imports

    bound_heaps()  # before the imports below start threads
    allow_open_files()

    from convserve.serving.logs import LogSettings

    logs = _log_to_stderr(LogSettings(getattr(logging, log_level.upper())), worker_number)
    poll = repository_poll_secs if model_control_mode == "poll" else None
    if workers > 1 and worker_socket is None:
        from convserve.serving.workers.supervisor import Plan, Supervisor

        command = (sys.executable, "-m", "convserve", *command_line())
        watchdog = watchdog_seconds or None
        plan = Plan(command, workers, host, port, metrics_port, watchdog, exit_timeout, poll)
        supervisor = Supervisor(plan, logs)
        Signals(on_hangup=supervisor.reload, on_stop=supervisor.stop)
        if hangups:
            supervisor.reload()
        return supervisor.run(
            lambda names: _say_ready(host, supervisor.port, supervisor.metrics_port, names)
        )

    from convserve.engine.repository import ModelRepository
    from convserve.kernels._cores import usable_cores
    from convserve.serving.server import Options, Server
    from convserve.serving.tls import TlsFiles

    tls = None
    if tls_certificate is not None and tls_key is not None:
        tls = TlsFiles(tls_certificate, tls_key, tls_client_ca)

    defaults = {
        "max_batch_size": max_batch_size,
        "dynamic_batching": {
            "max_queue_delay_microseconds": max_queue_delay_us,
            "default_queue_policy": {"max_queue_size": max_queue_size},
        },
    }
    if workers > 1:
        threads = threads or max(1, usable_cores() // workers)
    options = Options(
        host=host,
        port=port,
        metrics_port=metrics_port,
        max_message_bytes=max_message_mb * _MIB,
        max_pixels=max_pixels,
        max_decode_bytes=max_decode_mb * _MIB,
        decode_threads=threads,
        explicit_control=explicit,
        poll_seconds=poll,
        shared_memory=system_shared_memory,
        tls=tls,
        token_file=token_file,
        allow_admin=allow_admin,
        max_connections=max_connections,
        max_concurrent_streams=max_concurrent_streams,
        max_connection_age=max_connection_age,
        max_connection_age_grace=max_connection_age_grace,
        one_core=one_core,
        access_log=access_log,
        access_log_format=access_log_format,
        trace=trace,
    )
    if worker_socket is not None:
        from convserve.serving.workers.worker import Worker

        spare_imports()
        return Worker(
            worker_socket, path, options, logs, defaults=defaults, threads=threads or 1, names=names
        ).run()
    spare_imports()
    repository = ModelRepository.open(path, defaults=defaults, threads=threads, names=names)
    signals = Signals(on_hangup=lambda: hangups.append(0))
    server = Server(repository, options, logs)
    signals.on_hangup = server.reload
    if hangups:
        server.reload()
    served = dict.fromkeys(served.name for served in repository.models())
    _say_ready(host, server.port, server.metrics_port, served)
    signals.wait()
    return server.end(exit_timeout)


def _say_ready(host: str, port: int, metrics_port: int | None, names: Iterable[str]) -> None:
    address = f"[{host}]" if ":" in host else host
    click.echo(
        f"ready grpc={address}:{port} metrics={address}:{metrics_port} model={','.join(names)}"
    )
    sys.stdout.flush()


def _log_to_stderr(settings: LogSettings, worker: int | None) -> LogSettings:
    """Log what `settings` let through, now and after they have changed; lines name the worker."""
    origin = "" if worker is None else f" worker={worker} pid=%(process)d"
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(settings)
    logging.basicConfig(
        handlers=[handler],
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s{origin} %(name)s: %(message)s",
    )
    logging.getLogger("convserve").setLevel(logging.DEBUG)
    return settings
