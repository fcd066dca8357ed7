from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from convserve.kernels._arguments import Float32Array
from convserve.kernels._operations import Operations

class Executor(Operations):
    def __init__(
        self, groups: Sequence[int], results: Sequence[Sequence[int]], macs_per_image: float
    ) -> None: ...
    @property
    def held_arenas(self) -> int: ...
    def run(
        self,
        inputs: Sequence[Float32Array | npt.NDArray[np.uint8]],
        threads: int,
        spent: npt.NDArray[np.int64] | None = None,
        byte_values: Float32Array | None = None,
    ) -> list[Float32Array]: ...
