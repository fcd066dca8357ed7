import numpy as np
import numpy.typing as npt

from convserve.kernels._activation import Activation
from convserve.kernels._arguments import Float32Array, Window
from convserve.kernels._packed import PackedConv
from convserve.kernels._tensors import Tensors
from convserve.kernels._winograd import PackedWinograd

Indices = npt.NDArray[np.int64]

class Operations(Tensors):
    def stage(self, level: int, x: int, y: int) -> None: ...
    def flatten(self, level: int, x: int, y: int) -> None: ...
    def softmax(self, level: int, x: int, y: int) -> None: ...
    def log_softmax(self, level: int, x: int, y: int) -> None: ...
    def rearrange(
        self, level: int, y: int, channels: Indices, tensors: Indices, sources: Indices
    ) -> None: ...
    def pad(self, level: int, x: int, y: int, top: int, left: int, value: float) -> None: ...
    def global_avg_pool(self, level: int, x: int, y: int) -> None: ...
    def global_max_pool(self, level: int, x: int, y: int) -> None: ...
    def layer_norm(
        self, level: int, x: int, y: int, weight: Float32Array, bias: Float32Array, eps: float
    ) -> None: ...
    def lrn(
        self,
        level: int,
        x: int,
        y: int,
        before: int,
        after: int,
        alpha: float,
        beta: float,
        bias: float,
    ) -> None: ...
    def activate(self, level: int, x: int, y: int, activation: Activation) -> None: ...
    def conv(
        self,
        level: int,
        x: int,
        y: int,
        packed: PackedConv,
        window: Window,
        activation: Activation | None = None,
        residual: int | None = None,
        pool: tuple[Window, bool, bool] | None = None,
    ) -> None: ...
    def winograd(
        self,
        level: int,
        x: int,
        y: int,
        packed: PackedWinograd,
        window: Window,
        activation: Activation | None = None,
        residual: int | None = None,
        pool: bool = False,
    ) -> None: ...
    def affine(
        self, level: int, x: int, y: int, packed: PackedConv, activation: Activation | None = None
    ) -> None: ...
    def depthwise(
        self,
        level: int,
        x: int,
        y: int,
        weight: Float32Array,
        bias: Float32Array,
        window: Window,
        activation: Activation | None = None,
    ) -> None: ...
    def scale_shift(
        self,
        level: int,
        x: int,
        y: int,
        scale: Float32Array,
        shift: Float32Array,
        activation: Activation | None = None,
    ) -> None: ...
    def prelu(self, level: int, x: int, y: int, slope: Float32Array) -> None: ...
    def arithmetic(
        self, level: int, kind: str, x: int, r: int, y: int, activation: Activation | None = None
    ) -> None: ...
    def pool(
        self, level: int, x: int, y: int, window: Window, largest: bool, count_padding: bool
    ) -> None: ...
    def output(self, level: int, x: int, number: int) -> None: ...
    @property
    def operations(self) -> int: ...
