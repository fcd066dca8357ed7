"""`convserve eval --server`: the figures of the served model are those of its file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from server_process import ServerProcess

from convserve import architectures, layers
from convserve.cli import cli
from convserve.cli._common import run
from convserve.graph import Graph
from convserve.model_file import ModelFile, Preprocessing, save


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """models/{digits,logits,two}/1/model.npz: of ten probabilities, of logits, of two outputs."""
    root = tmp_path_factory.mktemp("eval")
    rng = np.random.default_rng(1)
    linear = Graph((1, 28, 28))
    linear.add(layers.Flatten())
    linear.add(layers.Affine(10), name="scores")
    two = Graph((1, 28, 28))
    two.add(layers.Flatten(), name="flat")
    two.set_output(two.add(layers.Affine(10)), "a")
    two.set_output("flat", "b")
    graphs = {"digits": architectures.build("lenet"), "logits": linear, "two": two}
    for name, graph in graphs.items():
        path = root / "models" / name / "1" / "model.npz"
        path.parent.mkdir(parents=True)
        made = Preprocessing(28, 28, "grey", (0.13,), (0.31,))
        labels = tuple("0123456789") if name == "digits" else None
        save(path, ModelFile(graph, graph.initialise(rng), labels, made))
    x = rng.integers(0, 256, (70, 28, 28), np.uint8)
    np.savez(root / "data.npz", x=x, y=np.arange(70) % 10)
    np.savez(root / "small.npz", x=x[:, :20, :20], y=np.arange(70) % 10)
    return root


@pytest.fixture(scope="module")
def address(place):
    server = ServerProcess("--model-repository", place / "models", log=place / "log")
    yield server.address
    server.close()


def evaluate(place, *arguments, data="data"):
    told = ("--data", f"npz:{place / data}.npz", "--split", "train", *map(str, arguments))
    return run(cli, ["eval", *told])


@pytest.mark.parametrize("name", ["digits", "logits"])
@pytest.mark.parametrize("tta", ["none", "flip+shift"])
def test_the_same_figures_as_of_the_file(place, address, capsys, name, tta):
    path = place / "models" / name / "1" / "model.npz"
    found = []
    for which in ((path,), ("--server", address, "--model-name", name)):
        assert evaluate(place, *which, "--tta", tta, "--batch-size", 32, "--json") == 0
        found.append(json.loads(capsys.readouterr().out))
    of_file, of_server = found
    assert of_server.pop("model") == name
    assert of_file.pop("model") == str(path)
    assert of_server == of_file
    assert of_file["images"] == 70


def test_the_last_line_is_the_accuracy(place, address, capsys):
    assert evaluate(place, "--server", address, "--model-name", "digits") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("digits on the train images of ")
    assert lines[-1].startswith("accuracy ")


@pytest.mark.parametrize(
    ("name", "data", "fault"),
    [
        ("two", "data", "the model has 2 outputs; eval needs exactly one"),
        ("digits", "small", "the model takes images of (1, 28, 28)"),
        ("absent", "data", "'absent'"),
        (None, "data", "several models"),
    ],
)
def test_no_figure_where_model_and_data_do_not_fit(place, address, capsys, name, data, fault):
    which = () if name is None else ("--model-name", name)
    assert evaluate(place, "--server", address, *which, data=data) == 1
    assert fault in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ((), "give either MODEL or --server HOST:PORT"),
        (("m.npz", "--server", "localhost:1"), "give either MODEL or --server HOST:PORT"),
        (("m.npz", "--model-name", "digits"), "--model-name goes with --server"),
        (("--server", "localhost:1", "--report", "r"), "--report draws what is in a model"),
        (("--server", "localhost:1", "--report-image", __file__), "--report draws"),
        (("--server", "localhost:1", "--threads", "1"), "--threads is for MODEL"),
    ],
)
def test_what_does_not_go_together(place, capsys, arguments, fault):
    assert evaluate(place, *arguments) == 2
    assert fault in capsys.readouterr().err
