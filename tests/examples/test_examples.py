"""The scripts in examples/ run and say what they should."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import convserve
from convserve.cli._child_server import child_server
from convserve.model_file import ModelFile, save
from convserve.preprocessing import Preprocessing

EXAMPLES = Path(__file__).parents[2] / "examples"
DOCS = Path(__file__).parents[2] / "docs"
PICTURES = DOCS / "images" / "pooling"


def example(name: str, *arguments: object) -> str:
    """What the script prints; run in this process, as importing takes longer than most of them."""
    path = str(EXAMPLES / f"{name}.py")
    told = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(told):
        patch.setattr(sys, "argv", [path, *map(str, arguments)])
        patch.syspath_prepend(EXAMPLES)  # as for a script
        runpy.run_path(path, run_name="__main__")
    return told.getvalue()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("served") / "lenet.npz"
    graph = convserve.architectures.build("lenet")
    preprocessing = Preprocessing(28, 28, "grey", (0.13,), (0.31,))
    params = graph.initialise(np.random.default_rng(1))
    save(path, ModelFile(graph, params, tuple("0123456789"), preprocessing))
    with child_server(path) as address:
        yield address


def test_every_example_is_tested() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {
        "augmentations",
        "client_predict",
        "conv_by_hand",
        "convolution_figures",
        "own_graph",
        "pooling_and_shift",
        "triton_client",
    }


def test_conv_by_hand() -> None:
    out = example("conv_by_hand")
    assert "(7 + 2*1 - 3) / 2 + 1 = 4" in out
    assert "(7 + 2*0 - 3) / 3 + 1 does not divide: conv2d: " in out


def test_augmentations(tmp_path: Path) -> None:
    out = example("augmentations", tmp_path / "a.png")
    assert "13 augmentations, 8 epochs" in out
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    tiles = [
        [sheet[r * 88 : r * 88 + 84, 200 + e * 88 :][:, :84] for e in range(8)] for r in (0, 1)
    ]
    assert all((tile == tiles[0][0]).all() for tile in tiles[0])
    assert any((tile != tiles[0][0]).any() for tile in tiles[1])
    Image.fromarray(np.zeros((50, 40, 3), np.uint8)).save(tmp_path / "photo.png")
    example("augmentations", "--image", tmp_path / "photo.png", tmp_path / "b.png")


def lasting(row: str) -> str:
    """Of a table's row, the cells before the first that depends on what was trained."""
    return re.split(r"(?<=\| )(?:[\d.]+ %|\d+ hidden|none of)", row)[0]


@pytest.mark.parametrize(
    ("name", "options", "pictures"),
    [
        ("convolution_figures", (), {"by-hand", "padding-stride", "channels", "max-average"}),
        (
            "pooling_and_shift",
            ("--quick",),
            {"shift-accuracy", "shift-maps", "cnn-dense", "feature-maps"},
        ),
    ],
)
def test_what_draws_the_page_of_pooling(
    name: str, options: tuple[str, ...], pictures: set[str], tmp_path: Path
) -> None:
    """The page shows every picture, and says what does not depend on how long is trained."""
    out = example(name, *options, tmp_path / "drawn")
    said = [line for line in out.splitlines() if not line.startswith("wrote")]
    page = (DOCS / "pooling-and-shift.md").read_text(encoding="utf-8")
    for line in said:
        assert (lasting(line) if options else line) in page
    for picture in pictures:
        assert f"](images/pooling/{picture}.png)" in page
        drawn = [Image.open(at / f"{picture}.png") for at in (tmp_path / "drawn", PICTURES)]
        assert drawn[0].width == drawn[1].width
        for image in drawn:
            assert np.asarray(image.convert("L")).std() > 5
            image.close()
        assert (PICTURES / f"{picture}.png").stat().st_size < 60_000
    assert {path.stem for path in (tmp_path / "drawn").iterdir()} == pictures


def test_own_graph() -> None:
    out = example("own_graph")
    assert "refused:" in out and "predict: (5, 2)" in out and "pool1: (5, 16, 16, 16)" in out


def test_client_predict(address: str, tmp_path: Path) -> None:
    Image.new("L", (28, 28), 9).save(tmp_path / "a.png")
    out = example("client_predict", address, tmp_path / "a.png")
    assert "a.png" in out and "predict: (100, 10)" in out and "100 results" in out


def test_triton_client(address: str) -> None:
    out = example("triton_client", address, "lenet")
    assert "scores: (4, 10)" in out and out.count("best:") == 4
