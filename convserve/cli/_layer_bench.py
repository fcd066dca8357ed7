"""GFLOP/s of convolution layers, apart from packing, beside the machine's measured peak."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

SHAPES = Path(__file__).with_name("bench_layers.txt")
ROUND_FLOPS = 2e7  # work in a round, a fraction of a millisecond: the clock must not count
PEAK_SECONDS = 0.05


@dataclass(frozen=True)
class LayerShape:
    """One line of a shapes file; height and width are the input's."""

    network: str
    channels: int
    height: int
    width: int
    filters: int
    kernel: int
    stride: int
    padding: int

    def __str__(self) -> str:
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        window = f"{self.kernel}x{self.kernel}"
        return f"{self.channels}@{self.height}x{self.width} {window} -> {self.filters}{stride}"


@dataclass(frozen=True)
class LayerSpeed:
    network: str
    layer: str
    threads: int
    gflops: float
    peak: float
    percent: float


def read_shapes(path: Path) -> list[LayerShape]:
    """Read a shapes file: a name and seven whole numbers a line, # begins a comment."""
    shapes = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        try:
            network, *numbers = fields
            shapes.append(LayerShape(network, *map(int, numbers)))
        except (TypeError, ValueError):
            raise click.ClickException(
                f"{path}, line {number}: must be network, channels, height, width, filters, "
                f"kernel, stride and padding, got {line.strip()!r}"
            ) from None
    return shapes


def measure_layers(path: Path, threads: tuple[int, ...], seconds: float) -> Iterator[LayerSpeed]:
    """Measure every layer of a shapes file with every number of threads, `seconds` each."""
    from convserve import kernels

    for shape in read_shapes(path):
        for count in threads:
            # Just before the layer: clock rates change, and neighbours come and go.
            peak = kernels.peak_gflops(threads=count, seconds=PEAK_SECONDS)
            gflops = _gflops(shape, count, seconds)
            yield LayerSpeed(shape.network, str(shape), count, gflops, peak, 100 * gflops / peak)


def _gflops(shape: LayerShape, threads: int, seconds: float) -> float:
    from convserve.kernels._packed import PackedConv

    rng = np.random.default_rng(0)
    size = (shape.filters, shape.channels, shape.kernel, shape.kernel)
    weight = rng.standard_normal(size, dtype=np.float32)
    bias = rng.standard_normal(shape.filters, dtype=np.float32)
    packed = PackedConv(weight, bias, shape.height, shape.width, shape.stride, shape.padding)
    outputs = shape.height * shape.width / shape.stride**2
    flops = 2 * weight.size * outputs
    images = threads * max(1, round(ROUND_FLOPS / flops))
    gflops: float = packed.bench(images=images, threads=threads, seconds=seconds)
    return gflops
