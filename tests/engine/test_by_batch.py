"""`batch_invariant`: the same bits in any batch, or kernels chosen by the batch."""

from __future__ import annotations

import numpy as np
import pytest
import reference

from convserve.engine.model import Model
from convserve.graph import Graph, architectures, layers
from convserve.model_file import ModelFile

KERNELS = ["direct", "winograd2", "winograd4"]


def deep_graph() -> Graph:
    """Small images of many channels: what is fastest depends on their number."""
    graph = Graph((64, 4, 4))
    for _ in range(2):
        graph.add(layers.Conv2d(64, 3, padding=1))
        graph.add(layers.ReLU())
    return graph


# one image by direct convolution, a batch by Winograd tiles
TIMES = {
    name: {
        "direct": {1: 10.0, 8: 90.0},
        "winograd2": {1: 12.0, 8: 80.0},
        "winograd4": {1: 30.0, 8: 60.0},
    }
    for name in ("conv1", "conv2")
}


def model_of(graph: Graph, **options: object) -> Model:
    return Model(ModelFile(graph, graph.initialise(0)), **options)  # type: ignore[arg-type]


def kernels(model: Model, batch: int) -> set[str]:
    return {part.kernel.name for part in model.plan(batch).parts if part.macs}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("times", [{}, TIMES])
def test_an_image_has_the_same_bits_in_any_batch(threads: int, times: object) -> None:
    model = model_of(deep_graph(), threads=threads, times=times)
    x = np.random.default_rng(0).standard_normal((40, 64, 4, 4), dtype=np.float32)
    whole = model.predict(x)
    for n in (1, 2, 3, 7, 17):
        reference.assert_same_bits(model.predict(x[:n]), whole[:n])
    assert model.plan(1) is model.plan(40)


def test_kernels_follow_the_batch_where_that_is_allowed() -> None:
    model = model_of(deep_graph(), threads=1, times=TIMES, batch_invariant=False)
    fixed = model_of(deep_graph(), threads=1, times=TIMES)
    assert kernels(fixed, 1) == kernels(fixed, 32) == {"winograd2"}
    assert kernels(model, 1) == {"direct"}
    assert kernels(model, 32) == {"winograd4"}
    x = np.random.default_rng(0).standard_normal((40, 64, 4, 4), dtype=np.float32)
    expected = fixed.predict(x)
    assert isinstance(expected, np.ndarray)
    for n in (0, 1, 2, 3, 5, 8, 40):
        found = model.predict(x[:n])
        assert isinstance(found, np.ndarray)
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(found, expected[:n], atol=1e-5 * scale)
        np.testing.assert_array_equal(found, model.predict(x[:n]))  # the same batch, the same bits
    maps = model.predict(x[:1], outputs=["conv1"])
    assert isinstance(maps, dict) and maps["conv1"].shape == (1, 64, 4, 4)


def test_a_plan_is_made_for_what_a_thread_gets() -> None:
    model = model_of(deep_graph(), threads=1, batch_invariant=False)
    plans = {n: model.plan(n) for n in (1, 2, 3, 4, 7, 8, 9, 100)}
    assert plans[2] is plans[3] and plans[4] is plans[7] and plans[8] is plans[9] is plans[100]
    assert len(set(map(id, plans.values()))) == 4
    for n, plan in plans.items():
        assert max(part.group for part in plan.parts) <= max(32 if n >= 8 else 2 * n - 1, 1)
    assert plans[1].arena_bytes < plans[100].arena_bytes


def test_plans_share_the_weights_that_they_have_in_common() -> None:
    graph = architectures.build("deep_convnet")
    model = model_of(graph, threads=1, batch_invariant=False)
    for n in (1, 2, 4, 8):
        model.plan(n)
    by_layer: dict[str, set[str]] = {}
    for n in (1, 2, 4, 8):
        for part in model.plan(n).parts:
            if part.macs:
                by_layer.setdefault(part.layers[0], set()).add(part.kernel.name)
    assert len(model.packed) == sum(map(len, by_layer.values()))
