"""`convserve eval`: exact figures, and no figure where model and data do not fit."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from convserve import layers
from convserve.cli import main
from convserve.graph import Graph
from convserve.model_file import ModelFile, Preprocessing, load, save

LABELS = ("0", "1", "2")


def convserve(*args):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, args)])
    return ended.value.code


def model(path, labels=LABELS, preprocessing=True, outputs=1, side=2, classes=3, scale=1, std=0.5):
    """The class is the brightest of the first three pixels."""
    g = Graph((1, side, 2))
    g.add(layers.Flatten())
    g.add(layers.Affine(classes, bias=False))
    if outputs == 2:
        g.set_output("affine1", "a")
        g.set_output("flatten1", "b")
    weight = scale * np.eye(classes, side * 2, dtype=np.float32)
    made = Preprocessing(side, 2, "grey", (0.5,), (std,)) if preprocessing else None
    save(path, ModelFile(g, {"affine1.weight": weight}, labels, made, {}))
    return path


@pytest.fixture
def data(tmp_path):
    """20 images of class 0, all right; 10 of class 1, 4 wrong; 10 of class 2, all wrong."""
    y = np.repeat([0, 1, 2], [20, 10, 10])
    seen = np.concatenate([np.repeat([0, 1, 0], [20, 6, 4]), np.zeros(10, np.int64)])
    x = np.zeros((40, 4), np.uint8)
    x[np.arange(40), seen] = 200
    np.savez(tmp_path / "data.npz", x=x.reshape(40, 2, 2), y=y)
    return f"npz:{tmp_path / 'data.npz'}"


def test_scores_of_one_pixel_are_judged_as_a_row(tmp_path, data, capsys):
    path = model(tmp_path / "m.npz")
    graph = Graph((1, 2, 2))
    graph.add(layers.Conv2d(3, 2, bias=False))
    graph.add(layers.Softmax())
    rows = load(path)
    weight = rows.params["affine1.weight"].reshape(3, 1, 2, 2)
    file = ModelFile(graph, {"conv1.weight": weight}, LABELS, rows.preprocessing, {})
    save(tmp_path / "pixel.npz", file)
    assert convserve("eval", tmp_path / "pixel.npz", "--data", data, "--split", "train") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "accuracy 65.00 %"


@pytest.mark.parametrize("behind", [layers.Flatten(), layers.Dropout(0.5)])
def test_what_passes_probabilities_on_leaves_them_probabilities(tmp_path, data, capsys, behind):
    rows, graph = load(model(tmp_path / "m.npz")), Graph((1, 2, 2))
    graph.add(layers.Conv2d(3, 2, bias=False))
    graph.add(behind, graph.add(layers.Softmax()))
    weight = rows.params["affine1.weight"].reshape(3, 1, 2, 2)
    file = ModelFile(graph, {"conv1.weight": weight}, LABELS, rows.preprocessing, {})
    save(tmp_path / "passed.npz", file)
    for args in ((), ("--tta", "flip")):
        found = []
        for name in ("m.npz", "passed.npz"):
            asked = ("eval", tmp_path / name, "--data", data, "--split", "train", "--json", *args)
            assert convserve(*asked) == 0
            found.append(
                [row["confidence"] for row in json.loads(capsys.readouterr().out)["worst"]]
            )
        assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_the_table_and_the_last_line(tmp_path, data, capsys, batch_size):
    path = model(tmp_path / "m.npz")
    args = ("--data", data, "--split", "train", "--batch-size", batch_size)
    assert convserve("eval", path, *args) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "accuracy 65.00 %"
    rows = [re.findall(r"[\d.]+", line) for line in lines if "│" in line]
    assert rows[:3] == [
        ["0", "20", "20", "100.00", "58.82"],
        ["1", "10", "6", "60.00", "100.00"],
        ["2", "10", "0", "0.00"],  # nothing is taken for it: no precision
    ]
    assert rows[3:6] == [["0", "20"], ["1", "4", "6"], ["2", "10"]]  # the confusion matrix
    assert [row[:3] for row in rows[6:]] == [
        *([str(row), "1", "0"] for row in range(26, 30)),
        *([str(row), "2", "0"] for row in range(30, 36)),
    ]


def test_json(tmp_path, data, capsys):
    path = model(tmp_path / "m.npz")
    assert convserve("eval", path, "--data", data, "--split", "train", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accuracy"] == 0.65 and report["top5"] is None
    assert (report["images"], report["correct"], report["split"]) == (40, 26, "train")
    assert report["classes"][1] == {
        "label": "1", "images": 10, "predicted": 6, "correct": 6, "precision": 1.0, "recall": 0.6,
    }  # fmt: skip
    assert report["classes"][2]["precision"] is None
    assert report["confusion"] == [[20, 0, 0], [4, 6, 0], [10, 0, 0]]
    assert report["confusion_cells"] is None
    assert report["confused"][0] == {"label": "2", "predicted": "0", "images": 10}
    # One bright pixel gives logits 0.57, -1 and -1.
    sure = 1 / (1 + 2 * np.exp(-200 / 255 / 0.5))
    assert report["worst"][0] == {
        "image": 26, "label": "1", "predicted": "0", "confidence": pytest.approx(sure),
    }  # fmt: skip
    assert len(report["worst"]) == 14
    bins = report["calibration"]["bins"]
    assert [b["images"] for b in bins] == [0] * 7 + [40] + [0] * 2
    assert bins[7]["accuracy"] == 0.65 and bins[0]["accuracy"] is None
    assert report["calibration"]["error"] == pytest.approx(abs(sure - 0.65))


def test_a_folders_worst_images_are_paths_and_many_classes_a_list(tmp_path, capsys):
    names = [f"class {k:02}" for k in range(12)]
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (2, 2), 9).save(tmp_path / "images" / name / "one.png")
    g = Graph((1, 2, 2))
    g.add(layers.Flatten())
    g.add(layers.Affine(12))
    params = {"affine1.weight": np.zeros((12, 4), np.float32)}
    params["affine1.bias"] = np.arange(12, dtype=np.float32)  # always the last class
    preprocessing = Preprocessing(2, 2, "grey", (0.5,), (0.5,))
    path = tmp_path / "m.npz"
    save(path, ModelFile(g, params, tuple(names), preprocessing, {}))
    args = ("eval", path, "--data", f"folder:{tmp_path / 'images'}", "--split", "train")
    assert convserve(*args, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["worst"][0]["image"] == str(tmp_path / "images" / "class 00" / "one.png")
    assert report["top5"] == pytest.approx(5 / 12)
    assert convserve(*args) == 0
    out = capsys.readouterr().out
    assert "most confused" in out and "top-5 accuracy 41.67 %" in out
    assert str(tmp_path / "images" / "class 00" / "one.png") in out


@pytest.mark.parametrize("classes", [100, 101])
def test_of_many_classes_the_json_has_the_cells_that_are_not_0(tmp_path, capsys, classes):
    side = -(-classes // 2)
    seen = np.arange(classes)
    seen[[3, 7]] = [7, 99]  # three is taken for seven, seven for 99
    x = np.zeros((classes, side * 2), np.uint8)
    x[np.arange(classes), seen] = 200
    np.savez(tmp_path / "d.npz", x=x.reshape(classes, side, 2), y=np.arange(classes))
    labels = tuple(map(str, range(classes)))
    path = model(tmp_path / "m.npz", labels=labels, side=side, classes=classes)
    data = f"npz:{tmp_path / 'd.npz'}"
    assert convserve("eval", path, "--data", data, "--split", "train", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    expected = np.zeros((classes, classes), int)
    expected[np.arange(classes), seen] = 1
    if classes == 100:
        assert report["confusion"] == expected.tolist() and report["confusion_cells"] is None
    else:
        assert report["confusion"] is None
        assert report["confusion_cells"] == [[k, int(seen[k]), 1] for k in range(classes)]


def test_broken_scores_are_an_error(tmp_path, data, capsys):
    path = model(tmp_path / "m.npz", scale=3e38, std=0.1)
    assert convserve("eval", path, "--data", data, "--split", "train") == 1
    assert "get scores that are not finite" in capsys.readouterr().err


def test_test_time_augmentation_sees_other_views(tmp_path, capsys):
    """The class is the brightest of the first row's pixels, mirrored it is the other."""
    x = np.zeros((4, 2, 2), np.uint8)
    x[:, 0, 0] = [200, 200, 0, 0]
    x[:, 0, 1] = [0, 150, 200, 100]
    np.savez(tmp_path / "d.npz", x=x, y=[0, 0, 1, 1])
    path = model(tmp_path / "m.npz", labels=("0", "1"), classes=2)
    args = ("--data", f"npz:{tmp_path / 'd.npz'}", "--split", "train", "--json")
    right = {}
    for tta in ("none", "flip", "shift", "flip+shift"):
        assert convserve("eval", path, *args, "--tta", tta) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["tta"] == tta
        right[tta] = report["classes"]
    assert [entry["correct"] for entry in right["none"]] == [2, 2]
    assert [entry["correct"] for entry in right["flip"]] == [2, 0]  # a tie goes to the first
    assert convserve("eval", path, *args, "--tta", "rotate") == 2
    assert "'rotate' is not one of" in capsys.readouterr().err


def test_the_validation_split_is_that_of_train(tmp_path, data, capsys):
    path = model(tmp_path / "m.npz")
    for split, images in (("validation", 20), ("train", 20)):
        args = ("--split", split, "--validation", 0.5, "--seed", 3, "--json")
        assert convserve("eval", path, "--data", data, *args) == 0
        assert json.loads(capsys.readouterr().out)["images"] == images
    assert convserve("eval", path, "--data", data, "--split", "validation", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 4


def trained(path, data, share, seed):
    args = ("--data", data, "--arch", "mlp", "--batch-size", 8, "--epochs", 2, "--shift", 0)
    hold = () if share is None else ("--validation", share)
    assert convserve("train", *args, *hold, "--seed", seed, "--out", path) == 0
    return path


def test_validation_images_are_those_held_out_of_the_models_training(tmp_path, data, capsys):
    path = trained(tmp_path / "m.npz", data, 0.4, 3)
    said = capsys.readouterr().out.splitlines()[-1]
    args = ("--data", data, "--split", "validation")
    assert convserve("eval", path, *args) == 0
    streams = capsys.readouterr()
    assert streams.out.splitlines()[-1] == said.removeprefix("validation ")
    assert streams.err == ""

    def seen(*more):
        assert convserve("eval", path, *args, *more, "--json") == 0
        streams = capsys.readouterr()
        report = json.loads(streams.out)
        return report["held_out"], report["images"], streams.err

    assert seen() == ({"share": 0.4, "seed": 3}, 16, "")
    assert seen("--validation", 0.4, "--seed", 3) == ({"share": 0.4, "seed": 3}, 16, "")
    held_out, images, errors = seen("--validation", 0.5)
    assert (held_out, images) == ({"share": 0.5, "seed": 3}, 20)
    assert "m.npz held out --validation 0.4 --seed 3 in its training; of those by" in errors
    assert seen("--seed", 0)[0] == {"share": 0.4, "seed": 0}
    # An .npz of its own is often measured whole, as what it holds counts as training images.
    assert convserve("eval", path, "--data", data, "--split", "train", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["held_out"], report["images"]) == (None, 40)


def test_without_a_word_of_the_model_the_split_that_is_taken_is_said(tmp_path, data, capsys):
    told = model(tmp_path / "m.npz"), trained(tmp_path / "n.npz", data, None, 3)
    capsys.readouterr()
    for path in told:
        args = ("--data", data, "--split", "validation", "--json")
        assert convserve("eval", path, *args) == 0
        streams = capsys.readouterr()
        assert json.loads(streams.out)["held_out"] == {"share": 0.1, "seed": 0}
        assert f"as far as {path} tells, no images were held out of its training" in streams.err
        assert "those by --validation 0.1 --seed 0 are taken" in streams.err


@pytest.mark.parametrize(
    ("options", "args", "message"),
    [
        ({"labels": ("a", "b", "c")}, (), "the model's classes are a, b, c, those of"),
        ({"preprocessing": False}, (), "the model has no preprocessing"),
        ({"side": 3}, (), r"takes images of (1, 3, 2) (channels, height, width), those of"),
        ({"outputs": 2}, (), "2 outputs; eval needs exactly one"),
        ({}, ("--split", "test"), "has no test images; choose another --split"),
    ],
)
def test_what_does_not_fit_gets_no_figure(tmp_path, data, capsys, options, args, message):
    path = model(tmp_path / "m.npz", **options)
    assert convserve("eval", path, "--data", data, "--split", "train", *args) == 1
    streams = capsys.readouterr()
    assert message in streams.err
    assert "accuracy" not in streams.out


def test_without_labels_the_number_of_classes_must_fit(tmp_path, data, capsys):
    path = model(tmp_path / "m.npz", labels=None)
    assert convserve("eval", path, "--data", data, "--split", "train") == 0
    with np.load(data.removeprefix("npz:")) as arrays:
        x, y = arrays["x"], arrays["y"].copy()
    y[:5] = 3
    np.savez(tmp_path / "four.npz", x=x, y=y)
    args = ("--data", f"npz:{tmp_path / 'four.npz'}", "--split", "train")
    capsys.readouterr()
    assert convserve("eval", path, *args) == 1
    assert "3 scores an image, npz:four.npz has 4 classes" in capsys.readouterr().err


def test_a_missing_model_is_one_line(tmp_path, capsys):
    assert convserve("eval", tmp_path / "absent.npz") == 1
    assert capsys.readouterr().err.count("\n") == 1


def colourful(path, colour):
    """The class is which of red, green and blue is the brightest."""
    g = Graph((3, 1, 1) if colour != "grey" else (1, 1, 1))
    g.add(layers.Flatten())
    g.add(layers.Affine(3, bias=False))
    channels = g.input_shape[0]
    weight = np.eye(3, channels, dtype=np.float32)
    params = {"affine1.weight": weight[::-1].copy() if colour == "bgr" else weight}
    made = Preprocessing(1, 1, colour, (0.0,) * channels, (1.0,) * channels)
    save(path, ModelFile(g, params, ("0", "1", "2"), made, {}))
    return path


def colours(tmp_path):
    """A folder and an .npz of the same six images, whose class is their colour."""
    y, tints = np.arange(6) % 3, np.array([[200, 10, 40], [20, 210, 30], [0, 50, 190]], np.uint8)
    for row, label in enumerate(y):
        (tmp_path / "images" / str(label)).mkdir(parents=True, exist_ok=True)
        file = tmp_path / "images" / str(label) / f"{row}.png"
        Image.fromarray(tints[label].reshape(1, 1, 3)).save(file)
    np.savez(tmp_path / "data.npz", x=tints[y].reshape(6, 3, 1, 1), y=y)
    return f"folder:{tmp_path / 'images'}", f"npz:{tmp_path / 'data.npz'}"


def test_images_come_in_the_models_colours(tmp_path, capsys):
    rgb, bgr = (colourful(tmp_path / f"{c}.npz", c) for c in ("rgb", "bgr"))
    grey = colourful(tmp_path / "grey.npz", "grey")
    for spec in colours(tmp_path):
        for path in (rgb, bgr):
            assert convserve("eval", path, "--data", spec, "--split", "train") == 0
            assert capsys.readouterr().out.splitlines()[-1] == "accuracy 100.00 %"
        assert convserve("compare", rgb, bgr, "--data", spec, "--split", "train", "--json") == 0
        assert json.loads(capsys.readouterr().out)["agreement"] == 1.0
        tuned = tmp_path / "tuned.npz"
        args = ("--data", spec, "--batch-size", 2, "--epochs", 1, "--lr", 1e-6, "--shift", 0)
        assert convserve("train", "--init", bgr, *args, "--out", tuned) == 0
        assert "training 100.00 %" in capsys.readouterr().out
        assert load(tuned).preprocessing.colour == "bgr"
    folder, arrays = colours(tmp_path)
    assert convserve("eval", grey, "--data", folder, "--split", "train") == 0
    assert convserve("eval", grey, "--data", arrays, "--split", "train") == 1
    assert "takes images of (1, 1, 1)" in capsys.readouterr().err
