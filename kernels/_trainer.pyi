from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from convserve.kernels._activation import Activation
from convserve.kernels._arguments import Float32Array, Window

DW_ROWS: int
MAX_LANES: int

Layout = tuple[int, int, int, int]

class ConvLayer:
    def __init__(
        self,
        images: int,
        shape: tuple[int, int, int],
        filters: int,
        window: Window,
        groups: int,
        planar: bool,
        bias: bool,
        layouts: Sequence[Layout] = ...,
    ) -> None: ...
    @property
    def halos(self) -> tuple[int, int]: ...
    @property
    def by_filters(self) -> bool: ...
    @property
    def filter_parts(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def partial_floats(self) -> int: ...
    def allocate(self, partials: int = 0, shared: ConvLayer | None = None) -> None: ...

class NormLayer:
    def __init__(
        self,
        weight: Float32Array,
        bias: Float32Array,
        running_mean: Float32Array,
        running_var: Float32Array,
        dweight: Float32Array,
        dbias: Float32Array,
        eps: float,
        momentum: float,
        lanes: int,
    ) -> None: ...

class Trainer:
    kinds: list[str]
    def __init__(
        self, batch: int, input_shape: tuple[int, ...], classes: int, lanes: int
    ) -> None: ...
    @property
    def block(self) -> int: ...
    def tensor(
        self, channels: int, height: int, width: int, halo: int, planar: bool, whole: bool
    ) -> int: ...
    def layout(self, number: int) -> Layout: ...
    def image_floats(self, number: int) -> int: ...
    def place(self, number: int, offset: int, images: int) -> None: ...
    def op(
        self,
        kind: str,
        tensors: Mapping[str, int],
        add: bool = False,
        activation: Activation | None = None,
    ) -> int: ...
    def set_parameters(
        self,
        weight: Float32Array,
        bias: Float32Array | None,
        dweight: Float32Array,
        dbias: Float32Array | None,
    ) -> None: ...
    def set_conv(self, layer: ConvLayer, by_filters: bool) -> None: ...
    def set_affine(self, inputs: int, outputs: int, packed: Any) -> None: ...
    def affine_buffer(self, inputs: int, outputs: int) -> Any: ...
    def set_norm(self, layer: NormLayer, slope: str) -> None: ...
    def set_pool(self, x: int, y: int, window: Window, count_padding: bool) -> None: ...
    def set_pointwise(self, arithmetic: str = "add", factor: float = 1.0) -> None: ...
    def set_dropout(self, rate: float, key: int) -> None: ...
    def set_channels(self, source: int, target: int, count: int) -> None: ...
    def segment(
        self, first: int, once: int, end: int, group: int = 0, parts: Sequence[int] = ()
    ) -> None: ...
    @property
    def memory(self) -> tuple[int, int]: ...
    def allocate(self) -> None: ...
    def run(
        self,
        x: Float32Array,
        targets: Float32Array,
        keys: npt.NDArray[np.uint32],
        threads: int,
        spent: npt.NDArray[np.int64] | None = None,
    ) -> tuple[float, int]: ...
