"""`convserve inspect --plan`: what the plan does, step by step, and how long it takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from convserve import kernels
from convserve.cli._common import printable
from convserve.engine.model import Model
from convserve.plan import Plan, PlanStep

RUNS = 15
PEAK_SECONDS = 0.1
LONGEST_NAME = 24
KERNELS = {f"winograd{m}": f"winograd F({m},3)" for m in (2, 4, 6)}


@dataclass(frozen=True)
class PlanRow:
    """A step in a call: bytes and multiply-adds are an image's, times the whole batch's."""

    name: str
    layers: tuple[str, ...]
    kernel: str
    layout: str
    tile: tuple[int, int] | None
    group: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    multiply_adds: int
    estimated_us: float
    measured_us: float
    gflops: float
    percent_of_peak: float


def describe(model: Model, batch: int) -> dict[str, Any]:
    """The plan of the model's outputs, each step measured in calls with `batch` random images."""
    plan = model.plan(batch)
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((batch, *s), dtype=np.float32) for s in model.inputs.values()]
    peak = model.threads * kernels.peak_gflops(threads=1, seconds=PEAK_SECONDS)
    seconds = np.median(plan.profile(x, model.threads, RUNS), axis=0)
    rows = [
        _row(plan, part, batch, model.threads, float(time), peak)
        for part, time in zip(plan.parts, seconds, strict=True)
    ]
    flops = 2 * batch * sum(row.multiply_adds for row in rows)
    measured = sum(row.measured_us for row in rows)
    return {
        "isa": kernels.isa(),
        "batch": batch,
        "threads": model.threads,
        "peak_gflops": peak,
        "arena_bytes": plan.arena_bytes,
        "weight_bytes": sum(row.weight_bytes for row in rows),
        "estimated_us": sum(row.estimated_us for row in rows),
        "measured_us": measured,
        "gflops": flops / measured * 1e-3,
        "percent_of_peak": 100 * flops / measured * 1e-3 / peak,
        "steps": [asdict(row) for row in rows],
    }


def _row(
    plan: Plan, part: PlanStep, batch: int, threads: int, seconds: float, peak: float
) -> PlanRow:
    # a step shorter than the clock's resolution has no rate
    gflops = 2e-9 * part.macs * batch / seconds if seconds else 0.0
    return PlanRow(
        part.name,
        part.layers,
        part.kernel.name,
        part.layout,
        part.kernel.tile,
        part.group,
        part.kernel.weight_bytes,
        part.input_bytes,
        part.output_bytes,
        part.macs,
        part.estimate(batch, threads) * 1e6,
        seconds * 1e6,
        gflops,
        100 * gflops / peak,
    )


def print_plan(path: Path, document: dict[str, Any]) -> None:
    """The description as a table of at most 120 columns."""
    from rich.box import SIMPLE_HEAVY
    from rich.console import Console
    from rich.table import Table

    table = Table(show_footer=True, box=SIMPLE_HEAVY, padding=0, pad_edge=False)
    for header, total, right in (
        ("step", "total", False),
        ("kernel", "", False),
        ("layout", "", False),
        ("tile", "", True),
        ("group", "", True),
        ("weights", _size(document["weight_bytes"]), True),
        ("in", "", True),
        ("out", "", True),
        ("MACs", _count(sum(row["multiply_adds"] for row in document["steps"])), True),
        ("est. µs", _time(document["estimated_us"]), True),
        ("µs", _time(document["measured_us"]), True),
        ("GFLOP/s", f"{document['gflops']:.1f}", True),
        ("peak", f"{document['percent_of_peak']:.0f}%", True),
    ):
        table.add_column(header, total, justify="right" if right else "left", no_wrap=True)
    for row in document["steps"]:
        table.add_row(
            printable(_layers(row)),
            KERNELS.get(row["kernel"], row["kernel"]),
            _layout(row["layout"]),
            "×".join(map(str, row["tile"])) if row["tile"] else "",
            str(row["group"]),
            _size(row["weight_bytes"]) if row["weight_bytes"] else "",
            _size(row["input_bytes"]),
            _size(row["output_bytes"]),
            _count(row["multiply_adds"]) if row["multiply_adds"] else "",
            _time(row["estimated_us"]),
            _time(row["measured_us"]),
            f"{row['gflops']:.1f}" if row["multiply_adds"] else "",
            f"{row['percent_of_peak']:.0f}%" if row["multiply_adds"] else "",
        )
    console = Console(markup=False, highlight=False, width=10_000)
    console.width = console.measure(table).maximum
    console.print(
        f"{printable(path)}: {document['batch']} images a call, {document['threads']} threads, "
        f"{document['isa']}, peak {document['peak_gflops']:.0f} GFLOP/s, "
        f"arena {_size(document['arena_bytes'])} a thread",
        soft_wrap=True,
    )
    console.print(table)


def _layers(row: dict[str, Any]) -> str:
    """The layers of a step, cut short; --json has them in full."""
    text = " + ".join(row["layers"]) or row["name"]
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"


def _layout(text: str) -> str:
    """NCHW, NCHW16c, or how one becomes the other: NCHW→16c."""
    parts = text.split(" → ")
    return text if len(parts) == 1 else "→".join(p.removeprefix("NCHW") or p for p in parts)


def _size(count: float) -> str:
    for unit in ("B", "K", "M"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1024
    return f"{count:.3g}G"


def _count(number: float) -> str:
    for unit in ("", "k", "M"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.4g}G"


def _time(us: float) -> str:
    return f"{us:.1f}" if us < 1000 else f"{us:,.0f}"
