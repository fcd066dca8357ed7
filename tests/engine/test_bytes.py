"""uint8 pixels: the first kernel normalises them, with the bits of `Preprocessing.normalise`."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convserve.engine.model import Model
from convserve.errors import ShapeError
from convserve.graph import Graph, layers
from convserve.model_file import ModelFile
from convserve.preprocessing import Preprocessing

MEAN, STD = (0.1, 0.4, 0.7), (0.2, 0.3, 0.6)


def model(graph: Graph, channels: int = 3) -> Model:
    height, width = graph.input_shape[1:]
    preprocessing = Preprocessing(
        height, width, "rgb" if channels == 3 else "grey", MEAN[:channels], STD[:channels]
    )
    params = graph.initialise(np.random.default_rng(1))
    return Model(ModelFile(graph, params, preprocessing=preprocessing), threads=2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("first", ["padded", "plain", "strided", "affine", "pool", "both"])
def test_bits_of_raw_pixels(first: str, channels: int) -> None:
    graph = Graph((channels, 10, 19))
    image = graph.input_name
    match first:
        case "padded":
            graph.add(layers.Conv2d(6, 3, padding=1))
        case "plain":
            graph.add(layers.Conv2d(20, 3))
        case "strided":
            graph.add(layers.Conv2d(6, 3, 2, rounding="floor"))
        case "affine":
            graph.add(layers.Affine(7), graph.add(layers.Flatten()))
        case "pool":  # reads it blocked
            graph.add(layers.MaxPool2d(3, 1))
        case _:
            a = graph.add(layers.Conv2d(5, 3, padding=1), image)
            graph.add(layers.Concat(), a, graph.add(layers.AvgPool2d(3, 1, 1), image))
    ready = model(graph, channels)
    pixels = np.random.default_rng(2).integers(0, 256, (5, channels, 10, 19), np.uint8)
    assert ready.preprocessing is not None
    expected = ready.predict(ready.preprocessing.normalise(pixels))
    reference.assert_same_bits(ready.predict(pixels), expected)
    for i in range(5):
        reference.assert_same_bits(ready.predict(pixels[i : i + 1, ..., :]), expected[i : i + 1])
    strided = np.empty((5, channels, 10, 38), np.uint8)[..., ::2]
    strided[...] = pixels
    reference.assert_same_bits(ready.predict(strided), expected)


def test_the_normalised_input_as_an_output() -> None:
    graph = Graph((3, 4, 4))
    graph.add(layers.Conv2d(2, 3))
    ready = model(graph)
    pixels = np.random.default_rng(3).integers(0, 256, (2, 3, 4, 4), np.uint8)
    found = ready.predict(pixels, outputs=[graph.input_name])
    reference.assert_same_bits(found[graph.input_name], ready.preprocessing.normalise(pixels))


def test_bytes_for_an_input_that_is_no_image() -> None:
    graph = Graph((3, 4, 4), input_name="image")
    graph.add_input("row", (5,))
    graph.add(layers.Concat(), graph.add(layers.Flatten(), "image"), "row")
    ready = model(graph)
    rows = {"image": np.zeros((1, 3, 4, 4), np.uint8), "row": np.zeros((1, 5), np.uint8)}
    with pytest.raises(ShapeError, match="'row' may be uint8 only where it is images"):
        ready.predict(rows)
