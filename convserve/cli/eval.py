"""`convserve eval`: how often a model is right, and where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

import convserve
from convserve.cli._candidates import Candidate
from convserve.cli._classifiers import Connection
from convserve.cli._common import printable
from convserve.cli._judging import JudgedImages, answers, console, judging_options
from convserve.cli._report import Report, Subject, report_options
from convserve.cli._target import Target, server_options
from convserve.datasets import Dataset, Split
from convserve.training import metrics
from convserve.training.metrics import Judged

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 10  # classes up to which the confusion matrix is shown, and rows of other tables
MATRIX = 100  # classes up to which the JSON has it whole
LISTED = 20  # worst errors in the JSON


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@server_options("Measure a model of a running server instead of MODEL.")
@click.option("--model-name", help="Which of the server's models.  [default: the only one]")
@judging_options
@report_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def command(
    model: Path | None,
    server: Target | None,
    model_name: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure a model's accuracy on a data set.

    Prints, for each class, how many of its images MODEL (an .npz file) puts first in the right
    class; what it takes for what; how far its confidence can be trusted; the images that it gets
    wrong with the highest confidence; and last the share over all images that it gets right. The
    images are the data set's raw pixels, which the model normalises itself; images of a folder are
    resized to the model's input. --split validation takes those that `train --validation` has held
    out of this model's training.

    With --server it is a server's model whose answers are measured, with the same figures. The
    images are sent as raw pixels.

    Precision is the share of the answers with a class that is right, recall the share of the
    class's images that is found. The expected calibration error is the mean difference between
    confidence and accuracy. --report draws all of this, and feature maps, as a page.

    \b
    Keys of --json:
      model, data, split, tta, images, correct, accuracy (0 to 1), top5 (null below 6 classes),
      held_out     {share, seed} of the validation images; null without any
      classes      [{label, images, predicted, correct, precision, recall}]
      confusion    a row for each right class, a column for each answer; null above 100 classes
      confusion_cells
                   above 100 classes [[right class, answer, images]], those that are not 0, by
                   the classes' places in `classes` from 0; else null
      confused     [{label, predicted, images}], the most frequent mistakes
      calibration  {error, bins [{from, to, images, confidence, accuracy}]}
      worst        [{image, label, predicted, confidence}]; image: a file's path, or its row
    """
    if (model is None) == (server is None):
        raise click.UsageError("give either MODEL or --server HOST:PORT")
    if server is not None:
        if options["report"] is not None or options["report_images"]:
            raise click.UsageError("--report draws what is in a model: give MODEL, not --server")
        if options["threads"] is not None:
            raise click.UsageError("--threads is for MODEL: the server has its own")
        with Connection(server, model_name, options["batch_size"]) as classifier:
            _judge(Candidate.served(classifier), as_json, options)
        return
    if model_name is not None:
        raise click.UsageError("--model-name goes with --server")
    assert model is not None
    report = Report.asked_for(options)
    loaded = convserve.load(model, threads=options["threads"])
    if report is not None and loaded.preprocessing is not None:
        report.decode(loaded.preprocessing)

    def draw(data: Dataset, images: Split, judged: Judged) -> None:
        if report is not None:
            about = (data.name, options["split"], data.labels, images, judged)
            report.write(Subject(model.name, loaded, *about), err=as_json)

    _judge(Candidate.of(loaded, str(model)), as_json, options, draw)


def _judge(
    candidate: Candidate,
    as_json: bool,
    options: dict[str, Any],
    draw: Callable[[Dataset, Split, Judged], None] = lambda *_: None,
) -> None:
    source = JudgedImages(options, [candidate])
    data, images = source.of(candidate)
    judged = answers(candidate, images, options)
    figures = evaluate(data.labels, images, judged)
    if as_json:
        head = {"model": candidate.name, "data": data.name}
        told = {name: options[name] for name in ("split", "tta")}
        held_out = None if source.held_out is None else asdict(source.held_out)
        click.echo(json.dumps({**head, **told, "held_out": held_out, **figures}, indent=2))
    else:
        _print(
            figures, f"{Path(candidate.name).name} on the {options['split']} images of {data.name}"
        )
    draw(data, images, judged)
    if not as_json:
        click.echo(f"accuracy {100 * figures['accuracy']:.2f} %")


def evaluate(labels: tuple[str, ...], images: Split, judged: Judged) -> dict[str, Any]:
    """The figures of `--json`, of JSON's types."""
    right = judged.rank == 0
    confusion = metrics.confusion_matrix(images.y, judged.predicted, len(labels))
    precision, recall = metrics.precision_recall(confusion)
    whole = len(labels) <= MATRIX
    bins = metrics.calibration(judged.confidence, right)
    edges = np.linspace(0, 1, len(bins.images) + 1).round(6).tolist()
    return {
        "images": len(images),
        "correct": int(right.sum()),
        "accuracy": judged.top(1),
        "top5": judged.top(5) if len(labels) > 5 else None,
        "classes": [
            {
                "label": label,
                "images": int(confusion[k].sum()),
                "predicted": int(confusion[:, k].sum()),
                "correct": int(confusion[k, k]),
                "precision": _number(precision[k]),
                "recall": _number(recall[k]),
            }
            for k, label in enumerate(labels)
        ],
        # Of the million cells that a thousand classes have, nearly all are 0.
        "confusion": confusion.tolist() if whole else None,
        "confusion_cells": None if whole else metrics.cells(confusion).tolist(),
        "confused": [
            {"label": labels[y], "predicted": labels[p], "images": count}
            for y, p, count in metrics.confused_pairs(confusion, LISTED)
        ],
        "calibration": {
            "error": bins.error,
            "bins": [
                {
                    "from": low,
                    "to": high,
                    "images": int(bins.images[b]),
                    "confidence": _number(bins.confidence[b]),
                    "accuracy": _number(bins.accuracy[b]),
                }
                for b, (low, high) in enumerate(pairwise(edges))
            ],
        },
        "worst": [
            {
                "image": images.place(row),
                "label": labels[images.y[row]],
                "predicted": labels[judged.predicted[row]],
                "confidence": float(judged.confidence[row]),
            }
            for row in metrics.worst_errors(judged, LISTED).tolist()
        ],
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _print(figures: dict[str, Any], title: str) -> None:
    from rich.table import Table

    out, names = console(), [printable(row["label"]) for row in figures["classes"]]
    out.print(printable(title), soft_wrap=True)
    table = Table()
    table.add_column("class")
    for header in ("images", "correct", "recall", "precision"):
        table.add_column(header, justify="right")
    for name, row in zip(names, figures["classes"], strict=True):
        counts = (f"{row[key]:,}" for key in ("images", "correct"))
        table.add_row(name, *counts, _percent(row["recall"]), _percent(row["precision"]))
    out.print(table)
    if figures["confused"]:
        if len(names) <= SHOWN:
            out.print("confusion matrix: right classes down, answers across")
            out.print(_matrix(figures, names))
        else:
            out.print("most confused")
            out.print(_pairs(figures))
        out.print("wrong with the highest confidence")
        out.print(_worst(figures["worst"][:SHOWN]))
    click.echo(f"expected calibration error {100 * figures['calibration']['error']:.2f} %")
    if figures["top5"] is not None:
        click.echo(f"top-5 accuracy {100 * figures['top5']:.2f} %")


def _matrix(figures: dict[str, Any], names: list[str]) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for name, row in zip(names, figures["confusion"], strict=True):
        table.add_row(name, *(f"{count:,}" if count else "·" for count in row))
    return table


def _pairs(figures: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("right class")
    table.add_column("answer")
    table.add_column("images", justify="right")
    for row in figures["confused"][:SHOWN]:
        table.add_row(printable(row["label"]), printable(row["predicted"]), f"{row['images']:,}")
    return table


def _worst(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table()
    for header in ("image", "right class", "answer"):
        table.add_column(header, overflow="fold")
    table.add_column("confidence", justify="right")
    for row in rows:
        words = (printable(str(row[key])) for key in ("image", "label", "predicted"))
        table.add_row(*words, _percent(row["confidence"]))
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"
