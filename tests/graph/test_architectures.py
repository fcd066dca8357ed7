"""Ready-made architectures: their layers, sizes and options."""

from __future__ import annotations

import pytest

from convserve.errors import ShapeError, UnknownNameError
from convserve.graph import Graph, architectures, layers, summarise


def parameters(g: Graph) -> int:
    return sum(row.parameters for row in summarise(g))


@pytest.mark.parametrize(
    "name, shape, count",
    [
        ("cifar_vgg", (3, 32, 32), 3_248_202),
        ("deep_convnet", (1, 28, 28), 123_552),
        ("lenet", (1, 28, 28), 61_706),
        ("mlp", (1, 28, 28), 101_770),
        ("resnet20", (3, 32, 32), 274_042),  # 0.27 M in He et al., table 6; option B adds 2.7 k
        ("simple_convnet", (1, 28, 28), 433_890),
    ],
)
def test_parameter_counts(name: str, shape: tuple[int, int, int], count: int) -> None:
    g = architectures.build(name)
    assert g.input_shape == architectures.default_input_shape(name) == shape
    # trainable and running statistics; He et al. do not count the latter
    running = sum(spec.shape[0] for spec in g.parameter_specs().values() if not spec.trainable)
    assert parameters(g) - running == count - (1_568 if name == "resnet20" else 0)
    assert Graph.from_dict(g.to_dict()) == g


@pytest.mark.parametrize("name", architectures.names())
def test_all_end_in_affine_and_softmax(name: str) -> None:
    g = architectures.build(name, classes=7)
    assert isinstance(g.nodes[-1].op, layers.Softmax) and g.nodes[-1].shape == (7,)
    assert list(g.outputs.items()) == [("output", g.nodes[-1].name)]
    logits = g.node(g.resolve("logits"))
    while isinstance(logits.op, layers.Dropout):
        logits = g.node(logits.inputs[0])
    assert isinstance(logits.op, layers.Affine) and logits.op.out_features == 7


def shapes(g: Graph, *kinds: type[layers.Operator]) -> list[tuple[int, ...]]:
    return [node.shape for node in g.nodes if isinstance(node.op, kinds)]


def test_lenet_is_the_one_of_the_papers() -> None:
    g = architectures.build("lenet")
    assert shapes(g, layers.Conv2d, layers.MaxPool2d, layers.Affine) == [
        (6, 28, 28), (6, 14, 14), (16, 10, 10), (16, 5, 5), (120,), (84,), (10,),
    ]  # fmt: skip


def test_deep_convnet_divides_down_to_four() -> None:
    g = architectures.build("deep_convnet")
    assert shapes(g, layers.MaxPool2d) == [(16, 14, 14), (32, 8, 8), (64, 4, 4)]
    assert [n.op.rate for n in g.nodes if isinstance(n.op, layers.Dropout)] == [0.5, 0.5]
    g = architectures.build("deep_convnet", dropout=0)
    assert shapes(g, layers.Dropout) == []


def test_resnet20_has_three_stages_of_three_blocks() -> None:
    g = architectures.build("resnet20")
    assert shapes(g, layers.Add) == [(16, 32, 32)] * 3 + [(32, 16, 16)] * 3 + [(64, 8, 8)] * 3
    convs = [node.op for node in g.nodes if isinstance(node.op, layers.Conv2d)]
    assert len([c for c in convs if c.kernel_size == (3, 3)]) == 19
    assert len([c for c in convs if c.kernel_size == (1, 1)]) == 2  # projection shortcuts
    assert not any(c.bias for c in convs)
    assert len(shapes(g, layers.BatchNorm)) == 21
    assert len(shapes(architectures.build("resnet20", blocks=5), layers.Add)) == 15


def test_other_input_sizes() -> None:
    assert architectures.build("lenet", (3, 32, 32)).shape("pool2") == (16, 6, 6)
    assert architectures.build("resnet20", (3, 33, 47)).nodes[-1].shape == (10,)
    assert architectures.build("mlp", (3, 5, 7), hidden=()).shape("affine1") == (10,)
    with pytest.raises(ShapeError, match=r"^lenet .* of 27×27 pixels: layer 'pool1': .* divide"):
        architectures.build("lenet", (1, 27, 27))
    with pytest.raises(ShapeError, match="layer 'conv2'"):
        architectures.build("lenet", (1, 4, 4))


def test_unknown_names_and_options() -> None:
    with pytest.raises(UnknownNameError, match="no architecture is named 'alexnet'; there are: "):
        architectures.build("alexnet")
    with pytest.raises(UnknownNameError, match="lenet has no option 'hidden'; it has: none"):
        architectures.build("lenet", hidden=3)
    with pytest.raises(UnknownNameError, match="mlp has no option 'h'; it has: hidden, dropout"):
        architectures.build("mlp", h=3)
    with pytest.raises(UnknownNameError, match="no option 'classes_'"):
        architectures.build("mlp", classes_=3)
    with pytest.raises(ShapeError, match="out_features must be from 1"):
        architectures.build("lenet", classes=0)


@pytest.mark.parametrize(
    ("name", "option", "value", "allowed"),
    [
        ("mlp", "hidden", 64, "a list of integers from 1"),
        ("mlp", "hidden", [64, 1.5], "a list of integers from 1"),
        ("mlp", "hidden", "64", "a list of integers from 1"),
        ("airbench", "widths", [8, True, 8], "a list of integers from 1"),
        ("resnet20", "blocks", "3", "an integer from 1"),
        ("resnet20", "blocks", 0, "an integer from 1"),
        ("cifar_vgg", "hidden", [512], "an integer from 1"),
        ("mlp", "dropout", "0.5", "a number from 0 to below 1"),
        ("deep_convnet", "dropout", 1, "a number from 0 to below 1"),
        ("deep_convnet", "dropout", float("nan"), "a number from 0 to below 1"),
    ],
)
def test_values_that_an_option_cannot_have(
    name: str, option: str, value: object, allowed: str
) -> None:
    with pytest.raises(ShapeError) as error:
        architectures.build(name, **{option: value})
    assert str(error.value) == f"{option} of {name} must be {allowed}, not {value!r}"


def test_resnet20_needs_a_stage() -> None:
    with pytest.raises(ShapeError, match="widths must have a number for one stage or more"):
        architectures.build("resnet20", widths=[])
