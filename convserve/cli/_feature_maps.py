"""`convserve inspect --feature-maps`: one image on its way through a model, as a picture."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from convserve._npz import NpzFault, atomic_file
from convserve.cli._common import printable
from convserve.engine.model import load
from convserve.errors import ImageError, ShapeError
from convserve.feature_maps import draw
from convserve.graph import Graph
from convserve.images import to_pixels

__all__ = ["mapped_layers", "write_feature_maps"]

MAX_LAYERS = 40  # rows of the picture; of a deeper network those that are evenly apart
# What comes before the activation that is shown.
PLAIN = {"conv2d", "affine", "batch_norm", "scale_shift", "flatten", "dropout", "pad"}


def write_feature_maps(path: Path, image: Path, out: Path, threads: int | None) -> None:
    """Draws what the model in `path` makes of the image file, into `out`, whole or not at all.

    Raises ModelFileError and ImageError for files that can't be read, ShapeError for a model that
    does not take one image, ImageError for an `out` that can't be written.
    """
    model = load(path, threads)
    if not model.takes_one or len(model.input_shape) != 3 or model.preprocessing is None:
        raise ShapeError(f"{path}: feature maps need a model of one image, with preprocessing")
    for source in (path, image):
        if out.exists() and source.exists() and out.samefile(source):
            raise click.UsageError(f"{out} would replace {source}")
    pixels = to_pixels(image, model.preprocessing)
    names = mapped_layers(model.graph)
    maps = model.predict(pixels[None], names)
    assert isinstance(maps, dict)
    shown = model.preprocessing.as_drawn(pixels)
    picture = draw(shown, {name: maps[name][0] for name in names}, model.labels)
    try:
        with atomic_file(out) as file:
            picture.save(file, "PNG")
    except (OSError, NpzFault) as error:
        detail = getattr(error, "strerror", None) or error  # and not the temporary file's name
        raise ImageError(f"{out}: can't be written: {detail}") from error
    click.echo(printable(f"wrote {out}: {len(names)} layers"))


def mapped_layers(graph: Graph) -> list[str]:
    """The layers worth a row, in the graph's order: activations, poolings, sums, the outputs.

    What a convolution gives is left out, as it is half a step: its activation follows. Of a network
    that has convolutions and affine layers only, all are taken.
    """
    outputs = set(graph.outputs.values())
    drawable = [node for node in graph.nodes if len(node.shape) in (1, 3)]
    chosen = [n.name for n in drawable if n.op.op not in PLAIN or n.name in outputs]
    if set(chosen) <= outputs:
        chosen = [node.name for node in drawable]
    if len(chosen) > MAX_LAYERS:
        places = np.linspace(0, len(chosen) - 1, MAX_LAYERS).round().astype(int)
        chosen = [chosen[place] for place in places.tolist()]
    return chosen
