"""ONNX models of several inputs and of other outputs than scores, in and out again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_models import Array, model, node, weights

from convserve.convert.exporter import to_onnx
from convserve.convert.importer import convert_model
from convserve.convert.verify import verify
from convserve.engine.model import Model
from convserve.errors import ConversionError
from convserve.model_file import load, save


def several(
    nodes: Sequence[Any],
    constants: dict[str, Array],
    inputs: dict[str, list[Any]],
    outputs: Sequence[str] = ("y",),
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "several",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def fused() -> ModelProto:
    """A row, a photo with its channels last, and a mask with its channels first."""
    nodes = [
        node("Transpose", ["photo"], ["p"], perm=[0, 3, 1, 2]),
        node("Conv", ["p", "w"], ["c"], pads=[1] * 4, name="conv"),
        node("Mul", ["c", "mask"], ["m"], name="masked"),
        node("GlobalAveragePool", ["m"], ["g"]), node("Flatten", ["g"], ["f"]),
        node("Concat", ["f", "facts"], ["all"], axis=1, name="all"),
        node("Gemm", ["all", "d"], ["y"], transB=1, name="dense"),
    ]  # fmt: skip
    constants = {"w": weights(6, 3, 3, 3), "d": weights(5, 10)}
    inputs = {"facts": ["N", 4], "photo": ["N", 9, 8, 3], "mask": ["N", 6, 9, 8]}
    return several(nodes, constants, inputs, ("y", "m"))


def fed(graph: Any, count: int) -> dict[str, Array]:
    return {
        name: weights(count, *shape, seed=place)
        for place, (name, shape) in enumerate(graph.inputs.items())
    }


def test_images_and_rows_to_a_feature_map_and_scores(tmp_path: Path) -> None:
    proto = fused()
    converted = convert_model(proto)
    assert converted.graph.inputs == {"photo": (3, 9, 8), "mask": (6, 9, 8), "facts": (4,)}
    assert converted.graph.outputs == {"y": "dense", "m": "masked"}
    assert converted.provenance["source_layout"] == {"photo": "nhwc"}
    save(tmp_path / "m.npz", converted)
    assert load(tmp_path / "m.npz").graph == converted.graph
    engine, runner = Model.from_file(load(tmp_path / "m.npz")), ReferenceEvaluator(proto)
    for count in (1, 3):
        x = fed(converted.graph, count)
        expected = runner.run(None, {**x, "photo": x["photo"].transpose(0, 2, 3, 1)})
        actual = engine.predict(x)
        for name, value in zip(("y", "m"), expected, strict=True):
            np.testing.assert_allclose(actual[name], value, rtol=2e-4, atol=2e-5)
    exported = to_onnx(converted)
    again = ReferenceEvaluator(exported).run(None, x)
    np.testing.assert_allclose(again[0], expected[0], rtol=2e-4, atol=2e-5)
    assert convert_model(exported).graph.inputs == converted.graph.inputs


def test_verify_feeds_every_input(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    proto = fused()
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    converted = convert_model(proto)
    found = verify(tmp_path / "m.onnx", converted.graph, Model.from_file(converted).predict)
    assert [entry.output for entry in found] == ["y", "m"]
    assert max(entry.relative for entry in found) < 1e-5


def added(*shapes: list[Any]) -> ModelProto:
    inputs = {f"x{place}": shape for place, shape in enumerate(shapes)}
    return several([node("Sum", list(inputs), ["y"])], {}, inputs)


def test_input_shapes_by_name() -> None:
    proto = added(["N", 2, "h", "w"], ["N", "c", "h", "w"])
    with pytest.raises(ConversionError, match="for each by its name"):
        convert_model(proto, input_shape=(2, 4, 4))
    with pytest.raises(ConversionError, match="names 'x9'"):
        convert_model(proto, input_shape={"x9": (2, 4, 4)})
    with pytest.raises(ConversionError, match="'x1' leaves its height"):
        convert_model(proto, input_shape={"x0": (2, 4, 4)})
    found = convert_model(proto, input_shape={"x0": (2, 4, 4), "x1": (2, 4, 4)})
    assert found.graph.inputs == {"x0": (2, 4, 4), "x1": (2, 4, 4)}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ((["N", 4], ["N", 4]), "none of its inputs are images"),
        ((["N", 2, 4, 4], [1, 2, 4, 4]), "different batch sizes: any, 1"),
        ((["N", 2, 4, 4], ["N", 4, 4]), "'x1' must be images with 4 axes or rows"),
        ((["N", 2, 4, 4], ["N", 3, 4, 4]), r"(2, 4, 4).*(3, 4, 4)|do not fit"),
    ],
)  # fmt: skip
def test_inputs_that_do_not_fit(shapes: Any, words: str) -> None:
    with pytest.raises(ConversionError, match=words):
        convert_model(added(*shapes))


def test_a_layout_that_is_said() -> None:
    """[N, 4, 4, 4] looks the same both ways."""
    nodes = [node("Conv", ["t", "w"], ["y"])]
    turned = [node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), *nodes]
    proto = model(turned, {"w": weights(2, 4, 1, 1)}, ["N", 4, 4, 4])
    assert convert_model(proto, layout="nhwc").graph.input_shape == (4, 4, 4)
    with pytest.raises(ConversionError):
        convert_model(proto, layout="nchw")
    with pytest.raises(ConversionError, match="layout must be one of nchw, nhwc"):
        convert_model(proto, layout="hwc")
