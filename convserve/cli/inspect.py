"""`convserve inspect`: the layer table of a model, and what its convolutions save."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from convserve.cli._common import model_argument, printable, threads_option
from convserve.graph import Graph, LayerSummary, summarise
from convserve.model_file import ModelFile, format_version, load, weights_hash
from convserve.preprocessing import Preprocessing


@click.command()
@model_argument
@click.option("--plan", is_flag=True, help="Show how it is computed, step by step, and how fast.")
@click.option(
    "--batch", type=click.IntRange(1, 4096), help="Images in a call, for --plan.  [default: 1]"
)
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
@click.option(
    "--feature-maps",
    "image",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="IMAGE",
    help="Draw what each layer makes of this image file.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The picture that --feature-maps draws, a PNG.  [default: feature_maps.png]",
)
def command(
    model: Path,
    plan: bool,
    batch: int | None,
    threads: int | None,
    as_json: bool,
    image: Path | None,
    out: Path | None,
) -> None:
    """Show a model's layers, sizes and costs.

    For each layer of MODEL (an .npz file): its output's shape (channels × height × width), its
    parameters, and its multiply-accumulates (MACs) for one image. Beside each convolution stands
    what a dense layer from the same input to the same output would need.

    \b
    Keys of --json:
      file, format_version, weights_hash, labels, preprocessing, provenance,
      input    {name, shape}
      outputs  [{name, layer, shape}]
      layers   [{name, op, inputs, attributes, shape,
                 parameters, macs, dense_parameters, dense_macs}]
      totals   {parameters, macs, dense_parameters, dense_macs}

    With --plan: for each step of the compiled plan the layers that it computes, the kernel, the
    layout and the register tile (output blocks × pixels), how many images it takes at a time, the
    bytes of its weights, its input and its output, its multiply-adds, and the estimated and the
    measured time (the median of several calls). GFLOP/s count the multiply-adds of the layer as it
    is defined: Winograd needs fewer, and may exceed the peak.

    \b
    Keys of --plan --json:
      isa, batch, threads, peak_gflops, arena_bytes, weight_bytes,
      estimated_us, measured_us, gflops, percent_of_peak,
      steps  [{name, layers, kernel, layout, tile, group, weight_bytes, input_bytes,
               output_bytes, multiply_adds, estimated_us, measured_us, gflops, percent_of_peak}]

    With --feature-maps: nothing of this, but a picture with a row for each activation and pooling
    (of a model without any, for each layer) and for the output, as the image passes through them.
    """
    if image is not None:
        if plan or as_json or batch is not None:
            raise click.UsageError("--feature-maps excludes --plan, --batch and --json")
        from convserve.cli._feature_maps import write_feature_maps

        write_feature_maps(model, image, out or Path("feature_maps.png"), threads)
        return
    if out is not None:
        raise click.UsageError("--out is for --feature-maps")
    if plan:
        _show_plan(model, batch or 1, threads, as_json)
        return
    if batch is not None or threads is not None:
        raise click.UsageError("--batch and --threads are for --plan")
    loaded = load(model)
    if as_json:
        click.echo(json.dumps(_description(model, loaded), indent=2))
    else:
        _print_table(model, loaded)


def _show_plan(path: Path, batch: int, threads: int | None, as_json: bool) -> None:
    from convserve.cli._plan_table import describe, print_plan
    from convserve.engine.model import load as load_model

    document = describe(load_model(path, threads), batch)
    if as_json:
        click.echo(json.dumps({"file": str(path), **document}, indent=2))
    else:
        print_plan(path, document)


def _description(path: Path, model: ModelFile) -> dict[str, Any]:
    graph, rows = model.graph, summarise(model.graph)
    return {
        "file": str(path),
        "format_version": format_version(model),
        "weights_hash": weights_hash(model.params),
        "labels": model.labels,
        "preprocessing": model.preprocessing and model.preprocessing.to_dict(),
        "provenance": model.provenance,
        "input": {"name": graph.input_name, "shape": graph.input_shape},
        "inputs": [{"name": name, "shape": shape} for name, shape in graph.inputs.items()],
        "outputs": [
            {"name": name, "layer": layer, "shape": graph.shape(layer)}
            for name, layer in graph.outputs.items()
        ],
        "layers": [
            {**row._asdict(), "attributes": graph.node(row.name).op.attributes()} for row in rows
        ],
        "totals": _totals(rows),
    }


def _totals(rows: list[LayerSummary]) -> dict[str, int]:
    return {
        "parameters": sum(row.parameters for row in rows),
        "macs": sum(row.macs for row in rows),
        "dense_parameters": sum(row.dense_parameters for row in rows),
        "dense_macs": sum(row.dense_macs for row in rows),
    }


def _print_table(path: Path, model: ModelFile) -> None:
    from rich.box import SIMPLE_HEAVY
    from rich.console import Console
    from rich.table import Table

    rows = summarise(model.graph)
    totals = _totals(rows)
    table = Table(show_footer=True, box=SIMPLE_HEAVY)
    table.add_column("layer", "total", no_wrap=True)
    table.add_column("operator", no_wrap=True)
    table.add_column("output", no_wrap=True)
    for header, total in zip(
        ("parameters", "MACs", "if dense:\nparameters", "if dense:\nMACs"),
        totals.values(),
        strict=True,
    ):
        table.add_column(header, f"{total:,}", justify="right", no_wrap=True)
    for name, shape in model.graph.inputs.items():
        table.add_row(printable(name), "input", _dims(shape))
        previous = name
    for row in rows:
        operator = _operator(model.graph, row)
        if row.inputs != (previous,):
            operator += f" of {', '.join(map(printable, row.inputs))}"
        previous = row.name
        costs = (row.parameters, row.macs, row.dense_parameters, row.dense_macs)
        table.add_row(row.name, operator, _dims(row.shape), *(_count(n) for n in costs))
    # A cut name or number is worse than a line that the terminal breaks.
    console = Console(markup=False, highlight=False, width=10_000)
    console.width = console.measure(table).maximum
    console.print(printable(path), soft_wrap=True)
    console.print(table)
    for line in _notes(model, totals):
        console.print(printable(line), soft_wrap=True)


def _operator(graph: Graph, row: LayerSummary) -> str:
    """The operator with what tells one convolution or pooling from another."""
    attributes = graph.node(row.name).op.attributes()
    if "stride" not in attributes:
        return row.op
    window = attributes.get("kernel_size") or attributes["size"]
    (h, w), (sh, sw) = window, attributes["stride"]
    stride = f" stride {sh}" if sh == sw else f" stride {sh}×{sw}"
    return f"{row.op} {h}×{w}{'' if (sh, sw) == (1, 1) else stride}"


def _notes(model: ModelFile, totals: dict[str, int]) -> list[str]:
    size = sum(array.nbytes for array in model.params.values())
    lines = [f"weights         {size / 1e6:,.2f} MB, {weights_hash(model.params)}"]
    if totals["dense_parameters"] > totals["parameters"]:
        lines.append(
            "convolutions    dense layers in their place would make it "
            f"{totals['dense_parameters'] / totals['parameters']:,.0f} times the parameters and "
            f"{totals['dense_macs'] / totals['macs']:,.0f} times the multiply-accumulates"
        )
    for name, layer in model.graph.outputs.items():
        lines.append(f"output          {name}: {layer} {_dims(model.graph.shape(layer))}")
    if model.labels is not None:
        shown = ", ".join(model.labels[:10]) + (", …" if len(model.labels) > 10 else "")
        lines.append(f"labels          {len(model.labels)}: {shown}")
    if model.preprocessing is not None:
        p = model.preprocessing
        lines.append(
            f"preprocessing   {_resize(p)}{p.height}×{p.width} {p.colour}, {p.interpolation}, "
            f"{'' if p.exif else 'no EXIF orientation, '}"
            f"{'' if p.scale == 1 / 255 else f'scale {p.scale:.4g}, '}"
            f"mean {_numbers(p.mean)}, std {_numbers(p.std)}"
        )
    lines.extend(f"{key:<15} {_short(value)}" for key, value in model.provenance.items())
    return lines


def _dims(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def _resize(p: Preprocessing) -> str:
    if p.resize is None:
        return ""
    to = f"{p.resize[0]}×{p.resize[1]}" if isinstance(p.resize, tuple) else f"shorter {p.resize}"
    return f"resize {to}, crop "


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:199]}…"
