"""`convserve convert`: an ONNX model to an .npz, or an .npz to ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from convserve.cli._common import printable
from convserve.errors import ConversionError
from convserve.preprocessing import COLOURS, INTERPOLATIONS
from convserve.presets import IMAGENET, OPTIONS, PRESETS

if TYPE_CHECKING:
    from convserve.model_file import ModelFile


class _Numbers(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Numbers with commas between: 3,224,224."""

    def __init__(self, kind: type[int] | type[float], name: str) -> None:
        self.kind, self.name = kind, name

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self.kind(part) for part in str(value).replace("x", ",").split(","))
        except ValueError:
            self.fail(f"{value!r} is no list of numbers such as {self.name}", param, ctx)


class _Number(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number, or a fraction: 1/127.5."""

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        over, _, under = str(value).partition("/")
        try:
            return float(over) / float(under or 1)
        except (ValueError, ZeroDivisionError):
            self.fail(f"{value!r} is no number such as {self.name}", param, ctx)


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path), required=False)
@click.option("--output", type=click.Path(path_type=Path), help="The same as TARGET.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="Class names: a text file with one a line, or a JSON array.",
)
@click.option(
    "--preset",
    type=click.Choice(sorted(PRESETS)),
    metavar="NAME",
    help=f"How pictures become the input, by a usual recipe: {', '.join(PRESETS)}.",
)
@click.option(
    "--preprocessing",
    help='The same as a JSON object with height, width, colour, mean, std, …; or "imagenet", for '
    "its mean and std alone.",
)
@click.option("--resize", type=_Numbers(int, "256,256"), help="To height, width before the crop.")
@click.option("--resize-shorter", type=int, help="The shorter side, to this before the crop.")
@click.option(
    "--crop",
    "--size",
    "size",
    type=_Numbers(int, "224 or 224,224"),
    help="Height, width of the centre crop.  [default: the network's input]",
)
@click.option("--interpolation", type=click.Choice(INTERPOLATIONS), help="Of a resize.")
@click.option("--exif/--no-exif", default=None, help="Turn photos upright.  [default: exif]")
@click.option("--colour", type=click.Choice(list(COLOURS)), help="The order of the channels.")
@click.option("--scale", type=_Number("1/255"), help="Of pixels.  [default: 1/255]")
@click.option("--mean", type=_Numbers(float, "0.485,0.456,0.406"), help="Of pixels · scale.")
@click.option("--std", type=_Numbers(float, "0.229,0.224,0.225"), help="Of pixels · scale.")
@click.option(
    "--input-shape",
    multiple=True,
    metavar="[NAME=]C,H,W",
    help="Channels, height, width, where the ONNX model leaves them open; of several inputs each "
    "by its name.",
)
@click.option(
    "--layout",
    type=click.Choice(["nchw", "nhwc"]),
    help="How the ONNX model has its images.  [default: what fits]",
)
@click.option("--verify", "check", is_flag=True, help="Compare with ONNX Runtime on random images.")
def command(
    source: Path,
    target: Path | None,
    output: Path | None,
    labels: Path | None,
    preset: str | None,
    preprocessing: str | None,
    resize_shorter: int | None,
    input_shape: tuple[str, ...],
    layout: str | None,
    check: bool,
    **options: Any,
) -> None:
    """Convert SOURCE to TARGET: model.onnx to model.npz, or model.npz to model.onnx.

    \b
    convserve convert resnet50.onnx resnet50.npz --preset torchvision --labels classes.txt
    convserve convert digits.npz digits.onnx --verify

    What can't be converted is named, all of it, and nothing is written.
    """
    if (target is None) == (output is None):
        raise click.UsageError("give TARGET or --output, one of them")
    target = target or output
    assert target is not None
    suffixes = source.suffix.lower(), target.suffix.lower()
    options = {name: value for name, value in options.items() if value is not None}
    if suffixes == (".onnx", ".npz"):
        given: dict[str, Any] = {
            "labels": None if labels is None else _labels(labels),
            "input_shape": _input_shape(input_shape),
            "layout": layout,
            "preset": preset,
        }
        if resize_shorter is not None:
            if "resize" in options:
                raise click.UsageError("--resize and --resize-shorter exclude each other")
            options["resize"] = resize_shorter
        options = {**_described(preprocessing), **options}
        _import(source, target, {**given, **options}, check)
    elif suffixes == (".npz", ".onnx"):
        if options or labels or input_shape or layout or preset or preprocessing or resize_shorter:
            raise click.UsageError("an .npz has its labels, preprocessing and sizes in itself")
        _export(source, target, check)
    else:
        raise click.UsageError("one of SOURCE and TARGET must end in .onnx, the other in .npz")


def _import(
    source: Path,
    target: Path,
    given: dict[str, Any],
    check: bool,
) -> None:
    from convserve.convert import convert_onnx

    converted = convert_onnx(source, target, **given)
    count, outputs = len(converted.graph.nodes), converted.graph.outputs
    click.echo(f"{printable(target)}: {count} layers")
    for name, shape in converted.graph.inputs.items():
        click.echo(f"input {printable(name)}: {_dims(shape)}")
    for name, layer in outputs.items():
        click.echo(f"output {printable(name)}: {_dims(converted.graph.shape(layer))}")
    if check:
        _verify(source, converted)


def _export(source: Path, target: Path, check: bool) -> None:
    from convserve.convert import export_onnx
    from convserve.model_file import load

    loaded = load(source)
    export_onnx(loaded, target)
    click.echo(f"{printable(target)}: {len(loaded.graph.nodes)} layers")
    if check:
        _verify(target, loaded)


def _verify(onnx_file: Path, converted: ModelFile) -> None:
    from convserve.convert import verify
    from convserve.engine.model import Model

    model, names = Model.from_file(converted), list(converted.graph.outputs)

    def predict(x: Any) -> Any:
        return model.predict(x, outputs=names)

    for found in verify(onnx_file, converted.graph, predict):
        click.echo(
            f"largest difference from ONNX Runtime, {printable(found.output)}: "
            f"{found.absolute:.3g} absolute, {found.relative:.3g} of the largest value"
        )


def _described(preprocessing: str | None) -> dict[str, Any]:
    """The options that --preprocessing stands for."""
    if preprocessing is None:
        return {}
    if preprocessing == "imagenet":
        return dict(zip(("mean", "std"), IMAGENET, strict=True))
    try:
        given = json.loads(preprocessing)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise click.UsageError('--preprocessing must be "imagenet" or a JSON object')
    if "height" in given and "width" in given:
        given["size"] = given.pop("height"), given.pop("width")
    unknown = [name for name in given if name not in OPTIONS]
    if unknown:
        raise click.UsageError(
            f"--preprocessing has an unknown entry {unknown[0]!r}; it may have height, width, "
            + ", ".join(OPTIONS)
        )
    return given


def _labels(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: the labels can't be read: {error}") from error
    if path.suffix.lower() != ".json":
        return text.splitlines()
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConversionError(f"{path}: no valid JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(label, str) for label in found):
        raise ConversionError(f"{path}: labels must be an array of strings")
    return found


def _input_shape(given: tuple[str, ...]) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    """`3,224,224`, or `NAME=3,224,224` for each of several inputs."""
    named: dict[str, tuple[int, ...]] = {}
    for text in given:
        name, _, sizes = text.rpartition("=")
        try:
            named[name] = tuple(int(size) for size in sizes.replace("x", ",").split(","))
        except ValueError:
            raise click.UsageError(
                f"--input-shape {text!r}: give channels,height,width such as 3,224,224"
            ) from None
    if "" not in named:
        return named or None
    if len(given) > 1:
        raise click.UsageError("several --input-shape need a name each: NAME=3,224,224")
    if len(named[""]) != 3:
        raise click.UsageError("--input-shape must be three numbers: channels,height,width")
    return named[""]


def _dims(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
