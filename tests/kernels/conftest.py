"""Fixtures of the kernel tests: every instruction set, and the number of threads put back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from convserve import kernels
from convserve.kernels import _core

KNOWN_ISAS = ("base", "avx2", "avx512")


@pytest.fixture(params=KNOWN_ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on each known instruction set, and says so where this machine lacks one."""
    if request.param not in kernels.available_isas():
        pytest.skip(f"this build on this CPU has no {request.param}")
    before = kernels.isa()
    _core.use_isa(request.param)
    yield request.param
    _core.use_isa(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back that the test changes."""
    before = kernels.num_threads()
    yield
    kernels.set_num_threads(before)
