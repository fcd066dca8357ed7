"""`convserve bench`: the speed of a model, of a server, or of single convolution layers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np

from convserve.cli._classifiers import connect
from convserve.cli._layer_bench import SHAPES, measure_layers
from convserve.cli._timing import Timing, measure
from convserve.kernels._cores import usable_cores


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
@click.option("--server", metavar="HOST:PORT", help="Measure a running server instead.")
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
    help="Threads; with --server, callers at the same time.  [default: 1 and the cores; 1 for "
    "--layers]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.01, max=3600),
    help="How long to measure each row.  [default: 1; 0.2 for --layers]",
)
@click.option(
    "--shapes",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=SHAPES,
    help="A file of layer shapes for --layers.  [default: layers of real networks]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def command(
    model: Path | None,
    server: str | None,
    model_name: str | None,
    layers: bool,
    batch: tuple[int, ...],
    threads: tuple[int, ...],
    seconds: float | None,
    shapes: Path,
    as_json: bool,
) -> None:
    """Measure a model's or a server's speed.

    For MODEL (an .npz file) or a server: images/s and the latency of a call, in milliseconds, for
    every number of images in a call and every number of threads. The histogram runs from the
    fastest call to the slowest, on a logarithmic scale.

    With --layers: GFLOP/s of single convolution layers on packed operands, beside the peak of the
    machine, which is measured just before each of them.

    \b
    convserve bench lenet.npz --batch 1,32 --threads 1,2
    convserve bench --layers --json
    """
    if sum((model is not None, server is not None, layers)) != 1:
        raise click.UsageError("give one of MODEL, --server HOST:PORT and --layers")
    if layers:
        _bench_layers(shapes, threads or (1,), seconds or 0.2, as_json)
        return
    threads = threads or tuple(sorted({1, usable_cores()}))
    rows = (
        _model_timings(model, batch, threads, seconds or 1.0)
        if model is not None
        else _server_timings(str(server), model_name, batch, threads, seconds or 1.0)
    )
    _print_timings(rows, "callers" if server else "threads", as_json)


def _model_timings(
    path: Path, batches: tuple[int, ...], threads: tuple[int, ...], seconds: float
) -> Iterator[Timing]:
    from convserve.engine.model import load

    for count in threads:
        model = load(path, threads=count)
        for size in batches:
            yield measure(model.predict, _images(size, model.input_shape), count, 1, seconds)


def _server_timings(
    address: str,
    name: str | None,
    batches: tuple[int, ...],
    callers: tuple[int, ...],
    seconds: float,
) -> Iterator[Timing]:
    with connect(address) as client:
        shape = tuple(client.model_metadata(name).inputs[0].shape)[1:]
        for count in callers:
            for size in batches:
                x = _images(size, shape)
                yield measure(lambda x: client.predict(x, model=name), x, count, count, seconds)


def _images(count: int, shape: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((count, *shape), dtype=np.float32)


def _print_timings(rows: Iterator[Timing], who: str, as_json: bool) -> None:
    if as_json:
        document = [{who if k == "threads" else k: v for k, v in asdict(r).items()} for r in rows]
        click.echo(json.dumps({"rows": document}, indent=2))
        return
    click.echo(f"{'batch':>6}{who:>9}{'images/s':>12}{'p50 ms':>10}{'p90 ms':>10}{'p99 ms':>10}  ")
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
