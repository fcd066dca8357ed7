"""A `convserve train` that is killed again and again ends as if nothing had happened."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from convserve import model_file
from convserve.cli import main
from convserve.datasets import load
from convserve.errors import CheckpointError
from convserve.graph import architectures
from convserve.training import Progress, train

# The command in a process of its own, that sends itself SIGKILL: after so many steps, or when it
# has written half of so many arrays, into a checkpoint's temporary file.
LAUNCHER = """
import os, signal, sys
import numpy as np
from convserve.cli import _training, main

where, after = sys.argv[1], int(sys.argv[2])
count = 0

def due():
    global count
    count += 1
    return count == after

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

if where == "step":
    done = _training.TrainingProgress.batch_done
    def batch_done(self, images, loss):
        done(self, images, loss)
        if due():
            kill()
    _training.TrainingProgress.batch_done = batch_done
elif where == "write":
    write = np.lib.format.write_array
    def write_array(file, array, **options):
        if due():
            file.write(b"half of it")
            kill()
        write(file, array, **options)
    np.lib.format.write_array = write_array
main(sys.argv[3:])
"""


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    y = np.arange(100) % 3
    x = rng.integers(0, 100, (100, 12, 12), np.uint8)
    for image, label in zip(x, y, strict=True):
        image[1 + 3 * label : 4 + 3 * label] += 100
    path = tmp_path / "bars.npz"
    np.savez(path, x=x, y=y)
    return f"npz:{path}"


# Augmentation, EMA, lookahead, dropout (the network has it) and two threads; 5 steps an epoch.
SETTINGS = {
    "arch": "deep_convnet",
    "epochs": 5,
    "batch-size": 16,
    "validation": 0.2,
    "shift": 2,
    "rotation": 10,
    "flip": "alternating",
    "cutout": 3,
    "mixup": 0.2,
    "lr": 0.01,
    "clip": 5,
    "ema": 0.9,
    "lookahead": 3,
    "seed": 1,
    "threads": 2,
    "checkpoint-every": 2,
}


def arguments(data, out):
    pairs = {**SETTINGS, "data": data, "out": out}
    words = [str(word) for name, value in pairs.items() for word in (f"--{name}", value)]
    return ["train", *words]


def test_killed_five_times_it_ends_with_the_same_bits(data, tmp_path, capsys):
    whole, out = tmp_path / "whole.npz", tmp_path / "m.npz"
    with pytest.raises(SystemExit) as ended:
        main(arguments(data, whole))
    assert ended.value.code == 0

    state = tmp_path / "m.checkpoint.npz"
    dice = random.Random(7)
    with np.load(whole) as archive:
        arrays = len(archive.files)
    # A killed writer is past its first checkpoint (three sets of arrays at least), in the second.
    kills = [("step", dice.randint(3, 4)), ("write", dice.randint(1, arrays))]
    kills += [("step", dice.randint(3, 5)), ("write", 4 * arrays + dice.randint(1, arrays))]
    kills += [("step", dice.randint(2, 4))]
    for number, (where, after) in enumerate(kills):
        before = state.read_bytes() if state.exists() else b""
        again = ["--resume"] if number else []
        words = [sys.executable, "-c", LAUNCHER, where, str(after), *arguments(data, out), *again]
        ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert state.exists()
        left = [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
        assert len(left) == (where == "write")
        if number == 1:
            assert state.read_bytes() == before  # killed in its first checkpoint
    with pytest.raises(SystemExit) as ended:
        main([*arguments(data, out), "--resume"])
    assert ended.value.code == 0

    first, second = model_file.load(out), model_file.load(whole)
    assert first.params.keys() == second.params.keys()
    for name, value in first.params.items():
        assert value.tobytes() == second.params[name].tobytes(), name
    told = [model.provenance for model in (first, second)]
    assert told[0]["epoch"] == told[1]["epoch"]
    assert told[0]["validation_accuracy"] == told[1]["validation_accuracy"]
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
    capsys.readouterr()


def test_a_full_disk_leaves_the_previous_checkpoint(data, tmp_path):
    """The limit on a file's size stands for the disk's: the system refuses to write on."""
    state = tmp_path / "state.npz"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    images = load(data)

    class Fill(Progress):
        def epoch_done(self, record):
            self.kept = state.read_bytes()
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(self.kept) // 2, limits[1]))

    fill = Fill()
    graph = architectures.build("mlp", images.input_shape, 3)
    try:
        with pytest.raises(
            CheckpointError, match=r"state\.npz: can't be written: .*File too large"
        ):
            train(graph, images, checkpoint=state, progress=fill, epochs=3, batch_size=50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert state.read_bytes() == fill.kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bars.npz", "state.npz"]
    train(graph, images, checkpoint=state, resume=True, epochs=3, batch_size=50)
