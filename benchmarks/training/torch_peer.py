"""PyTorch: the same graph as modules, in training mode, contiguous or channels last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from benchmarks.training import networks


def version() -> str:
    return str(torch.__version__)


def settings(path: str, batch: int, threads: int) -> list[tuple[str, Callable[[], None]]]:
    """Each setting's name and one step of it."""
    torch.set_num_threads(threads)
    return [
        (name, _step(path, batch, layout))
        for name, layout in (
            ("contiguous", torch.contiguous_format),
            ("channels_last", torch.channels_last),
        )
    ]


def gradients(path: str, batch: int) -> dict[str, networks.Array]:
    """Without dropout."""
    document, params = networks.read(path)
    module = _module(document, params)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    x, y, _ = networks.batch(document, batch)
    functional.cross_entropy(module(torch.from_numpy(x)), torch.from_numpy(y)).backward()
    return {name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}


def _step(path: str, batch: int, layout: torch.memory_format) -> Callable[[], None]:
    document, params = networks.read(path)
    module = _module(document, params).to(memory_format=layout)
    optimiser = torch.optim.SGD(
        module.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    images, labels, _ = networks.batch(document, batch)
    x = torch.from_numpy(images).contiguous(memory_format=layout)
    y = torch.from_numpy(labels)

    def run() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss = functional.cross_entropy(module(x), y)
        loss.backward()
        optimiser.step()
        loss.item()

    return run


def _module(document: dict[str, Any], params: dict[str, networks.Array]) -> nn.Module:
    """All but the final softmax, which is part of the loss."""
    root, graph = nn.Module(), fx.Graph()
    values = {document["input"]["name"]: graph.placeholder("input")}
    last = None
    for node in document["nodes"]:
        name, inputs = node["name"], [values[source] for source in node["inputs"]]
        if node["op"] == "softmax":
            break
        if node["op"] == "add":
            last = graph.call_function(torch.add, tuple(inputs))
        else:
            own = {
                k.rpartition(".")[2]: v for k, v in params.items() if k.rpartition(".")[0] == name
            }
            root.add_module(name, _layer(node["op"], node["attributes"], own))
            last = graph.call_module(name, tuple(inputs))
        values[name] = last
    graph.output(last)
    return fx.GraphModule(root, graph).train()


def _layer(op: str, a: dict[str, Any], params: dict[str, networks.Array]) -> nn.Module:
    layer: nn.Module
    match op:
        case "conv2d":
            out, into, *size = params["weight"].shape
            padding = (a["padding"][0][0], a["padding"][1][0])
            layer = nn.Conv2d(
                into * a["groups"], out, size, a["stride"], padding, a["dilation"], a["groups"],
                a["bias"],
            )  # fmt: skip
        case "affine":
            layer = nn.Linear(*reversed(params["weight"].shape), bias=a["bias"])
        case "batch_norm":
            layer = nn.BatchNorm2d(len(params["weight"]), a["eps"], a["momentum"])
        case "max_pool2d":
            return nn.MaxPool2d(a["size"], a["stride"], (a["padding"][0][0], a["padding"][1][0]))
        case "dropout":
            return nn.Dropout(a["rate"])
        case "relu":
            return nn.ReLU()
        case "flatten":
            return nn.Flatten()
        case "global_avg_pool2d":
            return nn.AdaptiveAvgPool2d(1)
        case _:
            raise ValueError(f"there is no module for {op}")
    layer.load_state_dict({k: torch.from_numpy(v) for k, v in params.items()}, strict=False)
    return layer
