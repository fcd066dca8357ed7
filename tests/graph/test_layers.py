"""Operators: normalised attributes, shape rules, parameters, cost, and JSON round trip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from convserve.errors import ConvserveError, ShapeError, UnknownNameError
from convserve.graph import layers

SIZES = st.integers(1, 5)
PAIRS = st.one_of(SIZES, st.tuples(SIZES, SIZES))
SIDES = st.integers(0, 3)
PADDINGS = st.one_of(
    SIDES, st.tuples(SIDES, SIDES), st.tuples(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES))
)


def test_attributes_are_normalised_to_tuples_of_ints() -> None:
    conv = layers.Conv2d(np.int64(4), 3, stride=[1, 2], padding=(1, 2))  # type: ignore[arg-type]
    assert conv.kernel_size == (3, 3) and conv.stride == (1, 2)
    assert conv.padding == ((1, 1), (2, 2)) and type(conv.out_channels) is int
    assert layers.MaxPool2d(2).stride == (2, 2)
    assert layers.AvgPool2d((2, 3)).stride == (2, 3)
    assert layers.Conv2d(4, 3) == layers.Conv2d(4, (3, 3)) != layers.Conv2d(4, 3, padding=1)


@pytest.mark.parametrize(
    "op, shapes, output",
    [
        (layers.Conv2d(16, 5), [(3, 28, 20)], (16, 24, 16)),
        (layers.Conv2d(16, 3, padding=1), [(3, 28, 20)], (16, 28, 20)),
        (layers.Conv2d(4, (3, 1), stride=(2, 1), padding=((1, 0), (0, 2))), [(2, 8, 5)], (4, 4, 7)),
        (layers.Conv2d(4, 3, dilation=2), [(2, 9, 8)], (4, 5, 4)),
        (layers.Conv2d(4, 3, stride=2, rounding="floor"), [(2, 8, 8)], (4, 3, 3)),
        (layers.MaxPool2d(2), [(6, 28, 14)], (6, 14, 7)),
        (layers.MaxPool2d(3, stride=2, rounding="ceil"), [(6, 8, 8)], (6, 4, 4)),
        (layers.AvgPool2d(3, stride=2, padding=1, rounding="floor"), [(6, 8, 8)], (6, 4, 4)),
        (layers.GlobalAvgPool2d(), [(6, 7, 9)], (6, 1, 1)),
        (layers.Affine(10), [(120,)], (10,)),
        (layers.Flatten(), [(6, 7, 9)], (378,)),
        (layers.Flatten(), [(5,)], (5,)),
        (layers.ReLU(), [(6, 7, 9)], (6, 7, 9)),
        (layers.Softmax(), [(10,)], (10,)),
        (layers.BatchNorm(), [(6, 7, 9)], (6, 7, 9)),
        (layers.Dropout(), [(9,)], (9,)),
        (layers.Add(), [(6, 7, 9), (6, 7, 9)], (6, 7, 9)),
        (layers.Add(), [(6, 7, 9), (6, 1, 1)], (6, 7, 9)),
        (layers.Mul(), [(6, 1, 1), (6, 7, 9)], (6, 7, 9)),
        (layers.Sub(), [(6, 1, 1), (6, 1, 1)], (6, 1, 1)),
        (layers.Mul(), [(6,), (6,)], (6,)),
        (layers.Concat(), [(6, 7, 9), (1, 7, 9), (2, 7, 9)], (9, 7, 9)),
        (layers.Concat(), [(6,), (1,)], (7,)),
        (layers.Slice(2, 5), [(6, 7, 9)], (3, 7, 9)),
        (layers.Slice(0, 1), [(6,)], (1,)),
        (layers.ChannelShuffle(3), [(6, 7, 9)], (6, 7, 9)),
        (layers.Pad(((1, 2), (0, 3))), [(6, 7, 9)], (6, 10, 12)),
        (layers.Crop(((1, 2), (0, 3))), [(6, 7, 9)], (6, 4, 6)),
        (layers.GlobalMaxPool2d(), [(6, 7, 9)], (6, 1, 1)),
        (layers.LRN(5), [(6, 7, 9)], (6, 7, 9)),
        (layers.LayerNorm(), [(6, 7, 9)], (6, 7, 9)),
        (layers.LayerNorm(), [(6,)], (6,)),
        (layers.ScaleShift(), [(6, 7, 9)], (6, 7, 9)),
        (layers.PReLU(), [(6,)], (6,)),
        (layers.GELU(), [(6, 7, 9)], (6, 7, 9)),
        (layers.LogSoftmax(), [(6,)], (6,)),
        (layers.Softmax(), [(6, 1, 1)], (6, 1, 1)),
        (layers.LogSoftmax(), [(6, 1, 1)], (6, 1, 1)),
    ],
)
def test_output_shapes(
    op: layers.Operator, shapes: list[tuple[int, ...]], output: tuple[int, ...]
) -> None:
    assert op.infer(shapes) == output


@pytest.mark.parametrize(
    "op, shapes, message",
    [
        (layers.Conv2d(4, 3), [(12,)], r"conv2d needs an input of \(channels, height, width\)"),
        (layers.Conv2d(4, 3, stride=2), [(1, 8, 9)], "stride 2 does not divide the height"),
        (layers.Conv2d(4, 9), [(1, 8, 9)], "window's height 9 must not exceed"),
        (layers.Conv2d(4, 3, groups=2), [(3, 8, 8)], "groups must divide the input's channels"),
        (layers.MaxPool2d(2), [(1, 7, 8)], "stride 2 does not divide the height"),
        (layers.MaxPool2d(2, padding=2), [(1, 8, 8)], "padding must be smaller than the window"),
        (layers.AvgPool2d(2), [(64,)], "avg_pool2d needs an input of"),
        (layers.GlobalAvgPool2d(), [(64,)], "global_avg_pool2d needs an input of"),
        (layers.Affine(4), [(3, 8, 8)], r"affine needs a flat input.*add Flatten\(\) before"),
        (layers.Softmax(), [(3, 1, 8)], "softmax needs a flat input or an image of one pixel"),
        (layers.Softmax(), [(3, 8, 8)], r"softmax needs a flat input.*add Flatten\(\) before"),
        (layers.Add(), [(3, 8, 8), (3, 8, 7)], "add: the inputs must have equal shapes"),
        (layers.Concat(), [(3, 8, 8), (3, 8, 7)], "concat: .* equal height and width"),
        (layers.Concat(), [(3,), (3, 1, 1)], "concat: .* or all be flat"),
        (layers.Mul(), [(3, 8, 8), (2, 1, 1)], r"mul: .* \(C, 1, 1\) for the other's"),
        (layers.Mul(), [(3, 8, 8), (3,)], "mul: the inputs must have equal shapes"),
        (layers.Sub(), [(3, 8, 8), (3, 8, 1)], "sub: the inputs must have equal shapes"),
        (layers.Slice(2, 5), [(4, 8, 8)], "slice: stop must be at most 4, got 5"),
        (layers.ChannelShuffle(3), [(4, 8, 8)], "channel_shuffle: groups must divide"),
        (layers.ChannelShuffle(2), [(4,)], "channel_shuffle needs an input of"),
        (layers.Pad(2**31 - 1), [(4, 8, 8)], "pad: the padded size .* is over the limit"),
        (layers.Pad(1), [(4,)], "pad needs an input of"),
        (layers.Crop(4), [(4, 8, 9)], "crop: padding .* leaves nothing of height 8"),
        (layers.LRN(5), [(4,)], "lrn needs an input of"),
        (layers.GlobalMaxPool2d(), [(4,)], "global_max_pool2d needs an input of"),
        (layers.LogSoftmax(), [(3, 8, 8)], "log_softmax needs a flat input"),
    ],
)
def test_misfits_name_the_rule(
    op: layers.Operator, shapes: list[tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        op.infer(shapes)


@pytest.mark.parametrize(
    "build, error, message",
    [
        (lambda: layers.Conv2d(0, 3), ShapeError, "out_channels must be from 1"),
        (lambda: layers.Conv2d(4.0, 3), TypeError, "out_channels must be an integer"),
        (lambda: layers.Conv2d(True, 3), TypeError, "out_channels must be an integer"),
        (lambda: layers.Conv2d(4, (3, 3, 3)), ShapeError, "kernel_size must be"),
        (lambda: layers.Conv2d(4, 3, stride=0), ShapeError, "stride must be from 1"),
        (lambda: layers.Conv2d(4, 3, padding=-1), ShapeError, "padding must be from 0"),
        (lambda: layers.Conv2d(4, 3, padding="same"), TypeError, "padding must be an integer"),
        (lambda: layers.Conv2d(4, 3, groups=3), ShapeError, "groups must divide out_channels"),
        (lambda: layers.Conv2d(4, 3, bias=1), TypeError, "bias must be True or False"),
        (lambda: layers.Conv2d(4, 3, rounding="ceil"), ShapeError, 'one of "error", "floor"'),
        (lambda: layers.Conv2d(4, 3, rounding=None), TypeError, "rounding must be a string"),
        (lambda: layers.Conv2d(2**31, 3), ShapeError, "out_channels must be from 1 to"),
        (lambda: layers.MaxPool2d(2, rounding="up"), ShapeError, "rounding must be one of"),
        (lambda: layers.AvgPool2d(2, count_include_pad=None), TypeError, "count_include_pad"),
        (lambda: layers.Affine("10"), TypeError, "out_features must be an integer"),
        (lambda: layers.BatchNorm(eps=0), ShapeError, "eps must be finite and above 0"),
        (lambda: layers.BatchNorm(eps=float("nan")), ShapeError, "eps must be finite"),
        (lambda: layers.BatchNorm(momentum=1.5), ShapeError, "momentum must be .* at most 1"),
        (lambda: layers.Dropout(1.0), ShapeError, "rate must be"),
        (lambda: layers.Dropout(-0.1), ShapeError, "rate must be"),
        (lambda: layers.Dropout(False), TypeError, "rate must be a number"),
        (lambda: layers.Dropout("x"), TypeError, "rate must be a number"),
        (lambda: layers.Dropout([]), TypeError, "rate must be a number"),
        (lambda: layers.LeakyReLU("x"), TypeError, "slope must be a number"),
        (lambda: layers.LeakyReLU(True), TypeError, "slope must be a number"),
        (lambda: layers.LeakyReLU(float("nan")), ShapeError, "slope must be a finite"),
        (lambda: layers.ELU(1e39), ShapeError, "alpha must be a finite float32 value"),
        (lambda: layers.ELU(-(10**400)), ShapeError, "alpha must be a finite float32 value"),
        (lambda: layers.Clip(2, 1), ShapeError, "low must not be above high"),
        (lambda: layers.Clip(float("-inf"), 1), ShapeError, "low must be a finite"),
        (lambda: layers.HardSigmoid(beta=None), TypeError, "beta must be a number"),
        (lambda: layers.GELU("erf"), ShapeError, 'approximate must be one of "none", "tanh"'),
        (lambda: layers.Slice(2, 2), ShapeError, "start must be below stop"),
        (lambda: layers.Slice(-1, 2), ShapeError, "start must be from 0"),
        (lambda: layers.ChannelShuffle(0), ShapeError, "groups must be from 1"),
        (lambda: layers.Pad(-1), ShapeError, "padding must be from 0"),
        (lambda: layers.Pad(1, float("inf")), ShapeError, "value must be a finite"),
        (lambda: layers.Crop(1.5), TypeError, "padding must be an integer"),
        (lambda: layers.LRN(0), ShapeError, "size must be from 1"),
        (lambda: layers.LRN(5, alpha=-1), ShapeError, "alpha must be at least 0"),
        (lambda: layers.LRN(5, bias=0), ShapeError, "bias must be finite and above 0"),
        (lambda: layers.LayerNorm(0), ShapeError, "eps must be finite and above 0"),
    ],
)
def test_bad_attributes_name_the_parameter(build: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_parameters_and_cost() -> None:
    conv = layers.Conv2d(8, (3, 5), groups=2)
    assert {k: v.shape for k, v in conv.parameters([(4, 10, 10)]).items()} == {
        "weight": (8, 2, 3, 5),
        "bias": (8,),
    }
    assert conv.macs([(4, 10, 10)]) == 8 * 2 * 3 * 5 * 8 * 6
    assert list(layers.Conv2d(8, 3, bias=False).parameters([(4, 10, 10)])) == ["weight"]
    assert layers.Affine(10).parameters([(7,)])["weight"].shape == (10, 7)
    assert layers.Affine(10).macs([(7,)]) == 70
    norm = layers.BatchNorm().parameters([(4, 10, 10)])
    assert {name: spec.trainable for name, spec in norm.items()} == {
        "weight": True, "bias": True, "running_mean": False, "running_var": False,
    }  # fmt: skip
    assert all(spec.shape == (4,) for spec in norm.values())
    one_a_channel = {layers.PReLU(): ["slope"], layers.ScaleShift(): ["scale", "shift"]}
    for op, names in {**one_a_channel, layers.LayerNorm(): ["weight", "bias"]}.items():
        for shape in ((4, 10, 10), (4,)):
            assert op.parameters([shape]) == dict.fromkeys(names, ((4,), True))
    for op in (layers.MaxPool2d(2), layers.AvgPool2d(2), layers.GlobalAvgPool2d()):
        assert op.parameters([(4, 10, 10)]) == {} and op.macs([(4, 10, 10)]) == 0


@settings(max_examples=300)
@given(
    hw=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    size=PAIRS,
    stride=PAIRS,
    padding=PADDINGS,
    dilation=st.integers(1, 3),
)
def test_conv_shape_is_the_number_of_filter_places(
    hw: tuple[int, int], size: Any, stride: Any, padding: Any, dilation: int
) -> None:
    """The naive rule: count the places at which the dilated filter lies within the padded input."""
    op = layers.Conv2d(4, size, stride, padding, dilation, rounding="floor")
    counts, divides = [], True
    for axis in range(2):
        padded = hw[axis] + sum(op.padding[axis])  # type: ignore[index, arg-type]
        extent = dilation * (op.kernel_size[axis] - 1) + 1  # type: ignore[index]
        step = op.stride[axis]  # type: ignore[index]
        places = [at for at in range(0, padded, step) if at + extent <= padded]
        counts.append(len(places))
        divides = divides and bool(places) and places[-1] + extent == padded
    if 0 in counts:
        with pytest.raises(ShapeError):
            op.infer([(3, *hw)])
        return
    assert op.infer([(3, *hw)]) == (4, *counts)
    strict = layers.Conv2d(4, size, stride, padding, dilation)
    if divides:
        assert strict.infer([(3, *hw)]) == (4, *counts)
    else:
        with pytest.raises(ShapeError, match="does not divide"):
            strict.infer([(3, *hw)])


@given(hw=st.tuples(st.integers(1, 12), st.integers(1, 12)), size=PAIRS, stride=PAIRS)
def test_ceil_covers_every_pixel(hw: tuple[int, int], size: Any, stride: Any) -> None:
    op = layers.MaxPool2d(size, stride, rounding="ceil")
    try:
        _, *out = op.infer([(1, *hw)])
    except ShapeError:
        assume(False)
    for axis in range(2):
        last = (out[axis] - 1) * op.stride[axis]  # type: ignore[index]
        assert last < hw[axis]  # the last window starts inside
        step, kernel = op.stride[axis], op.size[axis]  # type: ignore[index]
        assert last + kernel >= hw[axis] or last + step >= hw[axis]


NUMBERS = st.floats(-1e9, 1e9)
PLAIN = [
    layers.Add, layers.Sub, layers.Mul, layers.Concat, layers.Flatten, layers.ReLU, layers.PReLU,
    layers.Sigmoid, layers.HardSwish, layers.SiLU, layers.Tanh, layers.Softmax, layers.LogSoftmax,
    layers.ScaleShift, layers.GlobalAvgPool2d, layers.GlobalMaxPool2d,
]  # fmt: skip
OPERATORS = st.one_of(
    st.builds(
        layers.Conv2d,
        st.sampled_from([4, 8]),
        PAIRS,
        PAIRS,
        PADDINGS,
        PAIRS,
        st.sampled_from([1, 2]),
        st.booleans(),
        st.sampled_from(["error", "floor"]),
    ),
    st.builds(layers.MaxPool2d, PAIRS, st.none() | PAIRS, PADDINGS),
    st.builds(layers.AvgPool2d, PAIRS, PAIRS, SIDES, st.just("ceil"), st.booleans()),
    st.builds(layers.Affine, st.integers(1, 100), st.booleans()),
    st.builds(layers.BatchNorm, st.floats(1e-9, 1.0), st.floats(0.01, 1.0)),
    st.builds(layers.Dropout, st.floats(0, 0.99)),
    st.builds(layers.LeakyReLU, NUMBERS),
    st.builds(layers.Clip, st.none() | st.floats(-9, 0), st.none() | st.floats(0, 9)),
    st.builds(layers.HardSigmoid, NUMBERS, NUMBERS),
    st.builds(layers.GELU, st.sampled_from(["none", "tanh"])),
    st.builds(layers.ELU, NUMBERS),
    st.builds(layers.Slice, st.integers(0, 4), st.integers(5, 9)),
    st.builds(layers.ChannelShuffle, SIZES),
    st.builds(layers.Pad, PADDINGS, NUMBERS),
    st.builds(layers.Crop, PADDINGS),
    st.builds(layers.LRN, SIZES, st.floats(0, 9), NUMBERS, st.floats(0.01, 9)),
    st.builds(layers.LayerNorm, st.floats(1e-9, 1.0)),
    st.sampled_from([cls() for cls in PLAIN]),
)


def test_every_operator_is_drawn_and_has_a_name() -> None:
    drawn = {
        "conv2d", "max_pool2d", "avg_pool2d", "affine", "batch_norm", "dropout", "leaky_relu",
        "clip", "hard_sigmoid", "gelu", "elu", "slice", "channel_shuffle", "pad", "crop", "lrn",
        "layer_norm", *(cls.op for cls in PLAIN),
    }  # fmt: skip
    assert drawn == set(layers.operators())
    for name, cls in layers.operators().items():
        assert cls.op == name and cls.prefix and cls.__name__ in layers.__all__


def test_every_operator_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "operators.md").read_text(encoding="utf-8")
    for name, cls in layers.operators().items():
        assert f"`{name}`" in text and f"`{cls.__name__}(" in text, name


@given(OPERATORS)
def test_attributes_round_trip(op: layers.Operator) -> None:
    assert layers.from_attributes(op.op, op.attributes()) == op


def test_from_attributes_is_strict() -> None:
    with pytest.raises(UnknownNameError, match="unknown operator 'conv3d'; known: conv2d"):
        layers.from_attributes("conv3d", {})
    with pytest.raises(UnknownNameError, match="affine has no attribute 'size'"):
        layers.from_attributes("affine", {"out_features": 3, "size": 3})
    with pytest.raises(ShapeError, match="conv2d lacks the attribute 'kernel_size'"):
        layers.from_attributes("conv2d", {"out_channels": 3})
    assert layers.from_attributes("affine", {"out_features": 3}) == layers.Affine(3)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(max_examples=200)
@given(op=OPERATORS, data=st.data())
def test_hostile_attributes_raise_only_what_is_documented(
    op: layers.Operator, data: st.DataObject
) -> None:
    attributes = op.attributes()
    assume(attributes)
    attributes[data.draw(st.sampled_from(sorted(attributes)))] = data.draw(JSON)
    try:
        layers.from_attributes(op.op, attributes)
    except (ConvserveError, TypeError) as error:
        assert str(error)
