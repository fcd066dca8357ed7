"""Reports as files: whole or not at all; and figures of whatever a model may come to."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convserve.errors import ReportError
from convserve.graph import architectures
from convserve.training import EpochRecord, metrics
from convserve.training.report import Page, Picture, Section, figures, pictures, write
from convserve.training.report.page import html

DOT = pictures.draw_filters(np.ones((1, 1, 2, 2), np.float32))
PAGE = Page("a <b>", "c & d", [("e", "f")], [Section("g", "h", [Picture("i", DOT, "j")])], [])


def test_an_older_report_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    folder.mkdir()  # an empty folder is as good as none
    files = write(folder, PAGE)
    assert [path.name for path in files] == ["i.png", "index.html"]
    other = PAGE._replace(sections=[Section("g", "h", [Picture("k", DOT, "l")])])
    write(folder, other)
    assert sorted(path.name for path in folder.iterdir()) == ["index.html", "k.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report"]
    (folder / "own.png").write_bytes(b"")
    with pytest.raises(ReportError, match="something else than a report"):
        write(folder, PAGE)
    assert (folder / "own.png").exists()


@pytest.mark.parametrize("method", ["write_bytes", "rename"])
def test_a_fault_leaves_the_older_report_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    folder = tmp_path / "report"
    write(folder, PAGE)
    before = (folder / "index.html").read_bytes()
    real, calls = getattr(Path, method), []

    def full(path: Path, argument: object) -> object:
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(path, argument)

    monkeypatch.setattr(Path, method, full)
    with pytest.raises(ReportError, match=r"report: the report can't be written: .*No space left"):
        write(folder, PAGE._replace(title="new"))
    assert (folder / "index.html").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_text_is_text() -> None:
    page = html(PAGE._replace(title='<script>"', tiles=[("<i>", "&")]))
    assert "<script" not in page and "<i>" not in page
    assert "&lt;script&gt;&quot;" in page and "<dt>&lt;i&gt;</dt><dd>&amp;</dd>" in page


def opened(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def test_many_classes_no_answers_and_names_in_any_script() -> None:
    rng = np.random.default_rng(0)
    labels = ["$x^2", "猫", "a long name " * 9, *map(str, range(60))]
    y, predicted = rng.integers(0, 50, (2, 400))
    confusion = metrics.confusion_matrix(y, predicted, len(labels))
    assert opened(figures.confusion_plot(confusion, labels)).std() > 1
    assert opened(figures.class_scores(*metrics.precision_recall(confusion), labels)).std() > 1
    wide = figures.Mistake(rng.integers(0, 256, (3, 20, 50), np.uint8), *labels[:2], 0.5)
    assert opened(figures.mistakes_grid([wide] * 7, 5)).std() > 1


def test_curves_of_one_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (drawn.append(f), save(f, *a, **k)))
    one = EpochRecord(1, 2.0, 0.9, None, 0.1, 1.0, 1.0)
    for png in figures.learning_curves([one], 1, 0.7):
        assert opened(png).std() > 1
    for figure in drawn:
        assert all(tick == round(tick) for tick in figure.axes[0].get_xticks())


@pytest.mark.parametrize(
    ("scores", "low"), [((1.0, 1.0), 99), ((0.9991, 1.0), 99), ((0.97, 1.0), 97), ((0.93, 1.0), 90)]
)
def test_scores_near_the_top_have_a_readable_axis(
    monkeypatch: pytest.MonkeyPatch, scores: tuple[float, ...], low: int
) -> None:
    from matplotlib.figure import Figure

    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (drawn.append(f), save(f, *a, **k)))
    pixels = opened(figures.class_scores(np.array(scores), np.array(scores), ["a", "b"]))
    (axes,) = drawn[0].axes
    left, right = axes.get_xlim()
    assert low - 1 < left < low and 100 < right < 101
    assert axes.xaxis.get_offset_text().get_text() == ""
    ticks = [float(tick.get_text()) for tick in axes.get_xticklabels()]
    shown = [tick for tick in ticks if left <= tick <= right]
    assert (min(shown), max(shown)) == (low, 100)
    # Precision and recall are equal: both are seen at each place, and in the legend.
    for colour in (figures.MAIN, figures.ACCENT):
        rows = (pixels == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2).any(axis=1)
        assert np.count_nonzero(np.diff(rows.astype(int)) == 1) >= 3, colour


def test_first_filters() -> None:
    rng = np.random.default_rng(0)
    for name, shape in {
        "lenet": ("conv1", (6, 1, 5, 5)),
        "resnet20": ("conv1", (16, 3, 3, 3)),
        "mlp": ("affine1", (128, 1, 28, 28)),
    }.items():
        graph = architectures.build(name)
        found = pictures.first_filters(graph, graph.initialise(rng))
        assert found is not None and (found.layer, found.weight.shape) == shape
    assert opened(pictures.draw_filters(found.weight)).std() > 1
    zeros = opened(pictures.draw_filters(np.zeros((2, 1, 3, 3), np.float32)))
    assert (zeros == 255).all()
    signs = opened(pictures.draw_filters(np.array([-2, 0, 2], np.float32).reshape(1, 1, 1, 3)))
    left, middle, right = signs[0, [0, 90, 179]].tolist()  # 60 pixels a weight
    assert (tuple(left), tuple(right)) == (pictures.VIOLET, pictures.ORANGE)
    assert middle == [255, 255, 255]
