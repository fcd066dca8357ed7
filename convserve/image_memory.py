"""How many bytes of memory decoding an image takes at its peak, told before it is decoded.

    decode -> upright -> colour -> resize -> crop -> array

Each step holds what it reads and what it makes; the largest sum counts. Pillow keeps a pixel in
1, 2 or 4 bytes: RGB takes 4. What a decoder holds beside the image depends on the format.
"""

from __future__ import annotations

import math
import re
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL import Image

    from convserve.preprocessing import Preprocessing

__all__ = ["BLOCK", "SCAN", "Budget", "coefficients", "needed", "resampled", "to_open"]

BLOCK = 1 << 18  # pixels that are converted at a time
_BLOCK_BYTES = 24 * BLOCK  # those with all that is made of them on the way
# A JPEG's scan by marker, length and number of components.
SCAN = re.compile(rb"\xff\xda\x00(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")
_STORED = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # else 4
# How far a filter reaches, in pixels of the smaller of both sizes.
_SUPPORT = {"box": 0.5, "bilinear": 1, "hamming": 1, "bicubic": 2, "lanczos": 3, "nearest": 0}
# TIFF's tags, and the compression that goes through libjpeg.
_BITS, _SAMPLES, _ROWS, _TILE_WIDTH, _TILE_HEIGHT, _COMPRESSION = 258, 277, 278, 322, 323, 259
_TIFF_JPEG = 7
_ANY = 1 << 20  # of any image: rows, tables, Pillow's objects
_GIF_FILL = 178_956_970  # pixels of a frame that Pillow prepares when it opens a file
_PNG_TEXT = 64 << 20  # its bound on the texts of a file, unpacked


class Budget(Protocol):
    """Memory that images being decoded share: `limit` bytes, of which each reserves its own."""

    @property
    def limit(self) -> int:
        """Bytes in all."""

    def reserve(self, size: int) -> AbstractContextManager[None]:
        """Wait for `size` bytes, at most `limit`, and hold them while the block runs."""


def to_open(data: bytes) -> int:
    """Bytes that reading the header of an encoded image takes beyond the file itself."""
    if data[:4] == b"GIF8":
        return _GIF_FILL
    if data[:4] == b"\x89PNG" and (b"zTXt" in data or b"iTXt" in data):
        return _PNG_TEXT
    return 0


def coefficients(picture: Any, width: int, height: int, head: bytes) -> int:
    """Bytes of a JPEG's coefficients, which are all kept if it comes in several scans.

    width, height: in the file. head: the file up to its first scan's data, where Pillow stopped.
    """
    first = max((scan.start() for scan in SCAN.finditer(head)), default=None)
    whole = first is not None and head[first + 4] >= len(picture.layer)
    if whole and "progressive" not in picture.info:
        return 0
    samples: list[tuple[int, int]] = [(across, down) for _, across, down, *_ in picture.layer]
    most = max(across for across, _ in samples) * max(down for _, down in samples)
    padded = (width + 32) * (height + 32)  # to whole blocks
    return 2 * padded * sum(across * down for across, down in samples) // most


def needed(picture: Image.Image, preprocessing: Preprocessing, *, turned: bool) -> int:
    """Bytes at the peak of decoding a picture that has been opened, and of all that follows.

    turned: whether it may have to be turned upright. A JPEG's coefficients come on top.
    """
    mode = "L" if preprocessing.channels == 1 else "RGB"
    pixels = picture.width * picture.height
    source = pixels * _stored(picture.mode)
    plain = picture.mode == mode and "transparency" not in picture.info
    target = pixels * _stored(mode)
    decoding, kept = _decoder(picture)
    steps = [source + decoding]
    if turned:
        steps.append(2 * source + kept)
    if not plain:
        steps.append(source + target + min(_BLOCK_BYTES, 24 * pixels) + kept)
    sizes = {picture.size, picture.size[::-1]} if turned else {picture.size}
    steps.append(target + kept + max(_fitting(*size, preprocessing) for size in sizes))
    return max(steps) + _ANY


def resampled(width: int, height: int, preprocessing: Preprocessing) -> int:
    """Pixels of what lies between resizing across and resizing down; 0 if nothing does."""
    new_height, new_width = preprocessing.resized(height, width)
    one_step = preprocessing.interpolation == "nearest" or height == new_height
    return 0 if one_step or width == new_width else new_width * height


def _stored(mode: str) -> int:
    return _STORED.get(mode, 4)


def _fitting(width: int, height: int, preprocessing: Preprocessing) -> int:
    """Bytes that resizing takes beside the image: weights, pixels in between, results."""
    stored = 1 if preprocessing.channels == 1 else 4
    support = _SUPPORT[preprocessing.interpolation]
    resized = preprocessing.resized(height, width)
    weights = 0
    for old, new in zip((height, width), resized, strict=True):
        if old != new and support:
            weights += 8 * new * (2 * math.ceil(support * max(old / new, 1)) + 1)
    wanted = preprocessing.height * preprocessing.width
    results = math.prod(resized) * stored + wanted * (stored + 4 * preprocessing.channels)
    return weights + resampled(width, height, preprocessing) * stored + results


def _decoder(picture: Image.Image) -> tuple[int, int]:
    """Bytes that the decoder takes beside the image, and those of them that it keeps."""
    pixels = picture.width * picture.height
    if picture.format == "WEBP":  # two canvases, and a copy
        return 12 * pixels, 8 * pixels
    codecs = {tile[0] for tile in getattr(picture, "tile", ())}
    if codecs & {"ppm", "ppm_plain", "bmp_rle"}:  # written in Python: collected, then copied
        values = 4 if picture.mode == "I" else len(picture.getbands())
        return 2 * values * pixels, 0
    if "libtiff" in codecs:
        return _tiff_block(picture), 0
    return 0, 0


def _tiff_block(picture: Any) -> int:
    """Bytes of a strip or tile, which is decoded as a whole, whatever the size of the image."""
    tags = picture.tag_v2
    if _TILE_WIDTH in tags:
        pixels = int(tags[_TILE_WIDTH]) * int(tags.get(_TILE_HEIGHT, picture.height))
    else:
        pixels = picture.width * min(int(tags.get(_ROWS, picture.height)), picture.height)
    bits = tags.get(_BITS, (8,))
    widest = max(bits) if isinstance(bits, tuple) else int(bits)
    samples = int(tags.get(_SAMPLES, 1))
    size = pixels * -(-widest * samples // 8)
    if tags.get(_COMPRESSION) == _TIFF_JPEG:  # with its coefficients, and as RGBA
        size += pixels * (2 * samples + 4)
    return size
