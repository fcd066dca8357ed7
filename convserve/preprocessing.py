"""How an image becomes the network's input: size, colour, mean and standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from convserve.errors import ShapeError, UnknownNameError
from convserve.kernels._arguments import integer

__all__ = ["COLOURS", "INTERPOLATIONS", "Preprocessing"]

COLOURS = {"grey": 1, "rgb": 3}  # to channels
INTERPOLATIONS = ("bicubic", "bilinear", "box", "lanczos", "nearest")  # Pillow's names
MAX_SIDE = 65535  # pixels


@dataclass(frozen=True)
class Preprocessing:
    """Images of height × width pixels in a colour, less the mean and over the std of training.

    mean and std: one a channel, on the scale where a pixel of 255 is 1.0.
    """

    height: int
    width: int
    colour: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            side = integer(getattr(self, name), name, 1)
            if side > MAX_SIDE:
                raise ShapeError(f"{name} must be from 1 to {MAX_SIDE}, got {side}")
            object.__setattr__(self, name, side)
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
            constants = np.concatenate([self.scale, self.shift])
        if not np.isfinite(constants).all():
            raise ShapeError(f"std is too small for float32, got {self.std}")

    @property
    def channels(self) -> int:
        """1 for grey, 3 for rgb."""
        return COLOURS[self.colour]

    @property
    def scale(self) -> npt.NDArray[np.float32]:
        """What `normalise` multiplies by, float32 [C]: 1 / (255 std), rounded once."""
        return np.asarray(1.0 / (255.0 * np.array(self.std)), np.float32)

    @property
    def shift(self) -> npt.NDArray[np.float32]:
        """What `normalise` then subtracts, float32 [C]: mean / std, rounded once."""
        return np.asarray(np.array(self.mean) / np.array(self.std), np.float32)

    def normalise(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [N, C, H, W] to the network's float32 input: x · scale - shift.

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
        planes *= self.scale[:, None]
        planes -= self.shift[:, None]
        return out

    def to_dict(self) -> dict[str, Any]:
        """JSON values; `from_dict` is the inverse."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

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
            if name not in data and name != "interpolation":
                raise ShapeError(f"preprocessing lacks the entry {name!r}")
        try:
            return cls(**data)
        except TypeError as error:
            raise ShapeError(f"preprocessing: {error}") from error

    def _per_channel(self, values: Sequence[float], name: str) -> tuple[float, ...]:
        if not isinstance(values, (tuple, list)):
            raise TypeError(f"{name} must be a list of numbers, got {values!r:.80}")
        if len(values) != self.channels:
            raise ShapeError(
                f"{name} must have {self.channels} values for {self.colour}, got {len(values)}"
            )
        for value in values:
            if isinstance(value, bool) or not isinstance(
                value, (int, float, np.integer, np.floating)
            ):
                raise TypeError(f"{name} must hold numbers, got {value!r:.80}")
            if not abs(value) <= 1e6 or not isfinite(value):
                raise ShapeError(f"{name} must hold finite numbers up to 1e6, got {value!r:.80}")
        return tuple(float(value) for value in values)
