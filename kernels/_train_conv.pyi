import numpy as np
import numpy.typing as npt

from convserve.kernels._arguments import Float32Array, PaddingLike, PairLike

class TrainConv:
    def __init__(
        self,
        shape: tuple[int, ...],
        weight_shape: tuple[int, ...],
        stride: PairLike = 1,
        padding: PaddingLike = 0,
        dilation: PairLike = 1,
        groups: int = 1,
        rounding: str = "error",
        planar: bool = False,
        bias: bool = True,
        ways: tuple[str, str, str] = ("auto", "auto", "auto"),
        halos: tuple[int, int, int, int] = (0, 0, 0, 0),
        junk: float = 0.0,
        step: int = 0,
        parts: int = 1,
    ) -> None: ...
    def ways(self) -> tuple[str, str, str]: ...
    def forward(
        self,
        x: Float32Array,
        weight: Float32Array,
        bias: Float32Array | None = None,
        activation: object = None,
    ) -> tuple[Float32Array, npt.NDArray[np.float64], npt.NDArray[np.float64]]: ...
    def data_gradient(
        self, grad: Float32Array, weight: Float32Array, dx: Float32Array | None = None
    ) -> Float32Array: ...
    def weight_gradient(
        self, grad: Float32Array, x: Float32Array
    ) -> tuple[Float32Array, Float32Array | None]: ...
