"""The fuzz targets on their seeds, on seeds that are spoilt a little, and on what was found."""

from __future__ import annotations

import base64
import random

import pytest
from fuzz.fuzz_targets import TARGETS

# What `make fuzz` found before it was mended: by target, in base64.
FOUND: list[tuple[str, str]] = []


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_spoilt_seeds(name):
    target = TARGETS[name]
    rng = random.Random(0)
    for data in target.seeds().values():
        target.run(data)
        for _ in range(10):
            spoilt = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                spoilt[rng.randrange(1, len(spoilt))] = rng.randrange(256)
            target.run(bytes(spoilt))
            target.run(data[: rng.randrange(len(data))])


@pytest.mark.parametrize(("name", "data"), FOUND)
def test_what_was_found_before(name, data):
    TARGETS[name].run(base64.b64decode(data))
