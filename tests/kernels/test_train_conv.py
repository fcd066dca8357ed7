"""The passes of the compiled training step's convolutions against the reference: every way, with
and without halos, NaN in surplus channels, batches cut into calls and sums of parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import Array, convolutions, normal

from convserve.kernels import _core
from convserve.kernels._activation import Activation
from convserve.kernels._train_conv import TrainConv

# How much further than direct sums the points of Winograd's transforms let rounding errors grow.
WINOGRAD_GROWTH = 16


def allowed(terms: int, magnitudes: Array, way: str) -> Any:
    if not way.startswith("winograd"):
        return reference.tolerance(terms, magnitudes)
    return reference.tolerance(WINOGRAD_GROWTH * terms, np.max(magnitudes, initial=0))


def check(x: Array, weight: Array, bias: Array, arguments: dict[str, Any], **choices: Any) -> None:
    """All three passes of one layer equal the reference's."""
    x, weight, bias = (np.ascontiguousarray(a) for a in (x, weight, bias))
    y = reference.conv2d(x, weight, bias, **arguments)
    size = reference.conv2d(abs(x), abs(weight), abs(bias), **arguments)
    grad = normal(7, *y.shape)
    dx, dweight, dbias = reference.conv2d_backward(grad, x, weight, **arguments)
    sizes = reference.conv2d_backward(abs(grad), abs(x), abs(weight), **arguments)
    layer = TrainConv(x.shape, weight.shape, **arguments, **choices)
    context = {"isa": _core.isa(), "x": x.shape, "weight": weight.shape, "ways": layer.ways()}
    context |= arguments | choices
    forward, data, weights = layer.ways()

    terms = int(np.prod(weight.shape[1:]))
    got, sums, squares = layer.forward(x, weight, bias)
    reference.assert_close(got, y, allowed(terms, size, forward), **context)
    exact = got.astype(np.float64)
    count = y[:, 0].size
    for mine, right in ((sums, exact), (squares, exact**2)):
        error = reference.tolerance(64, abs(right).sum(axis=(0, 2, 3))) + count * 1e-30
        assert np.all(abs(mine - right.sum(axis=(0, 2, 3))) <= error), context
    clipped = layer.forward(x, weight, None, Activation(low=0.0))[0]
    y = np.maximum(reference.conv2d(x, weight, **arguments), 0)
    reference.assert_close(clipped, y, allowed(terms, size, forward), **context)

    if not choices.get("planar"):
        terms = weight.size // weight.shape[1]
        got = layer.data_gradient(grad, weight)
        reference.assert_close(got, dx, allowed(terms, sizes[0], data), **context)
        got = layer.data_gradient(grad, weight, x)
        reference.assert_close(got, dx + x, allowed(terms, sizes[0] + abs(x), data), **context)

    got, got_bias = layer.weight_gradient(grad, x)
    reference.assert_close(got, dweight, allowed(count, sizes[1], weights), **context)
    reference.assert_close(got_bias, dbias, allowed(count, sizes[2], "direct"), **context)


@pytest.mark.parametrize("junk", [0.0, float("nan")])
@given(
    case=convolutions(),
    halos=st.tuples(*[st.sampled_from([0, 1, 4])] * 4),
    way=st.sampled_from(["auto", "direct"]),
    step=st.integers(0, 2),
    parts=st.integers(1, 3),
)
def test_passes_equal_the_reference(
    isa: str, junk: float, case: Any, halos: Any, way: str, step: int, parts: int
) -> None:
    x, weight, bias, arguments = case
    if not len(x):
        return
    for planar in [False] + [True] * (x.shape[1] < 8):
        check(x, weight, bias, arguments, halos=halos, ways=(way,) * 3, step=step, parts=parts,
              junk=junk, planar=planar)  # fmt: skip


@given(
    n=st.integers(1, 5),
    channels=st.sampled_from([1, 3, 4, 9, 16, 20, 33]),
    filters=st.sampled_from([1, 4, 5, 8, 16, 24, 33]),
    h=st.integers(1, 11),
    w=st.integers(1, 11),
    padding=st.tuples(*[st.tuples(st.integers(1, 3), st.integers(1, 3))] * 2),
    m=st.sampled_from([2, 4]),
    halo=st.integers(0, 1),
    step=st.integers(1, 3),
    parts=st.integers(1, 2),
)
def test_winograd_passes_equal_the_reference(
    isa: str, n: int, channels: int, filters: int, h: int, w: int, padding: Any, m: int, halo: int,
    step: int, parts: int,
) -> None:  # fmt: skip
    x, weight = normal(1, n, channels, h, w), normal(2, filters, channels, 3, 3)
    check(x, weight, normal(3, filters), {"padding": padding}, ways=(f"winograd{m}",) * 3,
          halos=(halo,) * 4, junk=float("nan"), step=step, parts=parts)  # fmt: skip


def test_ways_that_do_not_fit_are_replaced() -> None:
    def ways(shape: tuple[int, ...], weight: tuple[int, ...], way: str, **arguments: Any) -> Any:
        return TrainConv(shape, weight, ways=(way,) * 3, **arguments).ways()

    assert ways((1, 16, 8, 8), (16, 16, 3, 3), "winograd2", padding=1) == ("winograd2",) * 3
    assert (
        ways((1, 16, 8, 8), (16, 16, 3, 3), "winograd2", padding=1, dilation=2) == ("direct",) * 3
    )
    assert ways((1, 16, 8, 8), (16, 1, 3, 3), "direct", groups=16) == ("depthwise",) * 3
    assert ways((1, 16, 8, 8), (16, 16, 3, 3), "depthwise") != ("depthwise",) * 3


def test_bits_of_both_gradients_do_not_depend_on_the_threads(isa: str, threads: None) -> None:
    x, weight = normal(1, 6, 16, 12, 12), normal(2, 64, 16, 3, 3)
    grad = normal(3, 6, 64, 12, 12)
    for ways in (("direct",) * 3, ("winograd4",) * 3):
        results = []
        for count in (1, 3):
            _core.set_num_threads(count)
            layer = TrainConv(x.shape, weight.shape, padding=1, ways=ways, parts=2)
            results.append((layer.data_gradient(grad, weight), *layer.weight_gradient(grad, x)))
        for one, other in zip(*results, strict=True):
            reference.assert_same_bits(one, other, isa=isa, ways=ways)
