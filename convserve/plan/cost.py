"""How long a layer should take: a deterministic function of its shape and the instruction set.

Times are nanoseconds of one thread, for a number of images that go through the layer together:

    register tiles   what starts and ends one, its loops, and max(multiply-adds, latency, loads)
    Winograd         those of its products, and the transforms of inputs and outputs
    memory           weights once a group of images (once a pass, where the second-level cache does
                     not hold them) and images once, over the bandwidth of where they come from

The constants were fitted by `python -m benchmarks.cost --fit` on a Zen 4, one instruction set after
the other; docs/plan.md says how far off they are. Other CPUs differ in speed far more than in
which kernel is the quicker one, which is what the plan wants to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Protocol

from convserve.kernels._arguments import Window
from convserve.kernels._core import block, by_pixels, isa, register_tile
from convserve.kernels._winograd import pass_tiles

__all__ = [
    "Affine",
    "Conv",
    "Depthwise",
    "Direct",
    "Kernel",
    "Machine",
    "Moving",
    "Pixels",
    "Winograd",
    "machines",
]

SECOND_LEVEL = 640 * 1024  # bytes of weights that the second-level cache keeps beside images
LAST_LEVEL = 24 << 20  # bytes of weights that the last-level cache keeps


@dataclass(frozen=True)
class Machine:
    """Nanoseconds of one thread, unless said otherwise."""

    fma: float  # a vector multiply-add at the peak
    chain: float  # independent multiply-adds that reach the peak: a smaller tile waits
    load: float  # a load of a vector or a broadcast, in multiply-adds
    call: float  # a call of a register tile
    cell: float  # the start and the end of one accumulator
    turn: float  # the start of an inner loop
    input2: float  # the transform of one vector tile of F(2, 3)
    output2: float
    input4: float  # of F(4, 3)
    output4: float
    input6: float  # of F(6, 3)
    output6: float
    tap: float  # of a depthwise filter or a pooling window, for a vector
    vector: float  # any other work on a vector
    near: float  # bytes a nanosecond, from the second-level cache
    far: float  # from the last-level cache
    memory: float  # from memory

    def read(self, bytes_: float, near: float) -> float:
        """The time to read so many bytes, where `near` of them fit the second-level cache."""
        if bytes_ <= near:
            return bytes_ / self.near
        return bytes_ / (self.far if bytes_ <= LAST_LEVEL else self.memory)


machines = {
    "avx512": Machine(
        fma=0.274, chain=8.0, load=0.667, call=0.94, cell=0.10, turn=3.9,
        input2=16.4, output2=17.4, input4=32.7, output4=68.1, input6=76.0, output6=153.0,
        tap=0.27, vector=0.016, near=120.0, far=89.0, memory=18.7,
    ),
    "avx2": Machine(
        fma=0.137, chain=7.6, load=0.5, call=1.2, cell=0.30, turn=1.9,
        input2=12.0, output2=11.0, input4=41.0, output4=48.0, input6=107.0, output6=125.0,
        tap=0.11, vector=0.02, near=85.0, far=65.0, memory=12.4,
    ),
    "base": Machine(
        fma=0.28, chain=5.3, load=0.5, call=2.7, cell=0.20, turn=0.8,
        input2=5.0, output2=10.8, input4=34.0, output4=54.0, input6=88.0, output6=140.0,
        tap=0.20, vector=0.03, near=55.0, far=47.0, memory=15.4,
    ),
}  # fmt: skip


class Kernel(Protocol):
    """One way to compute a layer."""

    @property
    def name(self) -> str: ...

    @property
    def tile(self) -> tuple[int, int] | None:
        """(output blocks, pixels) that lie in registers, where a register tile is used."""

    @property
    def weight_bytes(self) -> int: ...

    def nanoseconds(self, images: int) -> float:
        """One thread, `images` images together."""


@dataclass(frozen=True)
class Conv:
    """A convolution's shape; planar: it reads an input as NCHW; stored: it makes NCHW."""

    channels: int
    filters: int
    groups: int
    window: Window
    pixels: int  # of the input
    planar: bool = False
    stored: bool = False

    @property
    def blocks(self) -> int:
        """Blocks of output channels."""
        return ceil(self.filters / block())

    @property
    def planes(self) -> int:
        """Blocks of input channels."""
        return ceil(self.channels / block())

    @property
    def image_bytes(self) -> int:
        """Of an input and an output."""
        inputs = self.channels if self.planar else self.planes * block()
        return 4 * (inputs * self.pixels + self.blocks * block() * self.window.oh * self.window.ow)


@dataclass(frozen=True)
class Direct:
    """Register tiles over the image itself; a convolution of any kind."""

    conv: Conv
    name = "direct"

    @property
    def tile(self) -> tuple[int, int]:
        conv, window = self.conv, self.conv.window
        widest = 4
        # A tile does not span groups: the weights in between would be zeros.
        while conv.groups > 1 and widest > 1 and conv.filters // conv.groups % (widest * block()):
            widest //= 2
        return register_tile(window.ow, conv.blocks, widest)

    @property
    def depth(self) -> int:
        """Input channels that a tile reads: those of all groups that share its blocks."""
        conv = self.conv
        if conv.planar or conv.groups == 1:
            return conv.channels // conv.groups
        spanned = ceil(self.tile[0] * block() * conv.groups / conv.filters)
        channels = spanned * conv.channels // conv.groups
        return min(conv.channels, max(ceil(channels / block()) * block(), channels))

    @property
    def weight_bytes(self) -> int:
        window = self.conv.window
        return 4 * self.conv.blocks * block() * self.depth * window.kh * window.kw

    def nanoseconds(self, images: int) -> float:
        conv, window, machine = self.conv, self.conv.window, machines[isa()]
        taps = window.kh * window.kw
        if conv.planar and window.dw == 1:
            loops = self.depth * window.kh  # each over the taps of a filter row
        else:
            loops = taps * (self.depth if conv.planar else ceil(self.depth / block()))
        line = _line(machine, conv.blocks, self.tile, window.ow, self.depth * taps, loops)
        moved = machine.read(conv.image_bytes * images, SECOND_LEVEL)
        return images * window.oh * line + machine.read(self.weight_bytes, 0) + moved


@dataclass(frozen=True)
class Pixels:
    """Vectors of pixels of an NCHW image; where the output is not NCHW too, transposed on store."""

    conv: Conv
    name = "direct by pixels"
    tile = None

    @staticmethod
    def suit(conv: Conv) -> bool:
        """Whether the kernel takes this way, which it decides by itself."""
        window = conv.window
        taps = conv.channels * window.kh * window.kw
        fits = by_pixels(window.ow, conv.filters, taps, conv.stored)
        return window.sw == conv.groups == 1 and fits

    @property
    def weight_bytes(self) -> int:
        return Direct(self.conv).weight_bytes

    def nanoseconds(self, images: int) -> float:
        conv, window, machine = self.conv, self.conv.window, machines[isa()]
        vectors = images * window.oh * ceil(window.ow / block())
        products = conv.filters * conv.channels * window.kh * window.kw
        # as the kernel reckons itself
        transposing = 9 * conv.blocks if conv.filters > block() / 2 else 4
        if conv.stored:
            transposing = 0
        moved = machine.read(conv.image_bytes * images, SECOND_LEVEL)
        return vectors * machine.fma * (products + transposing * block()) + moved


@dataclass(frozen=True)
class Winograd:
    """F(m x m, 3 x 3): products of transformed tiles."""

    conv: Conv
    m: int

    @property
    def name(self) -> str:
        return f"winograd{self.m}"

    @property
    def coefficients(self) -> int:
        """Of a tile, and so products a channel."""
        return (self.m + 2) ** 2

    @property
    def tile(self) -> tuple[int, int]:
        return register_tile(64, self.conv.blocks)

    @property
    def weight_bytes(self) -> int:
        return 4 * self.coefficients * self.conv.blocks * block() * self.conv.channels

    def nanoseconds(self, images: int) -> float:
        conv, window, machine = self.conv, self.conv.window, machines[isa()]
        tiles = ceil(window.oh / self.m) * ceil(window.ow / self.m) * images
        passes = ceil(tiles / pass_tiles(self.m, conv.channels, conv.filters, tiles))
        line = _line(machine, conv.blocks, self.tile, tiles / passes, conv.channels, conv.planes)
        products = passes * self.coefficients * line
        into, out = {
            2: (machine.input2, machine.output2),
            4: (machine.input4, machine.output4),
            6: (machine.input6, machine.output6),
        }[self.m]
        transforms = tiles * (conv.planes * into + conv.blocks * out)
        again = passes - 1 if passes > 1 else 0
        weights = machine.read(self.weight_bytes, 0)
        weights += again * machine.read(self.weight_bytes, SECOND_LEVEL)
        moved = machine.read(conv.image_bytes * images, SECOND_LEVEL)
        return products + transforms + weights + moved


@dataclass(frozen=True)
class Depthwise:
    """One filter a channel, vectors over the channels."""

    conv: Conv
    name = "depthwise"
    tile = None

    @property
    def weight_bytes(self) -> int:
        return 4 * self.conv.blocks * block() * self.conv.window.kh * self.conv.window.kw

    def nanoseconds(self, images: int) -> float:
        conv, window, machine = self.conv, self.conv.window, machines[isa()]
        vectors = conv.blocks * window.oh * window.ow * images
        moved = machine.read(conv.image_bytes * images, SECOND_LEVEL)
        return vectors * (machine.vector + machine.tap * window.kh * window.kw) + moved


@dataclass(frozen=True)
class Affine:
    """A register tile whose pixels are images."""

    inputs: int
    outputs: int
    name = "affine"

    @property
    def tile(self) -> tuple[int, int]:
        return register_tile(1, ceil(self.outputs / block()))

    @property
    def weight_bytes(self) -> int:
        return 4 * ceil(self.outputs / block()) * block() * self.inputs

    def nanoseconds(self, images: int) -> float:
        machine = machines[isa()]
        blocks, loops = ceil(self.outputs / block()), ceil(self.inputs / block())
        line = _line(machine, blocks, self.tile, images, self.inputs, loops)
        return max(line, machine.read(self.weight_bytes, 0))


@dataclass(frozen=True)
class Moving:
    """What is bound by its reading and writing: pooling, arithmetic, copies."""

    name: str
    bytes_: int  # read and written, an image
    taps: float = 1.0  # work a vector of the output ...
    vectors: int = 0  # ... and how many of them there are
    weight_bytes: int = 0
    tile = None

    def nanoseconds(self, images: int) -> float:
        machine = machines[isa()]
        work = self.vectors * images * (machine.vector + machine.tap * self.taps)
        return work + machine.read(self.bytes_ * images, SECOND_LEVEL)


def _line(
    machine: Machine, blocks: int, tile: tuple[int, int], pixels: float, depth: int, loops: int
) -> float:
    """A row of `pixels` outputs of all blocks, each a sum of `depth` products in `loops` loops."""
    size, widest = tile
    parts = ceil(pixels / widest)
    each, time = pixels / parts, 0.0
    while blocks:
        count, blocks = divmod(blocks, size)
        step = machine.fma * max(machine.chain, size * each, machine.load * (size + each))
        start = machine.call + machine.cell * size * each + machine.turn * loops
        time += count * parts * (start + depth * step)
        size //= 2
    return time
