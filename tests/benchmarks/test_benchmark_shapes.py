from pathlib import Path

import pytest

from benchmarks.shapes import Layer, read_layers

SHAPES = Path(__file__).parents[2] / "benchmarks" / "shapes"


def test_every_file_of_real_layers_is_read() -> None:
    files = sorted(SHAPES.glob("*.txt"))
    layers = [layer for file in files for layer in read_layers(file)]
    assert len(files) >= 7
    # What the table must have: 1×1, 5×5, 7×7, stride 2, depthwise, 1 and 3 channels.
    assert {1, 3, 5, 7} <= {layer.kernel for layer in layers}
    assert any(layer.stride == 2 for layer in layers)
    assert any(layer.groups == layer.channels > 1 for layer in layers)
    assert {1, 3} <= {layer.channels for layer in layers}


def test_a_layer_knows_its_output_and_its_name(tmp_path: Path) -> None:
    path = tmp_path / "shapes.txt"
    path.write_text("# stem\n\nresnet18 3 224 200 64 7 2 3 1  # the first\n")
    [layer] = read_layers(path)
    assert layer == Layer("resnet18", 3, 224, 200, 64, 7, 2, 3, 1)
    assert layer.output_shape == (64, 112, 100)
    assert str(layer) == "resnet18 3@224×200 7×7 → 64 /2"
    assert layer.file_name == "resnet18_3_224_200_64_7_2_3_1"
    assert str(Layer("m", 8, 7, 7, 8, 3, 1, 1, 8)) == "m 8@7×7 3×3 → 8 depthwise"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("resnet18 3 224 224 64 7 2 3", "must be a network, channels"),
        ("resnet18 3 224 224 64 7 2 3 1 1", "must be a network, channels"),
        ("resnet18 3 224 x 64 7 2 3 1", "must be a network, channels"),
        ("resnet18 3 224 224 64 7 0 3 1", "sizes must be from 1 on"),
        ("resnet18 3 224 224 64 7 2 -1 1", "padding from 0"),
        ("resnet18 3 224 224 64 7 2 3 2", "multiples of groups"),
        ("resnet18 3 4 4 64 7 1 1 1", "larger than the padded input"),
    ],
)
def test_a_malformed_line_is_named(line: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "shapes.txt"
    path.write_text(f"# header\n{line}\n")
    with pytest.raises(ValueError, match=f"line 2: .*{fault}"):
        read_layers(path)
