from convserve.kernels._arguments import Float32Array, PaddingLike, PairLike

PLANAR_CHANNELS: int

class PackedConv:
    channels: int
    filters: int
    groups: int
    kh: int
    kw: int
    block: int
    blocks: int
    planes: int
    planar: bool
    def __init__(
        self,
        weight: Float32Array,
        bias: Float32Array | None,
        height: int,
        width: int,
        stride: PairLike = 1,
        padding: PaddingLike = 0,
        dilation: PairLike = 1,
        groups: int = 1,
        rounding: str = "floor",
        planar: bool | None = None,
        ready: Float32Array | None = None,
    ) -> None: ...
    @property
    def memory(self) -> Float32Array: ...
    def bench(self, images: int = 1, threads: int = 1, seconds: float = 0.2) -> float: ...
