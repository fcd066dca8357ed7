"""What a network is: operators, shape rules, the graph and the architectures built from them.

    layers            one frozen dataclass an operator: shape rule, parameters, cost
      │
    Graph ── Node     a DAG of named layers over one image; shapes are checked as it is built
      │
    architectures     lenet, resnet20, … by name
    summary           what each layer costs, and what a dense layer in its place would

Nothing here computes: a graph is what the plan compiles, the trainer trains and a model file holds.
Shapes are those of one image, (C, H, W) or (F,); the batch axis is left out.
"""

from convserve.graph import architectures, layers
from convserve.graph.graph import Graph, Node
from convserve.graph.layers import ParameterSpec
from convserve.graph.summary import LayerSummary, summarise

__all__ = [
    "Graph",
    "LayerSummary",
    "Node",
    "ParameterSpec",
    "architectures",
    "layers",
    "summarise",
]
