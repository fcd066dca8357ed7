"""The files of `convserve train`: what is replaced, what is kept, and what belongs together."""

from __future__ import annotations

import signal
import sys

import numpy as np
import pytest
from bar_images import save_bars
from PIL import Image

from convserve import model_file
from convserve.cli import _training, main
from convserve.training import checkpoint

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def train(*args):
    with pytest.raises(SystemExit) as ended:
        main(["train", *map(str, args)])
    return ended.value.code


@pytest.fixture
def data(tmp_path):
    return save_bars(tmp_path / "bars.npz", 60)


SMALL = ("--arch", "mlp", "--batch-size", 16, "--shift", 0)


def interrupt(monkeypatch, batches):
    """Ctrl-C in the batch of that number, of the next run only."""
    count, done = 0, _training.TrainingProgress.batch_done

    def batch_done(self, images, loss):
        nonlocal count
        done(self, images, loss)
        count += 1
        if count == batches:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_training.TrainingProgress, "batch_done", batch_done)


def told(path):
    return tomllib.loads(path.read_text(encoding="utf-8"))


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "bars.npz")


def weights(path):
    return model_file.weights_hash(model_file.load(path).params)


@pytest.mark.parametrize("kind", ["text", "model"])
@pytest.mark.parametrize("given", [True, False])
def test_what_is_no_checkpoint_is_not_replaced(data, tmp_path, capsys, kind, given):
    args = ("--data", data, *SMALL, "--epochs", 1, "--out", tmp_path / "m.npz")
    path = tmp_path / ("mine" if given else "m.checkpoint.npz")
    if kind == "text":
        path.write_text("the work of years")
    else:
        assert train(*args[:-1], path) == 0
    before = path.read_bytes()
    capsys.readouterr()
    assert train(*args, *(("--checkpoint", path) if given else ())) == 1
    assert (
        f"{path}: it exists, is not a checkpoint, and would be replaced" in capsys.readouterr().err
    )
    assert path.read_bytes() == before
    assert not (tmp_path / "m.npz").exists()
    path.write_bytes(b"")  # as mktemp makes it
    assert train(*args, *(("--checkpoint", path) if given else ())) == 0


def test_the_state_of_an_unfinished_run_is_kept(data, tmp_path, capsys, monkeypatch):
    out, whole = tmp_path / "m.npz", tmp_path / "whole.npz"
    args = ("--data", data, *SMALL, "--epochs", 3, "--out")
    assert train(*args, whole, "--lr", 0.02) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        assert train(*args, out, "--lr", 0.02) == 130
    state = (tmp_path / "m.checkpoint.npz").read_bytes()
    capsys.readouterr()

    # One that fails before it has a checkpoint of its own leaves all as it was.
    before = names(tmp_path)
    assert train(*args, out, "--lr", 1e25) == 1
    errors = capsys.readouterr().err
    assert "m.checkpoint.npz is of an unfinished run, which --resume would have continued" in errors
    assert "it is kept as m.checkpoint.earlier.npz once this run writes its own" in errors
    assert names(tmp_path) == before
    assert (tmp_path / "m.checkpoint.npz").read_bytes() == state
    assert told(tmp_path / "m.checkpoint.run.toml")["lr"] == 0.02

    assert train(*args, out, "--lr", 0.03) == 0
    kept = tmp_path / "m.checkpoint.earlier.npz"
    assert kept.read_bytes() == state
    assert not (tmp_path / "m.checkpoint.npz").exists()
    told_then = tmp_path / "m.checkpoint.earlier.run.toml"
    assert told(told_then)["lr"] == 0.02
    assert train("--config", told_then, "--out", out, "--checkpoint", kept, "--resume") == 0
    assert weights(out) == weights(whole)


def test_all_unfinished_runs_are_kept_and_nothing_else_goes_for_them(
    data, tmp_path, capsys, monkeypatch
):
    out, mine = tmp_path / "m.npz", tmp_path / "m.checkpoint.earlier.npz"
    args = ("--data", data, *SMALL, "--epochs", 3, "--out", out, "--lr")
    mine.write_text("the work of years")
    states = []
    for rate in (0.01, 0.02, 0.03):
        with monkeypatch.context() as patch:
            interrupt(patch, 5)
            assert train(*args, rate) == 130
        states.append((tmp_path / "m.checkpoint.npz").read_bytes())
    assert "it is kept as m.checkpoint.earlier3.npz once" in capsys.readouterr().err
    assert mine.read_text() == "the work of years"
    for number, rate, state in zip((2, 3), (0.01, 0.02), states, strict=False):
        assert (tmp_path / f"m.checkpoint.earlier{number}.npz").read_bytes() == state
        assert told(tmp_path / f"m.checkpoint.earlier{number}.run.toml")["lr"] == rate
    assert told(tmp_path / "m.checkpoint.run.toml")["lr"] == 0.03


def test_a_checkpoint_that_can_not_be_written_moves_nothing(data, tmp_path, capsys, monkeypatch):
    args = ("--data", data, *SMALL, "--epochs", 3, "--out", tmp_path / "m.npz")
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        assert train(*args) == 130

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(np.lib.format, "write_array", full)
    assert train(*args, "--lr", 0.03) == 1
    assert "No space left" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", ["text", "checkpoint"])
def test_what_is_no_model_is_not_replaced_by_one(data, tmp_path, capsys, monkeypatch, kind):
    args = ("--data", data, *SMALL, "--epochs", 1, "--out")
    path = tmp_path / "m.checkpoint.npz"
    if kind == "text":
        path.write_text("the work of years")
    else:
        with monkeypatch.context() as patch:
            interrupt(patch, 1)
            assert train(*args, tmp_path / "m.npz") == 130
    before = path.read_bytes()
    capsys.readouterr()
    assert train(*args, path) == 1
    said = f"{path}: it exists, is not a model, and would be replaced by one"
    assert said in capsys.readouterr().err
    assert path.read_bytes() == before
    path.write_bytes(b"")  # as mktemp makes it
    for _ in range(2):
        assert train(*args, path) == 0


@pytest.mark.parametrize("ends", ["diverges", "is interrupted"])
def test_a_model_and_its_options_belong_together(data, tmp_path, capsys, monkeypatch, ends):
    out, saved = tmp_path / "m.npz", tmp_path / "m.run.toml"
    args = ("--data", data, *SMALL, "--epochs", 2, "--out", out)
    assert train(*args, "--seed", 5) == 0
    before = out.read_bytes(), saved.read_bytes()
    with monkeypatch.context() as patch:
        if ends == "diverges":
            assert train(*args, "--lr", 1e25) == 1
            assert names(tmp_path) == ["m.npz", "m.run.toml"]
        else:
            interrupt(patch, 3)
            assert train(*args, "--seed", 6, "--arch-option", "hidden=[8]") == 130
            assert told(tmp_path / "m.checkpoint.run.toml")["seed"] == 6
    assert (out.read_bytes(), saved.read_bytes()) == before
    if ends == "is interrupted":
        again = ("--config", tmp_path / "m.checkpoint.run.toml", "--resume")
        assert train(*again) == 0
        assert names(tmp_path) == ["m.npz", "m.run.toml"]
        assert told(saved) == model_file.load(out).provenance["options"]
        assert told(saved)["seed"] == 6


def test_a_better_epochs_model_comes_with_its_options(data, tmp_path, capsys, monkeypatch):
    out, saved = tmp_path / "m.npz", tmp_path / "m.run.toml"
    args = ("--data", data, *SMALL, "--epochs", 3, "--validation", 0.2, "--out", out)
    assert train(*args, "--seed", 5) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 4)  # in the second epoch
        assert train(*args, "--seed", 6) == 130
    assert told(saved)["seed"] == model_file.load(out).provenance["seed"] == 6
    assert checkpoint.is_unfinished(tmp_path / "m.checkpoint.npz")


@pytest.mark.parametrize("option", ["--out", "--checkpoint"])
def test_an_image_to_train_on_is_not_replaced(tmp_path, capsys, option):
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("L", (8, 8), 40 * i).save(tmp_path / "photos" / name / f"{i}.png")
    image = tmp_path / "photos" / "a" / "1.png"
    before = image.read_bytes()
    args = ("--data", f"folder:{tmp_path / 'photos'}", "--arch", "mlp", "--batch-size", 2)
    args += ("--epochs", 1, "--out", tmp_path / "photos" / "m.npz")
    assert train(*args, option, image) == 2
    assert "1.png is a file of the data, folder:" in capsys.readouterr().err
    assert image.read_bytes() == before
    for _ in range(2):  # a model among the data is no part of them
        assert train(*args) == 0


def test_a_place_for_the_options_is_looked_for_before_training(data, tmp_path, capsys):
    (tmp_path / "m.run.toml").mkdir()
    assert train("--data", data, *SMALL, "--out", tmp_path / "m.npz") == 1
    streams = capsys.readouterr()
    assert "m.run.toml: it exists and is not a regular file" in streams.err
    assert "epoch" not in streams.out


def test_what_a_killed_run_has_half_written_goes(tmp_path, data):
    for name in ("m.npz", "m.checkpoint.npz", "m.run.toml", "m.checkpoint.run.toml"):
        (tmp_path / f".{name}.{'0a' * 8}.tmp").write_bytes(b"half")
    assert train(*SMALL, "--data", data, "--epochs", 1, "--out", tmp_path / "m.npz") == 0
    assert names(tmp_path) == ["m.npz", "m.run.toml"]
