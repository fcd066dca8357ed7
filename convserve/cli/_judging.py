"""What `eval` and `compare` share: which images, whether a model fits them, and its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from convserve import datasets
from convserve.cli._candidates import Candidate
from convserve.cli._common import printable, threads_option
from convserve.cli._training import cache_choice, folder_options, image_size_option
from convserve.datasets import Dataset, HeldOut, Split
from convserve.errors import DatasetError
from convserve.training.metrics import Judged, are_probabilities, judge
from convserve.training.tta import TTA, predict_views

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["JudgedImages", "answers", "console", "judging_options", "some"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
UNTOLD = HeldOut(0.1, 0)  # what is held out where neither the model nor the user says


def judging_options(command: Decorated) -> Decorated:
    """Which images, how, with how many threads; as `JudgedImages` and `answers` take them."""
    options = [
        click.option(
            "--data",
            metavar="SPEC",
            help="mnist:DIR, cifar10:DIR, folder:DIR or npz:FILE, as `train` takes it.  "
            "[default: the embedded sample of MNIST]",
        ),
        click.option(
            "--split",
            type=click.Choice(["test", "train", "validation"]),
            default="test",
            show_default=True,
            help="Which of its images.",
        ),
        click.option("--batch-size", type=click.IntRange(min=1), default=256, show_default=True),
        click.option(
            "--validation",
            type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
            metavar="SHARE",
            help="Of --split train and validation: the share of every class that is held out.  "
            "[default: for validation that of the model's training, which its file tells, else "
            f"{UNTOLD.share}; for train none]",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0),
            help=f"Of the same: which images.  [default: alike, else {UNTOLD.seed}]",
        ),
        image_size_option("N or HxW, of a folder's images.  [default: the model's own]"),
        folder_options,
        click.option(
            "--tta",
            type=click.Choice(TTA),
            default="none",
            show_default=True,
            help="Test-time augmentation: average over mirrored and moved views of each image; "
            "shift alone for digits and letters.",
        ),
        threads_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


class JudgedImages:
    """The images that a command was told; read once for models that want them alike.

    held_out: which are its validation images; None if that is of no account.
    """

    def __init__(self, options: dict[str, Any], models: Sequence[Candidate]) -> None:
        """Raises DatasetError if the validation images of one model are not those of the other."""
        self._options = options
        self._loaded: tuple[Any, Dataset] | None = None
        self.held_out = _held_out(options, models)

    def of(self, model: Candidate) -> tuple[Dataset, Split]:
        """The data set and its split, checked to fit; DatasetError where they do not."""
        told, split = self._options, self._options["split"]
        wanted = self._wanted(model)
        if self._loaded is None or self._loaded[0] != wanted:
            held_out = self.held_out
            data = datasets.load(
                told["data"],
                validation=None if held_out is None else held_out.share,
                seed=UNTOLD.seed if held_out is None else held_out.seed,
                cache=cache_choice(told["cache"], told["no_cache"]),
                skip_bad_files=told["skip_bad_files"],
                **wanted,
            )
            self._loaded = wanted, data
        data = self._loaded[1]
        images: Split | None = getattr(data, split)
        if images is None:
            raise DatasetError(f"{data.name} has no {split} images; choose another --split")
        _check_fit(model, data)
        return data, images

    def _wanted(self, model: Candidate) -> dict[str, Any]:
        """How images are brought to size and colour: as the model has it, if not told."""
        size, recipe = self._options["image_size"], None
        p = model.preprocessing
        if (self._options["data"] or "").startswith("folder:"):
            size = size or model.input_shape[1:]
            if p is not None:
                recipe = {"resize": p.resize, "interpolation": p.interpolation, "exif": p.exif}
        return {"image_size": size, "recipe": recipe, "colour": None if p is None else p.colour}


def _held_out(options: dict[str, Any], models: Sequence[Candidate]) -> HeldOut | None:
    """As the options say, else as the models do; what a person should know of it is printed.

    A model's accuracy on images that it was trained on is no measure of it, and images that are
    held out by another share or seed are mostly of that kind.
    """
    share, seed = options["validation"], options["seed"]
    if options["split"] == "test" or (options["split"] == "train" and share is None):
        return None
    told = {model.name: model.held_out for model in models if model.held_out is not None}
    known = next(iter(told.values()), UNTOLD)
    chosen = HeldOut(known.share if share is None else share, known.seed if seed is None else seed)
    for name, held_out in told.items():
        if held_out == chosen:
            continue
        if share is None and seed is None:
            raise DatasetError(
                f"the models were not trained on the same images: {next(iter(told))} held out "
                f"{_said(chosen)}, {name} {_said(held_out)}; choose by --validation and --seed, or "
                "--split test"
            )
        _note(
            f"{name} held out {_said(held_out)} in its training; of those by {_said(chosen)} it "
            "may have been trained on most"
        )
    for model in models:
        if model.held_out is None:
            _note(
                f"as far as {model.name} tells, no images were held out of its training: those by "
                f"{_said(chosen)} are taken, and it may have been trained on them"
            )
    return chosen


def _said(held_out: HeldOut) -> str:
    return f"--validation {held_out.share:g} --seed {held_out.seed}"


def _note(text: str) -> None:
    click.echo(printable(f"convserve: {text}"), err=True)


def answers(model: Candidate, images: Split, options: dict[str, Any]) -> Judged:
    """The model's answers to all images, as `--tta` and `--batch-size` say."""
    parts, size, probabilities = [], options["batch_size"], model.probabilities
    for start in range(0, len(images), size):
        x, y = images.x[start : start + size], images.y[start : start + size]
        if probabilities is None:
            probabilities = are_probabilities(model.predict(x))
        scores = predict_views(model.predict, x, options["tta"], probabilities)
        parts.append(judge(scores, y, probabilities))
    return Judged.joined(parts)


def console() -> Console:
    """A rich console that takes names as they are, and in a pipe keeps to no width."""
    from rich.console import Console

    made = Console(markup=False, highlight=False)
    if not made.is_terminal:
        made.width = 250
    return made


def some(labels: Sequence[str]) -> str:
    """The first ten names."""
    return ", ".join(labels[:10]) + (f", … ({len(labels)})" if len(labels) > 10 else "")


def _check_fit(model: Candidate, data: Dataset) -> None:
    """A model and data of different meaning would give a wrong figure without an error."""
    if model.preprocessing is None:
        raise DatasetError("the model has no preprocessing, so raw pixels can't be given to it")
    if model.input_shape != data.input_shape:
        raise DatasetError(
            f"the model takes images of {model.input_shape} (channels, height, width), "
            f"those of {data.name} are {data.input_shape}"
        )
    if model.labels is not None and model.labels != data.labels:
        raise DatasetError(
            f"the model's classes are {some(model.labels)}, those of {data.name} are "
            f"{some(data.labels)}"
        )
    if len(model.outputs) != 1:
        raise DatasetError(f"the model has {len(model.outputs)} outputs; eval needs exactly one")
    (output,) = model.outputs
    if output != (len(data.labels),):
        raise DatasetError(
            f"the model gives {'×'.join(map(str, output))} scores an image, "
            f"{data.name} has {len(data.labels)} classes"
        )
