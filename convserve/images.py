"""Image files and arrays to the raw pixels that a model's preprocessing asks for.

    file, bytes, PIL image, array -> decode -> upright -> colour -> resize -> crop -> uint8[C, H, W]

Everything that turns pictures into model input calls `to_pixels`: training on folders, local
prediction, the command line and the server. The same file therefore gives the same pixels, and
the same scores, wherever it is decoded.

Pillow is imported on first use. No global Pillow state is read or changed, so any number of
threads may decode at once, and Pillow gives the GIL away while it decodes and resizes.
"""

from __future__ import annotations

import io
import os
import stat
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np

from convserve import image_memory
from convserve.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    from convserve.preprocessing import Preprocessing

__all__ = ["EXTENSIONS", "MAX_PIXELS", "ImageSource", "image_size", "to_pixels"]

ImageSource: TypeAlias = (
    "bytes | bytearray | memoryview | str | os.PathLike[str] | Image.Image | NDArray[np.uint8]"
)

MAX_PIXELS = 64 * 1024 * 1024  # width x height, read from the header; 256 MiB as RGB in Pillow
# Only formats that Pillow decodes in its own C code or in one well-kept library: no PostScript,
# PDF or the like, which start other programs.
_SUFFIXES = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
}
_FORMATS = tuple(_SUFFIXES)
EXTENSIONS = frozenset(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes)
_ORIENTATION = 0x0112  # the EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # its values that swap height and width
# Of a JPEG. Each passes over the whole image: cameras and encoders write up to a dozen, and a small
# file may hold enough of them to decode for hours.
_MAX_SCANS = 100


def to_pixels(
    image: ImageSource,
    preprocessing: Preprocessing,
    *,
    max_pixels: int = MAX_PIXELS,
    memory: image_memory.Budget | None = None,
) -> NDArray[np.uint8]:
    """Return `image` as uint8[C, H, W] with the size and colour that `preprocessing` names.

    `image` is an encoded image (`bytes`), the path of one, a PIL image, or a uint8 array [H, W]
    (grey), [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA). An array whose shape is exactly the
    model's [C, height, width] and whose last axis is not 1, 3 or 4 is returned as it is.

    Of an animation the first frame counts; EXIF orientation is applied unless `exif` is off;
    transparent parts are laid over black; RGB becomes grey by ITU-R 601 luma; 16-bit grey is scaled
    to 8 bits; the image is resized only if its size differs, with antialiasing, and cropped at its
    centre. A large JPEG file is decoded at the smallest of 1/2, 1/4, 1/8 of its size that is still
    at least twice the size asked for, which is several times faster.

    memory: what an encoded image reserves the bytes from that it takes at its peak; it may wait
    for them, or raise ImageError.

    Raises ImageError for what can't be read or decoded and for more than `max_pixels` pixels
    (checked before anything is decoded or resized), TypeError for another type or dtype.
    """
    if isinstance(image, np.ndarray):
        _check_array(image)
        ready = (preprocessing.channels, preprocessing.height, preprocessing.width)
        if image.shape == ready and ready[2] not in (1, 3, 4):
            return np.ascontiguousarray(image)
        picture, name = _from_array(image), "array"
    elif isinstance(image, (bytes, bytearray, memoryview)):
        name = "image"
        return _read(io.BytesIO(image), name, preprocessing, max_pixels, memory)
    elif isinstance(image, (str, os.PathLike)):
        name = os.fsdecode(image)
        with _open_file(image, name) as file:
            return _read(file, name, preprocessing, max_pixels, memory)
    else:
        picture, name = _checked_picture(image), "image"
    _check_size(picture.size, name, max_pixels)
    return _convert(picture, name, preprocessing, max_pixels)


def image_size(path: str | os.PathLike[str], *, exif: bool = True) -> tuple[int, int]:
    """(height, width) of an image file, read from its header; upright unless `exif` is off.

    Raises ImageError as `to_pixels` does for what can't be read.
    """
    name = os.fsdecode(path)
    with _open_file(path, name) as file:
        picture = _open_picture(file, name)
        width, height = picture.size
        try:
            turned = exif and _orientation(picture) in _SIDEWAYS
        except Exception as error:
            raise _fault(name, error) from error
    return (width, height) if turned else (height, width)


def _open_file(path: str | os.PathLike[str], name: str) -> BinaryIO:
    try:
        # A pipe or a device could block or go on for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  (any PathLike; hot path)
            raise ImageError(f"{name}: not a regular file")
        return open(path, "rb")  # noqa: PTH123
    except (OSError, ValueError) as error:  # ValueError: our own error, or a null in the name
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: {getattr(error, 'strerror', None) or error}") from error


def _open_picture(file: BinaryIO, name: str) -> Image.Image:
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(file, formats=_FORMATS)
    except UnidentifiedImageError as error:
        file.seek(0)
        empty = not file.read(1)
        raise ImageError(
            f"{name}: the file is empty"
            if empty
            else f"{name}: not an image, or a damaged one (readable formats: {', '.join(_FORMATS)})"
        ) from error
    except Exception as error:
        raise _fault(name, error) from error


def _read(
    file: BinaryIO,
    name: str,
    preprocessing: Preprocessing,
    max_pixels: int,
    memory: image_memory.Budget | None,
) -> NDArray[np.uint8]:
    if memory is None:
        picture = _open_picture(file, name)
        _prepare(picture, file, name, preprocessing, max_pixels)
        return _convert(picture, name, preprocessing, max_pixels, ours=True)
    data = file.read()
    file.seek(0)
    if data[:4] == b"GIF8":  # Pillow may take memory for a frame as soon as it opens the file
        _check_size(image_memory.gif_size(data) or (1, 1), name, max_pixels)
    opening = image_memory.to_open(data)
    if opening > memory.limit:
        raise ImageError(
            f"{name}: reading its header takes up to {opening / 2**20:,.1f} MiB, more than the "
            f"limit of {memory.limit / 2**20:,.1f} MiB"
        )
    with memory.reserve(opening):
        picture = _open_picture(file, name)
        if picture.format == "GIF":
            # It clears the second frame, and may be as large as the first.
            picture.dispose = None  # type: ignore[attr-defined]
    size, head = picture.size, data[: file.tell()]
    _prepare(picture, file, name, preprocessing, max_pixels)
    try:
        # A PNG file may have its EXIF after its pixels.
        turned = preprocessing.exif and (_orientation(picture) != 1 or b"eXIf" in data)
        needed = image_memory.needed(picture, preprocessing, turned=turned)
        if picture.format in ("JPEG", "MPO"):
            needed += image_memory.coefficients(picture, *size, head)
        elif picture.format == "PNG":
            needed += opening  # its texts stay
    except Exception as error:
        raise _fault(name, error) from error
    if needed > memory.limit:
        raise ImageError(
            f"{name}: {picture.width} x {picture.height} pixels of this kind take "
            f"{needed / 2**20:,.1f} MiB to decode, more than the limit of "
            f"{memory.limit / 2**20:,.1f} MiB"
        )
    with memory.reserve(needed):
        return _convert(picture, name, preprocessing, max_pixels, ours=True)


def _prepare(
    picture: Image.Image, file: BinaryIO, name: str, preprocessing: Preprocessing, max_pixels: int
) -> None:
    """Check what can be told before decoding, and have a large JPEG decoded smaller."""
    _check_size(picture.size, name, max_pixels)
    if picture.format in ("JPEG", "MPO"):
        _check_scans(file, name)
        # Square, since the orientation may turn the image by 90 degrees later.
        side = 2 * max(preprocessing.resized(1, 1))
        picture.draft(None, (side, side))


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: the image is empty ({width} x {height} pixels)")
    if width * height > max_pixels:
        raise ImageError(
            f"{name}: {width} x {height} pixels are more than the limit of {max_pixels:,}"
        )


def _check_scans(file: BinaryIO, name: str) -> None:
    position = file.tell()
    file.seek(0)
    scans = len(image_memory.SCAN.findall(file.read()))
    file.seek(position)
    if scans > _MAX_SCANS:
        raise ImageError(f"{name}: {scans} scans are more than the limit of {_MAX_SCANS}")


def _convert(
    picture: Image.Image,
    name: str,
    preprocessing: Preprocessing,
    max_pixels: int,
    *,
    ours: bool = False,
) -> NDArray[np.uint8]:
    """ours: whether the pixels of `picture` may be let go as soon as they have been read."""
    mode = "L" if preprocessing.channels == 1 else "RGB"
    caller = None if ours else picture
    try:
        picture.load()
        if preprocessing.exif:
            picture = _instead(picture, _upright(picture), caller)
        picture = _instead(picture, _in_mode(picture, mode), caller)
        picture = _cropped(_resized(picture, preprocessing, max_pixels), preprocessing)
        pixels: NDArray[np.uint8] = np.array(picture)  # [H, W] or [H, W, 3], a copy of our own
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from None
    except Exception as error:
        raise _fault(name, error) from error
    if mode == "L":
        return pixels[np.newaxis]
    if preprocessing.colour == "bgr":
        pixels = pixels[:, :, ::-1]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _instead(old: Image.Image, new: Image.Image, caller: Image.Image | None) -> Image.Image:
    """`new`, with the memory of `old` given back, to which frames further up still refer."""
    if old is not new and old is not caller:
        old.close()
    return new


def _resized(picture: Image.Image, preprocessing: Preprocessing, max_pixels: int) -> Image.Image:
    from PIL import Image

    height, width = preprocessing.resized(picture.height, picture.width)
    if picture.size == (width, height):
        return picture
    wanted = preprocessing.height * preprocessing.width
    if height * width > max(max_pixels, wanted):  # a thin strip, its shorter side enlarged
        raise ImageError(
            f"{picture.width} x {picture.height} pixels would be resized to {width} x {height}, "
            f"more than the limit of {max_pixels:,}"
        )
    between = image_memory.resampled(picture.width, picture.height, preprocessing)
    if between > max(max_pixels, MAX_PIXELS, wanted):  # a strip of an image, far too long
        raise ImageError(
            f"{picture.width} x {picture.height} pixels take {between:,} on the way to {width} x "
            f"{height}, more than the limit of {max(max_pixels, MAX_PIXELS):,}"
        )
    return picture.resize((width, height), Image.Resampling[preprocessing.interpolation.upper()])


def _cropped(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The centre, by torchvision's rule: half a pixel goes to the even side."""
    size = (preprocessing.width, preprocessing.height)
    if picture.size == size:
        return picture
    left, top = (round((have - want) / 2) for have, want in zip(picture.size, size, strict=True))
    return picture.crop((left, top, left + size[0], top + size[1]))


def _fault(name: str, error: Exception) -> ImageError:
    """Damaged data makes Pillow raise nearly every built-in exception: all mean the same here."""
    detail = str(error) or type(error).__name__
    return ImageError(f"{name}: the image can't be decoded: {detail}")


def _upright(picture: Image.Image) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture) if _orientation(picture) != 1 else picture


def _orientation(picture: Image.Image) -> int:
    # Reading EXIF costs as much as decoding a small image: look only where there is some.
    if "exif" in picture.info or picture.format in ("MPO", "TIFF"):
        orientation: int = picture.getexif().get(_ORIENTATION, 1)
        return orientation
    return 1


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """Convert to 8-bit grey (`L`) or `RGB`, whatever Pillow made of the file.

    Block by block, so that what is made on the way takes no memory of the image's size.
    """
    from PIL import Image

    if picture.mode == mode and "transparency" not in picture.info:
        return picture
    _check_range(picture)
    width, height = picture.size
    if width * height <= image_memory.BLOCK:
        return _block_in_mode(picture, mode)
    across = min(width, image_memory.BLOCK)
    down = image_memory.BLOCK // across
    result = Image.new(mode, picture.size, None)
    for top in range(0, height, down):
        for left in range(0, width, across):
            box = (left, top, min(left + across, width), min(top + down, height))
            result.paste(_block_in_mode(picture.crop(box), mode), box)
    return result


def _block_in_mode(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I"):
        picture = _from_wide(picture)
    if picture.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = _over_black(picture)
    elif picture.mode not in ("1", "L", "RGB"):
        picture = picture.convert("RGB")
    return picture if picture.mode == mode else picture.convert(mode)


def _over_black(picture: Image.Image) -> Image.Image:
    from PIL import Image

    layer = picture.convert("RGBA")
    black = Image.new("RGBA", layer.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, layer).convert("RGB")


def _check_range(picture: Image.Image) -> None:
    """Refuse pixels of unknown range. Pillow reads 16-bit PNG and PPM as 16 or as 32-bit integers,
    as its version has it."""
    wide = picture.mode in ("I", "F")
    if wide and not (picture.mode == "I" and picture.format in ("PNG", "PPM")):
        raise ImageError(
            f"pixels of mode {picture.mode!r} have no agreed range; convert to 8 or 16 bits first"
        )


def _from_wide(picture: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits: 0 to 0, 65535 to 255, rounded to the nearest."""
    from PIL import Image

    values = np.array(picture, np.int32)
    values += 128
    values //= 257
    return Image.fromarray(values.clip(0, 255, out=values).astype(np.uint8))


def _check_array(array: NDArray[Any]) -> None:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError("an image array must not be a masked array; fill it with .filled(value)")
    if array.dtype != np.uint8:
        raise TypeError(f"an image array must be uint8 (0-255), got {array.dtype}")


def _from_array(array: NDArray[Any]) -> Image.Image:
    from PIL import Image

    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(
            "an image array must be [H, W], [H, W, 1], [H, W, 3], [H, W, 4] or the model's own "
            f"[C, H, W], got shape {array.shape}"
        )
    if array.size == 0:
        raise ImageError(f"an image array must not be empty, got shape {array.shape}")
    return Image.fromarray(np.ascontiguousarray(array))


def _checked_picture(image: object) -> Image.Image:
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise TypeError(
            "an image must be bytes, a path, a PIL image or a uint8 array, got "
            f"{type(image).__name__}"
        )
    return image
