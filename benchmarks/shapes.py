"""Text files of real convolution layers, one a line; # begins a comment.

    name  channels  height  width  filters  kernel  stride  padding  groups

Height and width are the input's; the name is the network's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FIELDS = ("channels", "height", "width", "filters", "kernel", "stride", "padding", "groups")


@dataclass(frozen=True)
class Layer:
    """A convolution with bias and ReLU."""

    network: str
    channels: int
    height: int
    width: int
    filters: int
    kernel: int
    stride: int
    padding: int
    groups: int

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    @property
    def output_shape(self) -> tuple[int, int, int]:
        spread = [n + 2 * self.padding - self.kernel for n in (self.height, self.width)]
        return self.filters, spread[0] // self.stride + 1, spread[1] // self.stride + 1

    def __str__(self) -> str:
        text = f"{self.network} {self.channels}@{self.height}×{self.width}"
        text += f" {self.kernel}×{self.kernel} → {self.filters}"
        if self.stride > 1:
            text += f" /{self.stride}"
        if self.groups > 1:
            text += " depthwise" if self.groups == self.channels else f" groups {self.groups}"
        return text

    @property
    def file_name(self) -> str:
        return "_".join(map(str, (self.network, *(getattr(self, field) for field in FIELDS))))


def read_layers(path: Path) -> list[Layer]:
    """The layers of a shapes file; ValueError names the line that is malformed."""
    layers = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        fault = f"{path}, line {number}: "
        try:
            layer = Layer(fields[0], *(int(field) for field in fields[1:]))
        except (TypeError, ValueError):
            raise ValueError(
                f"{fault}must be a network, {', '.join(FIELDS[:-1])} and {FIELDS[-1]}, "
                f"got {line.strip()!r}"
            ) from None
        if min(getattr(layer, f) for f in FIELDS if f != "padding") < 1 or layer.padding < 0:
            raise ValueError(f"{fault}sizes must be from 1 on, padding from 0")
        if layer.channels % layer.groups or layer.filters % layer.groups:
            raise ValueError(f"{fault}channels and filters must be multiples of groups")
        if min(layer.output_shape) < 1:
            raise ValueError(f"{fault}the kernel is larger than the padded input")
        layers.append(layer)
    return layers
