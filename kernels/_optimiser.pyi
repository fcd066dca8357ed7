from collections.abc import Sequence

from convserve.kernels._arguments import Float32Array

class Arena:
    def __init__(self, params: Sequence[Float32Array], slots: int = 0) -> None: ...
    def slots(self, number: int) -> list[Float32Array]: ...
    def bind(self, others: tuple[Float32Array, ...]) -> None: ...
    def squared_norm(self) -> float: ...
    def sgd(
        self,
        lr: Float32Array,
        decay: Float32Array,
        momentum: float,
        nesterov: bool,
        decoupled: bool,
        scale: float,
    ) -> None: ...
    def adam(
        self,
        lr: Float32Array,
        decay: Float32Array,
        beta1: float,
        beta2: float,
        eps: float,
        decoupled: bool,
        scale: float,
        step: int,
    ) -> None: ...
    def lerp(self, weight: float) -> None: ...
