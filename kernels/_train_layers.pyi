from collections.abc import Sequence

from convserve.kernels._arguments import Float32Array, Window

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
    def parts(self) -> tuple[int, int, int]: ...
    @property
    def batch(self) -> int: ...
    @property
    def partial_floats(self) -> int: ...
    def allocate(self, forward: bool, backward: bool, partials: int) -> None: ...

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
