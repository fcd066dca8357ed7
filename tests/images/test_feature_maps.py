"""Pictures of feature maps: every layer is there, whatever its size or values."""

from __future__ import annotations

import numpy as np
import pytest

from convserve.errors import ShapeError
from convserve.feature_maps import PALETTE, WIDTH, draw

RNG = np.random.default_rng(5)
IMAGE = RNG.integers(0, 256, (1, 28, 28), dtype=np.uint8)


def noise(*shape: int) -> np.ndarray:
    return RNG.random(shape, dtype=np.float32)


def test_a_picture_of_lenet() -> None:
    maps = {"relu1": noise(6, 28, 28), "pool2": noise(16, 5, 5), "affine": noise(120)}
    scores = np.array([0.1, 0.7, 0.2], np.float32)
    with_scores = draw(IMAGE, {**maps, "output": scores}, ["a", "b", "c"])
    assert with_scores.mode == "RGB" and with_scores.width == WIDTH
    assert with_scores.height > draw(IMAGE, maps).height > draw(IMAGE, {}).height


def test_every_output_is_a_square_of_its_own_colour() -> None:
    one = np.zeros((1, 2, 2), np.float32)
    one[0, 0, 1] = 1
    pixels = np.asarray(draw(IMAGE, {"layer": one}))
    bright = (pixels == PALETTE[-1]).all(axis=-1)
    dark = (pixels == PALETTE[0]).all(axis=-1)
    assert bright.sum() * 3 == dark.sum() and bright.sum() == 26 * 26


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((3, 4, 4), np.float32),
        np.full((3, 4, 4), np.nan, np.float32),
        np.full((2, 1, 1), np.inf, np.float32),
        np.array([-3e38, 3e38, np.nan], np.float32),
        noise(300, 7, 7),
        noise(2, 300, 500),
        noise(1, 1, 1),
        noise(5000),
        noise(1),
    ],
    ids=str,
)
def test_any_values_and_sizes(values: np.ndarray) -> None:
    with np.errstate(all="raise"):
        picture = draw(IMAGE, {"layer": values}, ["label"] * len(values))
    assert picture.height < 1200


def test_colour_images() -> None:
    assert draw(RNG.integers(0, 256, (3, 224, 224), dtype=np.uint8), {}).width == WIDTH


@pytest.mark.parametrize("shape", [(), (2, 2), (1, 2, 3, 4), (0, 4, 4), (0,)])
def test_other_ranks_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="layer"):
        draw(IMAGE, {"layer": np.zeros(shape, np.float32)})


@pytest.mark.parametrize("shape", [(28, 28), (2, 28, 28), (1, 0, 3)])
def test_an_image_must_be_one(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="image"):
        draw(np.zeros(shape, np.uint8), {})
