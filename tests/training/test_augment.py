"""Augmentation against loops."""

from __future__ import annotations

import numpy as np
import pytest

from convserve.training.augment import flip, shift

X = np.random.default_rng(0).integers(1, 256, (40, 3, 6, 5), np.uint8)


def moved(image, down, right):
    out = np.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y - down < height and 0 <= x - right < width:
                out[:, y, x] = image[:, y - down, x - right]
    return out


@pytest.mark.parametrize("pixels", [1, 2, 7])
def test_shift_moves_each_image_as_a_whole_and_fills_with_zeros(pixels):
    y = shift(X, pixels, np.random.default_rng(5))
    assert y.dtype == np.uint8
    assert y.flags.c_contiguous
    reach = range(-pixels, pixels + 1)
    for before, after in zip(X, y, strict=True):
        assert any((moved(before, d, r) == after).all() for d in reach for r in reach)


def test_shift_takes_every_direction_and_depends_on_the_seed():
    dots = np.zeros((2000, 1, 5, 5), np.uint8)
    dots[:, :, 2, 2] = 1
    places = shift(dots, 2, np.random.default_rng(0)).sum(axis=(0, 1))
    assert places.min() > 40  # 80 each on average
    assert (shift(X, 2, np.random.default_rng(1)) == shift(X, 2, np.random.default_rng(1))).all()
    assert (shift(X, 2, np.random.default_rng(1)) != shift(X, 2, np.random.default_rng(2))).any()


def test_flip_mirrors_about_half():
    y = flip(X, np.random.default_rng(0))
    mirrored = [(b[..., ::-1] == a).all() for b, a in zip(X, y, strict=True)]
    same = [(b == a).all() for b, a in zip(X, y, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 8 < sum(mirrored) < 32
