"""`convserve bench --tune`: times every kernel of every layer and writes the record."""

from __future__ import annotations

import json
from pathlib import Path

import click

from convserve import model_file
from convserve.cli._common import printable


def tune_model(path: Path, seconds: float, as_json: bool) -> None:
    """Write the tuning record of a model file and print what it changes.

    seconds: for one image, and again for a group.
    """
    from convserve.plan import Choice, compile_plan, tuning

    loaded = model_file.load(path)
    graph, params = loaded.graph, loaded.params
    times = tuning.tune(graph, params, seconds)
    record = tuning.record_path(path)
    tuning.write(record, graph, times)
    before, after = (
        {part.layers[0]: part.kernel.name for part in plan.parts if part.layers}
        for plan in (
            compile_plan(graph, params, choice=choice) for choice in (Choice(), Choice(times=times))
        )
    )
    rows = [
        {
            "layer": layer,
            "untuned": before[layer],
            "tuned": after[layer],
            "nanoseconds": {kernel: dict(found) for kernel, found in kernels.items()},
        }
        for layer, kernels in times.items()
    ]
    if as_json:
        click.echo(json.dumps({"record": str(record), "layers": rows}, indent=2))
        return
    for row in rows:
        change = "" if row["tuned"] == row["untuned"] else f"  (untuned: {row['untuned']})"
        click.echo(f"{printable(row['layer']):<24}{row['tuned']}{change}")
    click.echo(f"{len(rows)} layers had a choice; written to {printable(record)}")
