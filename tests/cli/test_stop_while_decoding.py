"""Signals to `convserve train` while it decodes a folder, which may take hours."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from convserve.cli import main
from convserve.datasets import cifar10, folder

# The command, with worker processes from so many files on.
LAUNCHER = """
import sys
from convserve.cli import main
from convserve.datasets import decode
decode.WORKERS_FROM = int(sys.argv[1])
main(sys.argv[2:])
"""


@pytest.fixture
def photos(tmp_path):
    """A minute of work: 36 million pixels each."""
    for name in "ab":
        (tmp_path / "photos" / name).mkdir(parents=True)
    first = tmp_path / "photos" / "a" / "0.png"
    Image.new("L", (6000, 6000)).save(first)
    for i in range(1, 600):
        (tmp_path / "photos" / "ab"[i % 2] / f"{i}.png").hardlink_to(first)
    return tmp_path / "photos"


def options(photos):
    cache = photos.parent / "cache"
    args = ("--data", f"folder:{photos}", "--image-size", 8, "--cache", cache)
    return [*map(str, args)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers_from", [1, 10**6], ids=["workers", "threads"])
def test_the_first_signal_ends_it(photos, number, workers_from):
    out = photos.parent / "m.npz"
    words = ["train", *options(photos), "--arch", "mlp", "--out", str(out)]
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(workers_from), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            cache = photos.parent / "cache"
            until = time.monotonic() + 60
            while not list(cache.glob("*.tmp")) and time.monotonic() < until:
                assert process.poll() is None
                time.sleep(0.05)
            time.sleep(0.3)
            process.send_signal(number)
            output, errors = process.communicate(timeout=300)
        finally:
            process.kill()
    # Once all is decoded it would end with a step.
    assert errors == "convserve: stopped while the data were read\n"
    assert output == ""
    assert process.returncode == 128 + number
    assert sorted(path.name for path in photos.parent.iterdir()) == ["cache", "photos"]
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("read", ["the first header", "a pickle"])
def test_it_is_not_taken_for_a_damaged_file(tmp_path, capsys, monkeypatch, read):
    """Whoever reads files of strangers catches every Exception."""

    def opened(*args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the signal was passed over")

    def decoded(*args, **kwargs):
        raise AssertionError("the folder was decoded")

    if read == "a pickle":
        kind = "cifar10"
        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
            (tmp_path / name).write_bytes(b"")
        monkeypatch.setattr(cifar10._BatchUnpickler, "load", opened)
    else:
        kind = "folder"
        for name in "ab":
            (tmp_path / name).mkdir()
            Image.new("L", (8, 8)).save(tmp_path / name / "0.png")
        monkeypatch.setattr(Image, "open", opened)
        monkeypatch.setattr(folder, "decode", decoded)
    with pytest.raises(SystemExit) as ended:
        main(["train", "--data", f"{kind}:{tmp_path}", "--out", str(tmp_path / "m.npz")])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "convserve: stopped while the data were read\n"


def test_a_step_under_way_is_ended_and_that_is_said(tmp_path, capfd, monkeypatch):
    from convserve.cli import _training

    def batch_done(self, images, loss):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_training.TrainingProgress, "batch_done", batch_done)
    with pytest.raises(SystemExit) as ended:
        main(["train", "--arch", "mlp", "--out", str(tmp_path / "m.npz")])
    assert ended.value.code == 130
    said, stopped = capfd.readouterr().err.splitlines()
    assert said == ("convserve: stopping after the step under way; a second signal ends it at once")
    assert stopped.startswith("convserve: stopped at step 1 of epoch 1; ")
