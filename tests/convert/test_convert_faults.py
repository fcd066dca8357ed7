"""What can't be converted is named; what is malformed, cut off or hostile is a ConversionError."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("onnx", reason="pip install convserve[onnx]")

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_models import model, node, small, weights

from convserve.convert.importer import convert_model
from convserve.errors import ConversionError, UnsupportedOperatorError

pytestmark = pytest.mark.filterwarnings("ignore")


def test_all_unsupported_nodes_are_listed() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("ConvTranspose", ["a", "w"], ["b"], name="up"),
        node("Conv", ["b", "w"], ["c"], name="behind"),
        node("Foo", ["c"], ["d"], name="odd", domain="other"),
        node("MaxPool", ["a"], ["e"], kernel_shape=[2, 2], dilations=[2, 2], name="holes"),
        node("Flatten", ["d"], ["f"]),
        node("Flatten", ["e"], ["g"]),
        node("Concat", ["f", "g"], ["y"], axis=1),
    ]
    with pytest.raises(UnsupportedOperatorError) as raised:
        convert_model(model(nodes, {"w": weights(4, 4, 3, 3)}))
    message = str(raised.value)
    assert message.startswith("3 nodes can't be converted")
    for part in (
        "node 'up' (ConvTranspose): it needs an operator ConvTranspose",
        "node 'odd' (Foo): it needs the operator Foo of the domain 'other'",
        "node 'holes' (MaxPool): it needs dilated pooling",
    ):
        assert part in message
    assert "behind" not in message


@pytest.mark.parametrize(
    "nodes, part",
    [
        ([node("Softplus", ["x"], ["a"]), node("Tanh", ["a"], ["b"]),
          node("Mul", ["x", "b"], ["y"])], "Softplus"),
        ([node("ReduceMean", ["x"], ["a"], axes=[1]), node("Sub", ["x", "a"], ["y"])], "mean over"),
        ([node("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1])], "transposed in memory"),
        ([node("Transpose", ["x"], ["y"], perm=[1, 0, 2, 3])], "batch"),
        ([node("Div", ["x", "x"], ["y"])], "divided by a tensor"),
        ([node("Softmax", ["x"], ["y"], axis=1)], "softmax for each pixel"),
        ([node("Concat", ["x", "x"], ["y"], axis=2)], "along the height"),
        ([node("Concat", ["x", "x"], ["y"], axis=0)], "across the images"),
        ([node("Mul", ["x", "k"], ["y"])], "pixel to pixel"),
        ([node("Reshape", ["x", "s"], ["y"])], "mixes the batch"),
        ([node("MaxPool", ["x"], ["m", "i"], kernel_shape=[2, 2]), node("Cast", ["i"], ["c"], to=1),
          node("Add", ["m", "c"], ["y"])], "its output 'i' is used"),
        ([node("BatchNormalization", ["x", "s", "s", "s", "s"], ["y", "mean", "var"])],
         "in training mode"),
        ([node("Relu", ["x"], ["y"], future=1)], "attributes that are not known"),
        ([node("Exp", ["x"], ["y"])], "Exp on tensors that depend on the image"),
        ([node("Conv", ["x", "x"], ["y"])], "must be constant"),
        ([node("Pad", ["x", "p"], ["y"], mode="reflect")], "reflect"),
        ([node("Cast", ["x"], ["y"], to=10)], "FLOAT16"),
    ],
)  # fmt: skip
def test_what_has_no_equivalent(nodes: list[Any], part: str) -> None:
    constants = {
        "k": weights(6, 8), "s": np.array([-1, 8]), "p": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    }  # fmt: skip
    with pytest.raises(UnsupportedOperatorError, match=part):
        convert_model(model(nodes, constants, opset=13))


def test_what_the_likelier_layout_lacks_is_said() -> None:
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("Conv", ["t", "w"], ["c"], name="first"),
        node("Abs", ["c"], ["y"], name="odd"),
    ]
    with pytest.raises(UnsupportedOperatorError) as raised:
        convert_model(model(nodes, {"w": weights(2, 3, 3, 3)}, ("N", 9, 9, 3)))
    assert "node 'odd' (Abs)" in str(raised.value)
    assert "first" not in str(raised.value)


def broken(change: Callable[[ModelProto], Any]) -> ModelProto:
    proto = small()
    change(proto)
    return proto


def _cycle(p: ModelProto) -> None:
    p.graph.node[0].input[0] = "n"


def _weight(*shape: int) -> Callable[[ModelProto], None]:
    return lambda p: p.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights(*shape), "w"))


def _weight_dims(*dims: int) -> Callable[[ModelProto], None]:
    def change(p: ModelProto) -> None:
        p.graph.initializer[0].dims[:] = dims

    return change


def _short_weight(p: ModelProto) -> None:
    p.graph.initializer[0].raw_data = p.graph.initializer[0].raw_data[:-4]


def _huge_padding(p: ModelProto) -> None:
    p.graph.node[0].attribute[0].ints[:] = [2**62] * 4


def _bad_attribute(p: ModelProto) -> None:
    p.graph.node[0].attribute[0].type = 1


def _two_inputs(p: ModelProto) -> None:
    p.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1]))


def _other_batch(p: ModelProto) -> None:
    p.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [2, 4]))


def _declared(p: ModelProto) -> None:
    p.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 7]))


def dims(*sizes: Any) -> Callable[[ModelProto], None]:
    def change(p: ModelProto) -> None:
        kind = helper.make_tensor_value_info("x", TensorProto.FLOAT, list(sizes))
        p.graph.input[0].CopyFrom(kind)

    return change


def _opset(version: int) -> Callable[[ModelProto], None]:
    def change(p: ModelProto) -> None:
        p.opset_import[0].version = version

    return change


@pytest.mark.parametrize(
    "change, part",
    [
        (_cycle, "depends on its own output"),
        (lambda p: p.graph.node[2].input.__setitem__(0, "gone"), "'act'.*'gone', which nothing"),
        (lambda p: p.graph.node[2].output.__setitem__(0, "c"), "twice"),
        (_weight(6, 3, 3, 3), r"node 'conv' \(Conv\): its weight must have the shape"),
        (_weight_dims(2**40, 4, 3, 3), "impossible shape"),
        (_weight_dims(-6, 4, -3, 3), "impossible shape"),
        (_short_weight, "must have 864 bytes"),
        (_huge_padding, "'conv'"),
        (_bad_attribute, "'conv'.*'pads' has a wrong type"),
        (_two_inputs, "'z' must be images with 4 axes or rows with 2"),
        (_other_batch, "different batch sizes: any, 2"),
        (_declared, "declared as"),
        (dims("N", 4, "h", "w"), "--input-shape"),
        (dims("N", 4, 6), "4 axes"),
        (dims("N", 4, 2**40, 8), "impossible shape"),
        (dims("N", 5, 6, 8), "'conv'"),
        (_opset(6), "version 6"),
        (_opset(999), "version 999"),
        (lambda p: p.graph.ClearField("output"), "no outputs"),
        (lambda p: setattr(p.graph.output[0], "name", "w"), "does not depend on"),
    ],
)
def test_what_does_not_fit(change: Callable[[ModelProto], Any], part: str) -> None:
    start = time.process_time()
    with pytest.raises(ConversionError, match=part):
        convert_model(broken(change))
    assert time.process_time() - start < 30


def test_an_input_shape() -> None:
    proto = broken(dims("N", 4, "h", "w"))
    assert convert_model(proto, input_shape=(4, 5, 7)).graph.input_shape == (4, 5, 7)
    for shape in ((3, 5, 7), (4, 0, 7), (4, 5), (4, 5, 2**40)):
        with pytest.raises(ConversionError, match="input_shape"):
            convert_model(proto, input_shape=shape)  # type: ignore[arg-type]


def test_constants_that_would_fill_the_memory() -> None:
    constants = {
        "s": np.array([2**20, 2**20]), "k": weights(1), "k2": weights(1, 1), "one": np.float32(1),
        "zero": np.float32(0), "many": np.float32(1e30), "row": weights(20_000),
        "up": np.array([-1, 1]),
    }  # fmt: skip
    for nodes in (
        [node("ConstantOfShape", ["s"], ["c"])],
        [node("Expand", ["k", "s"], ["c"])],
        [node("Tile", ["k2", "s"], ["c"])],
        [node("Range", ["zero", "many", "one"], ["c"])],
        [node("Reshape", ["row", "up"], ["t"]), node("Mul", ["row", "t"], ["c"])],
    ):
        with pytest.raises(ConversionError, match=r"elements|constant of shape"):
            convert_model(model([*nodes, node("Add", ["x", "c"], ["y"])], constants))


def functions(*bodies: tuple[str, list[Any]]) -> ModelProto:
    proto = model([node(bodies[0][0], ["x"], ["y"], domain="mine")])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    for name, calls in bodies:
        proto.functions.append(helper.make_function("mine", name, ["a"], ["b"], calls, imports))
    return proto


def test_functions_that_call_themselves() -> None:
    with pytest.raises(ConversionError, match="nested deeper"):
        convert_model(functions(("F", [helper.make_node("F", ["a"], ["b"], domain="mine")])))


def test_functions_that_double_at_every_level() -> None:
    bodies = []
    for level in range(25):
        calls = [
            helper.make_node(f"F{level + 1}", [i], [o], domain="mine") for i, o in ("am", "mb")
        ]
        bodies.append((f"F{level}", calls))
    bodies.append(("F25", [helper.make_node("Relu", ["a"], ["b"])]))
    with pytest.raises(ConversionError, match="more than"):
        convert_model(functions(*bodies))


BYTES = small().SerializeToString()
PLACES = st.integers(0, len(BYTES) - 1)


@settings(max_examples=100)
@given(PLACES)
def test_truncated_files(length: int) -> None:
    survives(BYTES[:length])


@settings(max_examples=200)
@given(st.lists(st.tuples(PLACES, st.integers(1, 255)), min_size=1, max_size=8))
def test_flipped_bytes(flips: list[tuple[int, int]]) -> None:
    data = bytearray(BYTES)
    for place, change in flips:
        data[place] ^= change
    survives(bytes(data))


@settings(max_examples=300)
@given(st.integers(0, 400), st.binary(max_size=6))
def test_changed_nodes(place: int, piece: bytes) -> None:
    """The nodes are at the file's start."""
    survives(BYTES[:place] + piece + BYTES[place + len(piece) :])


def survives(data: bytes) -> None:
    """Converted or refused with the one error, quickly."""
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception:
        return
    start = time.process_time()
    try:
        convert_model(proto)
    except ConversionError as error:
        assert str(error)
    assert time.process_time() - start < 30
