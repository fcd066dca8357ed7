"""`convserve compare`: who loses and who wins, image by image."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from convserve import layers
from convserve.cli import main
from convserve.graph import Graph
from convserve.model_file import ModelFile, Preprocessing, save


def compare(*args):
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, args)])
    return ended.value.code


def model(path, order, labels=("a", "b", "c"), side=2, held_out=None):
    """Takes the brightest of the first pixels for the class that `order` names."""
    g = Graph((1, side, side))
    g.add(layers.Flatten())
    g.add(layers.Affine(len(labels or "abc"), bias=False))
    weight = np.zeros((len(labels or "abc"), side * side), np.float32)
    weight[order, range(len(order))] = 1
    made = Preprocessing(side, side, "grey", (0.5,), (0.5,))
    told = {} if held_out is None else {"held_out": held_out}
    save(path, ModelFile(g, {"affine1.weight": weight}, labels, made, told))
    return path


@pytest.fixture
def data(tmp_path):
    """Three classes of 4 images, by the pixel that is bright."""
    y = np.repeat([0, 1, 2], 4)
    x = np.zeros((12, 4), np.uint8)
    x[np.arange(12), y] = 200
    np.savez(tmp_path / "data.npz", x=x.reshape(12, 2, 2), y=y)
    return "--data", f"npz:{tmp_path / 'data.npz'}", "--split", "train"


def test_what_changes(tmp_path, data, capsys):
    right = model(tmp_path / "right.npz", [0, 1, 2], None)
    swapped = model(tmp_path / "swapped.npz", [1, 0, 2], None)
    assert compare(right, swapped, *data, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["old"] == {"model": str(right), "correct": 12, "accuracy": 1.0}
    assert found["new"] == {"model": str(swapped), "correct": 4, "accuracy": pytest.approx(1 / 3)}
    assert (found["lost"], found["won"], found["agreement"]) == (8, 0, pytest.approx(1 / 3))
    assert found["p_value"] == pytest.approx(2 / 2**8)
    assert found["classes"][1] == {
        "label": "1", "images": 4, "old": 4, "new": 0, "lost": 4, "won": 0,
    }  # fmt: skip
    assert [row["image"] for row in found["changed"]] == list(range(8))
    assert found["changed"][5] == {"image": 5, "label": "1", "old": "1", "new": "0"}
    assert compare(swapped, right, *data) == 0
    out = capsys.readouterr().out
    assert "right to wrong 0, wrong to right 8, p = 0.0078" in out
    assert "agreement 33.33 %" in out and "(8 of 8)" in out


def test_a_model_beside_itself(tmp_path, data, capsys):
    path = model(tmp_path / "m.npz", [0, 1, 2], None)
    assert compare(path, path, *data, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["p_value"], found["agreement"], found["changed"]) == (1.0, 1.0, [])


def test_models_of_other_sizes_on_a_folder(tmp_path, capsys):
    """Each has the images brought to its own size; what changes is told by its path."""
    for name in "abc":
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (4, 4), 250).save(tmp_path / "images" / name / "white.png")
    old = model(tmp_path / "old.npz", [0])
    new = model(tmp_path / "new.npz", [1], side=4)
    args = ("--data", f"folder:{tmp_path / 'images'}", "--split", "train", "--json")
    assert compare(old, new, *args) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["lost"], found["won"]) == (1, 1)
    assert found["changed"][0] == {
        "image": str(tmp_path / "images" / "a" / "white.png"), "label": "a", "old": "a", "new": "b",
    }  # fmt: skip


def test_other_classes_are_refused(tmp_path, data, capsys):
    old = model(tmp_path / "old.npz", [0, 1, 2])
    new = model(tmp_path / "new.npz", [0, 1, 2], ("a", "c", "b"))
    assert compare(old, new, *data) == 1
    assert "classes differ, first at number 1: the old one's are a, b, c" in capsys.readouterr().err
    more = model(tmp_path / "more.npz", [0, 1, 2, 3], ("a", "b", "c", "d"))
    assert compare(old, more, *data) == 1
    assert "first at number 3" in capsys.readouterr().err


def test_images_of_another_size_are_refused(tmp_path, data, capsys):
    old = model(tmp_path / "old.npz", [0, 1, 2], None)
    assert compare(old, model(tmp_path / "new.npz", [0, 1, 2], None, side=3), *data) == 1
    assert "takes images of (1, 3, 3)" in capsys.readouterr().err


def test_both_models_are_judged_on_images_that_neither_has_seen(tmp_path, data, capsys):
    order, args = ([0, 1, 2], None), (*data[:2], "--split", "validation", "--json")
    first, other = {"share": 0.5, "seed": 3}, {"share": 0.25, "seed": 3}
    old = model(tmp_path / "old.npz", *order, held_out=first)
    same = model(tmp_path / "same.npz", *order, held_out=first)
    new = model(tmp_path / "new.npz", *order, held_out=other)
    silent = model(tmp_path / "silent.npz", *order)
    odd = model(tmp_path / "odd.npz", *order, held_out={"share": "half", "seed": -1})
    assert compare(old, same, *args) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["held_out"] == first
    assert json.loads(streams.out)["images"] == 6
    assert streams.err == ""

    assert compare(old, new, *args) == 1
    errors = capsys.readouterr().err
    assert "old.npz held out --validation 0.5 --seed 3, " in errors
    assert "new.npz --validation 0.25 --seed 3; choose by --validation and --seed" in errors
    assert compare(old, new, *args, "--validation", 0.5) == 0
    streams = capsys.readouterr()
    assert json.loads(streams.out)["images"] == 6
    assert streams.err.count("\n") == 1
    assert "new.npz held out --validation 0.25 --seed 3 in its training" in streams.err

    for unknown in (silent, odd):
        assert compare(unknown, old, *args) == 0
        streams = capsys.readouterr()
        assert json.loads(streams.out)["held_out"] == first
        assert f"as far as {unknown} tells, no images were held out" in streams.err
