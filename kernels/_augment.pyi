import numpy as np
from numpy.typing import NDArray

def augment(
    x: NDArray[np.uint8],
    rows: NDArray[np.int64],
    maps: NDArray[np.float64],
    table: NDArray[np.float32],
    factor: NDArray[np.float32],
    shift: NDArray[np.float32],
    luma: NDArray[np.float64],
    out: NDArray[np.float32],
    photometry: NDArray[np.float64] | None = None,
    boxes: NDArray[np.int32] | None = None,
    reflect: bool = False,
) -> None: ...
