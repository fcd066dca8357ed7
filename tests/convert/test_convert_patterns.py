"""Operators written out as several nodes, layouts of other frameworks, branches and functions."""

from __future__ import annotations

from math import pi, sqrt
from typing import Any

import pytest

pytest.importorskip("onnx", reason="pip install convserve[onnx]")

import numpy as np
from onnx import NodeProto, TensorProto, helper
from onnx_models import check, model, node, ops, weights

from convserve.convert.importer import convert_model
from convserve.errors import UnsupportedOperatorError

pytestmark = pytest.mark.filterwarnings("ignore")

I64 = np.int64


def ints(*values: int) -> Any:
    return np.array(values, I64)


def scalar(value: float) -> Any:
    return np.array(value, np.float32)


GELU = {
    "torch": [
        node("Div", ["x", "r2"], ["a"]),
        node("Erf", ["a"], ["b"]),
        node("Add", ["b", "one"], ["c"]),
        node("Mul", ["x", "c"], ["d"]),
        node("Mul", ["d", "half"], ["y"]),
    ],
    "half first": [
        node("Mul", ["x", "half"], ["h"]),
        node("Div", ["x", "r2"], ["a"]),
        node("Erf", ["a"], ["b"]),
        node("Add", ["one", "b"], ["c"]),
        node("Mul", ["h", "c"], ["y"]),
    ],
    "half inside": [
        node("Mul", ["x", "r12"], ["a"]),
        node("Erf", ["a"], ["b"]),
        node("Add", ["b", "one"], ["c"]),
        node("Mul", ["c", "half"], ["h"]),
        node("Mul", ["h", "x"], ["y"]),
    ],
    "tanh": [
        node("Pow", ["x", "three"], ["p"]),
        node("Mul", ["p", "k"], ["a"]),
        node("Add", ["x", "a"], ["b"]),
        node("Mul", ["b", "r2pi"], ["c"]),
        node("Tanh", ["c"], ["t"]),
        node("Add", ["t", "one"], ["u"]),
        node("Mul", ["x", "half"], ["h"]),
        node("Mul", ["h", "u"], ["y"]),
    ],
    "tanh, multiplied out": [
        node("Mul", ["x", "x"], ["s"]),
        node("Mul", ["s", "x"], ["p"]),
        node("Mul", ["p", "k"], ["a"]),
        node("Add", ["a", "x"], ["b"]),
        node("Mul", ["b", "r2pi"], ["c"]),
        node("Tanh", ["c"], ["t"]),
        node("Add", ["t", "one"], ["u"]),
        node("Mul", ["u", "x"], ["v"]),
        node("Mul", ["v", "half"], ["y"]),
    ],
}
NUMBERS = {
    "r2": scalar(sqrt(2)),
    "r12": scalar(sqrt(0.5)),
    "one": scalar(1),
    "half": scalar(0.5),
    "three": scalar(3),
    "k": scalar(0.044715),
    "r2pi": scalar(sqrt(2 / pi)),
    "six": scalar(6),
    "zero": scalar(0),
    "sixth": scalar(1 / 6),
    "eps": scalar(1e-3),
    "two": scalar(2),
    "q": scalar(1.702),
}


@pytest.mark.parametrize("form", GELU)
def test_gelu(form: str) -> None:
    found = check(model(GELU[form], NUMBERS))
    assert ops(found) == ["gelu"]
    assert found.graph.nodes[0].op.attributes()["approximate"] == (
        "tanh" if "tanh" in form else "none"
    )


def test_gelu_after_a_scale_for_each_channel() -> None:
    nodes = [node("Mul", ["x", "scale"], ["x1"]), *GELU["torch"]]
    renamed = [
        helper.make_node(n.op_type, ["x1" if i == "x" else i for i in n.input], n.output)
        for n in nodes[1:]
    ]
    found = check(model([nodes[0], *renamed], {**NUMBERS, "scale": weights(4, 1, 1)}))
    assert "gelu" in ops(found)


@pytest.mark.parametrize("form", GELU)
@pytest.mark.parametrize("seed", range(6))
def test_gelu_after_a_dense_layer_with_any_bias(form: str, seed: int) -> None:
    dense = [node("MatMul", ["f", "w"], ["m"]), node("Add", ["m", "bias"], ["x1"])]
    renamed = [
        helper.make_node(n.op_type, ["x1" if i == "x" else i for i in n.input], n.output)
        for n in GELU[form]
    ]
    constants = {"w": weights(192, 5, seed=seed) / 8, "bias": weights(5, seed=seed)}
    found = check(
        model([node("Flatten", ["x"], ["f"]), *dense, *renamed], {**NUMBERS, **constants})
    )
    assert ops(found) == ["flatten", "affine", "gelu"]


def test_silu_and_its_scaled_form() -> None:
    nodes = [node("Sigmoid", ["x"], ["s"]), node("Mul", ["x", "s"], ["y"])]
    assert ops(check(model(nodes))) == ["silu"]
    nodes = [
        node("Mul", ["x", "q"], ["a"]),
        node("Sigmoid", ["a"], ["s"]),
        node("Mul", ["x", "s"], ["y"]),
    ]
    assert ops(check(model(nodes, NUMBERS))) == ["scale_shift", "silu", "scale_shift"]


HARD = {
    "clip, divided after": [
        node("Add", ["x", "three"], ["a"]),
        node("Clip", ["a", "zero", "six"], ["c"]),
        node("Mul", ["x", "c"], ["m"]),
        node("Div", ["m", "six"], ["y"]),
    ],
    "clip, divided before": [
        node("Add", ["x", "three"], ["a"]),
        node("Clip", ["a", "zero", "six"], ["c"]),
        node("Div", ["c", "six"], ["m"]),
        node("Mul", ["x", "m"], ["y"]),
    ],
    "hard sigmoid": [
        node("HardSigmoid", ["x"], ["s"], alpha=1 / 6),
        node("Mul", ["s", "x"], ["y"]),
    ],
}


@pytest.mark.parametrize("form", HARD)
def test_hard_swish(form: str) -> None:
    assert ops(check(model(HARD[form], NUMBERS))) == ["hard_swish"]


def test_hard_sigmoid() -> None:
    nodes = [*HARD["clip, divided before"][:2], node("Mul", ["c", "sixth"], ["y"])]
    assert ops(check(model(nodes, NUMBERS))) == ["hard_sigmoid"]


def layer_norm(axis: int, source: str) -> list[NodeProto]:
    return [
        node("ReduceMean", [source], ["mean"], axes=[axis]),
        node("Sub", [source, "mean"], ["d"]),
        node("Pow", ["d", "two"], ["s"]),
        node("ReduceMean", ["s"], ["var"], axes=[axis]),
        node("Add", ["var", "eps"], ["e"]),
        node("Sqrt", ["e"], ["std"]),
        node("Div", ["d", "std"], ["n"]),
    ]


def test_layer_norm_written_out_over_the_channels() -> None:
    nodes = [*layer_norm(1, "x"), node("Mul", ["n", "w"], ["a"]), node("Add", ["a", "b"], ["y"])]
    given = {**NUMBERS, "w": weights(4, 1, 1), "b": weights(1, 4, 1, 1)}
    assert ops(check(model(nodes, given, opset=13))) == ["layer_norm"]


def test_a_block_of_convnext() -> None:
    """Depthwise convolution, layer norm and two products with the channels last, and back."""
    nodes = [
        node("Conv", ["x", "filters"], ["c"], group=4, pads=[1] * 4),
        node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]),
        *layer_norm(-1, "t"),
        node("Mul", ["n", "w"], ["n1"]),
        node("Add", ["n1", "b"], ["n2"]),
        node("MatMul", ["n2", "up"], ["m"]),
        node("Add", ["m", "ub"], ["m2"]),
        node("Relu", ["m2"], ["g"]),
        node("MatMul", ["g", "down"], ["o"]),
        node("Mul", ["gamma", "o"], ["o2"]),
        node("Transpose", ["o2"], ["z"], perm=[0, 3, 1, 2]),
        node("Add", ["x", "z"], ["y"]),
    ]
    given = {
        **NUMBERS,
        "filters": weights(4, 1, 3, 3),
        "w": weights(4),
        "b": weights(4),
        "up": weights(4, 16),
        "ub": weights(16),
        "down": weights(16, 4),
        "gamma": weights(4),
    }
    found = check(model(nodes, given, opset=13))
    assert ops(found) == ["conv2d", "layer_norm", "conv2d", "relu", "conv2d", "add"]


def test_lrn_as_pytorch_writes_it() -> None:
    nodes = [
        node("Mul", ["x", "x"], ["s"]),
        node("Unsqueeze", ["s", "axis"], ["u"]),
        node("Pad", ["u", "pads"], ["p"]),
        node("AveragePool", ["p"], ["m"], kernel_shape=[3, 1, 1], strides=[1, 1, 1]),
        node("Squeeze", ["m", "axis"], ["q1"]),
        node("Mul", ["q1", "sixth"], ["a"]),
        node("Add", ["a", "two"], ["b"]),
        node("Pow", ["b", "half"], ["c"]),
        node("Div", ["x", "c"], ["y"]),
    ]
    pads = ints(0, 0, 1, 0, 0, 0, 0, 1, 0, 0)
    given = {**NUMBERS, "axis": ints(1), "pads": pads, "half": scalar(0.75)}
    assert ops(check(model(nodes, given))) == ["lrn"]
    with pytest.raises(UnsupportedOperatorError, match=r"LRN only|divided by"):
        convert_model(model(nodes, {**given, "pads": ints(0, 0, 2, 0, 0, 0, 0, 0, 0, 0)}))


def test_layer_normalization_channels_last() -> None:
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 2, 3, 1]),
        node("LayerNormalization", ["t", "w", "b"], ["n"], axis=-1, epsilon=1e-6),
        node("Transpose", ["n"], ["y"], perm=[0, 3, 1, 2]),
    ]
    assert ops(check(model(nodes, {"w": weights(4), "b": weights(4)}))) == ["layer_norm"]


@pytest.mark.parametrize("linear", [False, True])
def test_squeeze_and_excitation(linear: bool) -> None:
    """With 1×1 convolutions, or with dense layers whose output becomes an image again."""
    if linear:
        gate = [
            node("Flatten", ["p"], ["f"]),
            node("Gemm", ["f", "w1", "b1"], ["a"], transB=1),
            node("Relu", ["a"], ["r"]),
            node("MatMul", ["r", "w2"], ["c"]),
            node("Reshape", ["c", "shape"], ["d"]),
        ]
        given = {
            "w1": weights(2, 4),
            "b1": weights(2),
            "w2": weights(2, 4),
            "shape": ints(-1, 4, 1, 1),
        }
    else:
        gate = [
            node("Conv", ["p", "w1", "b1"], ["a"]),
            node("Relu", ["a"], ["r"]),
            node("Conv", ["r", "w2"], ["d"]),
        ]
        given = {"w1": weights(2, 4, 1, 1), "b1": weights(2), "w2": weights(4, 2, 1, 1)}
    nodes = [
        node("ReduceMean", ["x"], ["p"], axes=[2, 3]),
        *gate,
        node("Sigmoid", ["d"], ["s"]),
        node("Mul", ["s", "x"], ["y"]),
    ]
    found = check(model(nodes, given, opset=13))
    assert ops(found) == ["global_avg_pool2d", "conv2d", "relu", "conv2d", "sigmoid", "mul"]


def test_a_keras_network_with_channels_last_input() -> None:
    nodes = [
        node("Transpose", ["x"], ["i"], perm=[0, 3, 1, 2]),
        node("Pad", ["i", "p"], ["j"]),
        node("Conv", ["j", "w"], ["c"], strides=[2, 2]),
        node("Transpose", ["c"], ["t"], perm=[0, 2, 3, 1]),
        node("Add", ["t", "b"], ["u"]),
        node("Relu", ["u"], ["r"]),
        node("Transpose", ["r"], ["v"], perm=[0, 3, 1, 2]),
        node("MaxPool", ["v"], ["m"], kernel_shape=[2, 2], strides=[2, 2], auto_pad="SAME_UPPER"),
        node("Transpose", ["m"], ["o"], perm=[0, 2, 3, 1]),
        node("Concat", ["o", "o"], ["k"], axis=3),
        node("ReduceMean", ["k"], ["g"], axes=[1, 2], keepdims=0),
        node("MatMul", ["g", "d"], ["z"]),
        node("Softmax", ["z"], ["y"], axis=-1),
    ]
    given = {
        "p": ints(0, 0, 0, 0, 0, 0, 1, 1),
        "w": weights(6, 3, 3, 3),
        "b": weights(6),
        "d": weights(12, 5),
    }
    found = check(model(nodes, given, ["N", 12, 10, 3], opset=13), channels_last=True)
    assert found.graph.input_shape == (3, 12, 10)
    assert ops(found)[:3] == ["conv2d", "relu", "max_pool2d"]


def test_strided_views_of_pytorch() -> None:
    """All images in one row, of which each value is picked again by its number."""
    nodes = [
        node("ReduceMean", ["x"], ["m"], axes=[2, 3]),
        node("Reshape", ["m", "row"], ["r"]),
        node("Shape", ["x"], ["s"], end=1),
        node("Squeeze", ["s"], ["n"]),
        node("Range", ["zero", "n", "one"], ["i"]),
        node("Mul", ["i", "four"], ["j"]),
        node("Reshape", ["j", "up"], ["k"]),
        node("Add", ["k", "c"], ["index"]),
        node("Gather", ["r", "index"], ["g"]),
        node("Flatten", ["g"], ["y"]),
    ]
    given = {
        "row": ints(-1),
        "zero": np.array(0, I64),
        "one": np.array(1, I64),
        "four": np.array(4, I64),
        "up": ints(-1, 1, 1, 1),
        "c": np.arange(4, dtype=I64).reshape(1, 4, 1, 1),
    }
    check(model(nodes, given, opset=15))
    with pytest.raises(UnsupportedOperatorError, match="across the images"):
        convert_model(model(nodes, {**given, "c": given["c"][:, ::-1].copy()}, opset=15))


def test_branches_with_a_known_condition() -> None:
    def branch(name: str, op: str) -> Any:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([node(op, ["r"], [name])], name, [], [out])

    nodes = [
        node("Relu", ["x"], ["r"]),
        node("Shape", ["r"], ["s"]),
        node("Gather", ["s", "three"], ["w"]),
        node("Equal", ["w", "eight"], ["c"]),
        node("If", ["c"], ["y"], then_branch=branch("a", "Tanh"), else_branch=branch("b", "Abs")),
    ]
    found = check(model(nodes, {"three": np.array(3, I64), "eight": np.array(8, I64)}))
    assert ops(found) == ["relu", "tanh"]


def test_functions_and_their_attributes() -> None:
    leaky = node("LeakyRelu", ["a"], ["b"])
    leaky.attribute.add(name="alpha", type=1, ref_attr_name="slope")
    function = helper.make_function(
        "mine", "Act", ["a"], ["b"], [leaky], [helper.make_opsetid("", 17)], attributes=["slope"]
    )
    proto = model([node("Act", ["x"], ["y"], domain="mine", slope=0.3)])
    proto.opset_import.append(helper.make_opsetid("mine", 1))
    proto.functions.append(function)
    found = check(proto, expect=lambda x: np.where(x > 0, x, 0.3 * x))
    assert found.graph.nodes[0].op.attributes() == {"slope": pytest.approx(0.3, 1e-6)}
