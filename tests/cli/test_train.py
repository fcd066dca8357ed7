"""`convserve train`, in this process and as a process of its own that is interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from bar_images import save_bars
from PIL import Image

from convserve import model_file
from convserve.cli import main


def convserve(*args):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, args)])
    return ended.value.code


@pytest.fixture
def digits(tmp_path):
    """A small npz of 3 classes that take a second to learn."""
    return save_bars(tmp_path / "digits.npz", 150)


SMALL = ("--arch", "mlp", "--batch-size", 16, "--epochs", 3, "--shift", 0)


def test_train_and_eval_on_the_embedded_sample(tmp_path, capsys):
    out = tmp_path / "m.npz"
    assert convserve("train", "--epochs", 1, "--arch", "mlp", "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "mnist-sample: 10,000 training, 2,000 test images, 28×28 grey, 10 classes"
    assert re.fullmatch(
        r"epoch 1/1  loss \d\.\d{4}  training \d\d\.\d\d %  [\d,]+ images/s", lines[1]
    )
    assert re.fullmatch(r"wrote .*m\.npz, epoch 1 \(the last\), \d+\.\d s", lines[2])
    assert re.fullmatch(r"accuracy \d\d\.\d\d %", lines[-1])
    assert float(lines[-1].split()[1]) > 85
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.npz", "m.run.toml"]
    assert convserve("eval", out) == 0
    assert capsys.readouterr().out.splitlines()[-1] == lines[-1]


def test_validation_chooses_and_provenance_tells(digits, tmp_path, capsys):
    out = tmp_path / "m.npz"
    args = ("--data", digits, "--out", out, *SMALL, "--validation", 0.2, "--flip", "--seed", 7)
    assert convserve("train", *args, "--optimizer", "adam", "--lr", 0.01) == 0
    text = capsys.readouterr().out
    assert "120 training, 30 validation images" in text.splitlines()[0]
    assert len(re.findall(r"^epoch \d/3 .* validation [\d.]+ %", text, re.MULTILINE)) == 3
    assert re.fullmatch(r"validation accuracy [\d.]+ %", text.splitlines()[-1])
    told = model_file.load(out).provenance
    assert told["arch"] == "mlp"
    assert told["command"].startswith("convserve train --data npz:")
    assert "--validation 0.2 --flip --seed 7" in told["command"]
    assert "--optimizer adam" in told["command"]
    assert told["accuracy_on"] == "validation"
    assert told["config"]["lr"] == 0.01


def test_a_folder_is_trained_on_at_the_size_asked_for(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("day", "night"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 90, (9, 7, 3), np.uint8) + 120 * (name == "day")
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / name / f"{i}.png")
    out = tmp_path / "m.npz"
    args = ("--data", f"folder:{tmp_path / 'images'}", "--out", out, *SMALL, "--batch-size", 4)
    assert convserve("train", *args, "--image-size", "6x4") == 0
    assert "is brought to 6×4 pixels" in capsys.readouterr().out
    loaded = model_file.load(out)
    assert loaded.graph.input_shape == (3, 6, 4)
    assert loaded.labels == ("day", "night")
    assert "--image-size 6x4" in loaded.provenance["command"]
    # No size given: eval takes the model's.
    assert convserve("eval", out, "--data", args[1], "--split", "train") == 0


# The command, which after its second epoch waits for the end of its standard input.
WAITING = """
import sys
from convserve.cli import _training, main
done = _training.TrainingProgress.batch_done
def batch_done(self, images, loss):
    done(self, images, loss)
    if self.epochs_done == 2:
        sys.stdin.read()
_training.TrainingProgress.batch_done = batch_done
main()
"""


def start(digits, out, *args):
    command = [sys.executable, "-c", WAITING, "train", "--data", digits, "--out", out]
    return subprocess.Popen(
        [*map(str, [*command, *args])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_resume_ends_with_the_same_model(
    digits, tmp_path, capsys, number
):
    out, whole = tmp_path / "m.npz", tmp_path / "whole.npz"
    # One thread, as two would wait for each other on a busy machine.
    args = (*SMALL, "--epochs", 20, "--threads", 1)
    with start(digits, out, *args) as process:
        try:
            for line in process.stdout:
                if line.startswith("epoch  2/20"):
                    break
            process.send_signal(number)
            _, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert re.search(
        r"stopped at step \d+ of epoch \d+; .*m\.checkpoint\.npz holds the run up to there, "
        "--resume continues it",
        errors,
    )
    assert "Traceback" not in errors
    assert sorted(p.name for p in tmp_path.glob("m*")) == [
        "m.checkpoint.npz",
        "m.checkpoint.run.toml",
    ]

    assert convserve("train", "--data", digits, "--out", out, *args, "--resume") == 0
    assert convserve("train", "--data", digits, "--out", whole, *args) == 0
    first, second = (model_file.load(path) for path in (out, whole))
    assert model_file.weights_hash(first.params) == model_file.weights_hash(second.params)
    assert sorted(p.name for p in tmp_path.glob("m*")) == ["m.npz", "m.run.toml"]


def test_a_checkpoint_that_was_asked_for_stays(digits, tmp_path, capsys):
    state = tmp_path / "state.npz"
    args = ("train", "--data", digits, "--out", tmp_path / "m.npz", *SMALL, "--checkpoint", state)
    assert convserve(*args) == 0
    assert state.exists()
    assert convserve(*args) == 0
    assert "state.npz is of a run that is done, and is replaced" in capsys.readouterr().err
    assert convserve(*args, "--resume", "--lr", 0.2) == 1
    assert "of another run: lr was 0.05, is 0.2" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--checkpoint"])
def test_the_images_are_not_replaced_by_the_model(digits, tmp_path, capsys, option):
    before = (tmp_path / "digits.npz").read_bytes()
    args = ("--data", digits, *SMALL, "--out", tmp_path / "m.npz")
    assert convserve("train", *args, option, tmp_path / "digits.npz") == 2
    assert "digits.npz holds the images to train on" in capsys.readouterr().err
    assert (tmp_path / "digits.npz").read_bytes() == before


def test_names_that_are_no_utf8(tmp_path, capsys):
    folder = tmp_path / os.fsdecode(b"photos\xff")
    for name in (b"a\xfe", b"b"):
        (folder / os.fsdecode(name)).mkdir(parents=True)
        Image.new("L", (8, 8)).save(folder / os.fsdecode(name) / "1.png")
    out, data = folder / "m.npz", ("--data", f"folder:{folder}")
    args = ("--arch", "mlp", "--batch-size", 2, "--epochs", 1, "--out", out)
    assert convserve("train", *data, *args) == 0
    model = model_file.load(out)
    assert model.labels == ("a\\xfe", "b")
    assert model.provenance["data"] == "folder:photos\\xff"
    assert convserve("eval", out, *data, "--split", "train") == 0


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (("--data", "mnist:nowhere"), 1, "nowhere: no train-images-idx3-ubyte"),
        (("--data", "nowhere"), 1, "data must be one of mnist:DIR"),
        (("--out", "absent/m.npz"), 1, "absent/m.npz: there is no folder absent"),
        (("--resume", "--out", "m.npz"), 1, "there is no checkpoint to resume from"),
        (("--batch-size", 99999), 1, "batch_size 99999 is more than the 10000 training images"),
        (("--image-size", 32), 1, "image size can only be set for folder:DIR"),
        (("--lr", 1e25, "--epochs", 1, "--arch", "mlp"), 1, "training diverged"),
        (("--epochs", 0), 2, "0 is not in the range x>=1"),
        (("--arch", "alexnet"), 2, "'alexnet' is not one of"),
        (("--image-size", "0x3"), 2, "'0x3' is neither N nor HxW"),
        (("--validation", 1.0), 2, "1.0 is not in the range 0<x<1"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, args, status, message):
    monkeypatch.chdir(tmp_path)
    assert convserve("train", *args) == status
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("convserve: error:")
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_image_that_the_network_can_not_take_names_the_layer(digits, tmp_path, capsys):
    assert convserve("train", "--data", digits, "--out", tmp_path / "m.npz") == 1
    assert "layer 'conv2'" in capsys.readouterr().err
