"""Files in and out: damaged ones, data beside the model, labels, and the way to ONNX and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="pip install convserve[onnx]")

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper, save_model
from onnx_models import small, weights

import convserve
from convserve.convert import verify
from convserve.convert.exporter import to_onnx
from convserve.convert.importer import convert_model
from convserve.engine.model import Model
from convserve.errors import ConversionError
from convserve.graph import Graph, architectures, layers
from convserve.model_file import ModelFile, Preprocessing, load

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("content", [None, b"", b"\x00" * 100, b"PK\x03\x04 no", b"{}", b"text\n"])
def test_files_that_are_no_onnx(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "m.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConversionError, match=r"m\.onnx"):
        convserve.convert_onnx(path, tmp_path / "m.npz")
    assert not (tmp_path / "m.npz").exists()


def test_a_folder_is_no_onnx(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="folder"):
        convserve.convert_onnx(tmp_path)


def test_infinite_weights_are_not_written(tmp_path: Path) -> None:
    proto = small()
    infinite = numpy_helper.from_array(np.full(6, np.inf, np.float32), "b")
    proto.graph.initializer[1].CopyFrom(infinite)
    save_model(proto, tmp_path / "m.onnx")
    with pytest.raises(ConversionError, match="NaN or infinity"):
        convserve.convert_onnx(tmp_path / "m.onnx", tmp_path / "m.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_converted_file_is_a_model(tmp_path: Path) -> None:
    save_model(small(), tmp_path / "m.onnx")
    made = convserve.convert_onnx(tmp_path / "m.onnx", tmp_path / "m.npz", labels=list("abcde"))
    found = load(tmp_path / "m.npz")
    assert found.graph == made.graph and found.labels == tuple("abcde")
    assert found.provenance["source"] == "m.onnx"
    assert [entry.name for entry in found.graph.nodes if entry.op.op == "conv2d"] == ["conv"]


def test_labels_and_preprocessing_must_fit(tmp_path: Path) -> None:
    save_model(small(), tmp_path / "m.onnx")
    grey = Preprocessing(6, 8, "grey", (0.0,), (1.0,))
    for wrong in ({"labels": list("abcd")}, {"preprocessing": grey}):
        with pytest.raises(ConversionError, match=r"labels|preprocessing"):
            convserve.convert_onnx(tmp_path / "m.onnx", tmp_path / "m.npz", **wrong)  # type: ignore[arg-type]
    assert not (tmp_path / "m.npz").exists()


# -- data outside the file -------------------------------------------------------------------


def external(tmp_path: Path) -> Path:
    save_model(
        small(), str(tmp_path / "m.onnx"), save_as_external_data=True, location="m.data",
        size_threshold=0,
    )  # fmt: skip
    return tmp_path / "m.onnx"


def test_external_data_is_read(tmp_path: Path) -> None:
    path = external(tmp_path)
    assert (tmp_path / "m.data").exists()
    found, expected = convserve.convert_onnx(path), convert_model(small())
    assert found.graph == expected.graph
    for name, value in expected.params.items():
        np.testing.assert_array_equal(found.params[name], value)


@pytest.mark.parametrize(
    "key, value, part",
    [
        ("location", "../secret", "outside the model's folder"),
        ("location", "/etc/passwd", "outside the model's folder"),
        ("location", "gone", "no file"),
        ("location", "", "outside"),
        ("offset", "999999999", "beyond the end"),
        ("offset", "-8", "beyond the end"),
        ("length", "7", "must have"),
        ("length", "99999999999999", "beyond the end"),
        ("offset", "x", "'w'"),
    ],
)
def test_external_data_that_is_not_there(tmp_path: Path, key: str, value: str, part: str) -> None:
    path = external(tmp_path)
    (tmp_path.parent / "secret").write_bytes(b"\0" * 10_000)
    proto = ModelProto()
    proto.ParseFromString(path.read_bytes())
    weight = next(t for t in proto.graph.initializer if t.name == "w")
    fields = {entry.key: entry.value for entry in weight.external_data} | {key: value}
    del weight.external_data[:]
    for name, text in fields.items():
        weight.external_data.add(key=name, value=text)
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(ConversionError, match=part):
        convserve.convert_onnx(path)


def test_external_data_through_a_link(tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "m.data").rename(tmp_path.parent / "elsewhere.data")
    (tmp_path / "m.data").symlink_to(tmp_path.parent / "elsewhere.data")
    with pytest.raises(ConversionError, match="outside the model's folder"):
        convserve.convert_onnx(path)


# -- to ONNX and back --------------------------------------------------------------------------


def every_operator() -> Graph:
    g = Graph((4, 12, 14), input_name="the image")
    g.add(layers.Conv2d(8, (3, 2), (1, 2), ((1, 0), (1, 1)), (2, 1), 2, rounding="floor"))
    for op in (
        layers.BatchNorm(1e-3), layers.LeakyReLU(0.2), layers.Clip(-1.0, 2.0), layers.Sigmoid(),
        layers.HardSigmoid(0.3, 0.4), layers.HardSwish(), layers.SiLU(), layers.GELU(),
        layers.GELU("tanh"), layers.Tanh(), layers.ELU(0.5), layers.PReLU(), layers.ScaleShift(),
        layers.LayerNorm(1e-3), layers.ChannelShuffle(2), layers.Pad(((1, 2), (0, 1)), 0.5),
        layers.Crop(((1, 1), (0, 1))), layers.LRN(3, 0.1, 0.6, 1.5), layers.Dropout(0.5),
        layers.MaxPool2d(2, 1, ((1, 0), (0, 1)), "floor"),
        layers.AvgPool2d(3, 2, 1, "ceil", False), layers.Clip(None, 3.0), layers.ReLU(),
    ):  # fmt: skip
        g.add(op)
    x = g.add(layers.Conv2d(6, 1, bias=False))
    gate = g.add(layers.Sigmoid(), g.add(layers.GlobalAvgPool2d(), x))
    g.add(layers.Sub(), g.add(layers.Mul(), x, gate), g.add(layers.Add(), gate, x))
    part = g.add(layers.Slice(1, 4))
    joined = g.add(layers.Concat(), part, x)
    g.set_output(joined, "features")
    g.add(layers.GlobalMaxPool2d(), joined)
    g.add(layers.Flatten())
    flat = g.add(layers.LayerNorm(), g.add(layers.Affine(7)))
    g.set_output(g.add(layers.LogSoftmax(), flat), "log/scores:0")
    g.set_output(g.add(layers.Softmax(), flat), "scores")
    return g


def filled(graph: Graph) -> ModelFile:
    params = graph.initialise(3)
    for place, (name, value) in enumerate(params.items()):
        if value.ndim == 1:
            values = np.abs(weights(*value.shape, seed=place)) + 0.2
            params[name] = values.astype(np.float32)
    return ModelFile(graph, params)


GRAPHS = {
    "every operator": every_operator,
    **{
        name: (lambda name=name: architectures.build(name))
        for name in ("lenet", "deep_convnet", "resnet20", "mlp")
    },
}


@pytest.mark.parametrize("name", GRAPHS)
def test_to_onnx_and_back(name: str) -> None:
    source = filled(GRAPHS[name]())
    proto = to_onnx(source)
    onnx.checker.check_model(proto, full_check=True)
    back = convert_model(proto)
    assert back.graph.input_name == source.graph.input_name
    assert list(back.graph.outputs) == list(source.graph.outputs)
    names = list(source.graph.outputs)
    for batch in (1, 3):
        x = weights(batch, *source.graph.input_shape)
        ours = Model.from_file(source).predict(x, outputs=names)
        again = Model.from_file(back).predict(x, outputs=names)
        for output in names:
            np.testing.assert_allclose(again[output], ours[output], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pool", [layers.MaxPool2d, layers.AvgPool2d])
@pytest.mark.parametrize(
    "shape, size, stride",
    [
        ((2, 23, 13), 3, (3, 2)),  # a window dropped along the height
        ((2, 11, 10), 3, 3),  # and one kept along the width
        ((2, 11, 11), 3, 3),  # dropped along both
        ((2, 10, 10), 3, 3),  # none
        ((2, 9, 9), (2, 3), (4, 2)),
    ],
)
def test_the_size_of_a_pooling_that_rounds_up_is_inferred(
    pool: Any, shape: Any, size: Any, stride: Any
) -> None:
    graph = Graph(shape)
    graph.add(pool(size, stride, 1, "ceil"))
    source = filled(graph)
    proto = to_onnx(source)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph.output[0]
    dims = [dim.dim_value for dim in inferred.type.tensor_type.shape.dim]
    assert dims[1:] == list(graph.nodes[-1].shape)
    x = weights(2, *shape)
    ours = Model.from_file(source).predict(x)
    np.testing.assert_array_equal(Model.from_file(convert_model(proto)).predict(x), ours)


@pytest.mark.parametrize("name", GRAPHS)
def test_onnx_runtime_agrees(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    source = filled(GRAPHS[name]())
    convserve.export_onnx(source, tmp_path / "m.onnx")
    model, names = Model.from_file(source), list(source.graph.outputs)
    found = verify(tmp_path / "m.onnx", source.graph, lambda x: model.predict(x, outputs=names))
    assert [difference.output for difference in found] == names
    assert all(difference.relative < 1e-4 for difference in found), found


def test_verify_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConversionError, match="pip install onnxruntime"):
        verify(tmp_path / "m.onnx", architectures.build("mlp"), lambda x: {})


def test_labels_and_preprocessing_go_along(tmp_path: Path) -> None:
    source = filled(architectures.build("lenet"))
    source.labels = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "ninë")
    source.preprocessing = Preprocessing(28, 28, "grey", (0.1307,), (0.3081,))
    source.provenance = {"data": "mnist", "accuracy": 0.99}
    convserve.export_onnx(source, tmp_path / "m.onnx")
    back = convserve.convert_onnx(tmp_path / "m.onnx", tmp_path / "m.npz")
    assert back.labels == source.labels
    assert back.preprocessing == source.preprocessing
    assert back.provenance["accuracy"] == 0.99
    assert load(tmp_path / "m.npz").graph == back.graph
    names = {entry.name for entry in source.graph.nodes}
    assert {entry.name for entry in back.graph.nodes} == names


@pytest.mark.parametrize(
    "key, value", [("labels", "{}"), ("labels", "["), ("preprocessing", "[1]"), ("provenance", "1")]
)
def test_malformed_metadata(key: str, value: str) -> None:
    proto = small()
    proto.metadata_props.add(key=f"convserve.{key}", value=value)
    with pytest.raises(ConversionError, match="metadata"):
        convert_model(proto)


def test_nothing_is_left_where_a_file_can_not_be_written(tmp_path: Path) -> None:
    source: Any = filled(architectures.build("mlp"))
    (tmp_path / "taken.onnx").mkdir()
    for target in (tmp_path / "no" / "m.onnx", tmp_path / "taken.onnx"):
        with pytest.raises(ConversionError):
            convserve.export_onnx(source, target)
    assert [p.name for p in tmp_path.iterdir()] == ["taken.onnx"]


def test_without_onnx_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convserve.convert.find_spec", lambda name: None)
    with pytest.raises(ConversionError, match="onnx package"):
        convserve.convert_onnx("m.onnx")
