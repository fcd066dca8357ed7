"""The parameters that a run begins with: fresh ones, or those of a model (fine-tuning)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from convserve.datasets import Dataset
from convserve.errors import ShapeError
from convserve.graph import Graph
from convserve.graph.layers import Affine, Conv2d
from convserve.model_file import ModelFile, weights_hash
from convserve.training.config import TrainConfig
from convserve.training.initialise import initialise
from convserve.training.step import Array

__all__ = ["Start", "from_model"]


@dataclass(frozen=True, eq=False)
class Start:
    """Parameters to begin with, and where they come from: None if they follow from the settings."""

    params: Mapping[str, Array]
    origin: str | None = None

    @classmethod
    def fresh(cls, graph: Graph, dataset: Dataset, config: TrainConfig) -> Start:
        """As `config.initialisation` says, by its seed."""
        return cls(initialise(graph, dataset, config))


def from_model(
    model: ModelFile, dataset: Dataset, config: TrainConfig
) -> tuple[Graph, Dataset, Start, list[str]]:
    """Continue from a model's parameters: graph, data, parameters, and what to tell a person.

    The data's pixels are prepared as the model's were (its mean, std and size). Where the classes
    are others than the model's, the last affine layer (or convolution) begins anew, with as many
    outputs as there are classes. Raises ShapeError if the images or the network do not fit.
    """
    graph, told = model.graph, []
    if graph.input_shape != dataset.input_shape:
        raise ShapeError(
            f"the model takes images of {graph.input_shape} (channels, height, width), "
            f"the data set's are {dataset.input_shape}"
        )
    if model.preprocessing is not None:
        wanted, given = model.preprocessing.colour, dataset.preprocessing.colour
        if wanted != given:
            raise ShapeError(
                f"the model's images are {wanted}, the data set's {given}: "
                f'load them with colour="{wanted}"'
            )
        dataset = replace(dataset, preprocessing=model.preprocessing)
    else:
        told.append("the model does not say how its pixels were prepared: those of the data count")
    classes = len(dataset.labels)
    outputs = [graph.shape(node) for node in graph.outputs.values()]
    known = model.labels is None or tuple(model.labels) == dataset.labels
    if outputs == [(classes,)] and known:
        params: dict[str, Array] = dict(model.params)
        told.append(f"all {len(params)} parameters are the model's")
    else:
        head = _head(graph)
        graph = _with_head(graph, head, classes)
        params = graph.initialise(config.seed)
        taken = [
            name
            for name, value in model.params.items()
            if not name.startswith(f"{head}.") and params[name].shape == value.shape
        ]
        params |= {name: model.params[name] for name in taken}
        anew = ", ".join(name for name in params if name not in taken)
        told.append(
            f"{len(taken)} parameters are the model's; its classes are others, so these begin "
            f"anew: {anew}"
        )
    return graph, dataset, Start(params, weights_hash(params)), told


def _head(graph: Graph) -> str:
    """The last layer with weights on the way to the output."""
    for node in reversed(graph.nodes):
        if isinstance(node.op, (Affine, Conv2d)):
            return node.name
    raise ShapeError("the model has no affine layer or convolution that could get new classes")


def _with_head(graph: Graph, head: str, classes: int) -> Graph:
    """The graph with that layer giving so many outputs; ShapeError if the rest does not follow."""
    document: dict[str, Any] = graph.to_dict()
    for node in document["nodes"]:
        if node["name"] == head:
            key = "out_features" if node["op"] == Affine.op else "out_channels"
            node["attributes"] = {**node["attributes"], key: classes}
    changed = Graph.from_dict(document)
    outputs = [changed.shape(node) for node in changed.outputs.values()]
    if outputs != [(classes,)]:
        raise ShapeError(
            f"with {classes} outputs of layer {head!r} the network's are {outputs}: "
            "it has no head that could be replaced"
        )
    return changed
