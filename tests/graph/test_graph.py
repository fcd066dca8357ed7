"""The graph as it is built: names, wiring, outputs, and errors that name the layer."""

from __future__ import annotations

import numpy as np
import pytest

from convserve.errors import ShapeError, UnknownNameError
from convserve.graph import Graph, layers, summarise
from convserve.graph.graph import MAX_ELEMENTS


def residual() -> Graph:
    g = Graph((3, 8, 8))
    g.add(layers.Conv2d(4, 3, padding=1))
    skip = g.add(layers.ReLU())
    g.add(layers.Conv2d(4, 3, padding=1, bias=False))
    g.add(layers.BatchNorm())
    g.add(layers.Add(), "bn1", skip)
    g.add(layers.Concat(), "add1", skip, "input")
    g.add(layers.GlobalAvgPool2d())
    g.add(layers.Flatten())
    g.add(layers.Affine(5))
    g.add(layers.Softmax())
    return g


def test_default_names_and_wiring() -> None:
    g = residual()
    assert [node.name for node in g.nodes] == [
        "conv1", "relu1", "conv2", "bn1", "add1", "concat1", "global_pool1", "flatten1", "affine1",
        "softmax1",
    ]  # fmt: skip
    assert g.node("conv2").inputs == ("relu1",)
    assert g.node("add1").inputs == ("bn1", "relu1")
    assert g.shape("concat1") == (11, 8, 8) and g.shape("input") == (3, 8, 8)
    assert g.consumers("relu1") == ("conv2", "add1", "concat1")
    assert g.consumers("input") == ("conv1", "concat1") and g.consumers("softmax1") == ()


def test_a_default_name_avoids_the_ones_taken() -> None:
    g = Graph((1, 4, 4), input_name="relu1")
    g.add(layers.ReLU(), name="relu2")
    assert g.add(layers.ReLU()) == "relu3"


def test_one_input_twice() -> None:
    g = Graph((1, 4, 4))
    assert g.shape(g.add(layers.Add(), "input", "input")) == (1, 4, 4)
    assert g.shape(g.add(layers.Concat(), "add1", "add1")) == (2, 4, 4)
    assert g.consumers("add1") == ("concat1",)


def test_outputs() -> None:
    g = Graph((1, 4, 4))
    assert g.outputs == {}
    g.add(layers.ReLU())
    assert g.outputs == {"output": "relu1"}
    g.add(layers.Flatten())
    assert g.outputs == {"output": "flatten1"}  # the last one
    g.set_output("relu1", "features")
    g.set_output("flatten1", "Plus214_Output_0")
    assert g.outputs == {"features": "relu1", "Plus214_Output_0": "flatten1"}
    g.outputs.clear()  # a copy
    assert len(g.outputs) == 2
    with pytest.raises(UnknownNameError, match="no layer is named 'pool9'; the layers are: relu1"):
        g.set_output("pool9")
    with pytest.raises(UnknownNameError):
        g.set_output("input")
    for name in ("", "a\nb", "x" * 256):
        with pytest.raises(ShapeError, match="output name must be 1 to 255 printable"):
            g.set_output("relu1", name)


def test_resolve() -> None:
    g = residual()
    assert g.resolve("conv1") == "conv1" and g.resolve("input") == "input"
    assert g.resolve("logits") == "affine1" and g.resolve("output") == "softmax1"
    with pytest.raises(UnknownNameError, match="no layer is named 'conv9'; the layers are: conv1"):
        g.resolve("conv9")
    g.add(layers.ReLU(), "affine1", name="logits")
    g.set_output("softmax1")
    assert g.resolve("logits") == "logits"  # a layer's own name wins
    plain = Graph((1, 4, 4))
    plain.add(layers.ReLU())
    with pytest.raises(UnknownNameError, match="no output of the model is a softmax"):
        plain.resolve("logits")


@pytest.mark.parametrize(
    "name", ["conv1", "layer1.0.conv1", "/conv1/Conv_output_0", "a:0", "block/a-b", "495", "_x"]
)
def test_names_as_other_frameworks_have_them(name: str) -> None:
    g = Graph((1, 4, 4), input_name="input.1")
    assert g.add(layers.Conv2d(2, 3), name=name) == name
    assert list(g.parameter_specs()) == [f"{name}.weight", f"{name}.bias"]
    assert Graph.from_dict(g.to_dict()) == g


@pytest.mark.parametrize(
    "name",
    ["", " ", "a b", "../x", "a/../b", "./a", "a/.", "..", ".a", "-a", "naïve", "a\n", "a\0b",
     "__convserve__", "x" * 256, "input"],
)  # fmt: skip
def test_names_that_are_refused(name: str) -> None:
    g = Graph((1, 4, 4))
    with pytest.raises(ShapeError, match="name"):
        g.add(layers.ReLU(), name=name)
    assert g.nodes == ()


def test_errors_name_the_layer() -> None:
    g = Graph((1, 28, 28))
    with pytest.raises(ShapeError, match=r"layer 'conv1': conv2d: stride 2 does not divide"):
        g.add(layers.Conv2d(4, 3, stride=2))
    with pytest.raises(ShapeError, match=r"layer 'affine1': .* add Flatten\(\) before"):
        g.add(layers.Affine(4))
    with pytest.raises(UnknownNameError, match="layer 'relu1': no layer is named 'nope'"):
        g.add(layers.ReLU(), "nope")
    with pytest.raises(ShapeError, match="layer 'add1': add needs 2 inputs, got 1"):
        g.add(layers.Add())
    with pytest.raises(ShapeError, match="layer 'concat1': concat needs two or more inputs"):
        g.add(layers.Concat())
    with pytest.raises(ShapeError, match="layer 'r': relu needs 1 input, got 2"):
        g.add(layers.ReLU(), "input", "input", name="r")
    g.add(layers.ReLU(), name="r")
    with pytest.raises(ShapeError, match="layer 'r': the name is taken"):
        g.add(layers.ReLU(), name="r")
    with pytest.raises(TypeError, match="op must be an operator"):
        g.add(layers.ReLU)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name must be a string"):
        g.add(layers.ReLU(), name=3)  # type: ignore[arg-type]
    assert [node.name for node in g.nodes] == ["r"]  # what failed left nothing behind


def test_a_failed_add_does_not_use_up_a_name() -> None:
    g = Graph((1, 28, 28))
    with pytest.raises(ShapeError):
        g.add(layers.Conv2d(4, 99))
    assert g.add(layers.Conv2d(4, 3)) == "conv1"


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28, 1), (1, 0, 28), (1, -1, 28), 5, None])
def test_bad_input_shapes(shape: object) -> None:
    with pytest.raises(ShapeError, match="input_shape must be"):
        Graph(shape)  # type: ignore[arg-type]


def test_bad_input_types() -> None:
    with pytest.raises(TypeError, match="input_shape must be an integer"):
        Graph((1, 2.0, 3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="input_name must be a string"):
        Graph((1, 2, 3), input_name=None)  # type: ignore[arg-type]


def test_sizes_over_the_limit_are_refused_at_once() -> None:
    with pytest.raises(ShapeError, match=f"more than {MAX_ELEMENTS} elements"):
        Graph((3, 2**16, 2**16))
    g = Graph((1, 1000, 1000))
    with pytest.raises(ShapeError, match=r"layer 'conv1': .* more than"):
        g.add(layers.Conv2d(10_000, 1))
    with pytest.raises(ShapeError, match=r"layer 'conv1': weight of shape .* more than"):
        g.add(layers.Conv2d(10_000, 999))
    g.add(layers.Flatten())
    with pytest.raises(ShapeError, match="layer 'affine1': weight of shape"):
        g.add(layers.Affine(10_000))


def test_initialise() -> None:
    g = residual()
    params = g.initialise(np.random.default_rng(1))
    assert {name: array.shape for name, array in params.items()} == {
        name: spec.shape for name, spec in g.parameter_specs().items()
    }
    assert all(a.dtype == np.float32 and a.flags.c_contiguous for a in params.values())
    again = g.initialise(1)
    assert all((params[name] == again[name]).all() for name in params)
    assert (params["bn1.running_var"] == 1).all() and (params["bn1.weight"] == 1).all()
    for name in ("conv1.bias", "affine1.bias", "bn1.bias", "bn1.running_mean"):
        assert (params[name] == 0).all()


def test_initial_scale_is_he_before_relu() -> None:
    g = Graph((32, 9, 9))
    g.add(layers.Conv2d(64, 3, padding=1))
    g.add(layers.BatchNorm())
    g.add(layers.ReLU())
    g.add(layers.Flatten())
    g.add(layers.Affine(50))
    params = g.initialise(0)
    assert params["conv1.weight"].std() == pytest.approx((2 / (32 * 9)) ** 0.5, rel=0.03)
    assert params["affine1.weight"].std() == pytest.approx((1 / (64 * 81)) ** 0.5, rel=0.03)


def test_summary_compares_convolutions_with_dense_layers() -> None:
    rows = {row.name: row for row in summarise(residual())}
    conv = rows["conv1"]
    assert (conv.parameters, conv.macs) == (4 * 3 * 9 + 4, 4 * 3 * 9 * 64)
    assert conv.dense_macs == (3 * 64) * (4 * 64)
    assert conv.dense_parameters == (3 * 64) * (4 * 64) + 4 * 64
    assert rows["conv2"].dense_parameters == (4 * 64) ** 2  # no bias there either
    affine = rows["affine1"]
    assert affine[4:] == (11 * 5 + 5, 55, 11 * 5 + 5, 55)
    assert rows["relu1"][4:] == (0, 0, 0, 0)
