"""How good answers are: figures from scores and labels, nothing else.

    judge(scores, y)       of each image: the answer, its confidence, and the right class's rank
    confusion_matrix       precision and recall, the most confused pairs
    calibration            whether 90 % sure is right nine times in ten
    worst_errors           what is wrong with the highest confidence
    mcnemar                whether two models differ by more than chance

Confidences are probabilities, 0 to 1: scores that are not yet get a softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, lgamma, log
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convserve.errors import ShapeError

__all__ = [
    "Calibration",
    "Judged",
    "are_probabilities",
    "calibration",
    "cells",
    "confused_pairs",
    "confusion_matrix",
    "judge",
    "mcnemar",
    "precision_recall",
    "worst_errors",
]

Labels = NDArray[np.int64]
Floats = NDArray[np.float64]


class Judged(NamedTuple):
    """Of N images: answers int64 [N], their confidences float64 [N], and ranks int64 [N].

    rank: how many classes stand before the right one; 0 where the answer is right.
    """

    predicted: Labels
    confidence: Floats
    rank: Labels

    @classmethod
    def joined(cls, parts: Sequence[Judged]) -> Judged:
        """One after the other."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def top(self, k: int) -> float:
        """The share of images, 0 to 1, whose right class is among the k best."""
        return float((self.rank < k).mean())


class Calibration(NamedTuple):
    """Bins of equal width over 0..1, and the expected calibration error.

    images: int64 [B]; confidence, accuracy: float64 [B], means of each bin, NaN where it is empty.
    error: the mean of |accuracy − confidence| over bins, weighted by their images.
    """

    images: Labels
    confidence: Floats
    accuracy: Floats
    error: float


def are_probabilities(scores: NDArray[np.floating]) -> bool:
    """Whether scores [N, K] look as a softmax leaves them: none below 0, each row's sum 1."""
    return bool((scores >= 0).all() and np.allclose(scores.sum(axis=1), 1, atol=1e-3))


def judge(scores: NDArray[np.floating[Any]], y: Labels, probabilities: bool) -> Judged:
    """Scores [N, K] beside the right classes y [N], 0..K-1.

    Of equal scores the lower class comes first. probabilities: the scores are; else they are
    logits. Raises ShapeError for sizes that do not fit, and for scores that are not finite.
    """
    if scores.ndim != 2 or y.shape != scores.shape[:1] or scores.shape[1] == 0:
        raise ShapeError(f"scores must be [N, K] and y [N], not {scores.shape} and {y.shape}")
    wide = scores.astype(np.float64)
    if broken := int((~np.isfinite(wide)).any(axis=1).sum()):
        raise ShapeError(f"{broken} of {len(y)} images get scores that are not finite")
    predicted = wide.argmax(axis=1)
    rights = np.take_along_axis(wide, y[:, None], axis=1)
    before = (wide > rights) | ((wide == rights) & (np.arange(wide.shape[1]) < y[:, None]))
    if probabilities:
        confidence = wide.max(axis=1)
    else:
        confidence = 1 / np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)
    return Judged(predicted, np.clip(confidence, 0.0, 1.0), before.sum(axis=1))


def confusion_matrix(y: Labels, predicted: Labels, classes: int) -> Labels:
    """int64 [K, K]: a row for each right class, a column for each answer."""
    return np.bincount(y * classes + predicted, minlength=classes**2).reshape(classes, classes)


def cells(confusion: Labels) -> Labels:
    """int64 [n, 3]: right class, answer, images of the matrix's cells that are not 0."""
    places = np.argwhere(confusion)
    return np.column_stack([places, confusion[tuple(places.T)]])


def precision_recall(confusion: Labels) -> tuple[Floats, Floats]:
    """float64 [K] each, by class; NaN where nothing was answered, or where there are no images.

    Precision: of the answers with this class, the share that is right. Recall: of the images of
    this class, the share that is found.
    """
    right = np.diagonal(confusion)
    return _share(right, confusion.sum(axis=0)), _share(right, confusion.sum(axis=1))


def confused_pairs(confusion: Labels, most: int) -> list[tuple[int, int, int]]:
    """(right class, answer, images) of the most frequent mistakes, the most frequent first."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    rows, columns = np.divmod(order, len(wrong))
    found = zip(rows.tolist(), columns.tolist(), wrong[rows, columns].tolist(), strict=True)
    return [pair for pair in found if pair[2]]


def calibration(confidence: Floats, right: NDArray[np.bool_], bins: int = 10) -> Calibration:
    """Confidences [N], 0 to 1, beside whether the answers are right, in `bins` equal bins."""
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    images = np.bincount(place, minlength=bins)
    sure = np.bincount(place, confidence, bins)
    correct = np.bincount(place, right, bins)
    error = float(np.abs(correct - sure).sum() / max(len(confidence), 1))
    return Calibration(images, _share(sure, images), _share(correct, images), error)


def worst_errors(judged: Judged, most: int) -> Labels:
    """Rows of images that are wrong, those of the highest confidence first."""
    wrong = np.flatnonzero(judged.rank > 0)
    return wrong[np.argsort(-judged.confidence[wrong], kind="stable")[:most]]


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p-value: how likely counts so far apart are if both were equally likely.

    lost, won: images that only the old, that only the new model has right. A binomial test of
    their sum at 1/2, after McNemar (1947).
    """
    n, k = lost + won, min(lost, won)
    if n == 0 or lost == won:
        return 1.0
    # The tail from its largest term down; the ratios of its terms fall, so it ends soon.
    total, term, i = 0.0, 1.0, k
    while i >= 0 and term > 1e-18 * total:
        total += term
        term *= i / (n - i + 1)
        i -= 1
    largest = lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) - n * log(2)
    return min(1.0, 2 * total * exp(largest))


def _share(part: NDArray[Any], whole: Labels) -> Floats:
    result: Floats = np.full(len(whole), np.nan)
    np.divide(part, whole, out=result, where=whole > 0)
    return result
