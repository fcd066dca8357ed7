"""Each kind of node, and the ways in which exporters write it, against ONNX's reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="pip install convserve[onnx]")

import numpy as np
from onnx.reference import ReferenceEvaluator
from onnx_models import check, model, node, ops, weights

from convserve.convert import convert_onnx, export_onnx
from convserve.convert.importer import convert_model
from convserve.engine.model import Model

pytestmark = pytest.mark.filterwarnings("ignore")

I64 = np.int64
W, B = weights(6, 4, 3, 3), weights(6)
FLAT = 4 * 6 * 8


def ints(*values: int) -> Any:
    return np.array(values, I64)


def scalar(value: float) -> Any:
    return np.array(value, np.float32)


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 1, 1, 1]},
        {"pads": [0, 1, 2, 0]},
        {"strides": [2, 3]},
        {"dilations": [2, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "VALID"},
        {"auto_pad": "SAME_UPPER"},
        {"kernel_shape": [3, 3]},
    ],
)
@pytest.mark.parametrize("as_nodes", [False, True])
def test_convolution(attributes: dict[str, Any], as_nodes: bool) -> None:
    nodes = [node("Conv", ["x", "w", "b"], ["y"], **attributes)]
    assert ops(check(model(nodes, {"w": W, "b": B}, as_nodes=as_nodes))) == ["conv2d"]


def test_grouped_and_depthwise_convolution() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"], group=2),
        node("Conv", ["a", "d"], ["y"], group=6, pads=[1] * 4),
    ]
    check(model(nodes, {"w": weights(6, 2, 3, 3), "d": weights(6, 1, 3, 3)}))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 2]},
        {"strides": [2, 2], "ceil_mode": 1},
        {"pads": [1, 0, 0, 1]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ],
)
def test_pooling(op: str, attributes: dict[str, Any]) -> None:
    check(model([node(op, ["x"], ["y"], kernel_shape=[3, 2], **attributes)]))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pooling_with_more_padding_before(op: str) -> None:
    window = {"kernel_shape": [3, 3], "strides": [2, 2]}
    lower = model([node(op, ["x"], ["y"], auto_pad="SAME_LOWER", **window)])
    explicit = ReferenceEvaluator(model([node(op, ["x"], ["y"], pads=[1, 1, 0, 0], **window)]))
    check(lower, expect=lambda x: explicit.run(None, {"x": x})[0])


def test_average_pooling_that_counts_the_padding() -> None:
    attributes = {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}
    check(model([node("AveragePool", ["x"], ["y"], **attributes)]))


@pytest.mark.parametrize(
    "op, attributes, kind",
    [
        ("Relu", {}, "relu"),
        ("LeakyRelu", {"alpha": 0.2}, "leaky_relu"),
        ("Sigmoid", {}, "sigmoid"),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, "hard_sigmoid"),
        ("HardSwish", {}, "hard_swish"),
        ("Tanh", {}, "tanh"),
        ("Elu", {"alpha": 0.7}, "elu"),
        ("GlobalAveragePool", {}, "global_avg_pool2d"),
        ("GlobalMaxPool", {}, "global_max_pool2d"),
        ("Neg", {}, "scale_shift"),
        ("Identity", {}, "dropout"),
    ],
)
def test_a_node_is_a_layer(op: str, attributes: dict[str, Any], kind: str) -> None:
    assert ops(check(model([node(op, ["x"], ["y"], **attributes)]))) == [kind]


@pytest.mark.parametrize("size", [3, 4])
def test_lrn(size: int) -> None:
    def expect(x: Any) -> Any:
        squares = np.pad(x * x, ((0, 0), ((size - 1) // 2, size // 2), (0, 0), (0, 0)))
        total = sum(squares[:, start : start + x.shape[1]] for start in range(size))
        return x / (1.5 + 0.1 / size * total) ** 0.6

    lrn = node("LRN", ["x"], ["y"], size=size, alpha=0.1, beta=0.6, bias=1.5)
    assert ops(check(model([lrn]), expect=expect)) == ["lrn"]


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    found = check(model([node("Gelu", ["x"], ["y"], approximate=approximate)], opset=20))
    assert ops(found) == ["gelu"]


def test_selu() -> None:
    assert ops(check(model([node("Selu", ["x"], ["y"])]))) == ["elu", "scale_shift"]


def test_prelu() -> None:
    for slope in (weights(4, 1, 1), weights(1)):
        found = check(model([node("PRelu", ["x", "s"], ["y"])], {"s": slope}))
        assert ops(found) == ["prelu"]


@pytest.mark.parametrize("bounds", [(0.0, 6.0), (-1.0, None), (None, 0.5)])
def test_clip(bounds: tuple[float | None, float | None]) -> None:
    names = [name if b is not None else "" for name, b in zip("lh", bounds, strict=True)]
    given = {n: scalar(b) for n, b in zip("lh", bounds, strict=True) if b is not None}
    assert ops(check(model([node("Clip", ["x", *names], ["y"])], given))) == ["clip"]


def test_clip_with_attributes_and_limits() -> None:
    check(model([node("Clip", ["x"], ["y"], min=0.0, max=6.0)], opset=10))
    nodes = [node("Max", ["x", "low"], ["a"]), node("Min", ["high", "a"], ["y"])]
    check(model(nodes, {"low": scalar(-0.5), "high": scalar(0.25)}))


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("shape", [(), (1,), (4, 1, 1), (1, 4, 1, 1)])
def test_arithmetic_with_constants(op: str, shape: tuple[int, ...]) -> None:
    constant = weights(*shape) if shape else scalar(2.5)
    found = check(model([node(op, ["x", "c"], ["y"])], {"c": constant}))
    assert ops(found) == ["scale_shift"]
    if op != "Div":
        check(model([node(op, ["c", "x"], ["y"])], {"c": constant}))


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul"])
def test_arithmetic_between_tensors(op: str) -> None:
    nodes = [
        node("Sigmoid", ["x"], ["s"]),
        node("GlobalAveragePool", ["s"], ["p"]),
        node(op, ["p", "x"], ["a"]),
        node(op, ["a", "s"], ["b"]),
        node("Relu", ["b"], ["y"]),
    ]
    check(model(nodes))


def test_a_sum_of_three() -> None:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Tanh", ["x"], ["t"]),
        node("Sum", ["x", "r", "t"], ["y"]),
    ]
    assert ops(check(model(nodes))).count("add") == 2


def test_batch_norm_and_constants_around_a_convolution() -> None:
    params = {name: weights(6, seed=place) for place, name in enumerate("smb")}
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Add", ["a", "bias"], ["b"]),
        node("BatchNormalization", ["b", "s", "b2", "m", "v"], ["c"], epsilon=1e-3),
        node("Mul", ["c", "k"], ["y"]),
    ]
    constants = {
        "w": W,
        "bias": weights(6, 1, 1),
        "s": params["s"],
        "b2": params["b"],
        "m": params["m"],
        "v": np.abs(weights(6, seed=9)) + 0.1,
        "k": weights(1, 6, 1, 1),
    }
    assert ops(check(model(nodes, constants))) == ["conv2d", "batch_norm"]


def test_a_value_that_is_read_twice_is_kept() -> None:
    nodes = [
        node("Conv", ["x", "w"], ["a"]),
        node("Add", ["a", "k"], ["b"]),
        node("Mul", ["a", "b"], ["y"]),
    ]
    assert "scale_shift" in ops(check(model(nodes, {"w": W, "k": weights(6, 1, 1)})))


@pytest.mark.parametrize("value, merged", [(0.0, True), (1.5, False)])
def test_padding_before_a_convolution(value: float, merged: bool) -> None:
    nodes = [
        node("Pad", ["x", "p", "v"], ["a"]),
        node("Conv", ["a", "w"], ["y"], pads=[1, 0, 0, 0]),
    ]
    given = {"p": ints(0, 0, 1, 2, 0, 0, 0, 1), "v": scalar(value), "w": W}
    if merged:
        assert ops(check(model(nodes, given))) == ["conv2d"]
    else:
        nodes = [nodes[0], node("Conv", ["a", "w"], ["y"])]
        assert ops(check(model(nodes, given))) == ["pad", "conv2d"]


def test_padding_forms() -> None:
    check(model([node("Pad", ["x"], ["y"], pads=[0, 0, 1, 0, 0, 0, 2, 3])], opset=10))
    given = {"p": ints(1, 2, 0, 1), "a": ints(2, 3)}
    check(model([node("Pad", ["x", "p", "", "a"], ["y"])], given, opset=18))
    cut = model([node("Pad", ["x", "p"], ["y"])], {"p": ints(0, 0, -1, 2, 0, 0, 0, -3)})
    sides = ((0, 0), (0, 0), (0, 0), (2, 0))
    found = check(cut, expect=lambda x: np.pad(x[:, :, 1:, :-3], sides))
    assert ops(found) == ["crop", "pad"]


FLATTENS = {
    "flatten": ([node("Flatten", ["x"], ["f"])], {}),
    "reshape": ([node("Reshape", ["x", "s"], ["f"])], {"s": ints(0, -1)}),
    "batch left open": ([node("Reshape", ["x", "s"], ["f"])], {"s": ints(-1, FLAT)}),
    "shape and gather": (
        [
            node("Shape", ["x"], ["d"]),
            node("Gather", ["d", "zero"], ["n"], axis=0),
            node("Unsqueeze", ["n", "axis"], ["m"]),
            node("Concat", ["m", "rest"], ["s"], axis=0),
            node("Reshape", ["x", "s"], ["f"]),
        ],
        {"zero": np.array(0, I64), "axis": ints(0), "rest": ints(-1)},
    ),
    "shape and slice": (
        [
            node("Shape", ["x"], ["d"]),
            node("Slice", ["d", "from", "to"], ["n"]),
            node("Cast", ["n"], ["g"], to=1),
            node("Floor", ["g"], ["h"]),
            node("Cast", ["h"], ["i"], to=7),
            node("Concat", ["i", "rest"], ["s"], axis=0),
            node("Reshape", ["x", "s"], ["f"]),
        ],
        {"from": ints(0), "to": ints(1), "rest": ints(FLAT)},
    ),
}


@pytest.mark.parametrize("form", FLATTENS)
@pytest.mark.parametrize("batch", ["N", 2])
def test_flattening_and_gemm(form: str, batch: Any) -> None:
    nodes, given = FLATTENS[form]
    gemm = node("Gemm", ["f", "w", "b"], ["y"], transB=1, alpha=0.5, beta=2.0)
    constants = {**given, "w": weights(5, FLAT), "b": weights(5)}
    shape = (batch, 4, 6, 8)
    found = check(model([*nodes, gemm], constants, shape), batches=[2] if batch == 2 else [1, 3])
    assert ops(found) == ["flatten", "affine"]


def test_matmul_and_bias() -> None:
    nodes = [
        node("Flatten", ["x"], ["f"]),
        node("MatMul", ["f", "w"], ["m"]),
        node("Add", ["m", "b"], ["y"]),
    ]
    found = check(model(nodes, {"w": weights(FLAT, 5), "b": weights(5)}))
    assert ops(found) == ["flatten", "affine"]


def test_a_dense_layer_over_channels_last() -> None:
    """Keras flattens height, width, channels: the weights are put in our order."""
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
        node("Reshape", ["t", "s"], ["f"]),
        node("MatMul", ["f", "w"], ["y"]),
    ]
    found = check(model(nodes, {"s": ints(-1, FLAT), "w": weights(FLAT, 5)}))
    assert ops(found) == ["flatten", "affine"]


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset, axis", [(11, 1), (13, 1), (17, -1)])
def test_softmax(op: str, opset: int, axis: int) -> None:
    nodes = [
        node("GlobalAveragePool", ["x"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node(op, ["f"], ["y"], axis=axis),
    ]
    check(model(nodes, opset=opset))


def test_softmax_over_one_pixel() -> None:
    nodes = [
        node("GlobalAveragePool", ["x"], ["p"]),
        node("Softmax", ["p"], ["s"], axis=1),
        node("Flatten", ["s"], ["y"]),
    ]
    check(model(nodes))


def squeezed(op: str, classes: int, opset: int) -> Any:
    """The end of SqueezeNet: scores for each pixel, their mean, and probabilities [N, C, 1, 1]."""
    nodes = [
        node("Conv", ["x", "a"], ["c0"], kernel_shape=[3, 3], pads=[1] * 4),
        node("Relu", ["c0"], ["r0"]),
        node("Dropout", ["r0"], ["d"]),
        node("Conv", ["d", "w"], ["c1"], kernel_shape=[1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("GlobalAveragePool", ["r1"], ["p"]),
        node(op, ["p"], ["y"], **({"axis": 1} if opset >= 13 else {})),
    ]
    constants = {"a": weights(6, 4, 3, 3), "w": weights(classes, 6, 1, 1)}
    proto = model(nodes, constants, opset=opset)
    for size in (0, classes, 1, 1):
        dim = proto.graph.output[0].type.tensor_type.shape.dim.add()
        dim.dim_value = size
    return proto


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("classes", [1, 10, 17, 1000])
def test_softmax_at_the_end_of_an_image(op: str, classes: int, tmp_path: Path) -> None:
    evaluator = ReferenceEvaluator(squeezed(op, classes, 13))
    for opset in (8, 12, 13, 17):  # before 13 over all axes from the first on, by default
        found = check(
            squeezed(op, classes, opset),
            batches=(1, 2, 7),
            expect=lambda x: evaluator.run(None, {"x": x})[0],
        )
        assert found.graph.shape(found.graph.outputs["y"]) == (classes, 1, 1)
        assert ops(found)[-1] == {"Softmax": "softmax", "LogSoftmax": "log_softmax"}[op]
    labelled = replace(found, labels=tuple(map(str, range(classes))))
    export_onnx(labelled, tmp_path / "again.onnx")
    again = convert_onnx(tmp_path / "again.onnx")
    assert again.labels == labelled.labels and ops(again) == ops(found)
    assert again.graph.shape(again.graph.outputs["y"]) == (classes, 1, 1)
    x = weights(2, 4, 6, 8)
    first, second = (Model.from_file(file).predict(x) for file in (labelled, again))
    np.testing.assert_array_equal(first, second)


def test_readers_of_a_softmax_of_one_pixel() -> None:
    nodes = [
        node("GlobalAveragePool", ["x"], ["p"]),
        node("Softmax", ["p"], ["s"], axis=1),
        node("Mul", ["x", "s"], ["gated"]),
        node("Concat", ["s", "p", "s"], ["joined"], axis=1),
        node("Conv", ["s", "w"], ["conv"], pads=[1] * 4),
        node("Flatten", ["s"], ["row"]),
        node("Softmax", ["conv"], ["again"], axis=1),
    ]
    outputs = ("s", "gated", "joined", "conv", "row", "again")
    found = check(model(nodes, {"w": weights(20, 4, 3, 3)}, outputs=outputs))
    assert ops(found).count("conv2d") == 1


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("opset", [13, 18])
def test_means_over_pixels(keep: int, opset: int) -> None:
    if opset == 18:
        nodes = [node("ReduceMean", ["x", "a"], ["m"], keepdims=keep)]
    else:
        nodes = [node("ReduceMean", ["x"], ["m"], keepdims=keep, axes=[-1, -2])]
    nodes.append(node("Flatten", ["m"], ["y"]))
    found = check(model(nodes, {"a": ints(2, 3)} if opset == 18 else {}, opset=opset))
    assert ops(found) == ["global_avg_pool2d", "flatten"]


def test_means_over_one_axis_after_the_other() -> None:
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[3], keepdims=0),
        node("ReduceMean", ["m"], ["y"], axes=[2], keepdims=0),
    ]
    check(model(nodes, opset=13))


def test_the_largest_over_pixels() -> None:
    nodes = [node("ReduceMax", ["x"], ["m"], axes=[2, 3], keepdims=1)]
    nodes.append(node("Squeeze", ["m", "a"], ["y"]))
    check(model(nodes, {"a": ints(2, 3)}))


def test_channel_shuffle() -> None:
    nodes = [
        node("Reshape", ["x", "apart"], ["a"]),
        node("Transpose", ["a"], ["t"], perm=[0, 2, 1, 3, 4]),
        node("Reshape", ["t", "whole"], ["s"]),
        node("Split", ["s"], ["u", "v"], axis=1),
        node("Relu", ["u"], ["r"]),
        node("Concat", ["v", "r"], ["y"], axis=1),
    ]
    found = check(model(nodes, {"apart": ints(0, 2, 2, 6, 8), "whole": ints(0, 4, 6, 8)}))
    assert ops(found).count("channel_shuffle") == 1


def test_parts_of_the_channels() -> None:
    nodes = [
        node("Slice", ["x", "s", "e", "a"], ["p"]),
        node("Split", ["x", "sizes"], ["q", "r"], axis=1),
        node("Gather", ["x", "i"], ["g"], axis=1),
        node("Unsqueeze", ["g", "a"], ["h"]),
        node("Gather", ["x", "reverse"], ["k"], axis=1),
        node("Slice", ["x", "last", "before", "a", "back"], ["z"]),
        node("Concat", ["p", "q", "r", "h", "k", "z"], ["y"], axis=1),
    ]
    given = {
        "s": ints(1),
        "e": ints(2**63 - 1),
        "a": ints(1),
        "sizes": ints(1, 3),
        "i": np.array(-2, I64),
        "reverse": ints(2, 1, 0),
        "last": ints(-1),
        "before": ints(-(2**63)),
        "back": ints(-1),
    }
    check(model(nodes, given))


def test_parts_of_the_image() -> None:
    nodes = [
        node("Slice", ["x", "s", "e", "a"], ["p"]),
        node("Slice", ["p", "z", "t", "a", "two"], ["y"]),
    ]
    given = {
        "s": ints(1, 2),
        "e": ints(5, -1),
        "a": ints(2, 3),
        "z": ints(0, 0),
        "t": ints(99, 99),
        "two": ints(2, 2),
    }
    check(model(nodes, given))


def test_several_outputs_keep_their_names() -> None:
    nodes = [
        node("Relu", ["x"], ["first"]),
        node("GlobalAveragePool", ["first"], ["p"]),
        node("Flatten", ["p"], ["second"]),
    ]
    found = check(model(nodes, outputs=["second", "first"]))
    assert list(found.graph.outputs) == ["second", "first"]
    assert found.graph.input_name == "x"


def test_nodes_in_any_order_and_unused_ones() -> None:
    nodes = [
        node("Relu", ["a"], ["y"]),
        node("Tanh", ["x"], ["a"]),
        node("Nonsense", ["x"], ["unused"]),
    ]
    assert ops(check(model(nodes[1::-1])))
    assert ops(convert_model(model(nodes))) == ["tanh", "relu"]


@pytest.mark.parametrize("opset", [7, 12, 17])
def test_outputs_that_nothing_reads_are_left_out(opset: int) -> None:
    nodes = [
        node("MaxPool", ["x"], ["m", "indices"], kernel_shape=[2, 2]) if opset > 7 else
        node("Identity", ["x"], ["m"]),
        node("Dropout", ["m"], ["d", "mask"]),
        node("Relu", ["d"], ["y"]),
    ]  # fmt: skip
    check(model(nodes, opset=opset))


@pytest.mark.parametrize("exponent", [np.int64(2), np.float32(3)])
def test_powers(exponent: Any) -> None:
    check(model([node("Pow", ["x", "e"], ["y"])], {"e": exponent}))
