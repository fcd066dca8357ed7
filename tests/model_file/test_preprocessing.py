"""Preprocessing: one exact formula in every layout, and strict values."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convserve.errors import ConvserveError, ShapeError, UnknownNameError
from convserve.model_file import Preprocessing

GREY = Preprocessing(4, 5, "grey", (0.1307,), (0.3081,))
RGB = Preprocessing(4, 5, "rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def every_pixel(channels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[13, C, 4, 5]: each channel has every value of a byte."""
    values = np.resize(np.arange(256, dtype=np.uint8), (channels, 13 * 20))
    return values.reshape(channels, 13, 4, 5).transpose(1, 0, 2, 3).copy()


@pytest.mark.parametrize("p", [GREY, RGB], ids=["grey", "rgb"])
def test_the_formula_with_its_two_roundings(p: Preprocessing) -> None:
    x = every_pixel(p.channels)
    out = p.normalise(x)
    assert out.dtype == np.float32 and out.shape == x.shape and out.flags.c_contiguous
    for channel in range(p.channels):
        scale = np.float32(1.0 / (255.0 * p.std[channel]))
        shift = np.float32(p.mean[channel] / p.std[channel])
        for value in range(256):
            expected = np.float32(np.float32(value) * scale) - shift
            assert (out[:, channel][x[:, channel] == value] == expected).all()
    exact = (x / 255.0 - np.reshape(p.mean, (-1, 1, 1))) / np.reshape(p.std, (-1, 1, 1))
    np.testing.assert_allclose(out, exact, rtol=0, atol=2e-6)


def test_the_same_bits_in_any_batch_and_layout() -> None:
    x = every_pixel(3)
    whole = RGB.normalise(x)
    for n in range(len(x)):
        np.testing.assert_array_equal(RGB.normalise(x[n : n + 1])[0], whole[n], strict=True)
    nhwc = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    backward = x[::-1, :, ::-1, ::-1]
    wide = np.zeros((13, 3, 4, 10), np.uint8)
    wide[..., ::2] = x
    for other, expected in (
        (nhwc, whole),
        (np.asfortranarray(x), whole),
        (wide[..., ::2], whole),
        (backward, whole[::-1, :, ::-1, ::-1]),
    ):
        out = RGB.normalise(other)
        np.testing.assert_array_equal(out, expected, strict=True)
        assert out.flags.c_contiguous
    x.flags.writeable = False
    np.testing.assert_array_equal(RGB.normalise(x), whole)
    assert RGB.normalise(x[:0]).shape == (0, 3, 4, 5)


def test_wrong_pixels() -> None:
    with pytest.raises(TypeError, match="pixels must be an array of uint8, got float32"):
        GREY.normalise(np.zeros((1, 1, 4, 5), np.float32))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="pixels must be an array of uint8, got list"):
        GREY.normalise([[0]])  # type: ignore[arg-type]
    for shape in ((1, 3, 4, 5), (1, 4, 5), (4, 5)):
        with pytest.raises(ShapeError, match=r"pixels must be \[N, 1, H, W\]"):
            GREY.normalise(np.zeros(shape, np.uint8))


def test_to_dict_round_trip() -> None:
    for p in (GREY, RGB, Preprocessing(1, 1, "grey", (0,), (1,), "nearest")):
        assert Preprocessing.from_dict(json.loads(json.dumps(p.to_dict()))) == p
    measured = Preprocessing(np.int64(4), 5, "grey", [np.float32(0.5)], (np.float64(0.25),))  # type: ignore[arg-type]
    assert measured.mean == (0.5,) and type(measured.mean[0]) is float
    json.dumps(measured.to_dict())
    without = GREY.to_dict()
    del without["interpolation"]
    assert Preprocessing.from_dict(without) == GREY


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"height": 0}, ShapeError, "height must be from 1"),
        ({"height": 65536}, ShapeError, "height must be from 1 to 65535"),
        ({"width": 2.5}, TypeError, "width must be an integer"),
        ({"width": True}, TypeError, "width must be an integer"),
        ({"colour": "gbr"}, UnknownNameError, "colour must be one of grey, rgb, bgr, got 'gbr'"),
        ({"colour": ["grey"]}, UnknownNameError, "colour must be one of"),
        ({"interpolation": "magic"}, UnknownNameError, "interpolation must be one of bicubic"),
        ({"mean": (0.1, 0.2)}, ShapeError, "mean must have 1 values for grey, got 2"),
        ({"mean": 0.1}, TypeError, "mean must be a list of numbers"),
        ({"mean": ("0",)}, TypeError, "mean must hold numbers"),
        ({"mean": (float("nan"),)}, ShapeError, "mean must hold finite numbers"),
        ({"mean": (10**400,)}, ShapeError, "mean must hold finite numbers"),
        ({"std": (0.0,)}, ShapeError, "std must be above 0"),
        ({"std": (-1,)}, ShapeError, "std must be above 0"),
        ({"std": (1e-300,)}, ShapeError, "std is too small for float32"),
        ({"std": (5e-324,), "mean": (0.5,)}, ShapeError, "std is too small for float32"),
    ],
)
def test_wrong_values(change: dict[str, Any], error: type, message: str) -> None:
    values = {**GREY.to_dict(), **change}
    with pytest.raises(error, match=message):
        Preprocessing(**values)
    with pytest.raises(ConvserveError):  # from a file a wrong type is a ValueError too
        Preprocessing.from_dict(values)


def test_from_dict_is_strict() -> None:
    with pytest.raises(ShapeError, match="preprocessing must be an object"):
        Preprocessing.from_dict([])  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="unknown entry 'gamma'"):
        Preprocessing.from_dict({**GREY.to_dict(), "gamma": 1})
    with pytest.raises(ShapeError, match="preprocessing lacks the entry 'height'"):
        Preprocessing.from_dict({})


@given(
    key=st.sampled_from(sorted(GREY.to_dict())),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=4,
    ),
)
def test_hostile_values_raise_only_what_is_documented(key: str, value: Any) -> None:
    try:
        p = Preprocessing.from_dict({**GREY.to_dict(), key: value})
    except (ShapeError, UnknownNameError) as error:
        assert str(error)
    else:
        assert np.isfinite(p.normalise(np.full((1, 1, 4, 5), 255, np.uint8))).all()
