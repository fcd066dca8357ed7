"""`convserve demo`: the whole main job on real handwritten digits, in under a minute.

train -> export -> serve (another process) -> classify files over gRPC -> feature maps
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from convserve.cli._child_server import child_server

if TYPE_CHECKING:
    from convserve.datasets import Split

SHOWN = 8  # predictions, half of them wrong ones if there are that many
DIGIT = 4  # of the feature maps: it has open and closed strokes


@click.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo"),
    show_default=True,
    help="Where to put the model, the digits and the picture.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=5, show_default=True)
def command(folder: Path, epochs: int) -> None:
    """Train, serve and classify handwritten digits.

    Trains LeNet on the embedded sample of MNIST, exports it to lenet.npz, serves that from another
    process, classifies the 2,000 held-out digits as PNG files through the Python client over gRPC,
    and draws the feature maps of one of them.
    """
    from convserve import datasets

    started = time.monotonic()
    model, digits, picture = folder / "lenet.npz", folder / "digits", folder / "feature_maps.png"
    folder.mkdir(parents=True, exist_ok=True)
    _step("Train LeNet on 10,000 digits")
    _train(model, epochs)
    test = datasets.load(None).test
    assert test is not None
    paths = _write_pngs(test, digits)

    _step("Serve the model, and classify 2,000 digits that it has not seen")
    _classify(model, paths, test.y)

    _step("Draw the feature maps of one digit")
    _draw(model, test, picture)
    click.echo(f"wrote {picture}")

    _step(f"Done in {time.monotonic() - started:.0f} s. Try next:")
    for line in (
        f"convserve inspect {shlex.quote(str(model))}",
        f"convserve serve {shlex.quote(str(model))}",
        f"convserve classify {shlex.quote(str(digits))} --server localhost:8001",
        "convserve train --help",
    ):
        click.echo(f"  {line}")


def _step(text: str) -> None:
    click.echo()
    click.secho(text, bold=True)


def _train(model: Path, epochs: int) -> None:
    from convserve.cli.train import command as train

    arguments = ["--arch", "lenet", "--epochs", str(epochs), "--out", str(model)]
    click.echo(f"$ convserve train {shlex.join(arguments)}")
    if status := train.main(arguments, prog_name="convserve train", standalone_mode=False):
        raise click.exceptions.Exit(status)  # interrupted


def _write_pngs(split: Split, folder: Path) -> list[Path]:
    """Write every image as <number>-<label>.png."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    paths = []
    for number, (pixels, label) in enumerate(zip(split.x, split.y, strict=True)):
        path = folder / f"{number:04d}-{label}.png"
        Image.fromarray(pixels[0]).save(path)
        paths.append(path)
    return paths


def _classify(model: Path, paths: Sequence[Path], truth: np.ndarray) -> None:
    from convserve_client import Client

    with child_server(model) as address, Client(address) as client:
        click.echo(f"$ convserve serve {shlex.quote(str(model))} --port 0   # now at {address}")
        client.wait_ready(timeout=10)
        began = time.monotonic()
        best = [ranking[0] for ranking in client.classify(paths, top_k=1)]
        seconds = time.monotonic() - began
    right = np.array([label == str(y) for (label, _), y in zip(best, truth, strict=True)])
    wrong = np.flatnonzero(~right)[: SHOWN // 2]
    shown = [*np.flatnonzero(right)[: SHOWN - len(wrong)], *wrong]
    click.echo(f"{'file':<12}{'label':>7}{'prediction':>12}{'score':>9}")
    for i in shown:
        label, score = best[i]
        mark = "" if right[i] else "  wrong"
        click.echo(f"{paths[i].name:<12}{truth[i]:>7}{label:>12}{score:>9.4f}{mark}")
    click.echo(f"accuracy {100 * right.mean():.2f} % on {len(paths):,} held-out digits")
    click.echo(
        f"{len(paths) / seconds:,.0f} images/s over gRPC, PNG decoding on the server included"
    )


def _draw(model: Path, test: Split, picture: Path) -> None:
    import convserve
    from convserve.feature_maps import draw

    loaded = convserve.load(model)
    kinds = ("relu", "max_pool2d", "softmax")
    names = [node.name for node in loaded.graph.nodes if node.op.op in kinds]
    pixels = test.x[int(np.flatnonzero(test.y == DIGIT)[0])]
    maps = loaded.predict(pixels[None], outputs=names)
    assert isinstance(maps, dict)
    drawn = draw(pixels, {name: maps[name][0] for name in names}, loaded.labels)
    temporary = picture.with_suffix(".tmp")
    drawn.save(temporary, "PNG")
    temporary.replace(picture)
