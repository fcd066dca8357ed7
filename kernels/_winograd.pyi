from convserve.kernels._arguments import Float32Array, PaddingLike

class PackedWinograd:
    m: int
    channels: int
    filters: int
    oh: int
    ow: int
    def __init__(
        self,
        weight: Float32Array,
        bias: Float32Array | None,
        height: int,
        width: int,
        padding: PaddingLike,
        m: int,
        ready: Float32Array | None = None,
    ) -> None: ...
    @property
    def memory(self) -> Float32Array: ...

def pass_tiles(m: int, channels: int, filters: int, tiles: int) -> int: ...
