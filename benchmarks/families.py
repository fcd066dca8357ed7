"""Converts the well-known families of image classifiers and compares them with ONNX Runtime.

    pip install torch torchvision onnx onnxruntime onnxscript
    python benchmarks/families.py [NAME …] [--exporter dynamo|script] [--markdown FILE]

Each network is built at full size with seeded random weights, its batch norms calibrated on noise
so that values keep their scale; exported by both of PyTorch's exporters with any batch size;
converted; and run with batches 1 and 3. The difference is the largest one over the largest output.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convserve.convert import convert_onnx, verify
from convserve.engine.model import Model

LIMIT = 1e-4


def torchvision_models() -> Any:
    """Its models need none of its compiled operators, which may not fit the installed torch."""
    register = torch.library.register_fake

    def lenient(op: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(op, str) and op.startswith("torchvision::"):
            return lambda function: function
        return register(op, *args, **kwargs)

    torch.library.register_fake = lenient
    try:
        import torchvision
    finally:
        torch.library.register_fake = register
    return torchvision.models


class LeNet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 53 * 53, 120), nn.ReLU(),
            nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10), nn.Softmax(1),
        )  # fmt: skip


class AlexNetLRN(nn.Sequential):
    """AlexNet as published: grouped convolutions and local response normalisation."""

    def __init__(self) -> None:
        lrn = nn.LocalResponseNorm(5, 1e-4, 0.75, 2.0)
        super().__init__(
            nn.Conv2d(3, 96, 11, 4, 2), nn.ReLU(), lrn, nn.MaxPool2d(3, 2),
            nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(), lrn, nn.MaxPool2d(3, 2),
            nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(),
            nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Flatten(), nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(),
            nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000),
        )  # fmt: skip


class MobileNetV1(nn.Sequential):
    def __init__(self) -> None:
        parts: list[nn.Module] = [*_conv(3, 32, 3, 2)]
        width = 32
        plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
        for out, stride in [*plan, *[(512, 1)] * 5, (1024, 2), (1024, 1)]:
            parts += [*_conv(width, width, 3, stride, width), *_conv(width, out, 1)]
            width = out
        super().__init__(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1000))


class ChannelShuffleV1(nn.Module):
    """A unit of ShuffleNet v1: grouped 1×1 convolutions around a shuffle."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.first = nn.Sequential(*_conv(channels, channels // 4, 1, 1, groups))
        self.depth = nn.Sequential(*_conv(channels // 4, channels // 4, 3, 1, channels // 4)[:2])
        self.last = nn.Sequential(*_conv(channels // 4, channels, 1, 1, groups)[:2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        n, c, h, w = y.shape
        y = y.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return torch.relu(x + self.last(self.depth(y)))


class ShuffleNetV1(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            *_conv(3, 240, 3, 2), nn.MaxPool2d(3, 2, 1), *(ChannelShuffleV1(240, 3) for _ in "abc"),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(240, 1000),
        )  # fmt: skip


class SqueezeExcite(nn.Module):
    """With linear layers, as the original has it: features become an image again."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, channels // 8), nn.Linear(channels // 8, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        return x * gate.view(x.shape[0], -1, 1, 1)


class SENet(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            *_conv(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1, ceil_mode=True), SqueezeExcite(64),
            *_conv(64, 128, 3, 2), SqueezeExcite(128), nn.SiLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(128, 1000), nn.LogSoftmax(1),
        )  # fmt: skip


def _conv(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> Any:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.ReLU()


def families() -> dict[str, tuple[Callable[[], nn.Module], int]]:
    """Name to how it is built and its input's side in pixels."""
    zoo = torchvision_models()
    plain = (
        "alexnet", "vgg11", "vgg16_bn", "resnet18", "resnet50", "resnext50_32x4d",
        "wide_resnet50_2", "densenet121", "squeezenet1_0", "squeezenet1_1", "mobilenet_v2",
        "mobilenet_v3_small", "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s",
        "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "mnasnet0_5", "mnasnet1_0", "regnet_x_400mf",
        "regnet_y_400mf", "convnext_tiny",
    )  # fmt: skip
    found: dict[str, tuple[Callable[[], nn.Module], int]] = {
        "lenet": (LeNet, 224), "alexnet_lrn": (AlexNetLRN, 224), "mobilenet_v1": (MobileNetV1, 224),
        "shufflenet_v1_units": (ShuffleNetV1, 224), "squeeze_excite_linear": (SENet, 224),
        "googlenet": (lambda: zoo.googlenet(aux_logits=False, init_weights=True), 224),
        "inception_v3": (lambda: zoo.inception_v3(aux_logits=True, init_weights=True), 299),
        "inception_v3_input": (
            lambda: zoo.inception_v3(transform_input=True, init_weights=True), 299,
        ),
    }  # fmt: skip
    for name in plain:
        found[name] = (getattr(zoo, name), 224)
    return found


def built(build: Callable[[], nn.Module], side: int) -> nn.Module:
    torch.manual_seed(0)
    model = build()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean of what it sees
    if norms:
        with torch.no_grad():
            model.train()(torch.randn(4, 3, side, side))
    return model.eval()


def export(model: nn.Module, side: int, exporter: str, path: Path) -> None:
    x = torch.randn(2, 3, side, side)
    if exporter == "dynamo":
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(model, (x,), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    else:
        torch.onnx.export(
            model, (x,), path, dynamo=False, input_names=["image"], output_names=["scores"],
            dynamic_axes={"image": {0: "batch"}},
        )  # fmt: skip


def compare(build: Callable[[], nn.Module], side: int, exporter: str, folder: Path) -> str:
    """A row's cells: layers, relative difference of batch 1 and 3, seconds to convert."""
    path = folder / "model.onnx"
    export(built(build, side), side, exporter, path)
    start = time.perf_counter()
    converted = convert_onnx(path, folder / "model.npz")
    seconds = time.perf_counter() - start
    model, names = Model.from_file(converted), list(converted.graph.outputs)
    worst = [
        max(
            d.relative
            for d in verify(
                path, converted.graph, lambda x: model.predict(x, outputs=names), batch=batch
            )
        )
        for batch in (1, 3)
    ]
    verdict = "ok" if max(worst) <= LIMIT else "FAILS"
    count = len(converted.graph.nodes)
    return f"{count} | {worst[0]:.1e} | {worst[1]:.1e} | {seconds:.2f} | {verdict}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--exporter", choices=["script", "dynamo"], action="append")
    parser.add_argument("--markdown", type=Path, help="write the table here too")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    known = families()
    lines = [
        "| network | exporter | layers | batch 1 | batch 3 | s to convert | |",
        "|---|---|---|---|---|---|---|",
    ]
    print(*lines, sep="\n", flush=True)
    for name in args.names or sorted(known):
        for exporter in args.exporter or ["script", "dynamo"]:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    cells = compare(*known[name], exporter, Path(folder))
                except Exception as error:
                    cells = f" | | | | FAILS: {' '.join(str(error).split()):.300}"
            lines.append(f"| {name} | {exporter} | {cells} |")
            print(lines[-1], flush=True)
    if args.markdown:
        args.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(any("FAILS" in line for line in lines))


if __name__ == "__main__":
    sys.exit(main())
