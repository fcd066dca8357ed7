"""The options of `convserve train` that say what is done to the images and their targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from convserve.training import TrainConfig
from convserve.training.augment import FLIPS, PADDING_MODES

__all__ = ["augmentation_options"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

DEFAULTS = TrainConfig()
SHARE = click.FloatRange(min=0, max=1, max_open=True)


def augmentation_options(command: Decorated) -> Decorated:
    """`--shift`, `--flip` and so on, as the parameters of their names: fields of AugmentConfig."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _option(flag: str, type: Any, help: str, **more: Any) -> Callable[..., Any]:
    default = getattr(DEFAULTS, flag.removeprefix("--").replace("-", "_"))
    return click.option(flag, type=type, default=default, show_default=True, help=help, **more)


_OPTIONS = [
    _option("--shift", click.IntRange(min=0), "Move images by up to so many pixels each way."),
    _option(
        "--padding-mode",
        click.Choice(PADDING_MODES),
        "What comes in at the edges: black, or the image mirrored.",
    ),
    _option(
        "--flip",
        click.Choice(FLIPS),
        "Mirror half of the images, or the other half every epoch.  [--flip alone: random]",
        is_flag=False,
        flag_value="random",
    ),
    _option(
        "--crop-scale",
        click.FloatRange(min=0, max=1, min_open=True),
        "Crop to this share of the area or more, and stretch the crop to the whole.",
    ),
    _option("--crop-ratio", click.FloatRange(min=1), "Largest aspect ratio of crops."),
    _option(
        "--rotation", click.FloatRange(min=0, max=180), "Rotate by up to so many degrees each way."
    ),
    _option("--zoom", SHARE, "Enlarge or shrink by up to this share."),
    _option("--brightness", SHARE, "Brighten or darken by up to this share."),
    _option("--contrast", SHARE, "Raise or lower contrast by up to this share."),
    _option("--cutout", click.IntRange(min=0), "Erase a square of so many pixels a side."),
    _option(
        "--mixup",
        click.FloatRange(min=0),
        "Mix images, and their targets, in pairs by Beta(ALPHA, ALPHA).",
        metavar="ALPHA",
    ),
    _option("--label-smoothing", SHARE, "Share of a target that is spread over all classes."),
]
