"""`--report DIR` of `train` and `eval`: what the model makes of the images, as one page."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click
import numpy as np
from numpy.typing import NDArray

from convserve.cli._common import printable
from convserve.cli._feature_maps import mapped_layers
from convserve.datasets import Split
from convserve.engine.model import Model
from convserve.feature_maps import draw
from convserve.graph import summarise
from convserve.images import to_pixels
from convserve.preprocessing import Preprocessing
from convserve.training import EpochRecord, metrics
from convserve.training.metrics import Judged
from convserve.training.report import Page, Picture, Section, check_ready, figures, pictures, write

__all__ = ["Report", "Run", "Subject", "report_options"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Pixels = NDArray[np.uint8]
Value = TypeVar("Value", bound=np.generic)
SMALL = 64  # pixels; of larger images fewer errors are shown, in larger squares
TOLD = ("command", "arch", "init", "data", "images", "epoch", "seed", "date", "convserve")


def report_options(command: Decorated) -> Decorated:
    """`--report DIR` and `--report-image FILE`, as `report` and `report_images`."""
    options = [
        click.option(
            "--report",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Draw what the model is good and bad at into this folder: DIR/index.html, and PNG "
            "files. Replaces an earlier report. Needs convserve[plots].",
        ),
        click.option(
            "--report-image",
            "report_images",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            multiple=True,
            metavar="FILE",
            help="An image whose feature maps the report shows. Repeat it.  [default: a right "
            "answer and the worst wrong one]",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


class Subject(NamedTuple):
    """A model, the images that it was asked about (`part` of the data set `data`), its answers."""

    name: str
    model: Model
    data: str
    part: str
    labels: tuple[str, ...]
    images: Split
    judged: Judged

    def drawn(self, channels: NDArray[Value]) -> NDArray[Value]:
        """Channels of an image, or of filters, as pictures have them."""
        preprocessing = self.model.preprocessing
        return channels if preprocessing is None else preprocessing.as_drawn(channels)


class Run(NamedTuple):
    """How the model came about: its epochs, which it is of, its accuracy on test images."""

    history: Sequence[EpochRecord]
    epoch: int
    test: float | None
    seconds: float


class _Shown(NamedTuple):
    """An image whose feature maps are drawn."""

    caption: str
    pixels: Pixels


class Report:
    """A report that was asked for, to be written when there is something to tell."""

    def __init__(self, folder: Path, images: Sequence[Path]) -> None:
        """Raises ReportError now for what would fail then."""
        check_ready(folder)
        self.folder = folder
        self._paths = images
        self._chosen: list[_Shown] = []

    @classmethod
    def asked_for(cls, options: dict[str, Any], suffix: str = "") -> Report | None:
        """As the options of `report_options` say. suffix: of the folder's name."""
        folder, images = options["report"], options["report_images"]
        if folder is None:
            if images:
                raise click.UsageError("--report-image is for --report")
            return None
        return cls(folder.with_name(folder.name + suffix) if suffix else folder, images)

    def decode(self, preprocessing: Preprocessing) -> None:
        """Read the images whose feature maps are wanted; ImageError for one that can't be."""
        self._chosen = [_Shown(path.name, to_pixels(path, preprocessing)) for path in self._paths]

    def write(self, subject: Subject, run: Run | None = None, err: bool = False) -> None:
        """Draw and write all of it, and say so, on standard error if err."""
        sections = [
            *([] if run is None else [_curves(run)]),
            *_confusion(subject),
            _calibration(subject),
            *_filters(subject),
            _worst(subject),
            _maps(subject, self._chosen or _examples(subject)),
        ]
        count, labels = len(subject.images), len(subject.labels)
        page = Page(
            printable(subject.name),
            printable(f"{count:,} {subject.part} images of {subject.data}, {labels} classes"),
            _tiles(subject, run),
            sections,
            _details(subject.model),
        )
        files = write(self.folder, page)
        click.echo(printable(f"wrote {files[-1]}: a report of {len(sections)} parts"), err=err)


def _tiles(subject: Subject, run: Run | None) -> list[tuple[str, str]]:
    judged, rows = subject.judged, summarise(subject.model.graph)
    wrong = int((judged.rank > 0).sum())
    bins = metrics.calibration(judged.confidence, judged.rank == 0)
    tiles = [("accuracy", f"{100 * judged.top(1):.2f} %"), ("wrong answers", f"{wrong:,}")]
    if len(subject.labels) > 5:
        tiles.append(("top-5 accuracy", f"{100 * judged.top(5):.2f} %"))
    tiles += [
        ("calibration error", f"{100 * bins.error:.2f} %"),
        ("parameters", _count(sum(row.parameters for row in rows))),
        ("multiply-adds", _count(sum(row.macs for row in rows))),
    ]
    if run is not None:
        tiles.append(("training time", _clock(run.seconds)))
    return tiles


def _curves(run: Run) -> Section:
    last = run.history[-1]
    best = "" if run.epoch == len(run.history) else f" The model is that of epoch {run.epoch}."
    curves = figures.learning_curves(run.history, run.epoch, run.test)
    over = f"over {last.epoch} epochs; it ends at"
    accuracy = f"{100 * last.train_accuracy:.2f} % of the training images"
    return Section(
        "Learning curves",
        "Training figures are taken on the fly, from augmented images, while the network changes."
        + best,
        [
            Picture("loss", curves.loss, f"Training loss {over} {last.loss:.4f}."),
            Picture("accuracy", curves.accuracy, f"Accuracy {over} {accuracy}."),
            Picture("learning-rate", curves.rate, f"Learning rate {over} {last.lr:.3g}."),
        ],
        wide=True,
        row=True,
    )


def _confusion(subject: Subject) -> list[Section]:
    labels = [printable(label) for label in subject.labels]
    confusion = metrics.confusion_matrix(subject.images.y, subject.judged.predicted, len(labels))
    precision, recall = metrics.precision_recall(confusion)
    pairs = [
        f"{labels[y]} taken for {labels[p]} ({count:,})"
        for y, p, count in metrics.confused_pairs(confusion, 3)
    ]
    told = f"Most frequent: {', '.join(pairs)}." if pairs else "There is no mistake."
    known = np.flatnonzero(np.isfinite(recall))
    weakest = known[np.argmin(recall[known])]
    least = f"Least found: {labels[weakest]}, {100 * recall[weakest]:.1f} % of its images."
    return [
        Section(
            "Confusion matrix",
            f"Mistakes, orange, have a colour scale of their own. {told}",
            [Picture("confusion-matrix", figures.confusion_plot(confusion, labels), told)],
        ),
        Section(
            "Scores by class",
            "Recall: the share of a class's images that is found. Precision: the share of the "
            f"answers with it that is right. {least}",
            [Picture("class-scores", figures.class_scores(precision, recall, labels), least)],
        ),
    ]


def _calibration(subject: Subject) -> Section:
    bins = metrics.calibration(subject.judged.confidence, subject.judged.rank == 0)
    png = figures.calibration_plot(bins)
    error = f"{100 * bins.error:.2f} %"
    return Section(
        "Calibration",
        "Bars on the line are answers that are right as often as the model is sure. Below it, it "
        f"is too sure; pale bars are of fewer than {figures.FEW} images. The mean difference over "
        f"all images is {error}.",
        [Picture("calibration", png, f"Accuracy by confidence; mean difference {error}.")],
    )


def _filters(subject: Subject) -> list[Section]:
    found = pictures.first_filters(subject.model.graph, subject.model.params)
    if found is None:
        return []
    count, channels, height, width = found.weight.shape
    shown = min(count, pictures.MOST)
    text = (
        "Each in its own colours, as it looks at red, green and blue."
        if channels == 3
        else "Violet weights are negative, orange ones positive, white ones near zero."
    )
    what = f"{count} filters of {height}×{width}" + ("" if shown == count else f", first {shown}")
    png = pictures.draw_filters(subject.drawn(found.weight))
    return [
        Section(
            "First-layer filters",
            printable(f"{found.layer}: {what}. {text}"),
            [Picture("filters", png, printable(f"{shown} filters of {found.layer} as squares."))],
        )
    ]


def _worst(subject: Subject) -> Section:
    large = max(subject.images.x.shape[2:]) > SMALL
    rows = metrics.worst_errors(subject.judged, 10 if large else 20).tolist()
    mistakes = [_mistake(subject, row) for row in rows]
    if not mistakes:
        return Section("Worst errors", "Every answer is right.", wide=True)
    told = [f"{m.label} taken for {m.predicted}" for m in mistakes[:5]]
    drawn = [m._replace(pixels=subject.drawn(m.pixels)) for m in mistakes]
    png = figures.mistakes_grid(drawn, 5 if large else 10)
    return Section(
        "Worst errors",
        "Wrong with the highest confidence: what the image is, and what the model said.",
        [Picture("worst-errors", png, f"{len(mistakes)} images: {', '.join(told)}, …")],
        wide=True,
    )


def _mistake(subject: Subject, row: int) -> figures.Mistake:
    return figures.Mistake(
        subject.images.x[row],
        printable(subject.labels[subject.images.y[row]]),
        printable(subject.labels[subject.judged.predicted[row]]),
        float(subject.judged.confidence[row]),
    )


def _examples(subject: Subject) -> list[_Shown]:
    """The first image with a right answer, and the worst error, where there are such."""
    judged = subject.judged
    shown = []
    for row in (*np.flatnonzero(judged.rank == 0)[:1], *metrics.worst_errors(judged, 1)):
        one = _mistake(subject, int(row))
        answer = f"it is {one.label}, the answer is {one.predicted}, {100 * one.confidence:.1f} %"
        shown.append(_Shown(answer, one.pixels))
    return shown


def _maps(subject: Subject, chosen: Sequence[_Shown]) -> Section:
    names = mapped_layers(subject.model.graph)
    drawn = []
    for number, one in enumerate(chosen, 1):
        maps = subject.model.predict(one.pixels[None], names)
        assert isinstance(maps, dict)
        picture = draw(subject.drawn(one.pixels), {n: maps[n][0] for n in names}, subject.labels)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        alt = f"Feature maps of {one.caption}, layer by layer: {', '.join(names)}."
        drawn.append(
            Picture(
                f"feature-maps-{number}", buffer.getvalue(), printable(alt),
                printable(one.caption), scale=1,
            )
        )  # fmt: skip
    return Section(
        "Feature maps",
        "What each layer makes of an image, dark for the layer's lowest value, bright for its "
        "highest; every square is one output.",
        drawn,
        wide=True,
    )


def _details(model: Model) -> list[tuple[str, str]]:
    told = [(name, model.provenance[name]) for name in TOLD if name in model.provenance]
    named = {"images": "training images", "date": "made", "convserve": "convserve version"}
    details = [(named.get(name, name), printable(value)) for name, value in told]
    channels, height, width = model.input_shape
    return [*details, ("input", f"{channels}×{height}×{width}")]


def _count(number: int) -> str:
    """Exact up to a million."""
    for unit, size in (("G", 10**9), ("M", 10**6)):
        if number >= size:
            return f"{number / size:,.2f} {unit}"
    return f"{number:,}"


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
