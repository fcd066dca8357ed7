"""Drawings of a model's figures, as PNG bytes. Violet is right, orange is wrong or compared with.

Matplotlib is imported by the call that draws, without pyplot: no display, no figures kept. It
draws as we say, whatever a user's own settings are.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convserve.training.metrics import Calibration
from convserve.training.progress import EpochRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "FEW", "Curves", "Mistake", "calibration_plot", "class_scores", "confusion_plot",
    "learning_curves", "mistakes_grid",
]  # fmt: skip

MAIN, ACCENT, INK, SOFT, LINE = "#4c3a8f", "#d9541e", "#212529", "#5c636a", "#dfe3e8"
PALE = "#c3bbdf"
HALF, WIDE = 4.9, 10.6  # inches; 100 of the page's pixels each
THIRD, GAP = 3.8, 0.16  # two such and a smaller one fill a row of the page
DPI = 200
NAMED = 30  # classes up to which an axis names them
FEW = 10  # images; a share of fewer says little
SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": LINE,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": SOFT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": "#eef0f3",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.color": LINE,
    "ytick.labelcolor": SOFT,
}


class Mistake(NamedTuple):
    """An image, uint8 [C, H, W] with C 1 or 3, what it is, what it was taken for, how surely."""

    pixels: NDArray[np.uint8]
    label: str
    predicted: str
    confidence: float


class Curves(NamedTuple):
    """One picture each, so that a narrow page can put them below each other."""

    loss: bytes
    accuracy: bytes
    rate: bytes


def learning_curves(history: Sequence[EpochRecord], chosen: int, test: float | None) -> Curves:
    """Loss, accuracies and learning rate by epoch. chosen: the epoch of the model; test: its
    accuracy on the test images, 0 to 1."""
    epochs = [record.epoch for record in history]
    line = {"marker": "o" if len(history) <= 20 else "", "markersize": 4, "clip_on": False}

    @contextmanager
    def by_epoch(title: str, width: float) -> Iterator[tuple[Any, Callable[[], bytes]]]:
        with _figure(width, 2.9) as (figure, png):
            axes = figure.subplots()
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            if chosen != len(history):
                axes.axvline(chosen, color=LINE, linestyle="--", zorder=0)
            yield axes, png

    with by_epoch("training loss", THIRD) as (axes, png):
        axes.plot(epochs, [r.loss for r in history], color=MAIN, **line)
        axes.set_ylim(bottom=0)
        loss = png()
    with by_epoch("accuracy, %", THIRD) as (axes, png):
        trained = [100 * r.train_accuracy for r in history]
        axes.plot(epochs, trained, color=MAIN, label="training", **line)
        known = [(r.epoch, 100 * v) for r in history if (v := r.validation_accuracy) is not None]
        if known:
            x, y = zip(*known, strict=True)
            axes.plot(x, y, color=ACCENT, label="validation", **line)
        if test is not None:
            axes.plot([chosen], [100 * test], "D", color=INK, markersize=6, label="test, once")
        axes.legend(loc="best")
        accuracy = png()
    with by_epoch("learning rate", WIDE - 2 * THIRD - 2 * GAP) as (axes, png):
        axes.plot(epochs, [r.lr for r in history], color=SOFT, **line)
        axes.set_ylim(bottom=0)
        rate = png()
    return Curves(loss, accuracy, rate)


def confusion_plot(confusion: NDArray[np.int64], labels: Sequence[str]) -> bytes:
    """Rows are right classes, columns answers; mistakes have a scale of their own, so that a few
    among thousands are seen."""
    count = len(labels)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    wrong = share * (1 - np.eye(count))
    strength = np.sqrt(wrong / max(float(wrong.max()), 1e-12))
    right, mistake = _mix(MAIN, share), _mix(ACCENT, 0.85 * strength)
    colours = np.where(np.eye(count, dtype=bool)[..., None], right, mistake)
    with _figure(HALF, HALF * 0.94) as (figure, png):
        axes = figure.subplots()
        axes.imshow(colours, interpolation="nearest")
        axes.set(xlabel="answer", ylabel="right class")
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        if count <= NAMED:
            names = [_short(label) for label in labels]
            turned = 90 if max(map(len, names)) > 2 else 0
            axes.set_xticks(range(count), names, rotation=turned)
            axes.set_yticks(range(count), names)
            for edge in np.arange(count - 1) + 0.5:
                axes.axhline(edge, color=LINE, linewidth=0.5)
                axes.axvline(edge, color=LINE, linewidth=0.5)
            size = 8 if count <= 12 else 5
            for row, column in np.argwhere(confusion).tolist():
                dark = share[row, row] > 0.5 if row == column else strength[row, column] > 0.9
                axes.text(
                    column, row, f"{confusion[row, column]}", color="white" if dark else INK,
                    ha="center", va="center_baseline", fontsize=size,
                )  # fmt: skip
        return png()


def class_scores(
    precision: NDArray[np.float64], recall: NDArray[np.float64], labels: Sequence[str]
) -> bytes:
    """Recall and precision of each class, or of the classes of many whose recall is lowest."""
    order = np.arange(len(labels))
    if len(labels) > NAMED:
        order = np.argsort(np.nan_to_num(recall, nan=2.0), kind="stable")[:NAMED]
    places = np.arange(len(order))
    with _figure(HALF, max(1.6, min(HALF * 0.94, 0.8 + 0.36 * len(order)))) as (figure, png):
        axes = figure.subplots()
        found, exact = 100 * recall[order], 100 * precision[order]
        axes.hlines(places, found, exact, color=LINE, linewidth=3, zorder=1)
        # A ring, so that it is seen around a recall that is as high.
        ring = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 2}
        axes.plot(exact, places, "o", color=ACCENT, label="precision", **ring)
        axes.plot(found, places, "o", color=MAIN, markersize=5, label="recall")
        axes.set_yticks(places, [_short(labels[k]) for k in order.tolist()])
        axes.tick_params(axis="y", length=0)
        lowest = np.nanmin(np.concatenate([found, exact]))
        low = max(0.0, 5 * np.floor(lowest / 5)) if lowest < 95 else min(np.floor(lowest), 99)
        room = (100 - low) / 30 + 0.05
        axes.set(xlim=(low - room, 100 + room), xlabel="%", ylim=(len(order) - 0.5, -0.5))
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0)
        return png()


def calibration_plot(bins: Calibration) -> bytes:
    """Accuracy by confidence beside the diagonal, and how many images are how sure; bars of few
    images are pale."""
    width = 100 / len(bins.images)
    middles = (np.arange(len(bins.images)) + 0.5) * width
    with _figure(HALF, HALF * 0.82) as (figure, png):
        above, below = figure.subplots(2, 1, height_ratios=(3.2, 1), sharex=True)
        colours = [MAIN if images >= FEW else PALE for images in bins.images.tolist()]
        above.bar(middles, 100 * np.nan_to_num(bins.accuracy), 0.9 * width, color=colours)
        above.plot([0, 100], [0, 100], color=ACCENT, linestyle="--", label="as sure as right")
        above.set(ylabel="accuracy, %", ylim=(0, 103), xlim=(0, 100))
        above.legend(loc="lower left", bbox_to_anchor=(0, 1), borderpad=0)
        below.bar(middles, bins.images, 0.9 * width, color=SOFT)
        below.set(xlabel="confidence, %", ylabel="images", yscale="symlog")
        below.set_ylim(0, 12 * max(1, int(bins.images.max())))
        below.set_yticks([])
        for x, images in zip(middles, bins.images.tolist(), strict=True):
            if images:
                below.text(x, 1.25 * images, f"{images}", ha="center", color=SOFT, fontsize=7.5)
        return png()


def mistakes_grid(mistakes: Sequence[Mistake], across: int) -> bytes:
    """Each image over what it is, and what it was taken for."""
    across = max(1, min(across, len(mistakes)))
    down = -(-len(mistakes) // across)
    side = WIDE / max(across, 10 if across > 5 else 5)  # inches of a column
    text = 0.42  # inches under an image
    with _figure(side * across, (side + text) * down) as (figure, png):
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, side * across), ylim=((side + text) * down, 0), aspect="auto")
        axes.set_axis_off()
        for number, mistake in enumerate(mistakes):
            row, column = divmod(number, across)
            left, top, edge = column * side, row * (side + text), 0.9 * side
            _place(axes, mistake.pixels, left, top, edge)
            room = int(13 * edge)
            axes.text(left, top + edge + 0.17, f"is {_short(mistake.label, room)}", fontsize=8.5)
            sure = f", {100 * mistake.confidence:.0f} %"
            axes.text(
                left, top + edge + 0.34, f"said {_short(mistake.predicted, room - 5)}{sure}",
                fontsize=8.5, color=ACCENT,
            )  # fmt: skip
        return png()


def _place(axes: Axes, pixels: NDArray[np.uint8], left: float, top: float, edge: float) -> None:
    """An image as large as fits a square, every pixel as it is."""
    _, height, width = pixels.shape
    across, down = edge * width / max(height, width), edge * height / max(height, width)
    shown = np.broadcast_to(pixels.transpose(1, 2, 0), (height, width, 3))
    axes.imshow(
        shown, extent=(left, left + across, top + down, top), interpolation="nearest",
        aspect="auto",
    )  # fmt: skip


@contextmanager
def _figure(width: float, height: float) -> Iterator[tuple[Any, Callable[[], bytes]]]:
    """A figure, inches, and what makes it a PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a class's name in another script
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        figure = Figure(figsize=(width, height))

        def png() -> bytes:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
            return buffer.getvalue()

        yield figure, png


def _mix(colour: str, share: NDArray[np.float64]) -> NDArray[np.float64]:
    """White at 0, the colour at 1: [...] to [..., 3], 0 to 1."""
    full = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    mixed: NDArray[np.float64] = 1 - share[..., None] * (1 - full)
    return mixed


def _short(label: str, most: int = 20) -> str:
    return label if len(label) <= most else f"{label[: max(1, most - 1)]}…"
