"""How many bytes of memory decoding an image takes at its peak, told before it is decoded.

    decode -> upright -> colour -> resize -> crop -> array

Each step holds what it reads and what it makes; the largest sum counts. Pillow keeps a pixel in
1, 2 or 4 bytes: RGB takes 4. What a decoder holds beside the image depends on the format.
"""

from __future__ import annotations

import io
import math
import re
import struct
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL import Image

    from convserve.preprocessing import Preprocessing

__all__ = ["BLOCK", "SCAN", "Budget", "coefficients", "gif_size", "needed", "resampled", "to_open"]

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
# Pillow's bounds on a text of a PNG file, unpacked, and on all of them, in characters.
_PNG_TEXT, _PNG_TEXTS = 1 << 20, 64 << 20


class Budget(Protocol):
    """Memory that images being decoded share: `limit` bytes, of which each reserves its own."""

    @property
    def limit(self) -> int:
        """Bytes in all."""

    def reserve(self, size: int) -> AbstractContextManager[None]:
        """Wait for `size` bytes, at most `limit`, and hold them while the block runs."""


def to_open(data: bytes) -> int:
    """Bytes that reading the header of an encoded image takes beyond the file itself."""
    if data[:4] == b"GIF8":  # Pillow may prepare what the second frame begins with
        return math.prod(gif_size(data) or ())
    if data[:4] == b"\x89PNG":
        return _png_texts(data)
    return 0


def gif_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a GIF file: of its screen, or beyond it to the end of its first frame.

    None without a frame. Follows Pillow in what it makes of damaged files: its size counts.
    """
    file = io.BytesIO(data)

    def block() -> bytes:
        length = file.read(1)
        return file.read(length[0]) if length else b""

    screen = file.read(13)
    if len(screen) < 13:
        return None
    width, height, flags = struct.unpack_from("<HHB", screen, 6)
    if flags & 0x80:
        file.seek(3 << (flags & 7) + 1, io.SEEK_CUR)
    while (kind := file.read(1)) not in (b"", b";"):
        if kind == b",":
            place = file.read(8)
            if len(place) < 8:
                return None
            left, top, across, down = struct.unpack("<4H", place)
            return max(width, left + across), max(height, top + down)
        if kind == b"!":
            comment, first = file.read(1) == b"\xfe", block()
            if first.startswith(b"NETSCAPE2.0") and not comment:
                block()
            if first or not comment:
                while block():
                    pass
    return None


def _png_texts(data: bytes) -> int:
    """Bytes of the texts of a PNG file as Python keeps them; those that are compressed, at most."""
    total = most = 0
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = position + 8
        position = body + length + 4
        if kind == b"tEXt":
            size = length
        elif kind == b"zTXt":
            size = _PNG_TEXT
        elif kind == b"iTXt":  # name, 0, whether it is compressed
            name = data.find(b"\0", body, body + length)
            packed = name >= 0 and data[name + 1 : name + 2] != b"\0"
            size = 4 * (_PNG_TEXT if packed else length)  # one rare character makes all wide
        else:
            continue
        total, most = total + size, max(most, size)
    return min(total, 4 * _PNG_TEXTS) + 2 * most  # one has copies while it is read


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
