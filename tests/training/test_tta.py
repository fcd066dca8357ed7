"""Test-time augmentation: which views, with which weights, and what their mean is."""

from __future__ import annotations

import numpy as np
import pytest

from convserve.errors import UnknownNameError
from convserve.training.tta import TTA, predict_views

X = np.random.default_rng(0).integers(0, 256, (4, 2, 5, 6), np.uint8)
PADDED = np.pad(X, ((0, 0), (0, 0), (1, 1), (1, 1)), "reflect")
UP_LEFT, DOWN_RIGHT = PADDED[:, :, 2:, 2:], PADDED[:, :, :-2, :-2]
VIEWS = {
    "none": [(X, 1)],
    "flip": [(X, 0.5), (X[..., ::-1], 0.5)],
    "shift": [(X, 0.5), (UP_LEFT, 0.25), (DOWN_RIGHT, 0.25)],
}
VIEWS["flip+shift"] = [
    (view, weight / 2) for whole, weight in VIEWS["shift"] for view in (whole, whole[..., ::-1])
]
WEIGHTS = np.random.default_rng(1).normal(0, 0.01, (60, 3))


def logits(x):
    return (x.reshape(len(x), 60) @ WEIGHTS).astype(np.float32)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("tta", TTA)
def test_the_mean_of_the_logits_over_the_views(tta):
    wanted = sum(weight * logits(view) for view, weight in VIEWS[tta])
    np.testing.assert_allclose(predict_views(logits, X, tta, False), wanted, rtol=1e-5, atol=1e-6)
    scores = predict_views(lambda x: softmax(logits(x)), X, tta, True)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, softmax(wanted), rtol=1e-4)


def test_scores_of_0_are_no_infinities():
    def certain(x):
        return np.eye(3, dtype=np.float32)[x[:, 0, 0, 0] % 3]

    scores = predict_views(certain, X, "flip+shift", True)
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("shape", [(0, 1, 4, 4), (3, 1, 1, 5), (3, 1, 1, 1)])
def test_no_images_and_images_of_one_pixel(shape):
    scores = predict_views(lambda x: np.ones((len(x), 2), np.float32), np.zeros(shape, np.uint8),
                           "flip+shift", True)  # fmt: skip
    np.testing.assert_allclose(scores, np.full((shape[0], 2), 0.5))


def test_an_unknown_name_lists_those_that_are():
    with pytest.raises(UnknownNameError, match=r"none, flip, shift, flip\+shift, not 'rotate'"):
        predict_views(logits, X, "rotate", False)
