"""What decoding takes at its peak is known before, and measured here in processes of their own."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from contextlib import contextmanager, suppress

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


def measured(data):
    """(taken, told) in bytes for each size. The least of some tries: what a process takes depends
    on what else the system puts into its memory, by chance, too."""
    tries = []
    for _ in range(3):
        command = [sys.executable, "-c", MEASURE]
        run = subprocess.run(command, input=data, capture_output=True, timeout=300, check=False)
        assert run.returncode == 0, run.stderr.decode()
        tries.append([tuple(map(int, line.split())) for line in run.stdout.decode().splitlines()])
        if all(taken <= told for taken, told in tries[-1]):
            break
    return [min(pairs) for pairs in zip(*tries, strict=True)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("case", CASES)
def test_no_more_is_taken_than_was_told(case):
    mode, form, options = CASES[case]
    data = encode(picture(mode), form, **options)
    for taken, told in measured(data):
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


def gif(width, height, *blocks, frame=None):
    """A GIF file of one colour; frame: left, top, width, height."""
    screen = struct.pack("<6sHHBBB", b"GIF89a", width, height, 0x80, 0, 0) + bytes(range(6))
    image = struct.pack("<c4HB", b",", *(frame or (0, 0, width, height)), 0)
    return screen + b"".join(blocks) + image + b"\x02\x02\x44\x01\x00;"


CLEARED = b"!\xf9\x04" + struct.pack("<BHB", 2 << 2 | 1, 0, 0) + b"\0"  # for a second frame


@pytest.mark.parametrize(
    "blocks",
    [
        (),
        (CLEARED,),
        (b"!\xfe\x03a,b\x02cd\0", CLEARED),
        (b"!\xfe\0", CLEARED),
        (b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0", CLEARED),
        (b"!\xff\x0bNETSCAPE2.0\0" + CLEARED[:1] + bytes(33) + b"\0", CLEARED),
        (b"!\xff\0\x03,,,\0", CLEARED),
        (b"\0\0x", CLEARED),
    ],
)
@pytest.mark.parametrize("frame", [None, (5, 3, 4, 4), (90, 0, 30, 50), (0, 60, 100, 40)])
def test_the_size_of_a_gif_is_pillows(blocks, frame):
    data = gif(100, 80, *blocks, frame=frame)
    size = image_memory.gif_size(data)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.size == size
    memory = Memory()
    with suppress(ImageError):  # there are too few pixels in it
        to_pixels(data, GREY, memory=memory)
    assert memory.sizes[0] == size[0] * size[1]


def test_a_gif_that_ends_early_has_no_size():
    data = gif(100, 80, CLEARED)
    for end in range(len(data)):
        size = image_memory.gif_size(data[:end])
        assert size == (None if end < data.index(b",") + 9 else (100, 80))
        with pytest.raises(ImageError):
            to_pixels(data[:end], GREY, memory=Memory())


def test_a_huge_gif_is_refused_before_it_is_opened(monkeypatch):
    data = gif(13_000, 13_000, CLEARED)
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(ImageError, match=r"13000 x 13000 pixels are more than the limit of 67"):
        to_pixels(data, GREY, memory=Memory(16 << 20))
    memory = Memory(16 << 20)
    with pytest.raises(ImageError, match=r"takes up to 161\.2 MiB.* limit of 16\.0 MiB"):
        to_pixels(data, GREY, max_pixels=1 << 30, memory=memory)
    assert memory.sizes == []


LETTERS = b"x" * 1_000_000 + "\N{GRINNING FACE}".encode()
TEXTS = {
    "plain": (b"tEXt", b"\0" + LETTERS),
    "wide": (b"iTXt", b"\0\0\0\0\0" + LETTERS),
    "packed": (b"zTXt", b"\0\0" + zlib.compress(LETTERS)),
    "wide, packed": (b"iTXt", b"\0\1\0\0\0" + zlib.compress(LETTERS)),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", TEXTS)
def test_texts_of_a_png_file_count(kind):
    name, body = TEXTS[kind]
    data = png(20, 20, *(chunk(name, b"k%d" % number + body) for number in range(10)))
    for taken, told in measured(data):
        assert taken <= told + 2e6
    memory = Memory(8 << 20)
    with pytest.raises(ImageError, match=r"header takes up to .* limit of 8\.0 MiB"):
        to_pixels(data, GREY, memory=memory)
    assert memory.sizes == []


def test_a_short_text_costs_nothing():
    packet = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>")
    memory = Memory(2 << 20)
    to_pixels(png(20, 20, packet, chunk(b"tEXt", b"Author\0me")), GREY, memory=memory)
    assert memory.sizes[0] < 1000
    packed = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1000)))
    to_pixels(png(20, 20, packed), GREY, memory=Memory(8 << 20))


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
