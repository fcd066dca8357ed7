"""`--report`: a page with everything in it, or one line that says why there is none."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convserve import datasets
from convserve.cli import main
from convserve.training.report import figures, pictures

VOID = {"meta", "link", "img"}
SECTIONS = [
    "Learning curves", "Confusion matrix", "Scores by class", "Calibration",
    "First-layer filters", "Worst errors", "Feature maps", "How it was made",
]  # fmt: skip


class Page(HTMLParser):
    """A document that must be well formed: every element is closed by its own end tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str]] = []
        self.links: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        assert len(found) == len(attrs)
        self.links += [found[name] for name in ("src", "href") if name in found]
        if tag == "img":
            self.images.append(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


def convserve(*args):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, args)])
    return ended.value.code


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(model file, data, its report): a small network on some digits, of which it gets wrong a few.

    Its name has what HTML and file names make trouble with.
    """
    folder = tmp_path_factory.mktemp("reports")
    digits = datasets.load()
    np.savez(folder / "digits.npz", x=digits.train.x[:400], y=digits.train.y[:400])
    data, out = f"npz:{folder / 'digits.npz'}", folder / "<le>&net.npz"
    args = ("--data", data, "--validation", 0.5, "--epochs", 4, "--batch-size", 10)
    assert convserve("train", *args, "--out", out, "--report", folder / "report") == 0
    return out, data, folder / "report"


def read(report: Path) -> Page:
    return Page((report / "index.html").read_text(encoding="utf-8"))


def test_the_page_holds_every_part_and_each_picture_lies_beside_it(trained):
    out, _, report = trained
    page = read(report)
    assert page.texts["h1"] == [out.name]
    assert page.texts["h2"] == SECTIONS
    assert all(link.startswith("data:") for link in page.links)
    pngs = {path.name: path.read_bytes() for path in report.glob("*.png")}
    assert sorted(path.name for path in report.iterdir()) == sorted([*pngs, "index.html"])
    # Three learning curves, and feature maps of a right and of a wrong answer.
    assert len(page.images) == len(pngs) == 10
    for image in page.images:
        assert b64decode(image["src"].partition(",")[2]) == pngs[image["data-file"]]
        assert len(image["alt"]) > 20
        with Image.open(report / image["data-file"]) as picture:
            assert picture.format == "PNG"
            width, height = int(image["width"]), int(image["height"])
            assert picture.width / width == pytest.approx(picture.height / height, rel=0.02)
            assert 100 < width < 1100 and np.asarray(picture.convert("L")).std() > 5


def test_the_page_says_what_eval_says(trained, capsys):
    out, data, report = trained
    assert convserve("eval", out, "--data", data, "--split", "validation", "--validation", 0.5) == 0
    said = re.search(r"accuracy ([\d.]+ %)\n$", capsys.readouterr().out)[1]
    page = read(report)
    shown, wrong = page.texts["dd"][:2]
    assert shown == said
    images = re.match("(.*) validation images of npz:digits.npz, 10 classes", page.texts["p"][0])[1]
    assert f"{100 * (1 - int(wrong) / int(images)):.2f} %" == said


@pytest.fixture
def chromium(tmp_path):
    """Opens a page with the flags that it is given, and returns standard output."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not installed: the page was not opened in a browser")
    always = (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
        "disable-component-update disable-sync enable-logging=stderr window-size=1200,900"
    )

    def opened(page, *flags):
        profile = f"user-data-dir={tmp_path / 'profile'}"
        result = subprocess.run(
            [path, *(f"--{flag}" for flag in (*always.split(), profile, *flags)), page.as_uri()],
            capture_output=True, text=True, timeout=300, check=True,
        )  # fmt: skip
        assert "CONSOLE" not in result.stderr
        return result.stdout

    return opened


def test_headless_chromium_shows_it_without_a_word_on_the_console(trained, tmp_path, chromium):
    chromium(trained[2] / "index.html", f"screenshot={tmp_path / 'shot.png'}")
    with Image.open(tmp_path / "shot.png") as shot:
        assert shot.size == (1200, 900) and len(shot.convert("L").getcolors()) > 50


# Where the learning curves are in a frame of some width, and how wide all of it is.
FRAME = """<iframe src="{page}" style="width:{width}px; height:900px; border:0"></iframe><script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument;
  const tops = [...page.querySelectorAll(".row img")].map(i => i.getBoundingClientRect().top);
  document.title = JSON.stringify([page.documentElement.scrollWidth, ...tops]);
}}
</script>"""


@pytest.mark.parametrize(("width", "rows"), [(1200, 1), (420, 3)])
def test_a_narrow_page_puts_the_curves_below_each_other(trained, tmp_path, chromium, width, rows):
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.format(page=(trained[2] / "index.html").as_uri(), width=width))
    shown = chromium(frame, "allow-file-access-from-files", "hide-scrollbars", "dump-dom")
    across, *tops = json.loads(re.search(r"<title>(.*)</title>", shown)[1])
    assert across == width
    assert len(tops) == 3 and len(set(tops)) == rows


@pytest.fixture
def quick_figures(monkeypatch):
    """Pages whose figures are not looked at need not draw them."""
    dot = pictures.draw_filters(np.ones((1, 1, 2, 2), np.float32))
    for name in ("confusion_plot", "class_scores", "calibration_plot"):
        monkeypatch.setattr(figures, name, lambda *given: dot)
    curves = figures.Curves(dot, dot, dot)
    monkeypatch.setattr(figures, "learning_curves", lambda *given: curves)


def test_eval_draws_the_images_that_it_is_given(trained, tmp_path, capsys, quick_figures):
    out, data, _ = trained
    for name in ("one", "two"):
        Image.new("L", (40, 30), 200).save(tmp_path / f"{name}.png")
    report = tmp_path / "report"
    args = ("eval", out, "--data", data, "--split", "train", "--json", "--report", report)
    chosen = ("--report-image", tmp_path / "one.png", "--report-image", tmp_path / "two.png")
    assert convserve(*args, *chosen) == 0
    streams = capsys.readouterr()
    assert streams.out.startswith("{") and streams.out.endswith("}\n")
    assert "index.html: a report of 6 parts" in streams.err
    page = read(report)
    assert page.texts["h2"] == SECTIONS[1:]
    assert page.texts["figcaption"] == ["one.png", "two.png"]


def test_without_the_extra_nothing_begins(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    out, data, _ = trained
    new = ("--out", tmp_path / "m.npz", "--report", tmp_path / "r")
    for args in (("train", "--data", data, *new), ("eval", out, "--report", tmp_path / "r")):
        assert convserve(*args) == 1
        streams = capsys.readouterr()
        assert streams.err.endswith("--report needs matplotlib: pip install 'convserve[plots]'\n")
        assert streams.out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("folder", "extra", "status", "message"),
    [
        ("absent/report", (), 1, "there is no folder"),
        ("file", (), 1, "exists and is not a folder"),
        ("photos", (), 1, "holds something else than a report"),
        ("photos/deep", ("--out", "photos/deep/m.npz"), 2, "lies in the folder of the report"),
        (None, ("--report-image", "file"), 2, "--report-image is for --report"),
        ("report", ("--report-image", "file"), 1, "file: "),
    ],
)
def test_what_would_fail_later_fails_now(
    trained, tmp_path, capsys, monkeypatch, folder, extra, status, message
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("no image")
    Path("photos/deep").mkdir(parents=True)
    Path("photos/mine.png").write_bytes(b"")
    Path("photos/index.html").write_text("my gallery")
    before = sorted(tmp_path.rglob("*"))
    asked = () if folder is None else ("--report", folder)
    assert convserve("train", "--data", trained[1], "--out", "m.npz", *asked, *extra) == status
    streams = capsys.readouterr()
    assert message in streams.err and "epoch" not in streams.out
    assert sorted(tmp_path.rglob("*")) == before


def test_each_seed_has_its_own_and_perfect_models_no_worst_error(tmp_path, capsys, quick_figures):
    x = np.zeros((60, 3, 8, 8), np.uint8)
    y = np.arange(60) % 2
    x[y == 1, :, :4] = 255
    np.savez(tmp_path / "two.npz", x=x, y=y)
    args = ("--data", f"npz:{tmp_path / 'two.npz'}", "--arch", "mlp", "--batch-size", 10)
    args = (*args, "--epochs", 1, "--shift", 0, "--seeds", 2, "--out", tmp_path / "m.npz")
    assert convserve("train", *args, "--report", tmp_path / "report") == 0
    for seed in (0, 1):
        page = read(tmp_path / f"report-seed{seed}")
        assert page.texts["h1"] == [f"m-seed{seed}.npz"]
        assert "Every answer is right." in page.texts["p"]
        assert "60 training images of npz:two.npz, 2 classes" in page.texts["p"]
    assert capsys.readouterr().out.count("a report of 7 parts") == 2
    saved = (tmp_path / "m-seed1.run.toml").read_text(encoding="utf-8")
    assert f'report = "{tmp_path / "report-seed1"}"' in saved
