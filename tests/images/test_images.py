"""Image files of every kind become the same pixels, or one ImageError."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from convserve.errors import ImageError
from convserve.images import EXTENSIONS, MAX_PIXELS, to_pixels
from convserve.preprocessing import Preprocessing

RNG = np.random.default_rng(7)


def wanted(height: int, width: int, colour: str) -> Preprocessing:
    channels = 1 if colour == "grey" else 3
    return Preprocessing(height, width, colour, (0.5,) * channels, (0.25,) * channels)


GREY = wanted(12, 20, "grey")
RGB = wanted(12, 20, "rgb")


def picture(mode: str = "RGB", size: tuple[int, int] = (20, 12)) -> Image.Image:
    """A smooth picture, so that lossy formats stay near it."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    planes = [255 * x / width, 255 * y / height, 255 * (x + y) / (width + height)]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8)).convert(mode)


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def luma(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"))[np.newaxis]


def planes(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_give_the_exact_pixels(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(picture(), form, **options)
    colour, grey = to_pixels(data, RGB), to_pixels(data, GREY)
    assert np.array_equal(colour, planes(picture()))
    assert np.array_equal(grey, luma(picture()))
    for pixels in (colour, grey):
        assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF"])
def test_lossy_formats_come_near(form: str) -> None:
    colour = to_pixels(encode(picture(), form), RGB)
    assert np.abs(colour.astype(int) - planes(picture())).mean() < 8


def test_path_bytes_picture_and_array_agree(tmp_path: Path) -> None:
    file = tmp_path / "a picture.png"
    picture().save(file)
    from_file = to_pixels(file, RGB)
    with Image.open(file) as opened:
        assert np.array_equal(to_pixels(opened, RGB), from_file)
    for other in (str(file), file.read_bytes(), bytearray(file.read_bytes()), picture()):
        assert np.array_equal(to_pixels(other, RGB), from_file)
    assert np.array_equal(to_pixels(memoryview(file.read_bytes()), RGB), from_file)
    assert np.array_equal(to_pixels(np.asarray(picture()), RGB), from_file)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "HSV"])
def test_modes_convert(mode: str) -> None:
    image = picture(mode)
    assert np.array_equal(to_pixels(image, RGB), planes(image))
    grey = to_pixels(image, GREY)
    assert grey.shape == (1, 12, 20)
    assert np.abs(grey.astype(int) - luma(image.convert("RGB"))).max() <= 1


def test_cmyk_jpeg() -> None:
    data = encode(picture("CMYK"), "JPEG", quality=95)
    assert np.abs(to_pixels(data, RGB).astype(int) - planes(picture("CMYK"))).mean() < 8


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_not_cut(form: str) -> None:
    values = np.linspace(0, 65535, 12 * 20).round().astype(np.uint16).reshape(12, 20)
    data = encode(Image.fromarray(values), form)
    expected = np.rint(values.astype(np.float64) / 257).astype(np.uint8)
    assert np.array_equal(to_pixels(data, GREY)[0], expected)
    assert np.array_equal(to_pixels(data, RGB), np.stack([expected] * 3))


def test_16_bit_grey_takes_little_memory_beside_the_image() -> None:
    image = Image.fromarray(np.zeros((1024, 1024), np.uint16))
    to_pixels(image, GREY)  # imports
    tracemalloc.start()
    try:
        to_pixels(image, GREY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * 1024 * 1024  # bytes a pixel


@pytest.mark.parametrize("mode", ["I", "F"])
def test_wide_pixels_without_a_range_are_refused(mode: str) -> None:
    data = encode(picture("L").convert(mode), "TIFF")
    for image in (data, picture("L").convert(mode)):
        with pytest.raises(ImageError, match=r"no agreed range"):
            to_pixels(image, GREY)


def test_transparency_is_laid_over_black() -> None:
    rgba = np.full((12, 20, 4), 200, np.uint8)
    rgba[..., 3] = 0
    rgba[:6, :, 3] = 255
    rgba[6, :, 3] = 128
    for image in (rgba, Image.fromarray(rgba), encode(Image.fromarray(rgba), "PNG")):
        pixels = to_pixels(image, RGB)
        assert (pixels[:, :6] == 200).all() and (pixels[:, 7:] == 0).all()
        assert np.abs(pixels[:, 6].astype(int) - 100).max() <= 1
    grey_alpha = Image.fromarray(rgba).convert("LA")
    assert np.array_equal(to_pixels(encode(grey_alpha, "PNG"), GREY), to_pixels(rgba, GREY))


def test_palette_with_transparency() -> None:
    image = picture().quantize(16)
    index = image.getpixel((0, 0))
    for transparency in (index, bytes([0 if i == index else 255 for i in range(16)])):
        data = encode(image, "PNG", transparency=transparency)
        pixels = to_pixels(data, RGB)
        assert (pixels[:, 0, 0] == 0).all()
        assert np.array_equal(pixels[:, -1, -1], planes(image)[:, -1, -1])
    grey = encode(picture("L"), "PNG", transparency=int(np.asarray(picture("L"))[3, 3]))
    assert to_pixels(grey, GREY)[0, 3, 3] == 0


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), form, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    turned = orientation in (6, 8)
    preprocessing = wanted(20, 12, "rgb") if turned else RGB
    assert np.array_equal(to_pixels(data, preprocessing), expected.transpose(2, 0, 1))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(form: str) -> None:
    frames = [Image.new("RGB", (20, 12), c) for c in ((0, 0, 255), (255, 0, 0), (0, 255, 0))]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:])
    assert to_pixels(data, RGB)[:, 6, 10].argmax() == 2


def test_resize_only_if_the_size_differs() -> None:
    noise = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
    assert np.array_equal(to_pixels(noise, RGB), noise.transpose(2, 0, 1))
    small = to_pixels(noise, wanted(6, 10, "rgb"))
    expected = Image.fromarray(noise).resize((10, 6), Image.Resampling.BILINEAR)
    assert np.array_equal(small, planes(expected))
    assert to_pixels(noise, wanted(1, 1, "grey")).shape == (1, 1, 1)
    assert to_pixels(noise[:1, :1], wanted(64, 3, "rgb")).shape == (3, 64, 3)


def test_a_large_jpeg_is_decoded_small_and_close_to_the_full_decode() -> None:
    data = encode(picture(size=(800, 640)), "JPEG", quality=95)
    quick = to_pixels(data, RGB)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        full = to_pixels(image, RGB)
    assert np.abs(quick.astype(int) - full).max() <= 3
    assert np.array_equal(quick, to_pixels(data, RGB))


@pytest.mark.parametrize("shape", [(12, 20), (12, 20, 1), (12, 20, 3), (12, 20, 4), (3, 12, 20)])
def test_array_layouts(shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    assert to_pixels(array, RGB).shape == (3, 12, 20)
    strided = np.repeat(array, 2, axis=1)[:, ::2]
    strided.flags.writeable = False
    assert np.array_equal(to_pixels(strided, RGB), to_pixels(array, RGB))
    if shape == (3, 12, 20):
        assert np.array_equal(to_pixels(array, RGB), array)


@pytest.mark.parametrize(
    "shape", [(), (20,), (12, 20, 2), (3, 12, 21), (1, 12, 20, 3), (0, 20), (12, 0, 3)]
)
def test_wrong_array_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="array must"):
        to_pixels(np.zeros(shape, np.uint8), RGB)


@pytest.mark.parametrize(
    "image", [None, 3, ["a.png"], io.BytesIO(b""), np.zeros((12, 20)), np.zeros((12, 20), bool)]
)
def test_wrong_types(image: object) -> None:
    with pytest.raises(TypeError, match="must be"):
        to_pixels(image, RGB)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(12, 20), (3, 12, 20)])
def test_masked_arrays(shape: tuple[int, ...]) -> None:
    with pytest.raises(TypeError, match="must not be a masked array"):
        to_pixels(np.ma.zeros(shape, np.uint8), RGB)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image at all, though it has the name of one")
    os.mkfifo(tmp_path / "pipe.png")
    for name, fault in [
        ("empty.png", "empty"),
        ("text.png", "not an image"),
        ("missing.png", "No such file"),
        ("", "not a regular file"),
        ("pipe.png", "not a regular file"),
        ("null\0.png", "null"),
        ("empty.png/below.png", "Not a directory"),
    ]:
        with pytest.raises(ImageError, match=fault):
            to_pixels(os.fspath(tmp_path / name), RGB)
    with pytest.raises(ImageError, match="empty"):
        to_pixels(b"", RGB)


def test_formats_that_start_other_programs_are_not_tried() -> None:
    with pytest.raises(ImageError, match="readable formats"):
        to_pixels(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", RGB)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1000))
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("size", [(8193, 8192), (10_000, 10_000), (65535, 65535), (2**31 - 1, 9)])
def test_a_bomb_is_refused_from_its_header(size: tuple[int, int]) -> None:
    jpeg = bytearray(encode(picture("L"), "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", min(size[1], 65535), min(size[0], 65535))
    for data in [bomb(*size), bytes(jpeg)] if size[1] > 9 else [bomb(*size)]:
        with pytest.raises(ImageError, match=r"pixels|decompression bomb"):
            to_pixels(data, GREY)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encode(picture(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert to_pixels(data[:-2] + data[last:], RGB).shape == (3, 12, 20)
    with pytest.raises(ImageError, match="scans are more than the limit of 100"):
        to_pixels(data[:-2] + data[last:-2] * 100 + b"\xff\xd9", RGB)


def test_the_limit_can_be_chosen() -> None:
    data = encode(picture(), "PNG")
    assert to_pixels(data, RGB, max_pixels=240).shape == (3, 12, 20)
    for image in (data, picture(), np.asarray(picture())):
        with pytest.raises(ImageError, match="more than the limit of 239"):
            to_pixels(image, RGB, max_pixels=239)
    assert MAX_PIXELS == 64 * 1024 * 1024


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_give_an_image_or_an_image_error(form: str) -> None:
    data = encode(picture(), form)
    damaged = [data[:n] for n in range(0, len(data), max(1, len(data) // 60))]
    for _ in range(150):
        copy = bytearray(data)
        for _ in range(3):
            copy[RNG.integers(len(copy))] = RNG.integers(256)
        damaged.append(bytes(copy))
    errors = 0
    for broken in damaged:
        try:
            assert to_pixels(broken, RGB, max_pixels=1 << 20).shape == (3, 12, 20)
        except ImageError as error:
            assert str(error).startswith("image: ")
            errors += 1
    assert errors > 0


def test_a_truncated_file_is_an_error_and_names_the_file(tmp_path: Path) -> None:
    noise = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for form in ("PNG", "JPEG", "BMP", "PPM"):
        data = encode(noise, form)
        file = tmp_path / f"cut.{form}"
        file.write_bytes(data[: len(data) // 2])
        with pytest.raises(ImageError, match="can't be decoded") as caught:
            to_pixels(file, RGB)
        assert str(file) in str(caught.value)


def test_threads_give_the_same_pixels() -> None:
    files = [
        encode(Image.fromarray(RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)), form)
        for form in ("PNG", "JPEG", "WEBP", "GIF") * 10
    ]
    alone = [to_pixels(file, RGB) for file in files]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda file: to_pixels(file, RGB), files))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_extensions_are_lower_case_suffixes() -> None:
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif"} <= EXTENSIONS
    assert all(e == e.lower() and e.startswith(".") for e in EXTENSIONS)


def test_pillow_is_imported_on_first_use() -> None:
    code = "import sys, convserve.images; assert 'PIL' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
