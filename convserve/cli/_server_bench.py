"""`convserve bench --server`: prepared requests against a server, and what came of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np

from convserve.cli import _latency
from convserve.cli._load import (
    OK,
    Limits,
    Outcome,
    begun_twice,
    closed_loop,
    open_loop,
    poisson,
    uniform,
)
from convserve.cli._target import Metadata, Target
from convserve.errors import ConvserveError
from convserve_client import protocol, tensors

__all__ = ["Load", "Payload", "measure_server", "show"]


_CHANNEL = (
    ("grpc.use_local_subchannel_pool", 1),  # else they would share a connection
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_retries", 0),  # an error is to be seen
)
FIRST_TIMEOUT = 30.0  # seconds of the first call of a connection, which is not measured


@dataclass(frozen=True)
class Payload:
    """What a request holds: random images of a dtype, or files, and how many of them."""

    batch: int
    dtype: str = "float32"
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Load:
    """Callers at once, or requests a second, over so many connections."""

    limits: Limits
    concurrency: int = 1
    rate: float | None = None
    arrivals: str = "poisson"
    connections: int = 1
    timeout: float = 30.0


def measure_server(
    target: Target, model: str | None, payloads: list[Payload], loads: list[Load]
) -> Iterator[dict[str, Any]]:
    """A row for each payload and load."""
    gc.freeze()  # the collector would stop the generator for 30 ms now and then to look at modules
    with target.client() as client:
        metadata = client.model_metadata(model)
    for load in loads:
        for payload in payloads:
            data = request(metadata, payload)
            with ExitStack() as stack:
                channels = [
                    stack.enter_context(target.channel(_CHANNEL)) for _ in range(load.connections)
                ]
                # bytes both ways
                calls = [channel.unary_unary(protocol.path("ModelInfer")) for channel in channels]
                outcome = _run(calls, data, load, target.metadata)
            if not outcome.latencies:
                failed = ", ".join(f"{n} {name}" for name, n in outcome.statuses.items())
                raise ConvserveError(
                    f"no request to {target.address} succeeded: {failed or 'none made'}"
                )
            yield _row(payload, load, outcome)


def request(metadata: Any, payload: Payload) -> bytes:
    """A serialized ModelInferRequest."""
    message = protocol.ModelInferRequest(model_name=metadata.name)
    arrays = [_array(tensor, payload, seed) for seed, tensor in enumerate(metadata.inputs)]
    for tensor, x in zip(metadata.inputs, arrays, strict=True):
        message.inputs.add(name=tensor.name, datatype=tensors.datatype_of(x), shape=x.shape)
    return tensors.serialize(message, arrays)


def _array(tensor: Any, payload: Payload, seed: int) -> np.ndarray[Any, Any]:
    x: np.ndarray[Any, Any]
    if payload.files:
        chosen = cycle(payload.files)
        x = np.empty(payload.batch, object)
        x[:] = [next(chosen).read_bytes() for _ in range(payload.batch)]
    else:
        generator = np.random.default_rng(seed)
        shape = (payload.batch, *(max(size, 1) for size in tensor.shape[1:]))
        x = (
            generator.integers(0, 256, shape, np.uint8)
            if payload.dtype == "uint8"
            else generator.standard_normal(shape, np.float32)
        )
    return x


def _run(calls: list[Any], data: bytes, load: Load, metadata: Metadata) -> Outcome:
    send = {"timeout": load.timeout, "metadata": metadata or None}
    patient = {**send, "timeout": max(load.timeout, FIRST_TIMEOUT)}
    for call in calls:  # connects, and says what is wrong with such requests
        try:
            call(data, **patient)
        except grpc.RpcError as error:
            raise ConvserveError(f"{error.code().name}: {error.details()}") from None
    if load.rate is None:

        def once(caller: int) -> str:
            return _status_of(calls[caller % len(calls)], data, send)

        return closed_loop(once, load.concurrency, load.limits)
    pattern = poisson if load.arrivals == "poisson" else uniform
    arrivals = begun_twice(pattern, load.rate, load.limits.warm_up)
    turns = cycle(calls)
    return open_loop(
        lambda: next(turns).future(data, **send),
        lambda call: str(call.code().name),  # type: ignore[attr-defined]
        arrivals,
        load.limits,
    )


def _status_of(call: Any, data: bytes, send: Mapping[str, Any]) -> str:
    try:
        call(data, **send)
    except grpc.RpcError as error:
        return str(error.code().name)
    return OK


def _row(payload: Payload, load: Load, outcome: Outcome) -> dict[str, Any]:
    edges, counts = _latency.histogram(outcome.milliseconds)
    loop: dict[str, Any] = (
        {"concurrency": load.concurrency}
        if load.rate is None
        else {"rate": load.rate, "arrivals": load.arrivals}
    )
    return {
        "batch": payload.batch,
        "payload": "encoded" if payload.files else payload.dtype,
        **loop,
        "connections": load.connections,
        "requests": sum(outcome.statuses.values()),
        "statuses": dict(outcome.statuses),
        "seconds": outcome.seconds,
        "requests_per_second": outcome.per_second,
        "images_per_second": outcome.per_second * payload.batch,
        "latency_ms": _latency.percentiles(outcome.milliseconds),
        "histogram": {"edges_ms": edges, "counts": counts},
        "plot": _latency.plot(outcome.milliseconds),
    }


def show(row: dict[str, Any]) -> None:
    """One row as text."""
    loop = (
        f"{row['rate']:g} requests/s offered ({row['arrivals']})"
        if "rate" in row
        else f"{row['concurrency']} callers"
    )
    click.echo(
        f"batch {row['batch']} {row['payload']}, {loop}: "
        f"{row['requests_per_second']:,.0f} requests/s, {row['images_per_second']:,.0f} images/s"
    )
    click.echo("  ms  " + "  ".join(f"{k} {v:.3f}" for k, v in row["latency_ms"].items()))
    errors = {name: count for name, count in row["statuses"].items() if name != OK}
    if errors:
        named = ", ".join(f"{count} {name}" for name, count in errors.items())
        click.echo(f"  failed: {named} of {row['requests']}")
    for line in row["plot"]:
        click.echo(line)
