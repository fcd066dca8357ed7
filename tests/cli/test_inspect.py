"""`convserve inspect`: the table, what convolutions save, and the JSON."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from convserve.cli import main
from convserve.cli._feature_maps import mapped_layers
from convserve.graph import Graph, architectures, layers
from convserve.model_file import ModelFile, Preprocessing, save, weights_hash


@pytest.fixture
def lenet(tmp_path: Path) -> tuple[Path, ModelFile]:
    graph = architectures.build("lenet")
    model = ModelFile(
        graph,
        graph.initialise(0),
        tuple("0123456789"),
        Preprocessing(28, 28, "grey", (0.1307,), (0.3081,)),
        {"data": "mnist", "accuracy": 0.991, "note": "[bold]\x1b[31m"},
    )
    save(tmp_path / "lenet.npz", model)
    return tmp_path / "lenet.npz", model


def inspect(*args: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *map(str, args)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def rows(table: str) -> dict[str, list[str]]:
    """The cells of each row by the layer's name; cells are apart by three spaces."""
    found = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in re.split("   +", line.strip())]
        found[cells[0]] = cells[1:]
    return found


def test_the_table(lenet: tuple[Path, ModelFile], capsys: pytest.CaptureFixture[str]) -> None:
    path, model = lenet
    assert inspect(path) == 0
    out = capsys.readouterr().out
    table = rows(out)
    assert table["input"][:2] == ["input", "1×28×28"]
    assert table["conv1"] == [
        "conv2d 5×5", "6×28×28", "156", "117,600", "3,692,640", "3,687,936",
    ]  # fmt: skip
    assert table["pool1"] == ["max_pool2d 2×2 stride 2", "6×14×14"]
    assert table["affine3"] == ["affine", "10", "850", "840", "850", "840"]
    assert table["total"] == ["61,706", "416,520", "5,634,974", "5,628,456"]
    shown = [name for name in table if name in {node.name for node in model.graph.nodes}]
    assert shown == [node.name for node in model.graph.nodes]
    assert "91 times the parameters and 14 times the multiply-accumulates" in out
    assert weights_hash(model.params) in out
    assert "28×28 grey, bilinear, mean 0.1307, std 0.3081" in out
    assert "10: 0, 1, 2" in out and "mnist" in out and "0.991" in out
    assert r"[bold]\x1b[31m" in out and "\x1b" not in out  # as text, to no effect
    assert out.splitlines()[0].strip() == str(path)


def test_long_names_are_not_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = Graph((1, 4, 4), input_name="a long input name, as some have it:0")
    name = "stage1/block1/branch2/" + "x" * 60
    graph.add(layers.Conv2d(2, (3, 1), stride=(1, 3)), name=name)
    save(tmp_path / "m.npz", ModelFile(graph, graph.initialise(0)))
    assert inspect(tmp_path / "m.npz") == 0
    table = rows(capsys.readouterr().out)
    assert table[name][0] == "conv2d 3×1 stride 1×3"
    assert graph.input_name in table


def test_branches_say_what_they_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = architectures.build("resnet20", blocks=1)
    save(tmp_path / "m.npz", ModelFile(graph, graph.initialise(0)))
    assert inspect(tmp_path / "m.npz") == 0
    table = rows(capsys.readouterr().out)
    assert table["add1"][0] == "add of bn3, relu1"
    assert table["conv6"][0] == "conv2d 1×1 stride 2 of relu3"
    assert table["relu1"][0] == "relu"


def test_every_operator_has_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {"start": 0, "stop": 4, "groups": 2, "padding": 1, "size": 3, "out_features": 4}
    g = Graph((4, 8, 8))
    for name, cls in layers.operators().items():
        given = {field: values[field] for field in cls.__dataclass_fields__ if field in values}
        source = g.input_name
        if name in ("affine", "softmax", "log_softmax"):
            source = g.add(layers.Flatten(), source)
        if name == "conv2d":
            given = {"out_channels": 4, "kernel_size": 3}
        elif name.endswith("_pool2d"):
            given = {"size": 2} if "size" in given else {}
        g.add(cls(**given), *[source] * (cls.arity or 2), name=f"{name}_layer")
    save(tmp_path / "all.npz", ModelFile(g, g.initialise(0), None, None, {}))
    assert inspect(tmp_path / "all.npz") == 0
    table = rows(capsys.readouterr().out)
    for name in layers.operators():
        assert table[f"{name}_layer"][0].startswith(name)


def test_json(lenet: tuple[Path, ModelFile], capsys: pytest.CaptureFixture[str]) -> None:
    path, model = lenet
    assert inspect(path, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert list(data) == [
        "file", "format_version", "weights_hash", "labels", "preprocessing", "provenance", "input",
        "inputs", "outputs", "layers", "totals",
    ]  # fmt: skip
    assert data["file"] == str(path) and data["format_version"] == 1
    assert data["input"] == {"name": "input", "shape": [1, 28, 28]}
    assert data["outputs"] == [{"name": "output", "layer": "softmax1", "shape": [10]}]
    assert data["labels"] == list("0123456789") and data["provenance"] == model.provenance
    assert data["preprocessing"] == model.preprocessing.to_dict()  # type: ignore[union-attr]
    assert data["weights_hash"] == weights_hash(model.params)
    assert data["layers"][0] == {
        "name": "conv1",
        "op": "conv2d",
        "inputs": ["input"],
        "attributes": layers.Conv2d(6, 5, padding=2).attributes(),
        "shape": [6, 28, 28],
        "parameters": 156,
        "macs": 117_600,
        "dense_parameters": 3_692_640,
        "dense_macs": 3_687_936,
    }
    for total, value in data["totals"].items():
        assert value == sum(layer[total] for layer in data["layers"])


def test_a_model_without_convolutions_or_extras(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = Graph((1, 2, 2))
    graph.add(layers.ReLU())
    save(tmp_path / "m.npz", ModelFile(graph, {}))
    assert inspect(tmp_path / "m.npz") == 0
    out = capsys.readouterr().out
    assert "times the parameters" not in out and "labels" not in out
    assert inspect(tmp_path / "m.npz", "--json") == 0
    assert json.loads(capsys.readouterr().out)["preprocessing"] is None


def test_a_bad_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.npz").write_bytes(b"PK\x03\x04 not really")
    assert inspect(tmp_path / "m.npz") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith(f"convserve: error: {tmp_path / 'm.npz'}: ")


def test_the_plan_as_a_table(
    lenet: tuple[Path, ModelFile], capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = lenet
    assert inspect(path, "--plan", "--batch", 3, "--threads", 1) == 0
    first, *table = capsys.readouterr().out.splitlines()
    assert "3 images a call, 1 threads" in first and "arena" in first
    assert max(map(len, table)) <= 120
    steps = [line.split()[0] for line in table if line.strip()]
    assert steps.index("conv1") < steps.index("conv2") < steps.index("total")
    assert "conv1 + relu1" in table[steps.index("conv1") + 1]
    assert any("affine3" in line and "840" in line and "%" in line for line in table)


def test_the_plan_as_json(
    lenet: tuple[Path, ModelFile], capsys: pytest.CaptureFixture[str]
) -> None:
    path, model = lenet
    assert inspect(path, "--plan", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["batch"] == 1 and document["threads"] >= 1
    steps = document["steps"]
    assert [name for step in steps for name in step["layers"]] == [
        node.name for node in model.graph.nodes if node.name != "flatten1"
    ]
    assert sum(step["multiply_adds"] for step in steps) == 416_520
    assert document["measured_us"] == pytest.approx(sum(s["measured_us"] for s in steps))
    assert document["arena_bytes"] > 0 and 0 < document["gflops"] < document["peak_gflops"] * 4
    conv = steps[1]
    assert conv["weight_bytes"] >= 600 and conv["input_bytes"] == 4 * 784
    assert conv["measured_us"] > 0 and conv["estimated_us"] > 0
    affine = next(step for step in steps if step["kernel"] == "affine")
    assert len(affine["tile"]) == 2


def test_options_of_the_plan_need_it(
    lenet: tuple[Path, ModelFile], capsys: pytest.CaptureFixture[str]
) -> None:
    for options in (["--batch", 2], ["--threads", 1], ["--plan", "--batch", 0]):
        assert inspect(lenet[0], *options) == 2
        assert "--batch" in capsys.readouterr().err


def test_feature_maps(lenet: tuple[Path, ModelFile], tmp_path: Path, capsys) -> None:
    image, out = tmp_path / "digit.png", tmp_path / "maps.png"
    Image.new("L", (28, 28), 200).save(image)
    assert inspect(lenet[0], "--feature-maps", image, "--out", out) == 0
    assert capsys.readouterr().out == f"wrote {out}: 7 layers\n"
    with Image.open(out) as picture:
        assert picture.format == "PNG" and picture.width == 1080
    assert mapped_layers(lenet[1].graph) == [
        "relu1", "pool1", "relu2", "pool2", "relu3", "relu4", "softmax1",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "digit.png", "lenet.npz", "maps.png",
    ]  # fmt: skip


def test_feature_maps_of_a_deep_and_of_a_plain_network() -> None:
    deep = Graph((1, 8, 8))
    for _ in range(60):
        deep.add(layers.ReLU())
    names = mapped_layers(deep)
    assert len(names) == 40 and (names[0], names[-1]) == ("relu1", "relu60")
    plain = Graph((1, 8, 8))
    plain.add(layers.Conv2d(2, 3))
    plain.add(layers.Flatten())
    plain.add(layers.Affine(3))
    assert mapped_layers(plain) == ["conv1", "flatten1", "affine1"]


def test_feature_maps_refused(
    lenet: tuple[Path, ModelFile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "digit.png"
    Image.new("L", (28, 28)).save(image)
    assert inspect(lenet[0], "--out", tmp_path / "maps.png") == 2
    assert inspect(lenet[0], "--feature-maps", image, "--json") == 2
    assert inspect(lenet[0], "--feature-maps", image, "--out", image) == 2
    assert inspect(lenet[0], "--feature-maps", tmp_path / "absent.png") == 1
    assert "absent.png" in capsys.readouterr().err
    assert inspect(lenet[0], "--feature-maps", image, "--out", tmp_path / "no" / "maps.png") == 1
    assert "maps.png: can't be written" in capsys.readouterr().err
    save(tmp_path / "bare.npz", replace(lenet[1], preprocessing=None))
    assert inspect(tmp_path / "bare.npz", "--feature-maps", image) == 1
    assert "need a model of one image, with preprocessing" in capsys.readouterr().err
