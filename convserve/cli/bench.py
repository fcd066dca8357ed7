"""`convserve bench`: the speed of a model, of a server, or of single convolution layers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from click.core import ParameterSource

from convserve.cli._layer_bench import SHAPES, measure_layers
from convserve.cli._load import Limits
from convserve.cli._target import Target, server_options
from convserve.cli._timing import Timing, measure
from convserve.cli._tuning import tune_model
from convserve.kernels._cores import usable_cores

# What is measured -> the options that only some of these take, of those that it takes.
_OPTIONS = {
    "MODEL": {"batch", "threads"},
    "--tune": set[str](),
    "--layers": {"threads", "shapes"},
    "--server": {"model_name", "batch", "concurrency", "rate", "arrivals", "connections"}
    | {"requests", "warm_up", "timeout", "dtype", "images"},
}


def _check_options(measured: str) -> None:
    """Refuse an option that would do nothing."""
    context = click.get_current_context()
    useless = set[str]().union(*_OPTIONS.values()) - _OPTIONS[measured]
    for option in context.command.params:
        if option.name in useless and _is_given(option.name):
            raise click.UsageError(f"{option.opts[0]} does not go with {measured}")


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source is ParameterSource.COMMANDLINE


def _counts(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Read `1,32`; an option that is not given is an empty tuple."""
    if value is None:
        return ()
    try:
        counts = tuple(int(part) for part in value.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise click.BadParameter(f"{value!r} is not a list of whole numbers from 1, such as 1,32")
    return counts


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@server_options("Measure a running server instead.")
@click.option("--model-name", help="Which of the server's models.  [default: the only one]")
@click.option("--layers", is_flag=True, help="Measure 3x3 convolution layers instead.")
@click.option(
    "--batch",
    callback=_counts,
    default="1,32",
    show_default=True,
    metavar="N,...",
    help="Images in a call.",
)
@click.option(
    "--threads",
    callback=_counts,
    metavar="N,...",
    help="Threads.  [default: 1 and the cores; 1 for --layers]",
)
@click.option(
    "--concurrency",
    callback=_counts,
    metavar="N,...",
    help="With --server: callers that ask again when answered.  [default: 1]",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0.01, max=1e6),
    help="With --server, instead of --concurrency: requests a second, sent whether or not those "
    "before are answered.",
)
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "uniform"]),
    default="poisson",
    show_default=True,
    help="How the requests of --rate are spread.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="With --server: a server's processes share them.",
)
@click.option("--requests", type=click.IntRange(min=1), help="With --server: stop after so many.")
@click.option(
    "--warm-up",
    type=click.FloatRange(0, 600),
    default=0.3,
    show_default=True,
    help="With --server: seconds of the same load that are not counted.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.001, max=3600),
    default=30.0,
    show_default=True,
    help="With --server: seconds until a request is given up.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "uint8"]),
    default="float32",
    show_default=True,
    help="With --server: of random images.",
)
@click.option(
    "--image",
    "images",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="With --server: an image file to send instead, for the server to decode; may be repeated.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.01, max=3600),
    help="How long to measure each row.  [default: 1; 0.2 for --layers; 2 for --tune]",
)
@click.option(
    "--shapes",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=SHAPES,
    help="A file of layer shapes for --layers.  [default: layers of real networks]",
)
@click.option(
    "--tune", is_flag=True, help="Write a tuning record beside MODEL: its fastest kernels here."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(
    model: Path | None,
    server: Target | None,
    model_name: str | None,
    layers: bool,
    batch: tuple[int, ...],
    threads: tuple[int, ...],
    concurrency: tuple[int, ...],
    rate: float | None,
    arrivals: str,
    connections: int,
    requests: int | None,
    warm_up: float,
    timeout: float,
    dtype: str,
    images: tuple[Path, ...],
    seconds: float | None,
    shapes: Path,
    tune: bool,
    as_json: bool,
) -> None:
    """Measure a model's or a server's speed.

    For MODEL (an .npz file): images/s and the latency of a call, in milliseconds, for every number
    of images in a call and every number of threads. The histogram runs from the fastest call to the
    slowest, on a logarithmic scale.

    For a server: requests/s, images/s, latencies from the fastest to the slowest, and failures by
    status. Callers of --concurrency wait for their answers; with --rate a request's latency counts
    from when it was due, so that a server that can't keep up is seen to.

    With --layers: GFLOP/s of single convolution layers on packed operands, beside the peak of the
    machine, which is measured just before each of them.

    With --tune: each kernel that can compute a convolution of MODEL is timed inside the network,
    and the times are written beside it (model.npz: model.tune.json). Whoever loads the model from
    then on, a server too, gets the fastest kernels. Scores may change in their last digits.

    \b
    convserve bench lenet.npz --batch 1,32 --threads 1,2
    convserve bench --server localhost:8001 --batch 1 --rate 2000 --seconds 10
    convserve bench --layers --json
    """
    if sum((model is not None, server is not None, layers)) != 1:
        raise click.UsageError("give one of MODEL, --server HOST:PORT and --layers")
    if tune:
        if model is None:
            raise click.UsageError("--tune needs a MODEL")
        _check_options("--tune")
        tune_model(model, seconds or 2.0, as_json)
        return
    if layers:
        _check_options("--layers")
        _bench_layers(shapes, threads or (1,), seconds or 0.2, as_json)
        return
    if model is not None:
        _check_options("MODEL")
        threads = threads or tuple(sorted({1, usable_cores()}))
        _print_timings(_model_timings(model, batch, threads, seconds or 1.0), as_json)
        return
    if threads:
        raise click.UsageError("--threads are a model's; callers of a server are --concurrency")
    _check_options("--server")
    if rate is not None and concurrency:
        raise click.UsageError("give one of --rate and --concurrency")
    if rate is None and _is_given("arrivals"):
        raise click.UsageError("--arrivals goes with --rate")
    if images and _is_given("dtype"):
        raise click.UsageError("give one of --image and --dtype")
    from convserve.cli._server_bench import Load, Payload, measure_server

    assert server is not None
    limits = Limits(seconds or 1.0, requests, warm_up)
    loads = [
        Load(limits, callers, rate, arrivals, connections, timeout)
        for callers in concurrency or (1,)
    ]
    payloads = [Payload(count, dtype, images) for count in batch]
    _print_loads(measure_server(server, model_name, payloads, loads), as_json)


def _model_timings(
    path: Path, batches: tuple[int, ...], threads: tuple[int, ...], seconds: float
) -> Iterator[Timing]:
    from convserve.engine.model import load

    for count in threads:
        model = load(path, threads=count)
        for size in batches:
            yield measure(model.predict, _images(size, model.inputs), size, count, 1, seconds)


def _images(count: int, inputs: Mapping[str, tuple[int, ...]]) -> Any:
    """Random values for the input, or by name for several."""
    rng = np.random.default_rng(0)
    made = {
        name: rng.standard_normal((count, *shape), dtype=np.float32)
        for name, shape in inputs.items()
    }
    return made if len(made) > 1 else next(iter(made.values()))


def _print_loads(rows: Iterator[dict[str, Any]], as_json: bool) -> None:
    from convserve.cli._server_bench import show

    if as_json:
        document = [{k: v for k, v in row.items() if k != "plot"} for row in rows]
        click.echo(json.dumps({"rows": document}, indent=2))
        return
    for row in rows:
        show(row)


def _print_timings(rows: Iterator[Timing], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"rows": [asdict(row) for row in rows]}, indent=2))
        return
    click.echo(
        f"{'batch':>6}{'threads':>9}{'images/s':>12}{'p50 ms':>10}{'p90 ms':>10}{'p99 ms':>10}  "
    )
    for row in rows:
        times = "".join(f"{value:10.3f}" for value in (row.p50_ms, row.p90_ms, row.p99_ms))
        click.echo(
            f"{row.batch:6}{row.threads:9}{row.images_per_second:12,.0f}{times}  "
            f"{row.min_ms:.3f} {row.bars()} {row.max_ms:.3f}"
        )


def _bench_layers(shapes: Path, threads: tuple[int, ...], seconds: float, as_json: bool) -> None:
    from convserve import kernels

    rows = measure_layers(shapes, threads, seconds)
    if as_json:
        document = {"isa": kernels.isa(), "rows": [asdict(row) for row in rows]}
        click.echo(json.dumps(document, indent=2))
        return
    click.echo(f"instruction set {kernels.isa()}; multiply-adds count as two operations")
    click.echo(
        f"{'network':<16}{'layer':<32}{'threads':>8}{'GFLOP/s':>10}{'peak':>9}{'of peak':>9}"
    )
    for row in rows:
        click.echo(
            f"{row.network:<16}{row.layer:<32}{row.threads:8}{row.gflops:10.1f}{row.peak:9.1f}"
            f"{row.percent:8.1f}%"
        )
