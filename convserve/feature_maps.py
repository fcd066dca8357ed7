"""A picture of what a network makes of one image: its feature maps, layer by layer.

    maps = model.predict(x, outputs=["relu1", "pool1", "relu2", "pool2", "output"])
    draw(pixels, {name: values[0] for name, values in maps.items()}, model.labels).save("maps.png")

Each layer is a row. Its maps share one scale, from dark (the layer's lowest value) to bright (its
highest), and are enlarged without smoothing, so that every pixel is one output of the layer.
Vectors are drawn as strips of cells, and the last one, when it has labels, as bars.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from convserve.errors import ShapeError

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw"]

PAPER, INK, FAINT, ACCENT = (255, 255, 255), (33, 37, 41), (134, 142, 150), (224, 86, 36)
# Dark blue through purple and orange to pale yellow: rises in lightness, so it prints in grey too.
PALETTE = [
    (12, 10, 45),
    (87, 21, 110),
    (170, 47, 94),
    (229, 92, 48),
    (251, 165, 25),
    (252, 247, 190),
]

MARGIN, GAP, LABELS = 24, 6, 132  # pixels: border, between tiles, the column with layer names
WIDTH = 1080
TILE = 52  # about; a map is enlarged by the whole number that comes nearest
MAX_ROWS = 2  # of tiles or cells a layer; what does not fit is left out and said
CELL = 12
BAR = 150  # length of a bar at 100 %
BARS = 10


def draw(
    image: NDArray[np.uint8],
    maps: Mapping[str, NDArray[np.float32]],
    labels: Sequence[str] | None = None,
) -> Image.Image:
    """Return an RGB picture of `image`, uint8[C, H, W], and of `maps` in their order.

    `maps` holds one image's values by layer name, [C, H, W] or [F]. `labels` name the classes of
    the last one, drawn as bars. Raises ShapeError for arrays of another rank and for empty ones.
    """
    rows = [_Row("input", _shape_text(image), [_enlarge(_colours(image))])]
    for number, (name, values) in enumerate(maps.items(), 1):
        if values.ndim not in (1, 3) or values.size == 0:
            raise ShapeError(f"{name}: a map must be [C, H, W] or [F], got {list(values.shape)}")
        if values.ndim == 3:
            rows.append(_map_row(name, values))
        elif number == len(maps) and labels and len(labels) == len(values):
            rows.append(_bar_row(name, values, labels))
        else:
            rows.append(_Row(name, _shape_text(values), [_strip(values)]))
    return _compose(rows)


class _Row:
    """A layer's name and tiles, all of one size."""

    def __init__(self, name: str, note: str, tiles: Sequence[Image.Image]) -> None:
        width, height = tiles[0].size
        self.name, self.note = name, note
        self.across = max(1, (WIDTH - LABELS - 2 * MARGIN + GAP) // (width + GAP))
        self.tiles = tiles[: self.across * MAX_ROWS]
        if len(self.tiles) < len(tiles):
            self.note += f"\nfirst {len(self.tiles)}"
        self.step = (width + GAP, height + GAP)
        self.height = max(38, -(-len(self.tiles) // self.across) * self.step[1])


def _compose(rows: Sequence[_Row]) -> Image.Image:
    from PIL import Image, ImageDraw

    height = 2 * MARGIN + sum(row.height + 2 * GAP for row in rows)
    sheet = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    y = MARGIN
    for row in rows:
        pen.text((MARGIN, y), row.name, INK, _font(15))
        pen.multiline_text((MARGIN, y + 19), row.note, FAINT, _font(12))
        for number, tile in enumerate(row.tiles):
            down, right = divmod(number, row.across)
            sheet.paste(tile, (MARGIN + LABELS + right * row.step[0], y + down * row.step[1]))
        y += row.height + 2 * GAP
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _shape_text(values: NDArray[np.generic]) -> str:
    return " x ".join(map(str, values.shape))


def _map_row(name: str, values: NDArray[np.float32]) -> _Row:
    scaled = _scaled(values)
    return _Row(name, _shape_text(values), [_enlarge(_palette(one)) for one in scaled])


def _strip(values: NDArray[np.float32]) -> Image.Image:
    """Lay a vector out as rows of cells, left to right."""
    across = (WIDTH - LABELS - 2 * MARGIN) // CELL
    shown = _scaled(values[: across * MAX_ROWS])
    rows = -(-len(shown) // across)
    cells = np.full((rows, min(across, len(shown)), 3), 255, np.uint8)
    cells.reshape(-1, 3)[: len(shown)] = _palette(shown)
    grid = cells.repeat(CELL, axis=0).repeat(CELL, axis=1)
    grid[CELL - 1 :: CELL] = 255
    grid[:, CELL - 1 :: CELL] = 255
    return _picture(grid)


def _bar_row(name: str, scores: NDArray[np.float32], labels: Sequence[str]) -> _Row:
    """The classes in their order, or the best ones of many."""
    note = _shape_text(scores)
    shown = np.arange(len(scores))
    if len(scores) > BARS:
        shown = np.argsort(-scores, kind="stable")[:BARS]
        note += f"\nbest {BARS}"
    best = scores.max()
    bars = [_bar(float(scores[i]), labels[i], scores[i] == best) for i in shown.tolist()]
    return _Row(name, note, bars)


def _bar(score: float, label: str, best: bool) -> Image.Image:
    from PIL import Image, ImageDraw

    tile = Image.new("RGB", (BAR + 5, 26), PAPER)
    pen: ImageDraw.ImageDraw = ImageDraw.Draw(tile)
    colour = ACCENT if best else FAINT
    pen.text((0, 0), f"{label[:12]}  {100 * score:.1f} %", INK if best else FAINT, _font(12))
    pen.rectangle((0, 18, BAR, 23), (233, 236, 239))
    share = min(max(score, 0.0), 1.0) if np.isfinite(score) else 0.0
    pen.rectangle((0, 18, round(BAR * share), 23), colour)
    return tile


def _scaled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map the finite values to 0..1 by their own lowest and highest; others become 0."""
    finite = np.where(np.isfinite(values), values, np.nan)
    if np.isnan(finite).all():
        return np.zeros_like(values)
    low, high = np.nanmin(finite), np.nanmax(finite)
    scaled = (finite - low) / np.float32(max(float(high) - float(low), 1e-30))
    result: NDArray[np.float32] = np.nan_to_num(scaled).astype(np.float32)
    return result


def _palette(scaled: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Map 0..1 to colours: [...] to uint8[..., 3]."""
    places = np.linspace(0.0, 1.0, len(PALETTE))
    channels = [np.interp(scaled, places, [c[i] for c in PALETTE]) for i in range(3)]
    colours: NDArray[np.uint8] = np.stack(channels, axis=-1).round().astype(np.uint8)
    return colours


def _colours(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay an input image out as [H, W, 3]."""
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.size == 0:
        raise ShapeError(f"image must be [1, H, W] or [3, H, W], got {list(image.shape)}")
    return np.broadcast_to(image.transpose(1, 2, 0), (*image.shape[1:], 3)).astype(np.uint8)


def _enlarge(pixels: NDArray[np.uint8]) -> Image.Image:
    """Repeat every pixel so that the picture comes near the size of a tile."""
    from PIL import Image

    longest = max(pixels.shape[:2])
    if longest > 2 * TILE:  # too large to show every output
        ratio = 2 * TILE / longest
        size = (max(1, round(pixels.shape[1] * ratio)), max(1, round(pixels.shape[0] * ratio)))
        return _picture(pixels).resize(size, Image.Resampling.BOX)
    factor = max(1, round(TILE / longest))
    return _picture(pixels.repeat(factor, axis=0).repeat(factor, axis=1))


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels))
