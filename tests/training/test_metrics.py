"""The figures beside plain loops, and against what is known of them."""

from __future__ import annotations

from fractions import Fraction
from math import comb, erfc

import numpy as np
import pytest

from convserve.errors import ShapeError
from convserve.training import metrics


@pytest.fixture
def case():
    """Scores of 300 images and 7 classes, with ties, and labels that they half fit."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, 7, 300)
    logits = rng.integers(-3, 4, (300, 7)).astype(np.float32)
    logits[np.arange(300), y] += 2
    return logits, y


def softmax(logits):
    e = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("probabilities", [False, True])
def test_answers_confidences_and_ranks(case, probabilities):
    logits, y = case
    scores = softmax(logits).astype(np.float32) if probabilities else logits
    judged = metrics.judge(scores, y, probabilities)
    for row, (answer, sure, rank) in enumerate(zip(*judged, strict=True)):
        order = sorted(range(7), key=lambda k: (-scores[row, k], k))
        assert (order[0], order.index(y[row])) == (answer, rank)
        assert sure == pytest.approx(softmax(logits[row : row + 1]).max(), rel=1e-6)
    for k in (1, 5):
        hits = [y[row] in np.argsort(-scores[row], kind="stable")[:k] for row in range(300)]
        assert judged.top(k) == np.mean(hits)


def test_confusion_precision_and_recall(case):
    logits, y = case
    predicted = logits.argmax(axis=1)
    predicted[predicted == 6] = 5  # nothing is taken for 6
    matrix = metrics.confusion_matrix(y, predicted, 8)  # and there is no image of 7
    precision, recall = metrics.precision_recall(matrix)
    for a in range(8):
        for b in range(8):
            assert matrix[a, b] == sum((y == a) & (predicted == b))
        of, by = y == a, predicted == a
        expected = (predicted[of] == a).mean() if of.any() else np.nan
        assert recall[a] == pytest.approx(expected, nan_ok=True)
        expected = (y[by] == a).mean() if by.any() else np.nan
        assert precision[a] == pytest.approx(expected, nan_ok=True)
    assert np.isnan(precision[6:]).all() and recall[6] == 0


def test_confused_pairs_are_the_largest_off_the_diagonal():
    matrix = np.array([[9, 2, 0], [5, 9, 2], [0, 0, 1]])
    assert metrics.confused_pairs(matrix, 2) == [(1, 0, 5), (0, 1, 2)]
    assert metrics.confused_pairs(matrix, 9) == [(1, 0, 5), (0, 1, 2), (1, 2, 2)]


def test_calibration_bin_by_bin(case):
    logits, y = case
    judged = metrics.judge(logits, y, False)
    right = judged.rank == 0
    found = metrics.calibration(judged.confidence, right, 10)
    error = 0.0
    for b in range(10):
        inside = (judged.confidence >= b / 10) & (judged.confidence < (b + 1) / 10 + (b == 9))
        assert found.images[b] == inside.sum()
        if inside.any():
            sure, correct = judged.confidence[inside].mean(), right[inside].mean()
            assert (found.confidence[b], found.accuracy[b]) == pytest.approx((sure, correct))
            error += abs(correct - sure) * inside.mean()
        else:
            assert np.isnan(found.confidence[b]) and np.isnan(found.accuracy[b])
    assert found.error == pytest.approx(error) and error > 0


def test_calibration_of_the_extremes():
    sure = metrics.calibration(np.array([1.0, 1.0, 1.0, 1.0]), np.array([True, True, False, False]))
    assert sure.error == 0.5 and sure.images[-1] == 4
    assert metrics.calibration(np.array([1.0, 0.0]), np.array([True, False])).error == 0


def test_worst_errors_first():
    judged = metrics.Judged(
        np.zeros(5, int), np.array([0.9, 0.99, 0.5, 0.7, 0.9]), np.array([1, 0, 2, 3, 1])
    )
    assert metrics.worst_errors(judged, 3).tolist() == [0, 4, 3]
    assert metrics.worst_errors(judged, 9).tolist() == [0, 4, 3, 2]


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (3, 3), (0, 1), (0, 6), (10, 2), (40, 75)])
def test_mcnemar_is_the_binomial_test(lost, won):
    n, k = lost + won, min(lost, won)
    tail = Fraction(sum(comb(n, i) for i in range(k + 1)), 2**n)
    expected = min(1.0, float(2 * tail))
    assert metrics.mcnemar(lost, won) == pytest.approx(expected, rel=1e-9)
    assert metrics.mcnemar(won, lost) == metrics.mcnemar(lost, won)


def test_mcnemar_of_many():
    # Beside the normal approximation with its correction, which is good for so many.
    z = (501_000 - 499_000 - 1) / 1_000_000**0.5
    expected = erfc(z / 2**0.5)
    assert metrics.mcnemar(499_000, 501_000) == pytest.approx(expected, rel=0.01)
    assert metrics.mcnemar(0, 5000) == 0.0


@pytest.mark.parametrize(
    ("scores", "y", "message"),
    [
        (np.zeros((2, 3)), np.zeros(3, np.int64), "scores must be"),
        (np.zeros(3), np.zeros(3, np.int64), "scores must be"),
        (np.array([[0, np.nan], [0, 1], [np.inf, 0]]), np.zeros(3, np.int64), "2 of 3 images"),
    ],
)
def test_what_can_not_be_judged(scores, y, message):
    with pytest.raises(ShapeError, match=message):
        metrics.judge(scores, y, False)
