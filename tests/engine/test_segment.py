"""Segments: a model in memory that processes share."""

from __future__ import annotations

import gc
import mmap
import os
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from convserve import model_file
from convserve.engine.model import Model
from convserve.engine.segment import Segment
from convserve.errors import ShapeError
from convserve.graph import Graph, architectures, layers
from convserve.kernels._packed import PackedConv
from convserve.kernels._winograd import PackedWinograd
from convserve.plan import tuning

Array = npt.NDArray[np.float32]


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


def made(graph: Graph, tune: bool = False) -> tuple[Model, Segment]:
    """An ordinary model, and a segment of the same."""
    rng = np.random.default_rng(1)
    params = graph.initialise(rng)
    for name, value in params.items():
        params[name] = value + rng.random(value.shape, np.float32) * np.float32(0.1)
    times = tuning.tune(graph, params, 0.01) if tune else {}
    one, other = (
        model_file.ModelFile(graph, dict(params), provenance={"by": "a test"}) for _ in range(2)
    )
    return Model.from_file(one, name="m", times=times), Segment.of(other, times)


@pytest.mark.parametrize("tune", [False, True])
def test_a_model_from_a_segment_gives_the_same_bits(isa: str, tune: bool) -> None:
    graph = mixed_graph()
    model, segment = made(graph, tune)
    other = Segment(os.dup(segment.fd)).model("m", None)
    x = np.random.default_rng(0).standard_normal((5, 3, 16, 16), dtype=np.float32)
    np.testing.assert_array_equal(other.predict(x), model.predict(x))
    of_layer = other.predict(x, outputs=["first"])["first"]  # from the weights as read
    np.testing.assert_array_equal(of_layer, model.predict(x, outputs=["first"])["first"])
    assert other.provenance == {"by": "a test"}
    for plan in (other.plan(1), model.plan(1)):
        assert [part.kernel for part in plan.parts] == [p.kernel for p in model.plan(1).parts]


def test_its_weights_are_not_copied(isa: str) -> None:
    graph = mixed_graph()
    model, segment = made(graph)
    other = segment.model("m", None)
    assert other.packed.keys() == model.packed.keys() and len(other.packed) == 4
    read, packed = [*other.params.values()], [each.memory for each in other.packed.values()]
    weights = sum(array.nbytes for array in (*read, *packed))
    assert os.fstat(segment.fd).st_size == pytest.approx(weights, rel=0.1)
    low, high = _mapping(segment.fd)
    for array in (*read, *packed):
        assert low <= array.ctypes.data < high
        assert array.ctypes.data % 64 == 0
        assert not array.flags.writeable


def test_memory_holds_them_once_while_it_is_made() -> None:
    graph = mixed_graph()
    params = graph.initialise(np.random.default_rng(1))
    weights = [weakref.ref(array) for array in params.values()]
    Segment.of(model_file.ModelFile(graph, params), {})
    assert [weight() for weight in weights] == [None] * len(weights)


@pytest.mark.parametrize("kind", ["conv", "winograd"])
def test_packed_weights_that_do_not_fit_are_refused(kind: str) -> None:
    def pack(ready: Array | None) -> PackedConv | PackedWinograd:
        weight = np.ones((4, 16, 3, 3), np.float32)
        if kind == "conv":
            return PackedConv(weight, None, 8, 8, ready=ready)
        return PackedWinograd(weight, None, 8, 8, 1, 4, ready)

    memory = pack(None).memory
    for ready in (memory[:-16], np.zeros(len(memory) + 1, np.float32)[1:]):
        with pytest.raises(ShapeError, match="64-byte aligned"):
            pack(ready)


def _mapping(fd: int) -> tuple[int, int]:
    """Where the file behind a descriptor is mapped in this process."""
    inode = str(os.fstat(fd).st_ino)
    lines = Path("/proc/self/maps").read_text().splitlines()
    (line,) = [line for line in lines if line.split()[4] == inode]
    low, high = line.split()[0].split("-")
    return int(low, 16), int(high, 16)


def test_nobody_can_change_it() -> None:
    _, segment = made(architectures.build("lenet"))
    with pytest.raises(PermissionError):
        os.pwrite(segment.fd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 1)
    with pytest.raises(PermissionError):
        mmap.mmap(segment.fd, 0, mmap.MAP_SHARED)


def test_memory_is_given_back_with_the_last_model() -> None:
    _, segment = made(architectures.build("lenet"))
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
