"""Fixtures of the kernel tests: the number of threads put back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from convserve import kernels


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back that the test changes."""
    before = kernels.num_threads()
    yield
    kernels.set_num_threads(before)
