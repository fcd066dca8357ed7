"""`convserve train`: from a data set to a model file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click

from convserve import datasets, model_file
from convserve.cli._candidates import Candidate
from convserve.cli._common import printable, threads_option
from convserve.cli._judging import answers
from convserve.cli._report import Report, Run, Subject, report_options
from convserve.cli._run_file import (
    RunFiles,
    config_option,
    effective,
    recipe_option,
    to_toml,
    told_beside,
)
from convserve.cli._stopping import StopSignals
from convserve.cli._train_files import check_files, tell_of_checkpoint
from convserve.cli._training import TrainingProgress, cache_choice, describe
from convserve.cli._training_options import data_options, setting_options
from convserve.datasets import Dataset
from convserve.datasets.base import as_text
from convserve.engine.model import Model
from convserve.errors import ModelFileError, TrainingStoppedError
from convserve.graph import architectures
from convserve.model_file import ModelFile
from convserve.training import TrainConfig, TrainResult, train
from convserve.training.every import Every
from convserve.training.recipes import RELIABLE
from convserve.training.start import from_model

__all__ = ["command"]

ARGUMENTS = "convserve.train.arguments"
# What a model to begin with makes pointless, and what then counts.
FRESH = TrainConfig()
OF_A_FRESH_NETWORK: dict[str, Any] = {
    "arch": "lenet",
    "arch_options": (),
    "initialisation": FRESH.initialisation,
    "whiten": FRESH.whiten,
}
# In what the runs of several seeds may differ, and be compared.
OF_NO_ACCOUNT = {
    "out",
    "report",
    "report_images",
    "checkpoint",
    "checkpoint_every",
    "cache",
    "no_cache",
}


@dataclass(frozen=True)
class _Job:
    """What a call asks for, of one seed."""

    config: TrainConfig
    out: Path
    checkpoint: Path
    keeps_checkpoint: bool
    options: dict[str, Any]  # of the command line, by the names of their parameters
    report: Report | None = None


class _Train(click.Command):
    """Keeps the arguments as they were given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


@click.command(cls=_Train)
@config_option
@recipe_option
@data_options
@setting_options
@report_options
@click.option("--resume", is_flag=True, help="Continue an interrupted run from its checkpoint.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to keep the run's state.  [default: beside --out, until the run is done]",
)
@click.option(
    "--checkpoint-every",
    default="5m",
    show_default=True,
    metavar="N|TIME",
    help="Write it within an epoch too: every N steps, or every 30s, 5m, 1h (0: not).",
)
@threads_option
@click.pass_context
def command(ctx: click.Context, /, **options: Any) -> int | None:
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

    Ctrl-C and SIGTERM end the step under way and write a checkpoint: run the same command with
    --resume to continue, with the same result, bit for bit, as if nothing had happened. A run that
    is killed continues from its last checkpoint. All options are saved beside the model, as
    NAME.run.toml, for --config, and beside a checkpoint too.

    --report DIR needs convserve[plots]. It shows the model's answers to the test images, or without
    those to the validation images, or to the training images.
    """
    Every(options["checkpoint_every"])  # a wrong one is an error before the data are read
    _check_init(ctx, options)
    if options["init"] is None and options["optimiser"] == "sgd" and options["clip"] is None:
        options["clip"] = RELIABLE.get(options["arch"], {}).get("clip")
    jobs = _jobs(options)
    for job in jobs:
        check_files(job.out, job.checkpoint, job.report.folder if job.report else None, options)
    with StopSignals() as stop:
        try:
            results = _train_all(ctx, jobs, stop)
        except TrainingStoppedError as error:
            click.echo(printable(f"convserve: {error}"), err=True)
            return stop.status
    if len(jobs) > 1:
        _summarise(results)
    return None


def _check_init(ctx: click.Context, options: dict[str, Any]) -> None:
    """With --init network and first weights are the model's: whatever else says them is refused.

    A recipe's are left out, as its other settings may well be wanted.
    """
    if options["init"] is None:
        return
    for name in told_beside(ctx, OF_A_FRESH_NETWORK, "init"):
        if options[name] != OF_A_FRESH_NETWORK[name] or name == "arch":
            (param,) = (p for p in ctx.command.params if p.name == name)
            raise click.UsageError(
                f"{param.opts[0]} is of a fresh network, and with --init network and weights are "
                f"those of {options['init']}"
            )
    left = [name for name, value in OF_A_FRESH_NETWORK.items() if options[name] != value]
    if left:
        said = f"{options['init']} takes the place of {', '.join(left)} of the recipe or file"
        click.echo(printable(said), err=True)
    options.update(OF_A_FRESH_NETWORK)


def _jobs(options: dict[str, Any]) -> list[_Job]:
    names = TrainConfig.__dataclass_fields__
    first = TrainConfig.from_dict({name: options[name] for name in options if name in names})
    several, jobs = options["seeds"] > 1, []
    for seed in range(first.seed, first.seed + options["seeds"]):
        out, checkpoint = options["out"], options["checkpoint"]
        if several:
            out = out.with_name(f"{out.stem}-seed{seed}{out.suffix}")
            if checkpoint is not None:
                checkpoint = checkpoint.with_name(
                    f"{checkpoint.stem}-seed{seed}{checkpoint.suffix}"
                )
        jobs.append(
            _Job(
                replace(first, seed=seed),
                out,
                checkpoint or out.with_name(f"{out.stem}.checkpoint.npz"),
                checkpoint is not None,
                options,
                Report.asked_for(options, f"-seed{seed}" if several else ""),
            )
        )
    return jobs


def _train_all(ctx: click.Context, jobs: list[_Job], stop: StopSignals) -> list[dict[str, Any]]:
    """Of each seed, its accuracies by what they were measured on."""
    data: Dataset | None = None
    results = []
    for job in jobs:
        if len(jobs) > 1:
            click.echo(f"seed {job.config.seed}")
            if job.options["resume"] and not job.checkpoint.exists() and job.out.exists():
                told = model_file.load(job.out).provenance
                _check_same(job, told, _said(ctx, job))
                click.echo(printable(f"{job.out} is done"))
                results.append(
                    {"test": told.get("test_accuracy"), "validation": told["validation_accuracy"]}
                )
                continue
        init = None if job.options["init"] is None else model_file.load(job.options["init"])
        if data is None or job.options["validation"] is not None:  # what is held out is the seed's
            with stop.at_once("the data were read"):
                data = _load(job, init)
        result = _train(ctx, job, data, init, stop)
        results.append({"test": result.test_accuracy, "validation": result.validation_accuracy})
    return results


def _load(job: _Job, init: ModelFile | None) -> Dataset:
    options = job.options
    said = {
        "resize": options["resize_shorter"],
        "interpolation": options["interpolation"],
        "exif": options["exif"],
    }
    recipe = {name: value for name, value in said.items() if value is not None}
    image_size, spec, colour = options["image_size"], options["data"], None
    if init is not None and init.preprocessing is not None:
        colour = init.preprocessing.colour
    if init is not None and spec and spec.startswith("folder:"):
        image_size = image_size or init.graph.input_shape[1:]
        if init.preprocessing is not None and not recipe:
            recipe = {name: getattr(init.preprocessing, name) for name in said}
    data = datasets.load(
        spec,
        validation=options["validation"],
        seed=job.config.seed,
        image_size=image_size,
        recipe=recipe,
        colour=colour,
        cache=cache_choice(options["cache"], options["no_cache"]),
        skip_bad_files=options["skip_bad_files"],
    )
    for line in describe(data):
        click.echo(printable(line))
    return data


def _train(
    ctx: click.Context, job: _Job, data: Dataset, init: ModelFile | None, stop: StopSignals
) -> TrainResult:
    options, start = job.options, None
    if init is not None:
        graph, data, start, told = from_model(init, data, job.config)
        for line in told:
            click.echo(printable(f"{options['init']}: {line}"))
    else:
        graph = architectures.build(
            options["arch"], data.input_shape, len(data.labels), **dict(options["arch_options"])
        )
    if job.report is not None:
        job.report.decode(data.preprocessing)
    if not options["resume"]:
        tell_of_checkpoint(job.checkpoint)
    said = _said(ctx, job)
    files = RunFiles(job.out, job.checkpoint, to_toml(said, _command_line(ctx)))
    try:
        classes = len(data.labels)
        with TrainingProgress(files, classes) as progress:
            result = train(
                graph,
                data,
                job.config,
                init=start,
                out=job.out,
                checkpoint=job.checkpoint,
                checkpoint_every=options["checkpoint_every"],
                resume=options["resume"] and job.checkpoint.exists(),
                threads=options["threads"],
                progress=progress,
                stop=stop,
                provenance={
                    **({"arch": options["arch"]} if init is None else {"init": _origin(job)}),
                    "command": _command_line(ctx),
                    "options": said,
                },
            )
    except TrainingStoppedError as error:
        raise TrainingStoppedError(
            f"{error}; {job.checkpoint} holds the run up to there, --resume continues it"
        ) from error
    if not job.keeps_checkpoint:
        job.checkpoint.unlink(missing_ok=True)
        files.checkpoint_removed()
    try:
        if job.report is not None:
            _draw(job.report, job, data, result)
    finally:
        _report(job, result)
    return result


def _said(ctx: click.Context, job: _Job) -> dict[str, Any]:
    """All options of the job as they count, JSON values."""
    config = job.config
    said = effective(
        ctx,
        out=job.out,
        seed=config.seed,
        seeds=1,
        lr=config.lr,
        clip=config.clip,
        report=None if job.report is None else job.report.folder,
    )
    if job.options["init"] is not None:
        for name in OF_A_FRESH_NETWORK:
            said.pop(name, None)
    return said


def _check_same(job: _Job, told: Mapping[str, Any], said: Mapping[str, Any]) -> None:
    """ModelFileError if the seed's model is of other settings: its accuracy is no mean's part."""
    was, now = told.get("options"), json.loads(json.dumps(said))
    if not isinstance(was, dict):
        raise ModelFileError(f"{job.out}: is no model of `train`, and is in the way of this seed")
    names = sorted((was.keys() | now.keys()) - OF_NO_ACCOUNT)
    other = [name for name in names if was.get(name) != now.get(name)]
    if other:
        raise ModelFileError(
            f"{job.out}: was trained with other settings ({', '.join(other)}): remove it, choose "
            "another --out, or give its settings"
        )


def _draw(report: Report, job: _Job, data: Dataset, result: TrainResult) -> None:
    """A report of the model on the images that are furthest from its training."""
    parts = {"test": data.test, "validation": data.validation, "training": data.train}
    part, images = next((name, split) for name, split in parts.items() if split is not None)
    model = Model.from_file(result.model, threads=job.options["threads"])
    asked = Candidate.of(model, job.out.name)
    judged = answers(asked, images, {"batch_size": 256, "tta": "none"})
    subject = Subject(job.out.name, model, data.name, part, data.labels, images, judged)
    report.write(subject, Run(result.history, result.epoch, result.test_accuracy, result.seconds))


def _report(job: _Job, result: TrainResult) -> None:
    chosen, patience = "last" if result.validation_accuracy is None else "best", job.config.patience
    if len(result.history) < job.config.epochs:
        waited = f"{patience} epoch{'s' * (patience != 1)}"
        click.echo(f"stopped early: {waited} brought no better validation accuracy")
    click.echo(
        printable(f"wrote {job.out}, epoch {result.epoch} (the {chosen}), {result.seconds:.1f} s")
    )
    last = result.history[-1]
    if last.epoch != result.epoch and last.validation_accuracy is not None:
        test = result.last_test_accuracy
        click.echo(
            f"best epoch {result.epoch}: validation {100 * (result.validation_accuracy or 0):.2f} %"
        )
        click.echo(
            f"last epoch {last.epoch}: validation {100 * last.validation_accuracy:.2f} %"
            + ("" if test is None else f", test {100 * test:.2f} %")
        )
    if result.test_accuracy is not None:
        click.echo(f"accuracy {100 * result.test_accuracy:.2f} %")
    elif result.validation_accuracy is not None:
        click.echo(f"validation accuracy {100 * result.validation_accuracy:.2f} %")


def _summarise(results: list[dict[str, Any]]) -> None:
    """Mean and standard deviation (of a sample) over the seeds, the test images last."""
    if all(value is None for result in results for value in result.values()):
        click.echo(
            "no accuracy to compare the seeds by: the data have no test images, and none were held "
            "out with --validation"
        )
    for part, name in (("validation", "validation accuracy"), ("test", "accuracy")):
        reached = [100 * result[part] for result in results if result[part] is not None]
        if len(reached) == len(results):
            click.echo(
                f"{name} {mean(reached):.2f} % ± {stdev(reached):.2f}, mean and standard deviation "
                f"of {len(reached)} seeds"
            )


def _origin(job: _Job) -> str:
    return as_text(str(job.options["init"]))


def _command_line(ctx: click.Context) -> str:
    """The command as it was given, for the model's provenance."""
    return as_text(shlex.join(["convserve", "train", *ctx.meta[ARGUMENTS]]))
