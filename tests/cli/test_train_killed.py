"""A `convserve train` that is killed again and again ends as if nothing had happened."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from bar_images import save_bars
from PIL import Image

from convserve import model_file
from convserve.cli import main
from convserve.datasets import load
from convserve.datasets.decode import WORKERS_FROM
from convserve.errors import CheckpointError
from convserve.graph import architectures
from convserve.training import Progress, train

# The command in a process of its own, that sends itself SIGKILL: when its decoding workers have
# been asked so often, before decoded images get their name, after so many steps, or when it has
# written half of so many arrays, into a checkpoint's temporary file.
LAUNCHER = """
import itertools, os, signal, sys
from pathlib import Path
import numpy as np
from convserve.cli import _training, main
from convserve.datasets import decode

where, after = sys.argv[1], int(sys.argv[2])
calls = itertools.count(1)  # one step, whichever thread takes it

def due():
    return next(calls) == after

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

if where == "decode":
    ask = decode._ask
    def _ask(*given):
        if due():
            kill()
        return ask(*given)
    decode._ask = _ask
elif where == "cache":
    replace = Path.replace
    def _replace(path, target):
        if target.suffix == ".npy":
            kill()
        return replace(path, target)
    Path.replace = _replace
elif where == "step":
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
def photos(tmp_path):
    """(a folder of as many images as worker processes are started for, their pixels in its order):
    a band of each class's own height."""
    count = 5 * -(-WORKERS_FROM // 5)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 100, (count, 12, 12, 3), np.uint8)
    for label, images in enumerate(np.split(x, 5)):
        images[:, 1 + 2 * label : 3 + 2 * label] += 100
        folder = tmp_path / "photos" / f"band{label}"
        folder.mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(folder / f"{number:04}.bmp")
    return tmp_path / "photos", x.transpose(0, 3, 1, 2)


@pytest.fixture
def bars(tmp_path):
    return save_bars(tmp_path / "bars.npz", 100, side=12)


# Augmentation, EMA, lookahead, dropout (the network has it) and two threads; 17 steps an epoch.
SETTINGS = {
    "arch": "deep_convnet",
    "epochs": 3,
    "batch-size": 64,
    "validation": 0.75,
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


def arguments(photos, out, *cache):
    pairs = {**SETTINGS, "data": f"folder:{photos}", "out": out}
    words = [str(word) for name, value in pairs.items() for word in (f"--{name}", value)]
    return ["train", *words, *map(str, cache)]


def suffixes(folder):
    return sorted(path.suffix for path in folder.iterdir())


def test_killed_again_and_again_it_ends_with_the_same_bits(photos, tmp_path, capsys):
    """Twice while workers decode the images, then at five random steps."""
    folder, x = photos
    whole, out, cache = tmp_path / "whole.npz", tmp_path / "m.npz", tmp_path / "cache"
    # What it is compared with is decoded in memory, by threads.
    with pytest.raises(SystemExit) as ended:
        main(arguments(folder, whole, "--no-cache"))
    assert ended.value.code == 0

    def launch(where, after, *again):
        words = arguments(folder, out, "--cache", cache, *again)
        ended = subprocess.run(
            [sys.executable, "-c", LAUNCHER, where, str(after), *words],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip  # it returns once the workers, who have its standard error, are gone too
        assert ended.returncode == -signal.SIGKILL, ended.stderr

    state = tmp_path / "m.checkpoint.npz"
    dice = random.Random(7)
    launch("decode", dice.randint(5, 50))
    assert suffixes(cache) == [".tmp"]
    launch("cache", 1)
    assert suffixes(cache) == [".json", ".tmp", ".tmp"]
    assert not state.exists()
    with np.load(whole) as archive:
        arrays = len(archive.files)
    # A killed writer is past its first checkpoint (three sets of arrays at least), in the second.
    kills = [("step", dice.randint(3, 15)), ("write", dice.randint(1, arrays))]
    kills += [("step", dice.randint(3, 15)), ("write", 4 * arrays + dice.randint(1, arrays))]
    kills += [("step", dice.randint(3, 15))]
    for number, (where, after) in enumerate(kills):
        before = state.read_bytes() if state.exists() else b""
        launch(where, after, *(["--resume"] if number else []))
        (decoded,) = cache.glob("*.npy")
        if not number:
            written = decoded.stat().st_mtime_ns
            assert (np.load(decoded) == x).all()
        assert decoded.stat().st_mtime_ns == written  # the others read it
        assert state.exists()
        left = [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
        assert len(left) == (where == "write")
        if number == 1:
            assert state.read_bytes() == before  # killed in its first checkpoint
    with pytest.raises(SystemExit) as ended:
        main(arguments(folder, out, "--cache", cache, "--resume"))
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


def test_a_full_disk_leaves_the_previous_checkpoint(bars, tmp_path):
    """The limit on a file's size stands for the disk's: the system refuses to write on."""
    state = tmp_path / "state.npz"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    images = load(bars)

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
