"""How an image becomes the network's input: size, colour, scale, mean and standard deviation.

upright -> colour -> resize -> centre crop to height × width -> (pixel · scale - mean) / std
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from convserve.errors import ShapeError, UnknownNameError
from convserve.kernels._arguments import integer

__all__ = ["COLOURS", "INTERPOLATIONS", "Preprocessing"]

COLOURS = {"grey": 1, "rgb": 3, "bgr": 3}  # to channels
# Pillow's names
INTERPOLATIONS = ("bicubic", "bilinear", "box", "hamming", "lanczos", "nearest")
MAX_SIDE = 65535  # pixels
_Value = TypeVar("_Value", bound=np.generic)
# What format version 1 of a model file has.
_BASIC = {"height", "width", "colour", "mean", "std", "interpolation"}


@dataclass(frozen=True)
class Preprocessing:
    """Images of height × width pixels in a colour, less the mean and over the std of training.

    mean and std: one a channel, in the order of `colour`, on the scale that `scale` brings pixels
    to: by default 255 becomes 1.0. resize: before the centre crop, the shorter side (an integer)
    or (height, width); None stretches the whole image to the network's size. exif: whether a
    photo is turned upright as its EXIF orientation says.
    """

    height: int
    width: int
    colour: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"
    resize: int | tuple[int, int] | None = None
    exif: bool = True
    scale: float = 1 / 255

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            object.__setattr__(self, name, _side(getattr(self, name), name))
        object.__setattr__(self, "resize", self._resize())
        if not isinstance(self.exif, bool):
            raise TypeError(f"exif must be True or False, got {self.exif!r:.80}")
        object.__setattr__(self, "scale", _number(self.scale, "scale"))
        if self.scale <= 0:
            raise ShapeError(f"scale must be above 0, got {self.scale}")
        for name, allowed in (("colour", COLOURS), ("interpolation", INTERPOLATIONS)):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in allowed:
                raise UnknownNameError(
                    f"{name} must be one of {', '.join(allowed)}, got {value!r:.80}"
                )
        for name in ("mean", "std"):
            object.__setattr__(self, name, self._per_channel(getattr(self, name), name))
        if not all(value > 0 for value in self.std):
            raise ShapeError(f"std must be above 0, got {self.std}")
        with np.errstate(over="ignore", under="ignore"):
            constants = np.concatenate([self.factor, self.shift])
        if not np.isfinite(constants).all():
            raise ShapeError(f"std is too small for float32, got {self.std}")

    @property
    def channels(self) -> int:
        """1 for grey, 3 for rgb and bgr."""
        return COLOURS[self.colour]

    def as_drawn(self, channels: npt.NDArray[_Value]) -> npt.NDArray[_Value]:
        """[…, C, H, W], pixels or filters of them, in the order in which pictures are drawn."""
        return channels[..., ::-1, :, :] if self.colour == "bgr" else channels

    @property
    def is_basic(self) -> bool:
        """Whether the first version of model files can hold it."""
        return (
            self.to_dict().keys() == _BASIC
            and self.colour != "bgr"
            and self.interpolation != "hamming"
        )

    @property
    def factor(self) -> npt.NDArray[np.float32]:
        """What `normalise` multiplies by, float32 [C]: scale / std, rounded once."""
        std = np.array(self.std)
        if self.scale == 1 / 255:  # exactly, which no float is
            return np.asarray(1.0 / (255.0 * std), np.float32)
        return np.asarray(self.scale / std, np.float32)

    @property
    def shift(self) -> npt.NDArray[np.float32]:
        """What `normalise` then subtracts, float32 [C]: mean / std, rounded once."""
        return np.asarray(np.array(self.mean) / np.array(self.std), np.float32)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of an upright image of these sizes after it is resized.

        The longer side is rounded down, as torchvision does.
        """
        if self.resize is None:
            return self.height, self.width
        if isinstance(self.resize, tuple):
            return self.resize
        if height <= width:
            return self.resize, self.resize * width // height
        return self.resize * height // width, self.resize

    def normalise(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [N, C, H, W] to the network's float32 input: x · factor - shift.

        The product is rounded before the subtraction, so an image's bits are the same in any
        batch and layout. Training, `predict` and the server all use this.
        """
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8:
            found = pixels.dtype if isinstance(pixels, np.ndarray) else type(pixels).__name__
            raise TypeError(f"pixels must be an array of uint8, got {found}")
        if pixels.ndim != 4 or pixels.shape[1] != self.channels:
            raise ShapeError(f"pixels must be [N, {self.channels}, H, W], got {pixels.shape}")
        out = pixels.astype(np.float32, order="C")
        planes = out.reshape(*out.shape[:2], out.shape[2] * out.shape[3])  # long inner loops
        planes *= self.factor[:, None]
        planes -= self.shift[:, None]
        return out

    def table(self) -> npt.NDArray[np.float32]:
        """What `normalise` makes of each value of a byte: float32[C, 256]."""
        values = np.arange(256, dtype=np.uint8)
        return self.normalise(np.tile(values, (1, self.channels, 1, 1)))[0, :, 0]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` is the inverse."""
        data = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        if isinstance(self.resize, tuple):
            data["resize"] = list(self.resize)
        for entry in fields(self):  # what is as in older files, they say by leaving it out
            if entry.name not in _BASIC and data[entry.name] == entry.default:
                del data[entry.name]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocessing:
        """The preprocessing of a `to_dict`; anything unknown, missing or ill-typed: ValueError."""
        if not isinstance(data, Mapping):
            raise ShapeError(f"preprocessing must be an object, got {data!r:.80}")
        names = [f.name for f in fields(cls)]
        for name in data:
            if name not in names:
                raise UnknownNameError(
                    f"preprocessing has an unknown entry {name!r:.80}; it has: {', '.join(names)}"
                )
        for name in names:
            if name not in data and name in _BASIC - {"interpolation"}:
                raise ShapeError(f"preprocessing lacks the entry {name!r}")
        try:
            return cls(**data)
        except TypeError as error:
            raise ShapeError(f"preprocessing: {error}") from error

    def _resize(self) -> int | tuple[int, int] | None:
        given = self.resize
        if given is None:
            return None
        if isinstance(given, (tuple, list)):
            if len(given) != 2:
                raise ShapeError(f"resize must be one side or (height, width), got {given!r:.80}")
            sides = _side(given[0], "resize"), _side(given[1], "resize")
            fits = sides[0] >= self.height and sides[1] >= self.width
            checked: int | tuple[int, int] = sides
        else:
            checked = _side(given, "resize")
            fits = checked >= max(self.height, self.width)
        if not fits:
            raise ShapeError(
                f"resize {given!r} is too small to crop {self.height} × {self.width} from it"
            )
        return checked

    def _per_channel(self, values: Sequence[float], name: str) -> tuple[float, ...]:
        if not isinstance(values, (tuple, list)):
            raise TypeError(f"{name} must be a list of numbers, got {values!r:.80}")
        if len(values) != self.channels:
            raise ShapeError(
                f"{name} must have {self.channels} values for {self.colour}, got {len(values)}"
            )
        return tuple(_number(value, name) for value in values)


def _side(value: object, name: str) -> int:
    side = integer(value, name, 1)
    if side > MAX_SIDE:
        raise ShapeError(f"{name} must be from 1 to {MAX_SIDE}, got {side}")
    return side


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must hold numbers, got {value!r:.80}")
    if not abs(value) <= 1e6 or not isfinite(value):
        raise ShapeError(f"{name} must hold finite numbers up to 1e6, got {value!r:.80}")
    return float(value)
