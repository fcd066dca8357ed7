"""Preprocessing by the name of a usual recipe, or from options, for a network of a given size.

    preprocessing_for((3, 224, 224), preset="torchvision")
    preprocessing_for((3, 160, 160), preset="keras-tf", interpolation="bilinear")

A recipe's resize is kept in proportion to its crop where a network's size is another than its own.
Sources are listed in docs/preprocessing.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from convserve.errors import ShapeError, UnknownNameError
from convserve.graph.layers import Shape
from convserve.preprocessing import Preprocessing

__all__ = ["IMAGENET", "OPTIONS", "PRESETS", "Preset", "preprocessing_for"]

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and std of its training images
_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_CAFFE = (103.939, 116.779, 123.68)


@dataclass(frozen=True)
class Preset:
    """A recipe; `resize` to `crop`: None stretches. `whole`: both sides are resized, not one."""

    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 1 / 255
    colour: str = "rgb"
    resize: int | None = None
    crop: int = 224
    whole: bool = False

    def resize_for(self, height: int, width: int) -> int | tuple[int, int] | None:
        """The resize before a crop of these sizes."""
        if self.resize is None:
            return None
        sides = [round(side * self.resize / self.crop) for side in (height, width)]
        return (sides[0], sides[1]) if self.whole else max(sides)


PRESETS: dict[str, Preset] = {
    "torchvision": Preset("bilinear", *IMAGENET, resize=256),
    "torchvision-v2": Preset("bilinear", *IMAGENET, resize=232),
    "torchvision-inception": Preset("bilinear", *IMAGENET, resize=342, crop=299),
    "torchvision-efficientnet": Preset("bicubic", *IMAGENET, resize=256),
    "onnx-zoo": Preset("bilinear", *IMAGENET, resize=256),
    "clip": Preset("bicubic", *_CLIP, resize=224),
    "keras-tf": Preset("nearest", (1.0,) * 3, (1.0,) * 3, scale=1 / 127.5),
    "keras-caffe": Preset("nearest", _CAFFE, (1.0,) * 3, scale=1.0, colour="bgr"),
    "keras-torch": Preset("nearest", *IMAGENET),
    "keras-raw": Preset("nearest", (0.0,) * 3, (1.0,) * 3, scale=1.0),
    "slim-inception": Preset(
        "bilinear", (1.0,) * 3, (1.0,) * 3, scale=1 / 127.5, resize=342, crop=299, whole=True
    ),
    "efficientnet-lite": Preset(
        "bicubic", (127 / 128,) * 3, (1.0,) * 3, scale=1 / 128, resize=256, whole=False
    ),
    "caffe": Preset(
        "bilinear", (104.0, 117.0, 123.0), (1.0,) * 3, scale=1.0, colour="bgr", resize=256,
        crop=227, whole=True,
    ),
}  # fmt: skip

# Of `preprocessing_for`, beside `preset`.
OPTIONS = ("size", "resize", "interpolation", "exif", "colour", "scale", "mean", "std")


def preprocessing_for(
    shape: Shape, preset: str | None = None, options: Mapping[str, Any] | None = None
) -> Preprocessing:
    """The preprocessing for images of `shape` (C, H, W): a preset, changed by single options.

    options: `size` (height, width), by default the network's, and the fields of `Preprocessing`;
    mean and std may be one number for all channels. Errors: UnknownNameError, ShapeError, TypeError
    that name the option.
    """
    if len(shape) != 3:
        raise ShapeError(f"preprocessing is for images (channels, height, width), got {shape}")
    given = {name: value for name, value in (options or {}).items() if value is not None}
    for name in given:
        if name not in OPTIONS:
            raise UnknownNameError(f"unknown option {name!r:.80}; there are: {', '.join(OPTIONS)}")
    channels, height, width = shape
    size = given.pop("size", (height, width))
    sides = list(size) if isinstance(size, Sequence) else [size]
    if not 1 <= len(sides) <= 2:
        raise ShapeError(f"size must be one side or (height, width), got {size!r:.80}")
    height, width = sides[0], sides[-1]
    data: dict[str, Any] = {
        "colour": "grey" if channels == 1 else "rgb",
        "mean": (0.0,) * channels,
        "std": (1.0,) * channels,
    }
    if preset is not None:
        if preset not in PRESETS:
            raise UnknownNameError(
                f"unknown preset {preset!r:.80}; there are: {', '.join(PRESETS)}"
            )
        recipe = PRESETS[preset]
        if channels != 3:
            raise ShapeError(f"preset {preset!r} is for 3 channels, the network has {channels}")
        for name in ("interpolation", "mean", "std", "scale", "colour"):
            data[name] = getattr(recipe, name)
        data["resize"] = recipe.resize_for(height, width)
    for name in ("mean", "std"):
        value = given.get(name)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            given[name] = (value,) * channels
        elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
            given[name] = tuple(value) * channels
    return Preprocessing(height, width, **{**data, **given})
