"""The networks that are trained, written once: a graph as JSON, and weights as arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from convserve.graph import Graph

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One row of the table. target: ours to PyTorch's images/s."""

    name: str
    batch: int
    target: float = 2.0


CASES = [
    Case("lenet", 128),
    Case("simple_convnet", 100),
    Case("deep_convnet", 128),
    Case("resnet20", 128),
    Case("cifar_vgg", 128),
    Case("resnet18", 8),
]


def write(name: str, folder: Path) -> Path:
    """The network's file, made by convserve: `__graph__` and the parameters, from a seed."""
    from convserve.graph import architectures

    graph = _resnet18() if name == "resnet18" else architectures.build(name)
    path = folder / f"{name}.npz"
    document = np.frombuffer(json.dumps(graph.to_dict()).encode(), np.uint8)
    np.savez(path, __graph__=document, **graph.initialise(0))
    return path


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Array]]:
    with np.load(path) as archive:
        arrays = dict(archive)
    return json.loads(bytes(arrays.pop("__graph__"))), arrays


def batch(graph: dict[str, Any], count: int, seed: int = 0) -> tuple[Array, NDArray[np.int64], int]:
    """Images, labels and how many classes there are."""
    rng = np.random.default_rng(seed)
    classes = [n["attributes"]["out_features"] for n in graph["nodes"] if n["op"] == "affine"][-1]
    x = rng.standard_normal((count, *graph["input"]["shape"]), np.float32)
    return x, rng.integers(0, classes, count), classes


def _resnet18() -> Graph:
    """He et al. 2015, table 1, for 1000 classes of 224×224 images."""
    from convserve import layers
    from convserve.graph import Graph

    g = Graph((3, 224, 224))

    def conv_bn(x: str, width: int, size: int, stride: int = 1) -> str:
        conv = layers.Conv2d(width, size, stride, padding=size // 2, bias=False, rounding="floor")
        return g.add(layers.BatchNorm(), g.add(conv, x))

    x = g.add(layers.ReLU(), conv_bn(g.input_name, 64, 7, 2))
    x = g.add(layers.MaxPool2d(3, 2, 1, rounding="floor"), x)
    for stage, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            y = conv_bn(g.add(layers.ReLU(), conv_bn(x, width, 3, stride)), width, 3)
            if stride > 1:
                x = conv_bn(x, width, 1, stride)
            x = g.add(layers.ReLU(), g.add(layers.Add(), y, x))
    g.add(layers.GlobalAvgPool2d(), x)
    g.add(layers.Flatten())
    g.add(layers.Affine(1000))
    g.add(layers.Softmax())
    return g
