"""The options of `train`: all that a TOML file or a recipe can say too, by the same names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from convserve.cli._augmentation import augmentation_options
from convserve.cli._training import folder_options, image_size_option
from convserve.errors import TrainingError
from convserve.graph import architectures
from convserve.preprocessing import INTERPOLATIONS, MAX_SIDE
from convserve.training import Group, TrainConfig
from convserve.training.config import INITIALISATIONS, OPTIMISERS, SCHEDULES, STEPS
from convserve.training.recipes import RELIABLE

__all__ = ["data_options", "setting_options"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
DEFAULTS = TrainConfig()
if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # not generic before click 8.2
    _ParamType = click.ParamType


class _GroupType(_ParamType):
    """PATTERN:NAME=VALUE,… or a table of TOML."""

    name = "group"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Group:
        if isinstance(value, str):
            pattern, _, rest = value.partition(":")
            pairs = [item.partition("=")[::2] for item in rest.split(",") if item]
            value = {"match": pattern, **{name: _number(text) for name, text in pairs}}
        try:
            return value if isinstance(value, Group) else Group.from_dict(value)
        except (TrainingError, TypeError) as error:
            self.fail(str(error), param, ctx)


class _Numbers(_ParamType):
    """1,2,0.5 or a list of TOML; a word from `words`; with `pairs` 0:0.2,1:1 or lists of two."""

    name = "numbers"

    def __init__(self, pairs: bool = False, words: tuple[str, ...] = ()) -> None:
        self.pairs, self.words = pairs, words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self.words:
            return value
        items = value.split(",") if isinstance(value, str) else value
        try:
            if not self.pairs:
                return tuple(float(item) for item in items)
            split = [item.split(":") if isinstance(item, str) else item for item in items]
            return tuple((float(share), float(factor)) for share, factor in split)
        except (TypeError, ValueError):
            form = "SHARE:FACTOR,…" if self.pairs else "NUMBER,…"
            allowed = " or ".join([*self.words, form])
            self.fail(f"{value!r} is not {allowed}", param, ctx)


class _ArchOption(_ParamType):
    """NAME=VALUE, where the value is as in JSON."""

    name = "option"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Any]:
        if isinstance(value, (tuple, list)) and len(value) == 2:
            return str(value[0]), value[1]
        name, equals, text = str(value).partition("=")
        try:
            if name and equals:
                return name, json.loads(text)
        except ValueError:
            pass  # said below
        self.fail(f"{value!r} is not NAME=VALUE, as in widths=[64,256,256]", param, ctx)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _stack(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    def decorate(command: Decorated) -> Decorated:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _setting(name: str, help: str | None = None, **more: Any) -> Any:
    """An option for the setting of that name, with its default."""
    default = getattr(DEFAULTS, name)
    flags = more.pop("flags", [f"--{name.replace('_', '-')}"])
    shown = default is not None and default != ()
    return click.option(
        *flags, name, default=default, show_default=more.pop("show", shown), help=help, **more
    )


SHARE = click.FloatRange(min=0, max=1, max_open=True)
POSITIVE = click.FloatRange(min=0, min_open=True)

setting_options = _stack(
    _setting("epochs", type=click.IntRange(min=1)),
    _setting("batch_size", "Images an update.", type=click.IntRange(min=1)),
    _setting(
        "drop_last",
        "Leave out the images that fill no batch.",
        flags=["--drop-last/--keep-last"],
        show=False,
    ),
    _setting(
        "initialisation",
        "he, or dirac: convolutions begin as the identity.",
        flags=["--initialization", "--initialisation"],
        type=click.Choice(INITIALISATIONS),
    ),
    _setting(
        "whiten",
        "The first convolution decorrelates the training images' patches.",
        flags=["--whiten/--no-whiten"],
        show=False,
    ),
    click.option(
        "--lr",
        type=POSITIVE,
        help="Peak learning rate.  [default: "
        + ", ".join(f"{lr:g} for {name}" for name, lr in sorted(OPTIMISERS.items()))
        + "]",
    ),
    _setting(
        "optimiser",
        "muon: for filters and matrices but the last, and sgd for the rest.",
        flags=["--optimizer", "--optimiser"],
        type=click.Choice(sorted(OPTIMISERS)),
    ),
    _setting("momentum", "Of sgd.", type=SHARE),
    _setting("nesterov", "Of sgd.", flags=["--nesterov/--no-nesterov"]),
    _setting("muon_momentum", "Of muon.", type=SHARE),
    _setting("sgd_lr", "Peak learning rate of what muon leaves to sgd.", type=POSITIVE),
    _setting(
        "weight_decay", "Of weights, not of biases and batch norm.", type=click.FloatRange(min=0)
    ),
    _setting(
        "decoupled_decay",
        "With sgd and muon: decay shrinks the weights instead of joining the gradient.",
        flags=["--decoupled-decay/--coupled-decay"],
        show=False,
    ),
    _setting(
        "clip",
        "The largest norm of the gradient; above, it is scaled down.  [default: "
        + ", ".join(f"{told['clip']:g} for {arch} with sgd" for arch, told in RELIABLE.items())
        + ", else none]",
        type=POSITIVE,
    ),
    _setting(
        "groups",
        "Settings of some parameters: 'bn*.bias:lr=64,weight_decay=0,until=3,rule=sgd'; lr is a "
        "factor. Repeat it.",
        flags=["--group"],
        type=_GroupType(),
        multiple=True,
        metavar="PATTERN:NAME=VALUE,…",
    ),
    _setting(
        "freeze",
        "Layers or parameters that stay as they are, with * and ?. Repeat it.",
        multiple=True,
        metavar="PATTERN",
    ),
    _setting("schedule", "How the learning rate goes.", type=click.Choice(SCHEDULES)),
    _setting(
        "points",
        "Of --schedule piecewise: share of the run and factor.  [default: 0:0.2,0.23:1,1:0.07]",
        type=_Numbers(pairs=True),
        metavar="SHARE:FACTOR,…",
        show=False,
    ),
    _setting("warmup", "Epochs in which it first goes up.", type=click.FloatRange(min=0)),
    _setting("ema", "Average the weights, with this decay a step (0: off).", type=SHARE),
    _setting(
        "lookahead", "Draw the weights to slow ones every N steps (0: off).", type=click.IntRange(0)
    ),
    _setting("lookahead_decay", type=SHARE),
    augmentation_options,
    _setting(
        "class_weights",
        "Weights of the classes in the loss: balanced, or one number a class.",
        type=_Numbers(words=("balanced",)),
        metavar="balanced|W,…",
    ),
    _setting(
        "patience",
        "Stop after so many epochs without a better validation accuracy (0: never).",
        type=click.IntRange(0),
    ),
    _setting(
        "step",
        "Compiled forward and backward passes, or the plain ones that they are checked against.",
        type=click.Choice(STEPS),
    ),
    _setting("seed", type=click.IntRange(min=0)),
)

data_options = _stack(
    click.option("--data", metavar="SPEC", help="What to train on; see above."),
    click.option(
        "--arch",
        type=click.Choice(architectures.names()),
        default="lenet",
        show_default=True,
        help="The network.",
    ),
    click.option(
        "--arch-option",
        "arch_options",
        type=_ArchOption(),
        multiple=True,
        metavar="NAME=VALUE",
        help="Of the network, as widths=[64,256,256]. Repeat it.",
    ),
    click.option(
        "--init",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Fine-tune this model: its network, weights and preprocessing, and a new last layer "
        "if the classes differ.",
    ),
    click.option(
        "--out",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path("model.npz"),
        show_default=True,
        help="The model file; replaced whole, when there is a better one.",
    ),
    click.option(
        "--validation",
        type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
        metavar="SHARE",
        help="Hold out this share of every class, and export the epoch that is best on it.",
    ),
    image_size_option("N or HxW: resize the images of a folder."),
    click.option(
        "--resize-shorter",
        type=click.IntRange(1, MAX_SIDE),
        help="The shorter side of a folder's images, of which the centre is cropped.  [default: "
        "the whole image is stretched]",
    ),
    click.option(
        "--interpolation", type=click.Choice(INTERPOLATIONS), help="Of a folder's images."
    ),
    click.option(
        "--exif/--no-exif", default=None, help="Turn a folder's photos upright.  [default: exif]"
    ),
    folder_options,
    click.option(
        "--seeds",
        type=click.IntRange(1, 1000),
        default=1,
        show_default=True,
        help="Train so many times, with --seed and the seeds that follow, one model file each.",
    ),
)
