"""`convserve convert`: both ways, what is said about the pictures, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, helper, save_model
from onnx_models import model, node, small, weights

from convserve.cli import main
from convserve.convert.importer import convert_model
from convserve.graph import architectures
from convserve.model_file import ModelFile, Preprocessing, load, save

pytestmark = pytest.mark.filterwarnings("ignore")


def convert(*args: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["convert", *map(str, args)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_converted_model_is_fine_tuned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1] * 4, name="conv"),
        node("BatchNormalization", ["c", "b", "b", "b", "v"], ["n"], name="norm"),
        node("Relu", ["n"], ["r"], name="act"),
        node("Conv", ["r", "u"], ["d"], name="top"),
        node("GlobalAveragePool", ["d"], ["p"], name="pool"),
        node("Flatten", ["p"], ["f"], name="flat"),
        node("Gemm", ["f", "e"], ["y"], transB=1, name="dense"),
    ]
    constants = {
        "w": weights(6, 3, 3, 3), "b": weights(6), "v": np.ones(6, np.float32),
        "u": weights(4, 6, 1, 1), "e": weights(5, 4),
    }  # fmt: skip
    save_model(model(nodes, constants, ["N", 3, 6, 8]), str(tmp_path / "m.onnx"))
    assert convert(tmp_path / "m.onnx", tmp_path / "m.npz") == 0
    rng = np.random.default_rng(0)
    y = np.arange(24) % 2
    x = rng.integers(0, 200, (24, 3, 6, 8)) + 55 * y[:, None, None, None]
    np.savez(tmp_path / "data.npz", x=x.astype(np.uint8), y=y)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([
            *("train", "--init", str(tmp_path / "m.npz"), "--data", f"npz:{tmp_path / 'data.npz'}"),
            *("--freeze", "conv", "--freeze", "norm", "--epochs", "2", "--batch-size", "8"),
            *("--shift", "0", "--step", "compiled", "--out", str(tmp_path / "tuned.npz")),
        ])  # fmt: skip
    assert ended.value.code == 0
    assert "its classes are others, so these begin anew: dense" in capsys.readouterr().out
    before, after = load(tmp_path / "m.npz").params, load(tmp_path / "tuned.npz").params
    assert after["dense.weight"].shape == (2, 4)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {name for name in changed if "running" not in name} == {"dense.weight", "top.weight"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A classifier of RGB pictures whose size is left open."""
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1] * 4), node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]), node("Flatten", ["p"], ["y"]),
    ]  # fmt: skip
    proto = model(nodes, {"w": weights(5, 3, 3, 3)}, ["N", 3, "h", "w"])
    save_model(proto, str(tmp_path / "m.onnx"))
    return tmp_path / "m.onnx"


def test_to_npz(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.txt").write_text("ant\nbee\ncat\ndog\neel\n")
    target = tmp_path / "m.npz"
    assert convert(
        pictures, target, "--labels", tmp_path / "labels.txt", "--preprocessing", "imagenet",
        "--input-shape", "3,32,40", "--interpolation", "bicubic",
    ) == 0  # fmt: skip
    assert "input x: 3×32×40" in capsys.readouterr().out
    found = load(target)
    assert found.labels == ("ant", "bee", "cat", "dog", "eel")
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert found.preprocessing == Preprocessing(32, 40, "rgb", mean, std, "bicubic")


def test_preprocessing_by_options_and_json(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(list("abcde")))
    shape = "--input-shape", "3,32,32"
    assert convert(
        pictures, "--output", tmp_path / "a.npz", *shape, "--mean", "0.5,0.5,0.5", "--std",
        "0.25,0.25,0.25", "--labels", tmp_path / "labels.json", "--colour", "rgb", "--size", "32",
    ) == 0  # fmt: skip
    found = load(tmp_path / "a.npz")
    assert found.preprocessing == Preprocessing(32, 32, "rgb", (0.5,) * 3, (0.25,) * 3)
    said = json.dumps({"mean": [0, 0, 0], "std": [1, 1, 1]})
    assert convert(pictures, tmp_path / "b.npz", *shape, "--preprocessing", said) == 0
    assert load(tmp_path / "b.npz").preprocessing == Preprocessing(
        32, 32, "rgb", (0.0,) * 3, (1.0,) * 3
    )


def test_a_preset_and_options(pictures: Path, tmp_path: Path) -> None:
    told = [
        "--input-shape", "3,32,32", "--preset", "keras-caffe", "--resize-shorter", "36",
        "--no-exif", "--crop", "32", "--interpolation", "hamming", "--std", "2",
    ]  # fmt: skip
    assert convert(pictures, tmp_path / "m.npz", *told) == 0
    assert load(tmp_path / "m.npz").preprocessing == Preprocessing(
        32, 32, "bgr", (103.939, 116.779, 123.68), (2.0,) * 3, "hamming", 36, False, 1.0
    )
    signed = ["--input-shape", "3,32,32", "--scale", "1/127.5", "--mean", "1", "--resize", "40,36"]
    assert convert(pictures, tmp_path / "n.npz", *signed) == 0
    found = load(tmp_path / "n.npz").preprocessing
    assert found is not None and (found.scale, found.resize) == (1 / 127.5, (40, 36))


def test_to_onnx_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = architectures.build("lenet")
    save(tmp_path / "m.npz", ModelFile(graph, graph.initialise(0), tuple("0123456789")))
    assert convert(tmp_path / "m.npz", "--output", tmp_path / "m.onnx") == 0
    assert convert(tmp_path / "m.onnx", tmp_path / "again.npz") == 0
    assert load(tmp_path / "again.npz").labels == tuple("0123456789")
    assert "13 layers" in capsys.readouterr().out


def test_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime")
    save_model(small(), str(tmp_path / "m.onnx"))
    assert convert(tmp_path / "m.onnx", tmp_path / "m.npz", "--verify") == 0
    assert "largest difference from ONNX Runtime, y: " in capsys.readouterr().out
    assert convert(tmp_path / "m.npz", tmp_path / "n.onnx", "--verify") == 0


def test_what_can_not_be_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [node("Foo", ["x"], ["a"], name="one"), node("Bar", ["a"], ["y"], name="two")]
    save_model(model(nodes), str(tmp_path / "m.onnx"))
    assert convert(tmp_path / "m.onnx", tmp_path / "m.npz") == 1
    error = capsys.readouterr().err
    assert "2 nodes can't be converted" in error and "'one' (Foo)" in error and "'two'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "m.npz").exists()


@pytest.mark.parametrize(
    "args, status, part",
    [
        (["m.onnx"], 2, "TARGET or --output"),
        (["m.onnx", "a.npz", "--output", "b.npz"], 2, "TARGET or --output"),
        (["m.onnx", "m.zip"], 2, "must end in .onnx"),
        (["m.npz", "m.onnx", "--mean", "1"], 2, "in itself"),
        (["m.onnx", "m.npz", "--input-shape", "3,x"], 2, "3,224,224"),
        (["m.onnx", "m.npz", "--input-shape", "3,8"], 2, "three numbers"),
        (["m.onnx", "m.npz", "--input-shape", "3,8,8", "--preprocessing", "no"], 2, "imagenet"),
        (["m.onnx", "m.npz"], 1, "--input-shape"),
        (["m.onnx", "m.npz", "--input-shape", "1,8,8"], 1, "input_shape"),
        (["gone.onnx", "m.npz"], 1, "no such file"),
        (["gone.npz", "m.onnx"], 1, "gone.npz"),
        (["m.onnx", "m.npz", "--input-shape", "3,8,8", "--mean", "1,2"], 1, "mean must have 3"),
        (["m.onnx", "m.npz", "--input-shape", "3,8,8", "--size", "9"], 1, "images of (3, 9, 9)"),
        (["m.onnx", "m.npz", "--resize", "9,9", "--resize-shorter", "9"], 2, "exclude each other"),
        (["m.onnx", "m.npz", "--scale", "1/x"], 2, "1/255"),
        (["m.onnx", "m.npz", "--preprocessing", '{"a": 1}'], 2, "unknown entry 'a'"),
        (
            ["m.onnx", "m.npz", "--input-shape", "3,8,8", "--resize-shorter", "7"], 1,
            "too small to crop",
        ),
        (["m.onnx", "m.npz", "--labels", "gone.txt"], 1, "labels can't be read"),
    ],
)  # fmt: skip
def test_faults(
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: list[str],
    status: int,
    part: str,
) -> None:
    monkeypatch.chdir(pictures.parent)
    assert convert(*args) == status
    assert part in capsys.readouterr().err
    assert [p.name for p in pictures.parent.iterdir()] == ["m.onnx"]


def test_channels_last_pictures(tmp_path: Path) -> None:
    nodes = [node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), node("Relu", ["t"], ["y"])]
    proto = model(nodes, {}, ["N", "h", "w", 3])
    assert convert_model(proto, input_shape=(3, 8, 9)).graph.input_shape == (3, 8, 9)
    kind = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8, 9, 3])
    proto.graph.input[0].CopyFrom(kind)
    assert convert_model(proto).graph.input_shape == (3, 8, 9)
