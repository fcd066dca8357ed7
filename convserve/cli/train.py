"""`convserve train`: from a data set to a model file."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from convserve import datasets
from convserve.cli._common import printable, threads_option
from convserve.cli._training import TrainingProgress, describe, image_size_option
from convserve.datasets.base import as_text
from convserve.errors import CheckpointError, ModelFileError
from convserve.graph import architectures
from convserve.preprocessing import INTERPOLATIONS, MAX_SIDE
from convserve.training import TrainConfig, train
from convserve.training.config import OPTIMISERS, SCHEDULES
from convserve.training.export import check_writable

DEFAULTS = TrainConfig()


@click.command()
@click.option("--data", "spec", metavar="SPEC", help="What to train on; see above.")
@click.option(
    "--arch",
    type=click.Choice(architectures.names()),
    default="lenet",
    show_default=True,
    help="The network.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("model.npz"),
    show_default=True,
    help="The model file; replaced whole, when there is a better one.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=DEFAULTS.epochs, show_default=True)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=DEFAULTS.batch_size,
    show_default=True,
    help="Images an update.",
)
@click.option(
    "--lr",
    type=click.FloatRange(min=0, min_open=True),
    help="Peak learning rate.  [default: "
    + ", ".join(f"{lr:g} for {name}" for name, lr in sorted(OPTIMISERS.items()))
    + "]",
)
@click.option(
    "--optimizer",
    "--optimiser",
    "optimiser",
    type=click.Choice(sorted(OPTIMISERS)),
    default=DEFAULTS.optimiser,
    show_default=True,
)
@click.option(
    "--momentum",
    type=click.FloatRange(min=0, max=1, max_open=True),
    default=DEFAULTS.momentum,
    show_default=True,
    help="Nesterov momentum of sgd.",
)
@click.option(
    "--weight-decay",
    type=click.FloatRange(min=0),
    default=DEFAULTS.weight_decay,
    show_default=True,
    help="Of weights, not of biases and batch norm.",
)
@click.option(
    "--schedule",
    type=click.Choice(SCHEDULES),
    default=DEFAULTS.schedule,
    show_default=True,
    help="How the learning rate goes down.",
)
@click.option(
    "--warmup",
    type=click.FloatRange(min=0),
    default=DEFAULTS.warmup,
    show_default=True,
    help="Epochs in which it first goes up.",
)
@click.option(
    "--label-smoothing",
    type=click.FloatRange(min=0, max=1, max_open=True),
    default=DEFAULTS.label_smoothing,
    show_default=True,
)
@click.option(
    "--shift",
    type=click.IntRange(min=0),
    default=DEFAULTS.shift,
    show_default=True,
    help="Augmentation: move images by up to so many pixels.",
)
@click.option("--flip", is_flag=True, help="Augmentation: mirror half of the images.")
@click.option(
    "--validation",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Hold out this share of every class, and export the epoch that is best on it.",
)
@image_size_option("N or HxW: resize the images of a folder.")
@click.option(
    "--resize-shorter",
    type=click.IntRange(1, MAX_SIDE),
    help="The shorter side of a folder's images, of which the centre is cropped.  [default: the "
    "whole image is stretched]",
)
@click.option("--interpolation", type=click.Choice(INTERPOLATIONS), help="Of a folder's images.")
@click.option(
    "--exif/--no-exif", default=None, help="Turn a folder's photos upright.  [default: exif]"
)
@click.option("--seed", type=click.IntRange(min=0), default=DEFAULTS.seed, show_default=True)
@click.option("--resume", is_flag=True, help="Continue an interrupted run from its checkpoint.")
@click.option(
    "--checkpoint",
    "checkpoint_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to keep the run's state.  [default: beside --out, until the run is done]",
)
@threads_option
@click.pass_context
def command(
    ctx: click.Context,
    /,
    spec: str | None,
    arch: str,
    out: Path,
    validation: float | None,
    image_size: tuple[int, int] | None,
    resize_shorter: int | None,
    interpolation: str | None,
    exif: bool | None,
    resume: bool,
    checkpoint_path: Path | None,
    threads: int | None,
    **settings: Any,
) -> None:
    """Train a network and export it to one .npz file.

    \b
    SPEC is one of
      mnist:DIR     IDX files as MNIST has them, gzipped or not
      cifar10:DIR   CIFAR-10's binary or Python batches
      folder:DIR    images in DIR/train/<class>/ and DIR/test/<class>/,
                    or in DIR/<class>/ (then use --validation)
      npz:FILE      x uint8 [N, H, W] or [N, C, H, W], y integers [N]
    Without --data: 12,000 digits of MNIST that are part of the program.

    The model is that of the last epoch, or with --validation of the best one. Test images have no
    say in it: the accuracy on them is measured once, at the end, and printed last.

    Ctrl-C keeps the last epoch's checkpoint: run the same command with --resume to continue, with
    the same result, bit for bit, as if it had not been interrupted.
    """
    config = TrainConfig(**settings)
    checkpoint = checkpoint_path or out.with_name(f"{out.stem}.checkpoint.npz")
    check_writable(out, ModelFileError)
    check_writable(checkpoint, CheckpointError)
    source = Path(spec[4:]).expanduser() if spec and spec.startswith("npz:") else None
    for path in (out, checkpoint):
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise click.UsageError(f"{path} holds the images to train on and would be replaced")
    if resume and not checkpoint.exists():
        raise CheckpointError(f"{checkpoint}: there is no checkpoint to resume from")
    said = {"resize": resize_shorter, "interpolation": interpolation, "exif": exif}
    recipe = {name: value for name, value in said.items() if value is not None}
    data = datasets.load(
        spec, validation=validation, seed=config.seed, image_size=image_size, recipe=recipe
    )
    for line in describe(data):
        click.echo(printable(line))
    graph = architectures.build(arch, data.input_shape, len(data.labels))
    if checkpoint.exists() and not resume:
        click.echo(f"{checkpoint} is replaced; --resume would have continued it", err=True)
    progress = TrainingProgress()
    try:
        with progress:
            result = train(
                graph,
                data,
                config,
                out=out,
                checkpoint=checkpoint,
                resume=resume,
                threads=threads,
                progress=progress,
                provenance={"arch": arch, "command": _command_line(ctx)},
            )
    except KeyboardInterrupt:
        if progress.epochs_done:
            again = f"{checkpoint} holds {progress.epochs_done} epochs; --resume continues"
            click.echo(printable(again), err=True)
        raise
    if checkpoint_path is None:
        checkpoint.unlink(missing_ok=True)
    chosen = "last" if result.validation_accuracy is None else "best"
    click.echo(
        printable(f"wrote {out}, epoch {result.epoch} (the {chosen}), {result.seconds:.1f} s")
    )
    if result.test_accuracy is not None:
        click.echo(f"accuracy {100 * result.test_accuracy:.2f} %")
    elif result.validation_accuracy is not None:
        click.echo(f"validation accuracy {100 * result.validation_accuracy:.2f} %")


def _command_line(ctx: click.Context) -> str:
    """The command as it was given, for the model's provenance."""
    words = ["convserve", "train"]
    for param in ctx.command.params:
        name, value = param.name, ctx.params.get(param.name or "")
        if name and ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            if isinstance(value, tuple):
                value = "x".join(map(str, value))
            words += [param.opts[0]] if value is True else [param.opts[0], str(value)]
    return as_text(shlex.join(words))
