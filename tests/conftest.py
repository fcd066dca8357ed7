"""Settings and fixtures that all tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from convserve import kernels
from convserve.kernels import _core

# A run in the background has SIGINT ignored, and what it starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "convserve",
    derandomize=True,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("convserve")

KNOWN_ISAS = ("base", "avx2", "avx512")


# Files that take long by the clock, of which the first minute is the soak's: begun last they would
# leave the other process with nothing to do.
FIRST = ("test_soak.py", "test_lifecycle.py", "test_worker_faults.py", "test_security.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(FIRST)))


@pytest.fixture(params=KNOWN_ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on each known instruction set, and says so where this machine lacks one."""
    if request.param not in kernels.available_isas():
        pytest.skip(f"this build on this CPU has no {request.param}")
    before = kernels.isa()
    _core.use_isa(request.param)
    yield request.param
    _core.use_isa(before)
