"""`convserve eval`: how often a model is right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

import convserve
from convserve import datasets
from convserve.cli._common import model_argument, printable, threads_option
from convserve.cli._training import cache_choice, folder_options, image_size_option
from convserve.datasets import Dataset, Split
from convserve.engine.model import Model
from convserve.errors import DatasetError
from convserve.graph import layers
from convserve.training.tta import TTA, predict_views

VALIDATION = 0.1


@click.command()
@model_argument
@click.option(
    "--data",
    "spec",
    metavar="SPEC",
    help="mnist:DIR, cifar10:DIR, folder:DIR or npz:FILE, as `train` takes it.  "
    "[default: the embedded sample of MNIST]",
)
@click.option(
    "--split",
    type=click.Choice(["test", "train", "validation"]),
    default="test",
    show_default=True,
    help="Which of its images.",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True)
@click.option(
    "--validation",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    metavar="SHARE",
    help=f"Of --split train and validation, as it was given to `train`.  [default: {VALIDATION} "
    "for validation, none for train]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Of the same.  [default: 0]")
@image_size_option("N or HxW, of a folder's images.  [default: the model's own]")
@folder_options
@click.option(
    "--tta",
    type=click.Choice(TTA),
    default="none",
    show_default=True,
    help="Test-time augmentation: average over mirrored and moved views of each image; shift alone "
    "for digits and letters.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead.")
@threads_option
def command(
    model: Path,
    spec: str | None,
    split: str,
    batch_size: int,
    validation: float | None,
    seed: int,
    image_size: tuple[int, int] | None,
    cache: Path | None,
    no_cache: bool,
    skip_bad_files: bool,
    tta: str,
    as_json: bool,
    threads: int | None,
) -> None:
    """Measure a model's accuracy on a data set.

    Prints, for each class, how many of its images MODEL (an .npz file) puts first in the right
    class, and last the share over all images. The images are the data set's raw pixels, which the
    model normalises itself; images of a folder are resized to the model's input.

    \b
    Keys of --json:
      model, data, split, tta, images, correct, accuracy (0 to 1),
      classes [{label, images, correct, accuracy}]
    """
    loaded = convserve.load(model, threads=threads)
    if split == "validation" and validation is None:
        validation = VALIDATION
    if image_size is None and spec is not None and spec.startswith("folder:"):
        image_size = (loaded.input_shape[1], loaded.input_shape[2])
    recipe = _recipe(loaded) if spec is not None and spec.startswith("folder:") else None
    data = datasets.load(
        spec,
        validation=validation,
        seed=seed,
        image_size=image_size,
        recipe=recipe,
        cache=cache_choice(cache, no_cache),
        skip_bad_files=skip_bad_files,
    )
    images: Split | None = getattr(data, split)
    if images is None:
        raise DatasetError(f"{data.name} has no {split} images; choose another --split")
    _check_fit(loaded, data)
    predicted = _predict(loaded, images, batch_size, tta)
    report = _report(data.labels, images.y, predicted)
    if as_json:
        head = {"model": str(model), "data": data.name, "split": split, "tta": tta}
        click.echo(json.dumps({**head, **report}, indent=2))
        return
    _print_table(report, f"{model.name} on the {split} images of {data.name}")
    click.echo(f"accuracy {100 * report['accuracy']:.2f} %")


def _recipe(model: Model) -> dict[str, Any] | None:
    """How the model has its images brought to their size, where it is not told another size."""
    told = model.preprocessing
    if told is None:
        return None
    return {"resize": told.resize, "interpolation": told.interpolation, "exif": told.exif}


def _check_fit(model: Model, data: Dataset) -> None:
    """A model and data of different meaning would give a wrong figure without an error."""
    if model.preprocessing is None:
        raise DatasetError("the model has no preprocessing, so raw pixels can't be given to it")
    if model.input_shape != data.input_shape:
        raise DatasetError(
            f"the model takes images of {model.input_shape} (channels, height, width), "
            f"those of {data.name} are {data.input_shape}"
        )
    if model.labels is not None and tuple(model.labels) != data.labels:
        raise DatasetError(
            f"the model's classes are {_some(model.labels)}, those of {data.name} are "
            f"{_some(data.labels)}"
        )
    if len(model.output_names) != 1:
        raise DatasetError(
            f"the model has {len(model.output_names)} outputs; eval needs exactly one"
        )
    (output,) = model.graph.outputs.values()
    if model.graph.shape(output) != (len(data.labels),):
        raise DatasetError(
            f"the model gives {'×'.join(map(str, model.graph.shape(output)))} scores an image, "
            f"{data.name} has {len(data.labels)} classes"
        )


def _predict(model: Model, images: Split, batch_size: int, tta: str) -> NDArray[np.int64]:
    predicted = np.empty(len(images), np.int64)
    (output,) = model.graph.outputs.values()
    probabilities = isinstance(model.graph.node(output).op, layers.Softmax)

    def predict(x: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores = model.predict(x)
        assert isinstance(scores, np.ndarray)  # one output
        return scores

    for start in range(0, len(images), batch_size):
        x = images.x[start : start + batch_size]
        scores = predict_views(predict, x, tta, probabilities)
        predicted[start : start + batch_size] = scores.argmax(axis=1)
    return predicted


def _report(
    labels: Sequence[str], y: NDArray[np.int64], predicted: NDArray[np.int64]
) -> dict[str, Any]:
    totals = np.bincount(y, minlength=len(labels))
    rights = np.bincount(y[predicted == y], minlength=len(labels))
    return {
        "images": len(y),
        "correct": int(rights.sum()),
        "accuracy": float(rights.sum() / len(y)),
        "classes": [
            {
                "label": label,
                "images": int(total),
                "correct": int(right),
                "accuracy": float(right / total) if total else None,
            }
            for label, total, right in zip(labels, totals, rights, strict=True)
        ],
    }


def _print_table(report: dict[str, Any], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=printable(title), title_justify="left")
    table.add_column("class")
    for header in ("images", "correct", "accuracy"):
        table.add_column(header, justify="right")
    for row in report["classes"]:
        share = "" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f} %"
        label = printable(row["label"])
        table.add_row(label, f"{row['images']:,}", f"{row['correct']:,}", share)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 250  # in a pipe there is no width to keep to
    console.print(table)


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:10]) + (f", … ({len(labels)})" if len(labels) > 10 else "")
