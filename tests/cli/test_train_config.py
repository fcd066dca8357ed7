"""`convserve train --config`: what a file may say, and what the saved one does."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from bar_images import save_bars

from convserve import model_file
from convserve.cli import main
from convserve.cli._run_file import to_toml
from convserve.training.recipes import RECIPES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def convserve(*args):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, args)])
    return ended.value.code


@pytest.fixture
def data(tmp_path):
    return save_bars(tmp_path / "bars.npz", 120)


SMALL = ("--arch", "mlp", "--batch-size", 16, "--epochs", 2)


def weights(path):
    return model_file.weights_hash(model_file.load(path).params)


def test_the_saved_configuration_gives_the_same_model_again(data, tmp_path, capsys):
    out, again = tmp_path / "m.npz", tmp_path / "again.npz"
    options = (
        *("--data", data, "--validation", 0.2, "--optimizer", "muon", "--lr", 0.1, "--ema", 0.9),
        *("--group", "affine1.bias:lr=2,until=1", "--group", "affine2:rule=sgd"),
        *("--freeze", "affine2.bias", "--class-weights", "1,2,1", "--points", "0:1,1:0"),
        *("--schedule", "piecewise", "--arch-option", "hidden=[16, 8]", "--flip", "--seed", 3),
    )
    assert convserve("train", "--out", out, *SMALL, *options) == 0
    saved = tmp_path / "m.run.toml"
    told = tomllib.loads(saved.read_text())
    assert told["groups"] == [
        {"match": "affine1.bias", "lr": 2.0, "until": 1.0},
        {"match": "affine2", "lr": 1.0, "rule": "sgd"},
    ]
    assert told["arch_options"] == {"hidden": [16, 8]}
    assert told["class_weights"] == [1.0, 2.0, 1.0]
    assert (told["data"], told["seed"], told["flip"]) == (data, 3, "random")
    model = model_file.load(out)
    assert model.provenance["options"] == told
    assert model.provenance["config"]["freeze"] == ["affine2.bias"]
    assert not np.any(model.params["affine2.bias"])

    assert convserve("train", "--config", saved, "--out", again) == 0
    assert weights(again) == weights(out)
    assert convserve("train", "--config", saved, "--out", again, "--seed", 4) == 0
    assert weights(again) != weights(out)
    capsys.readouterr()


def test_the_command_line_wins_over_the_file_and_the_file_over_the_recipe(data, tmp_path, capsys):
    file = tmp_path / "run.toml"
    file.write_text(
        f'recipe = "mnist-lenet"\ndata = "{data}"\narch = "mlp"\nbatch_size = 16\n'
        "epochs = 1\nlr = 0.02\narch_options = { hidden = [4] }\nshift = 0\n"
    )
    out = tmp_path / "m.npz"
    assert convserve("train", "--config", file, "--out", out, "--lr", 0.03) == 0
    told = model_file.load(out).provenance
    assert told["arch"] == "mlp"
    assert told["config"]["lr"] == 0.03
    assert told["config"]["epochs"] == 1
    assert told["config"]["label_smoothing"] == RECIPES["mnist-lenet"].settings["label_smoothing"]
    # The other order of the two on the command line changes nothing.
    for order in (("--recipe", "mnist-fast", "--config", file), ("--config", file)):
        assert convserve("train", *order, "--out", out) == 0
        assert model_file.load(out).provenance["config"]["lr"] == 0.02
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "there is no option 'epoch'; is epochs meant?"),
        ("wings = 2", "there is no option 'wings'; there are: arch, arch_options, batch_size"),
        ("epochs = 'many'", "run.toml: epochs must be an integer, not 'many'"),
        ("epochs = [1]", "epochs must be an integer, not [1]"),
        ("epochs = 2.5", "epochs must be an integer, not 2.5"),
        ("epochs = 0", "0 is not in the range x>=1"),
        ("seeds = [2]", "seeds must be an integer, not [2]"),
        ("shift = [2]", "shift must be an integer, not [2]"),
        ("patience = true", "patience must be an integer, not True"),
        ("clip = []", "clip must be a number, not []"),
        ("lr = []", "lr must be a number, not []"),
        ("lr = '0.1'", "lr must be a number, not '0.1'"),
        ("warmup = {}", "warmup must be a number, not {}"),
        ("whiten = 1", "whiten must be true or false, not 1"),
        ("flip = true", "flip must be a string, not True"),
        ("arch = 3", "arch must be a string, not 3"),
        ("cache = 3", "cache must be a string, not 3"),
        ("image_size = [3, 3]", "image_size must be an integer or a string, not [3, 3]"),
        ("checkpoint_every = {}", "checkpoint_every must be an integer or a string, not {}"),
        ("freeze = 'conv1'", "freeze must be a list, each a string, not 'conv1'"),
        ("freeze = [1]", "freeze must be a list, each a string, not [1]"),
        ("groups = 'affine1'", "groups must be a list, each a table or a string, not 'affine1'"),
        ("class_weights = {}", "class_weights must be a list or a string, not {}"),
        ("points = 1", "points must be a list or a string, not 1"),
        ("optimizer = 'sgd'\noptimiser = 'adam'", "optimizer and optimiser are the same option"),
        ("keep-last = 0", "keep-last must be true or false, not 0"),
        ("epochs = ", "run.toml: Invalid value"),
        ("groups = [{ lr = 1 }]", "a group needs match"),
        ("points = [1, 2]", "is not SHARE:FACTOR"),
        ("class_weights = 'even'", "is not balanced or NUMBER"),
        ("recipe = 'best'", "'best' is not one of"),
        ("arch_options = 3", "must be a list, each a string, or a table, not 3"),
        ("resume = true", "there is no option 'resume'"),
    ],
)
def test_wrong_files_are_refused(tmp_path, capsys, text, message):
    file = tmp_path / "run.toml"
    file.write_text(text)
    assert convserve("train", "--config", file, "--out", tmp_path / "m.npz") in (1, 2)
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.toml"]


def test_a_file_takes_an_options_long_names_too(data, tmp_path, capsys):
    file, out = tmp_path / "run.toml", tmp_path / "m.npz"
    file.write_text(
        f'data = "{data}"\narch = "mlp"\nbatch-size = 16\nepochs = 1\noptimizer = "adam"\n'
        'initialization = "dirac"\ngroup = ["affine1:lr=2", { match = "affine2", lr = 3 }]\n'
        'arch_option = ["hidden=[8]"]\nkeep_last = false\nwarmup = 0\nseed = 1\n'
    )
    assert convserve("train", "--config", file, "--out", out) == 0
    told = tomllib.loads((tmp_path / "m.run.toml").read_text())
    assert told["optimiser"] == "adam"
    assert told["initialisation"] == "dirac"
    assert told["arch_options"] == {"hidden": [8]}
    assert [group["lr"] for group in told["groups"]] == [2, 3]
    assert told["drop_last"] is True
    file.write_text('report_image = ["absent.png"]')
    assert convserve("train", "--config", file, "--out", out) == 2
    assert "'absent.png' does not exist" in capsys.readouterr().err
    for spelling in ("arch_options", "arch-option"):
        file.write_text(f"{spelling} = {{ hidden = [8] }}\narch = 'mlp'\nepochs = 1\nlr = 1e-9")
        assert convserve("train", "--config", file, "--out", out) == 0
        assert model_file.load(out).params["affine1.bias"].shape == (8,)


def test_text_survives_toml():
    values = {"a": 'quote " \\ back\nline\tü\x7f\x01', "b": [1, 2.5, True], "c": {"d": [1e-8]}}
    assert tomllib.loads(to_toml(values, "comment")) == values
