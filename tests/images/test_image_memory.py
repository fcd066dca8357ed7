"""What decoding takes at its peak is known before, and measured here in processes of their own."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from convserve import image_memory
from convserve.errors import ImageError
from convserve.images import to_pixels
from convserve.preprocessing import Preprocessing

GREY = Preprocessing(28, 28, "grey", (0.0,), (1.0,))
RGB = Preprocessing(224, 224, "rgb", (0.0,) * 3, (1.0,) * 3)
SIDE = 1500


def encode(picture, form, **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def picture(mode, side=SIDE):
    rng = np.random.default_rng(3)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (side, side), np.uint16))
    if mode in ("P", "P transparent"):
        found = Image.fromarray(rng.integers(0, 4, (side, side), np.uint8)).convert("P")
        found.putpalette([7, 80, 200, 9, 240, 60, 0, 0, 90, 255, 255, 255])
        if mode != "P":
            found.info["transparency"] = 2
        return found
    bands = len(Image.new(mode, (1, 1)).getbands())
    coarse = rng.integers(0, 256, (side // 10, side // 10, 4), np.uint8)[..., :bands]
    values = np.repeat(np.repeat(coarse, 10, 0), 10, 1)
    return Image.fromarray(values.squeeze(), mode if mode == "CMYK" else None)


def turned():
    exif = Image.Exif()
    exif[0x112] = 6
    return exif


CASES = {
    "PNG grey": ("L", "PNG", {}),
    "PNG RGB": ("RGB", "PNG", {}),
    "PNG RGBA": ("RGBA", "PNG", {}),
    "PNG grey, transparent": ("LA", "PNG", {}),
    "PNG palette, transparent": ("P transparent", "PNG", {"transparency": bytes(range(4))}),
    "PNG 16 bits": ("I;16", "PNG", {}),
    "PNG on its side": ("RGB", "PNG", {"exif": turned()}),
    "JPEG": ("RGB", "JPEG", {}),
    "JPEG progressive": ("RGB", "JPEG", {"progressive": True}),
    "JPEG CMYK, progressive": ("CMYK", "JPEG", {"progressive": True}),
    "JPEG on its side": ("RGB", "JPEG", {"exif": turned()}),
    "GIF": ("P", "GIF", {}),
    "GIF transparent": ("P transparent", "GIF", {"transparency": 2, "disposal": 2}),
    "WEBP": ("RGB", "WEBP", {"method": 0}),
    "WEBP RGBA": ("RGBA", "WEBP", {"method": 0}),
    "BMP": ("RGB", "BMP", {}),
    "TIFF in one strip": ("RGB", "TIFF", {"compression": "tiff_deflate", "strip_size": 1 << 31}),
    "TIFF JPEG": ("RGB", "TIFF", {"compression": "jpeg"}),
    "PPM 16 bits": ("I;16", "PPM", {}),
}

MEASURE = """
import io, os, sys
from contextlib import contextmanager
from PIL import Image
from convserve.images import to_pixels
from convserve.preprocessing import Preprocessing

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

class Counted:
    limit = 1 << 40
    @contextmanager
    def reserve(self, size):
        self.size = size
        yield

data = sys.stdin.buffer.read()
for side, colour in ((28, "grey"), (224, "rgb")):
    channels = 1 if colour == "grey" else 3
    wanted = Preprocessing(side, side, colour, (0.0,) * channels, (1.0,) * channels)
    if os.fork():
        assert os.wait()[1] == 0
        continue
    small = io.BytesIO()
    opened = Image.open(io.BytesIO(data))
    options = {"compression": opened.info["compression"]} if opened.format == "TIFF" else {}
    Image.new("RGB", (300, 300)).save(small, opened.format, **options)
    to_pixels(small.getvalue(), wanted)  # imports
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before, counted = memory("VmRSS"), Counted()
    to_pixels(data, wanted, memory=counted)
    print(memory("VmHWM") - before, counted.size)
    sys.stdout.flush()
    os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("case", CASES)
def test_no_more_is_taken_than_was_told(case):
    mode, form, options = CASES[case]
    data = encode(picture(mode), form, **options)
    command = [sys.executable, "-c", MEASURE]
    run = subprocess.run(command, input=data, capture_output=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr.decode()
    for line in run.stdout.decode().splitlines():
        taken, told = map(int, line.split())
        assert taken <= told <= 1.2 * taken + 8e6, f"{taken / SIDE**2:.2f} {told / SIDE**2:.2f}"


class Memory:
    """A budget that notes what is reserved."""

    def __init__(self, limit=1 << 40):
        self.limit = limit
        self.sizes = []

    @contextmanager
    def reserve(self, size):
        assert size <= self.limit
        self.sizes.append(size)
        yield


def test_what_needs_more_than_there_is_is_refused():
    data = encode(picture("RGBA"), "PNG")
    assert to_pixels(data, RGB, memory=Memory(32 << 20)).shape == (3, 224, 224)
    memory = Memory(20 << 20)
    with pytest.raises(ImageError, match=r"1500 x 1500 .* 2\d\.\d MiB .* limit of 20\.0 MiB"):
        to_pixels(data, RGB, memory=memory)
    assert sum(memory.sizes) == 0


@pytest.mark.parametrize("block", [1, 7, 100, 1000])
def test_blocks_give_the_pixels_of_the_whole(monkeypatch, block):
    rng = np.random.default_rng(4)
    shapes = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}
    pictures = [
        Image.fromarray(rng.integers(0, 256, (17, 23, *more), np.uint8), mode)
        for mode, more in shapes.items()
    ]
    pictures.append(Image.fromarray(rng.integers(0, 65536, (17, 23), np.uint16)))
    palette = pictures[2].quantize(20)
    keys = [0, bytes(rng.integers(0, 256, 20, np.uint8))]
    pictures += [palette, *(keyed(palette, key) for key in keys)]
    pictures += [keyed(pictures[0], 200), keyed(pictures[2], (1, 2, 3)), palette.convert("1")]
    for given in pictures:
        for wanted in (GREY, RGB):
            monkeypatch.setattr(image_memory, "BLOCK", 1 << 20)
            whole = to_pixels(given.copy(), wanted)
            monkeypatch.setattr(image_memory, "BLOCK", block)
            np.testing.assert_array_equal(to_pixels(given.copy(), wanted), whole, given.mode)


def keyed(given, key):
    found = given.copy()
    found.info["transparency"] = key
    return found


def test_a_callers_picture_stays_open():
    given = picture("RGBA")
    to_pixels(given, RGB)
    assert given.getpixel((0, 0)) is not None


def chunk(kind, data):
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(width, height, *more):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    rows = chunk(b"IDAT", zlib.compress(bytes((width + 1) * height), 1))
    return b"\x89PNG\r\n\x1a\n" + header + rows + b"".join(more) + chunk(b"IEND", b"")


def test_a_strip_that_resizing_would_blow_up_is_refused():
    """One pixel wide, it would take 28 times its size on the way; a small file holds it."""
    data = png(1, 4_000_000)
    memory = Memory(64 << 20)
    with pytest.raises(ImageError, match=r"limit of 64\.0 MiB"):
        to_pixels(data, GREY, memory=memory)
    with pytest.raises(ImageError, match="on the way to 28 x 28"):
        to_pixels(data, GREY)


def test_orientation_after_the_pixels_is_counted():
    exif = turned().tobytes()[6:]
    sizes = []
    for more in ((), (chunk(b"eXIf", exif),)):
        memory = Memory()
        to_pixels(png(1000, 500, *more), GREY, memory=memory)
        sizes.append(memory.sizes[-1])
    assert sizes[1] >= sizes[0] + 400_000


def test_what_opening_takes_is_reserved():
    gif = encode(picture("P", 20), "GIF")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1000)))
    for data, opening in ((gif, 170e6), (png(20, 20, text), 60e6)):
        memory = Memory(256 << 20)
        to_pixels(data, GREY, memory=memory)
        assert memory.sizes[0] > opening
    memory = Memory(8 << 20)  # less than a frame may take: it has the whole to itself
    to_pixels(gif, GREY, memory=memory)
    assert memory.sizes[0] == 8 << 20


def test_a_tile_larger_than_its_image_counts():
    """A TIFF file of 16 x 16 pixels may have a tile of any size, which is decoded as a whole."""
    tile = zlib.compress(bytes(256))
    values = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16, 323: 16, 324: 8}
    told = []
    for side in (16, 30_000):
        values |= {322: side, 323: side, 325: len(tile)}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, values[tag]) for tag in sorted(values))
        start = 8 + len(tile) + len(tile) % 2
        head = struct.pack("<2sHI", b"II", 42, start)
        data = head + tile + bytes(len(tile) % 2) + struct.pack("<H", len(values)) + entries
        memory = Memory()
        try:
            assert to_pixels(data + bytes(4), GREY, memory=memory).sum() == 0
        except ImageError:
            assert side > 16  # its data end early
        told.append(memory.sizes[-1])
    assert told[0] < 2e6
    assert told[1] > 30_000**2
