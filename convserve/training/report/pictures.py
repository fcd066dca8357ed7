"""Filters as pictures: every square is one weight."""

from __future__ import annotations

import io
from math import ceil, sqrt
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convserve.graph import Graph, layers

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Filters", "draw_filters", "first_filters"]

MOST = 64  # filters that are drawn
SIDE, GAP = 960, 12  # pixels of the picture's width, and between filters
VIOLET, ORANGE = (76, 58, 143), (217, 84, 30)


class Filters(NamedTuple):
    """The layer's name, and float32 [O, C, FH, FW]."""

    layer: str
    weight: NDArray[np.float32]


def first_filters(graph: Graph, params: Mapping[str, NDArray[np.float32]]) -> Filters | None:
    """Those of the first convolution; of a network without one, what each value of the first
    affine layer takes from the image. None where neither looks at pixels."""
    for node in graph.nodes:
        weight = params.get(f"{node.name}.weight")
        if weight is None:
            continue
        if isinstance(node.op, layers.Conv2d):
            return Filters(node.name, weight)
        pixels = int(np.prod(graph.input_shape))
        if isinstance(node.op, layers.Affine) and weight.shape[1] == pixels:
            return Filters(node.name, weight.reshape(-1, *graph.input_shape))
        if isinstance(node.op, layers.Affine):
            return None
    return None


def draw_filters(weight: NDArray[np.float32]) -> bytes:
    """A PNG of the first filters, side by side.

    Of three channels a filter is a colour picture, scaled by itself; of others their mean is drawn,
    violet below zero, white at zero, orange above, on one scale for all filters.
    """
    from PIL import Image

    shown = np.nan_to_num(weight[:MOST].astype(np.float64))
    count, channels, height, width = shown.shape
    across = ceil(sqrt(1.3 * count))  # a little wider than high
    if channels == 3:
        low, high = (f(shown, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
        unit = (shown - low) / np.maximum(high - low, 1e-30)
        colours = 255 * unit.transpose(0, 2, 3, 1)
    else:
        colours = _diverging(shown.mean(axis=1))
    # Squares of whole pixels; a few large filters are not blown up.
    zoom = max(1, min(60, ((SIDE + GAP) // across - GAP) // width))
    tiles = colours.round().astype(np.uint8).repeat(zoom, axis=1).repeat(zoom, axis=2)
    step = (height * zoom + GAP, width * zoom + GAP)
    down = ceil(count / across)
    sheet = np.full((down * step[0] - GAP, across * step[1] - GAP, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, across)
        top, left = row * step[0], column * step[1]
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    buffer = io.BytesIO()
    Image.fromarray(sheet).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _diverging(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[...] to [..., 3], 0 to 255."""
    scaled = (values / max(float(np.abs(values).max()), 1e-30))[..., None]
    ends = np.where(scaled < 0, np.array(VIOLET), np.array(ORANGE))
    mixed: NDArray[np.float64] = 255 - np.abs(scaled) * (255 - ends)
    return mixed
