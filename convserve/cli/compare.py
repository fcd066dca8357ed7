"""`convserve compare`: what changes for whom when one model replaces another."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

import convserve
from convserve.cli._candidates import Candidate
from convserve.cli._common import printable
from convserve.cli._judging import JudgedImages, answers, console, judging_options, some
from convserve.datasets import Split
from convserve.errors import DatasetError
from convserve.training import metrics
from convserve.training.metrics import Judged

if TYPE_CHECKING:
    from rich.table import Table

SHOWN = 10  # images and classes in the tables; the JSON has all

_MODEL = click.Path(path_type=Path)


@click.command()
@click.argument("old", type=_MODEL)
@click.argument("new", type=_MODEL)
@judging_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
def command(old: Path, new: Path, as_json: bool, **options: Any) -> None:
    """Say what changes when one model replaces another.

    Gives both OLD and NEW (.npz files) the same images, and prints their accuracies, how many
    images only one of them gets right, how often their answers agree, the classes and the images
    that change, and McNemar's p-value: how likely a difference as large is if neither is better.
    Below 0.05 it is usually taken as real. --split validation takes the images that were held out
    of the training of both; where these differ, the choice is yours.

    \b
    Keys of --json:
      data, split, tta, images, agreement (0 to 1), p_value,
      held_out  {share, seed} of the validation images; null without any
      old, new  {model, correct, accuracy}
      lost      images that only OLD gets right
      won       images that only NEW gets right
      classes   [{label, images, old, new, lost, won}], old and new: how many are right
      changed   [{image, label, old, new}], the answers; image: a file's path, or its row
    """
    models = [
        Candidate.of(convserve.load(path, threads=options["threads"]), str(path))
        for path in (old, new)
    ]
    _check_alike(*models)
    source, judged = JudgedImages(options, models), []
    for model in models:
        data, images = source.of(model)
        judged.append(answers(model, images, options))
    if len(judged[0].rank) != len(judged[1].rank):
        raise DatasetError(
            f"the models see {len(judged[0].rank)} and {len(judged[1].rank)} images of {data.name}"
        )
    figures = {
        "data": data.name,
        **{name: options[name] for name in ("split", "tta")},
        "held_out": None if source.held_out is None else asdict(source.held_out),
        **contrast(data.labels, images, *judged),
    }
    for key, model in zip(("old", "new"), models, strict=True):
        figures[key] = {"model": model.name, **figures[key]}
    if as_json:
        click.echo(json.dumps(figures, indent=2))
    else:
        _print(figures)


def contrast(labels: tuple[str, ...], images: Split, old: Judged, new: Judged) -> dict[str, Any]:
    """The figures of `--json`, of JSON's types."""
    had, has = old.rank == 0, new.rank == 0
    lost, won = had & ~has, has & ~had
    changed = np.flatnonzero(old.predicted != new.predicted)

    def by_class(which: NDArray[np.bool_]) -> list[int]:
        counts: list[int] = np.bincount(images.y[which], minlength=len(labels)).tolist()
        return counts

    columns = map(by_class, (np.ones_like(had), had, has, lost, won))
    return {
        "images": len(images),
        "old": {"correct": int(had.sum()), "accuracy": old.top(1)},
        "new": {"correct": int(has.sum()), "accuracy": new.top(1)},
        "lost": int(lost.sum()),
        "won": int(won.sum()),
        "agreement": 1 - len(changed) / len(images),
        "p_value": metrics.mcnemar(int(lost.sum()), int(won.sum())),
        "classes": [
            dict(zip(("label", "images", "old", "new", "lost", "won"), row, strict=True))
            for row in zip(labels, *columns, strict=True)
        ],
        "changed": [
            {
                "image": images.place(row),
                "label": labels[images.y[row]],
                "old": labels[old.predicted[row]],
                "new": labels[new.predicted[row]],
            }
            for row in changed.tolist()
        ],
    }


def _check_alike(old: Candidate, new: Candidate) -> None:
    if old.labels is not None and new.labels is not None and old.labels != new.labels:
        where = next(
            (k for k, (a, b) in enumerate(zip(old.labels, new.labels, strict=False)) if a != b),
            min(len(old.labels), len(new.labels)),
        )
        raise DatasetError(
            f"the models' classes differ, first at number {where}: the old one's are "
            f"{some(old.labels)}, the new one's {some(new.labels)}"
        )


def _print(figures: dict[str, Any]) -> None:
    from rich.table import Table

    out = console()
    table = Table()
    for header in ("class", "images", "old", "new", "lost", "won"):
        table.add_column(header, justify="left" if header == "class" else "right")
    # Of many classes those that change most; the order of the others is the data's.
    rows = figures["classes"]
    if len(rows) > SHOWN:
        rows = sorted(rows, key=lambda row: -row["lost"] - row["won"])[:SHOWN]
    for row in rows:
        counts = (f"{row[key]:,}" for key in ("images", "old", "new", "lost", "won"))
        table.add_row(printable(row["label"]), *counts)
    title = f"right answers on the {figures['split']} images of {figures['data']}"
    out.print(printable(title), soft_wrap=True)
    out.print(table)
    if count := len(figures["changed"]):
        out.print(f"answers that change ({min(SHOWN, count)} of {count:,})")
        out.print(_changed(figures["changed"]))
    for key in ("old", "new"):
        click.echo(
            f"{key} accuracy {100 * figures[key]['accuracy']:.2f} %  "
            f"{printable(figures[key]['model'])}"
        )
    click.echo(f"agreement {100 * figures['agreement']:.2f} %")
    click.echo(
        f"right to wrong {figures['lost']:,}, wrong to right {figures['won']:,}, "
        f"p = {figures['p_value']:.2g} (McNemar, exact)"
    )


def _changed(rows: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table()
    for header in ("image", "right class", "old", "new"):
        table.add_column(header, overflow="fold")
    for row in rows[:SHOWN]:
        table.add_row(*(printable(str(row[key])) for key in ("image", "label", "old", "new")))
    return table
