"""What is done to training images: the settings, checked."""

from __future__ import annotations

from dataclasses import dataclass

from convserve.errors import TrainingError
from convserve.training.checks import check_choice, check_integer, check_number

__all__ = ["FLIPS", "PADDING_MODES", "AugmentConfig"]

FLIPS = ("none", "random", "alternating")
PADDING_MODES = ("zeros", "reflect")
INFINITY = float("inf")


@dataclass(frozen=True)
class AugmentConfig:
    """How each image is changed, every epoch anew; the defaults only move it a little.

    flip: "random" mirrors left to right with probability one half; "alternating" decides that once
    for each image, and mirrors every image that was not in the epoch before: two epochs then show
    both sides of all of them.
    crop_scale, crop_ratio: torchvision's RandomResizedCrop: a part of the image, of a share of its
    area from crop_scale to 1 and an aspect ratio from 1/crop_ratio to crop_ratio, is stretched to
    the whole (crop_scale 1: none).
    rotation: about the centre, up to so many degrees each way. zoom: a factor from 1 - zoom to
    1 + zoom, about the centre. shift: up to so many whole pixels in each direction.
    padding_mode: what comes in from beyond the edges: "zeros" (black) or "reflect" (mirrored).
    brightness, contrast: factors from 1 - brightness to 1 + brightness, and so on; contrast is
    about the image's mean grey.
    cutout: side in pixels of a square, centred anywhere in the image, that is erased to the mean.
    mixup: alpha of Beta(alpha, alpha), by which an image and its target are mixed with those of
    another (0: none). label_smoothing: the share of a target that is spread over all classes.
    seed: of all draws. Raises TrainingError for a value out of range, TypeError for a wrong type.
    """

    flip: str = "none"
    crop_scale: float = 1.0
    crop_ratio: float = 4 / 3
    rotation: float = 0.0
    zoom: float = 0.0
    shift: int = 2
    padding_mode: str = "zeros"
    brightness: float = 0.0
    contrast: float = 0.0
    cutout: int = 0
    mixup: float = 0.0
    label_smoothing: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shift", "cutout", "seed"):
            check_integer(name, getattr(self, name), 0)
        check_choice("flip", self.flip, FLIPS)
        check_choice("padding_mode", self.padding_mode, PADDING_MODES)
        for name in ("zoom", "brightness", "contrast", "label_smoothing"):
            check_number(name, getattr(self, name), 0.0, 1.0)
        check_number("crop_scale", self.crop_scale, 0.0, INFINITY, open_low=True)
        if self.crop_scale > 1.0:
            raise TrainingError(f"crop_scale must be above 0 and at most 1, not {self.crop_scale}")
        check_number("crop_ratio", self.crop_ratio, 1.0, INFINITY)
        check_number("mixup", self.mixup, 0.0, INFINITY)
        check_number("rotation", self.rotation, 0.0, INFINITY)
        if self.rotation > 180.0:
            raise TrainingError(f"rotation must be at most 180 degrees, not {self.rotation}")
