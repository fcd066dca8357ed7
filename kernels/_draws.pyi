import numpy as np
from numpy.typing import NDArray

def mix(z: int) -> int: ...
def uniform(
    counters: NDArray[np.int64], key: int, stream: int, low: float, high: float
) -> NDArray[np.float64]: ...
def integers(
    counters: NDArray[np.int64], key: int, stream: int, low: int, high: int
) -> NDArray[np.int64]: ...
