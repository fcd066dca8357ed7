"""Fresh parameters, and those that depend on the data: a whitening first layer.

The recipe of Jordan 2024 (arXiv:2404.00498) starts convolutions as the identity, so that depth
costs nothing at first, and gives the first layer, which then rests, filters that decorrelate
neighbouring pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod, sqrt

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from convserve.datasets import Dataset
from convserve.errors import TrainingError
from convserve.graph import Graph, Node
from convserve.graph.layers import Affine, Conv2d
from convserve.training.config import TrainConfig
from convserve.training.step import Array

__all__ = ["initialise", "whitening_filters"]

WHITENING_IMAGES = 5000  # they are enough to know the covariance of a patch
WHITENING_EPS = 5e-4  # added to the variances: directions without any are left alone


def initialise(graph: Graph, dataset: Dataset, config: TrainConfig) -> dict[str, Array]:
    """Parameters as `config.initialisation` and `config.whiten` say; the same for the same seed."""
    params = graph.initialise(config.seed)
    rng = np.random.default_rng([config.seed, 0xD14AC])
    if config.initialisation == "dirac":
        affine = [node for node in graph.nodes if isinstance(node.op, Affine)]
        for node in graph.nodes:
            if isinstance(node.op, Conv2d):
                params[f"{node.name}.weight"] = _dirac(params[f"{node.name}.weight"], rng)
        for node in affine[-1:]:
            weight = params[f"{node.name}.weight"]
            # Logits begin near 0: unit variance, over as many inputs.
            weight /= np.float32(weight.std() * weight.shape[1])
    if config.whiten:
        first = _first_convolution(graph)
        weight = params[f"{first.name}.weight"]
        x, normalise = dataset.train.x, dataset.preprocessing.normalise
        rows = _spread(len(dataset.train))
        # One by one: as floats, all of them may be gigabytes.
        images = (normalise(x[row : row + 1])[0] for row in rows)
        params[f"{first.name}.weight"] = whitening_filters(images, weight.shape)
    return params


def whitening_filters(images: Iterable[Array], shape: tuple[int, ...]) -> Array:
    """Filters [O, C, KH, KW] after which patches of such images, [C, H, W], are uncorrelated.

    The eigenvectors of the patches' covariance over their standard deviations, the strongest first,
    and then their negatives: O is up to twice C · KH · KW.
    """
    count, channels, height, width = shape
    size = channels * height * width
    if not 0 < count <= 2 * size:
        raise TrainingError(
            f"a whitening layer of {height}×{width} filters has at most {2 * size}, not {count}"
        )
    covariance, patches = np.zeros((size, size)), 0
    for image in images:
        windows = sliding_window_view(image, (height, width), axis=(1, 2))  # [C, OH, OW, KH, KW]
        flat = windows.transpose(1, 2, 0, 3, 4).reshape(-1, size).astype(np.float64)
        covariance += flat.T @ flat
        patches += len(flat)
    covariance /= patches
    values, vectors = np.linalg.eigh(covariance)  # ascending
    # An eigenvector's sign is nobody's: fix it, so that it is the same on any machine.
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(size)])
    filters = (vectors / np.sqrt(values + WHITENING_EPS)).T[::-1].reshape(-1, *shape[1:])
    both = np.concatenate([filters, -filters])[:count]
    return np.ascontiguousarray(both, np.float32)


def _spread(count: int) -> NDArray[np.int64]:
    """Rows over all of the data: where it lies class by class, the first ones are of one class."""
    return np.linspace(0, count - 1, min(count, WHITENING_IMAGES)).astype(np.int64)


def _dirac(weight: Array, rng: np.random.Generator) -> Array:
    """The first filters give back the input's channels, the rest are uniform in ±1 / √inputs."""
    bound = 1.0 / sqrt(prod(weight.shape[1:]))
    made = rng.uniform(-bound, bound, weight.shape).astype(np.float32)
    count, height, width = min(weight.shape[:2]), weight.shape[2] // 2, weight.shape[3] // 2
    made[:count] = 0.0
    made[np.arange(count), np.arange(count), height, width] = 1.0
    return made


def _first_convolution(graph: Graph) -> Node:
    for node in graph.nodes:
        if isinstance(node.op, Conv2d) and node.inputs == (graph.input_name,):
            return node
    raise TrainingError("whiten needs a network that begins with a convolution")
