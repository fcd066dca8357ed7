"""Models that load in a millisecond and whose answers tell which one gave them."""

from __future__ import annotations

import os

import numpy as np

from convserve import model_file
from convserve.graph import Graph, layers

SHAPE = (1, 2, 2)
LABELS = ("first", "second")


def save_tiny(path, value=0.0, outputs=2):
    """Write a model that answers (value, 0, …) to any image; appears whole, by a rename."""
    graph = Graph(SHAPE)
    graph.add(layers.Flatten())
    graph.add(layers.Affine(outputs))
    bias = np.zeros(outputs, np.float32)
    bias[0] = value
    params = {"affine1.weight": np.zeros((outputs, 4), np.float32), "affine1.bias": bias}
    path.parent.mkdir(parents=True, exist_ok=True)
    preprocessing = model_file.Preprocessing(2, 2, "grey", (0.5,), (0.5,))
    labels = LABELS if outputs == 2 else None
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    model = model_file.ModelFile(graph, params, labels=labels, preprocessing=preprocessing)
    model_file.save(temporary, model)
    temporary.rename(path)
    return path


def image(count=1):
    return np.zeros((count, *SHAPE), np.float32)
