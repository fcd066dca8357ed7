"""Train a convolutional network offline, serve it over gRPC from a compiled CPU engine.

    model = convserve.load("model.npz")
    model.predict(x)                      # float32[N, C, H, W] -> float32[N, classes]
    model.classify(["digit.png"])         # [[(label, score), ...]]

Attributes are loaded on first use, so that `import convserve` stays light.
"""

from __future__ import annotations

import typing
from importlib import import_module

__version__ = "0.1.0"

if typing.TYPE_CHECKING:
    from convserve import datasets, errors, kernels, layers
    from convserve.convert import convert_onnx, export_onnx
    from convserve.engine.model import Model, load
    from convserve.graph import Graph, architectures
    from convserve.training import train

__all__ = [
    "Graph",
    "Model",
    "__version__",
    "architectures",
    "convert_onnx",
    "datasets",
    "errors",
    "export_onnx",
    "kernels",
    "layers",
    "load",
    "train",
]

# name -> (module, attribute), or the module itself where the attribute is None
_LAZY: dict[str, tuple[str, str | None]] = {
    "Graph": ("convserve.graph", "Graph"),
    "Model": ("convserve.engine.model", "Model"),
    "architectures": ("convserve.graph.architectures", None),
    "convert_onnx": ("convserve.convert", "convert_onnx"),
    "datasets": ("convserve.datasets", None),
    "errors": ("convserve.errors", None),
    "export_onnx": ("convserve.convert", "export_onnx"),
    "kernels": ("convserve.kernels", None),
    "layers": ("convserve.layers", None),
    "load": ("convserve.engine.model", "load"),
    "train": ("convserve.training", "train"),
}


def __getattr__(name: str) -> typing.Any:
    try:
        module, attribute = _LAZY[name]
    except KeyError:
        raise AttributeError(f"module 'convserve' has no attribute {name!r}") from None
    loaded = import_module(module)
    value = loaded if attribute is None else getattr(loaded, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
