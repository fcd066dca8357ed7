"""The cost model, what is chosen by it, and what a plan says of its steps."""

from __future__ import annotations

import numpy as np
import pytest

from convserve.graph import Graph, architectures, layers
from convserve.kernels import _core
from convserve.plan import Choice, Plan, compile_plan

KERNELS = ["direct", "winograd2", "winograd4"]


def conv_plan(shape: tuple[int, int, int], op: layers.Conv2d, **choice: object) -> Plan:
    graph = Graph(shape)
    graph.add(op)
    graph.add(layers.ReLU())
    return compile_plan(graph, graph.initialise(0), choice=Choice(**choice))  # type: ignore[arg-type]


def only(plan: Plan):
    (part,) = (part for part in plan.parts if part.macs)
    return part


def test_a_plan_says_what_its_steps_are(isa: str) -> None:
    graph = architectures.build("deep_convnet")
    plan = compile_plan(graph, graph.initialise(0))
    block = _core.block()
    parts = {part.layers[0]: part for part in plan.parts if part.layers}
    first = parts["conv1"]
    assert first.kernel.name.startswith("direct") and first.layout == f"NCHW → NCHW{block}c"
    assert first.macs == 16 * 9 * 28 * 28
    assert (first.input_bytes, first.output_bytes) == (4 * 784, 4 * 16 * 784)
    assert parts["conv4"].layout == f"NCHW{block}c"
    assert parts["affine1"].layers == ("affine1", "relu7")
    assert parts["affine1"].kernel.weight_bytes >= 4 * 50 * 1024
    assert sum(part.macs for part in plan.parts) == sum(
        node.op.macs(graph.input_shapes(node)) for node in graph.nodes
    )
    # every operation of the executor is some step's, in order
    operations = [i for part in plan.parts for i in part.operations]
    assert operations == list(range(len(operations)))
    assert [part.name for part in plan.parts if not part.layers] == ["input", "output"]


def test_a_profile_times_every_step() -> None:
    graph = architectures.build("deep_convnet")
    plan = compile_plan(graph, graph.initialise(0))
    for images, threads in ((1, 1), (1, 2), (5, 2), (0, 1)):
        x = np.zeros((images, *graph.input_shape), np.float32)
        seconds = plan.profile(x, threads, runs=3)
        assert seconds.shape == (3, len(plan.parts))
        assert (seconds[:, 1] > 0).all() == (images > 0)  # the first convolution
        assert (seconds >= 0).all() and (seconds < 10).all()
    (timed,), (plain,) = plan.run(x), plan.run(x)
    np.testing.assert_array_equal(timed, plain)


@pytest.mark.parametrize("images", [1, 3, 16])
def test_estimates_grow_with_the_work(isa: str, images: int) -> None:
    def estimate(channels: int, size: int, kernel: str, images: int = images) -> float:
        op = layers.Conv2d(channels, 3, padding=1)
        return conv_plan((channels, size, size), op, kernel=kernel).estimate(images)

    for kernel in KERNELS:
        times = [estimate(*case, kernel) for case in ((16, 8), (32, 8), (32, 16), (64, 16))]
        assert times == sorted(times) and times[0] > 0
        assert estimate(32, 16, kernel) <= estimate(32, 16, kernel, images + 1)
        assert estimate(32, 16, kernel) == estimate(32, 16, kernel)


def test_winograd_is_taken_where_it_has_fewer_products(isa: str) -> None:
    op = layers.Conv2d(64, 3, padding=1)
    assert only(conv_plan((64, 32, 32), op)).kernel.name == "winograd4"
    for other in (
        layers.Conv2d(64, 3, padding=1, stride=2, rounding="floor"),
        layers.Conv2d(64, 3, padding=2, dilation=2),
        layers.Conv2d(64, 3, padding=1, groups=4),
        layers.Conv2d(64, 1),
    ):
        assert only(conv_plan((64, 32, 32), other)).kernel.name == "direct"
        assert only(conv_plan((64, 32, 32), other, kernel="winograd4")).kernel.name == "direct"
    depthwise = layers.Conv2d(64, 3, padding=1, groups=64)
    assert only(conv_plan((64, 32, 32), depthwise)).kernel.name == "depthwise"


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_can_be_asked_for_and_gives_the_same_result(isa: str, kernel: str) -> None:
    op = layers.Conv2d(24, 3, padding=1)
    plan, direct = (conv_plan((20, 9, 7), op, kernel=name) for name in (kernel, "direct"))
    assert only(plan).kernel.name == kernel
    x = np.random.default_rng(0).standard_normal((3, 20, 9, 7), dtype=np.float32)
    np.testing.assert_allclose(plan.run(x)[0], direct.run(x)[0], atol=2e-4)


def test_measured_times_outweigh_the_model() -> None:
    op = layers.Conv2d(64, 3, padding=1)
    for fast in KERNELS:
        times = {name: {1: 1.0 if name == fast else 2.0} for name in KERNELS}
        part = only(conv_plan((64, 16, 16), op, times={"conv1": times}))
        assert part.kernel.name == fast
    # the worst of a single image and a group decides: 10 / 8 here, against 12 / 8 and 20 / 8
    times = {"direct": {1: 10, 8: 8}, "winograd2": {1: 8, 8: 12}, "winograd4": {1: 20, 8: 8}}
    assert only(conv_plan((64, 8, 8), op)).group == 8
    assert only(conv_plan((64, 8, 8), op, times={"conv1": times})).kernel.name == "direct"
    latency = conv_plan((64, 8, 8), op, times={"conv1": times}, batch=1)
    assert only(latency).kernel.name == "winograd2"
