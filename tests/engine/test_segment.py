"""Segments: a model in memory that processes share."""

from __future__ import annotations

import gc
import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from convserve import model_file
from convserve.engine.model import Model
from convserve.engine.segment import Segment
from convserve.graph import Graph, architectures, layers
from convserve.plan import tuning


def mixed_graph() -> Graph:
    """Winograd, direct, grouped, depthwise and affine layers; batch norm folded and alone."""
    graph = Graph((3, 16, 16))
    graph.add(layers.BatchNorm())
    graph.add(layers.Conv2d(16, 3, padding=1), name="first")
    graph.add(layers.BatchNorm())
    graph.add(layers.ReLU())
    graph.add(layers.Conv2d(32, 3, padding=1))
    graph.add(layers.BatchNorm())
    graph.add(layers.Conv2d(32, 3, padding=1, groups=32))
    graph.add(layers.Conv2d(32, 1, groups=2))
    graph.add(layers.PReLU())
    graph.add(layers.Flatten())
    graph.add(layers.Affine(7))
    return graph


def made(graph: Graph, tune: bool = False) -> tuple[model_file.ModelFile, Model, Segment]:
    rng = np.random.default_rng(1)
    params = graph.initialise(rng)
    for name, value in params.items():
        params[name] = value + rng.random(value.shape, np.float32) * np.float32(0.1)
    file = model_file.ModelFile(graph, params, provenance={"by": "a test"})
    times = tuning.tune(graph, params, 0.01) if tune else {}
    model = Model.from_file(file, name="m", times=times)
    return file, model, Segment.of(file, times)


@pytest.mark.parametrize("tune", [False, True])
def test_a_model_from_a_segment_gives_the_same_bits(isa: str, tune: bool) -> None:
    graph = mixed_graph()
    _, model, segment = made(graph, tune)
    other = Segment(os.dup(segment.fd)).model("m", None)
    x = np.random.default_rng(0).standard_normal((5, 3, 16, 16), dtype=np.float32)
    np.testing.assert_array_equal(other.predict(x), model.predict(x))
    of_layer = other.predict(x, outputs=["first"])["first"]  # from the weights as read
    np.testing.assert_array_equal(of_layer, model.predict(x, outputs=["first"])["first"])
    assert other.provenance == {"by": "a test"}
    for plan in (other.plan(1), model.plan(1)):
        assert [part.kernel for part in plan.parts] == [p.kernel for p in model.plan(1).parts]


def test_its_weights_are_not_copied() -> None:
    file, _, segment = made(architectures.build("deep_convnet"))
    weights = 4 * sum(value.size for value in file.params.values())
    assert os.fstat(segment.fd).st_size == pytest.approx(weights, rel=0.1)
    other = segment.model("m", None)
    low, high = _mapping(segment.fd)
    for array in other.params.values():
        assert low <= array.ctypes.data < high
        assert not array.flags.writeable


def _mapping(fd: int) -> tuple[int, int]:
    """Where the file behind a descriptor is mapped in this process."""
    inode = str(os.fstat(fd).st_ino)
    lines = Path("/proc/self/maps").read_text().splitlines()
    (line,) = [line for line in lines if line.split()[4] == inode]
    low, high = line.split()[0].split("-")
    return int(low, 16), int(high, 16)


def test_nobody_can_change_it() -> None:
    *_, segment = made(architectures.build("lenet"))
    with pytest.raises(PermissionError):
        os.pwrite(segment.fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 1)
    with pytest.raises(PermissionError):
        mmap.mmap(segment.fd, 0, mmap.MAP_SHARED)


def test_memory_is_given_back_with_the_last_model() -> None:
    *_, segment = made(architectures.build("lenet"))
    fd, model = os.dup(segment.fd), segment.model("m", None)
    x = np.ones((1, 1, 28, 28), np.float32)
    expected = model.predict(x)
    del segment
    gc.collect()
    np.testing.assert_array_equal(model.predict(x), expected)  # the mapping is the model's own
    _mapping(fd)
    del model
    gc.collect()
    with pytest.raises(ValueError, match="not enough values"):
        _mapping(fd)
    os.close(fd)
