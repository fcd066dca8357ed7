"""The classification extension: an output as its `count` best classes, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from convserve.errors import InvalidRequestError

__all__ = ["classify"]

_MAX_ELEMENTS = 1_000_000


def classify(
    scores: npt.NDArray[Any], count: int, labels: Sequence[str] | None
) -> list[list[bytes]]:
    """The `count` highest values of each row, best first, as b"<value>:<index>[:<label>]".

    `scores` is [N, …] and is taken as N rows. Of equal values the lower index comes first; NaN
    comes last. Values have six decimals, as `std::to_string` writes them.
    """
    rows = scores.reshape(len(scores), -1)
    count = min(count, rows.shape[1])
    if len(rows) * count > _MAX_ELEMENTS:
        raise InvalidRequestError(
            f"classification of {len(rows)} rows with {count} classes each is more than "
            f"{_MAX_ELEMENTS} elements"
        )
    # A stable sort of the negated values; NaN sorts behind everything.
    best = np.argsort(-rows, axis=1, kind="stable")[:, :count]
    known = labels if labels is not None and len(labels) == rows.shape[1] else None
    return [
        [
            f"{row[i]:f}:{i}{'' if known is None else ':' + known[i]}".encode()
            for i in order.tolist()
        ]
        for row, order in zip(rows, best, strict=True)
    ]
