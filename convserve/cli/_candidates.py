"""What `eval` and `compare` judge: a model in this process, or one that a server has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from convserve.cli._classifiers import Pixels, Scores, ServedClassifier, row_shape
from convserve.datasets import HeldOut
from convserve.engine.model import Model
from convserve.graph import Graph, layers
from convserve.preprocessing import Preprocessing

__all__ = ["Candidate"]


@dataclass(frozen=True)
class Candidate:
    """What has to be known of a model to judge its answers.

    outputs: the shape of each for one image. probabilities: whether scores are those of a softmax;
    None if only the scores can tell. held_out: which images of its data set it was not trained on,
    None if it doesn't say.
    """

    name: str
    input_shape: tuple[int, ...]
    outputs: tuple[tuple[int, ...], ...]
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    probabilities: bool | None
    predict: Callable[[Pixels], Scores]
    held_out: HeldOut | None = None

    @classmethod
    def served(cls, classifier: ServedClassifier) -> Candidate:
        """One that a server has: whoever asks it sees the scores and no network."""
        return cls(
            classifier.name,
            classifier.input_shape,
            classifier.outputs,
            classifier.preprocessing,
            None if classifier.labels is None else tuple(classifier.labels),
            None,
            lambda x: next(classifier.scores([x])),
        )

    @classmethod
    def of(cls, model: Model, name: str) -> Candidate:
        """A model in this process."""
        graph = model.graph
        (first, *_) = graph.outputs.values()

        def predict(x: Pixels) -> Scores:
            scores = model.predict(x)
            assert isinstance(scores, np.ndarray)  # one output
            return scores.reshape(scores.shape[:2])

        return cls(
            name,
            model.input_shape,
            tuple(row_shape(graph.shape(layer)) for layer in graph.outputs.values()),
            model.preprocessing,
            None if model.labels is None else tuple(model.labels),
            _gives_probabilities(graph, first),
            predict,
            _held_out(model.provenance),
        )


def _gives_probabilities(graph: Graph, name: str) -> bool:
    """Whether the layer's values are those of a softmax, which some layers pass on as they are."""
    while name not in graph.inputs:
        node = graph.node(name)
        if not isinstance(node.op, (layers.Flatten, layers.Dropout)):
            return isinstance(node.op, layers.Softmax)
        (name,) = node.inputs
    return False


def _held_out(provenance: Mapping[str, Any]) -> HeldOut | None:
    """Anyone may have written what a file tells of its origin: of another form it tells nothing."""
    match provenance.get("held_out"):
        case {"share": float(share), "seed": int(seed)} if 0 < share < 1 and seed >= 0:
            return HeldOut(share, seed)
    return None
