"""`convserve classify --server`: a real server in another process gives the same rows."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import convserve
from convserve.cli import _row_writers, cli
from convserve.cli._common import run
from convserve.model_file import ModelFile, save
from convserve.preprocessing import Preprocessing

IMAGES = 150


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """models/{digits,bare}/1/model.npz, of which bare has no preprocessing, and images/."""
    root = tmp_path_factory.mktemp("server")
    graph = convserve.architectures.build("lenet")
    params = graph.initialise(np.random.default_rng(1))
    preprocessing = Preprocessing(28, 28, "grey", (0.13,), (0.31,))
    for name, meaning in [("digits", (tuple("abcdefghij"), preprocessing)), ("bare", (None, None))]:
        (root / "models" / name / "1").mkdir(parents=True)
        save(root / "models" / name / "1" / "model.npz", ModelFile(graph, params, *meaning))
    (root / "images").mkdir()
    rng = np.random.default_rng(2)
    for number in range(IMAGES):
        size = (28, 28) if number % 2 else (35, 50, 3)
        image = Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
        image.save(root / "images" / f"{number:04d}.png")
    return root


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "convserve", "serve", "--port", "0", "--metrics-port", "0"]
    with subprocess.Popen(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            assert ready.startswith("ready grpc=")
            yield ready.split()[1].removeprefix("grpc="), process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    with serving("--model-repository", place / "models") as (address, _):
        yield address


def digits(place: Path) -> Path:
    return place / "models" / "digits" / "1" / "model.npz"


def classify(place: Path, *arguments: object) -> int:
    return run(cli, ["classify", str(place / "images"), *map(str, arguments)])


@pytest.mark.parametrize("batch", [1, 32, 100])
def test_the_same_file_as_with_a_local_model(
    place: Path, address: str, tmp_path: Path, batch: int
) -> None:
    local, remote = tmp_path / "local.csv", tmp_path / "remote.csv"
    assert classify(place, "--model", digits(place), "--output", local) == 0
    options = ["--server", address, "--model-name", "digits", "--batch-size", batch]
    assert classify(place, *options, "--output", remote) == 0
    assert remote.read_bytes() == local.read_bytes()
    assert local.read_bytes().count(b"\n") == IMAGES + 1


@pytest.mark.parametrize(
    ("name", "fault"),
    [("bare", "no preprocessing"), ("other", "other"), (None, "several models")],
)
def test_models_that_can_not_be_used(
    place: Path, address: str, name: str | None, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--server", address] + (["--model-name", name] if name else [])
    assert classify(place, *options) == 1
    assert fault in capsys.readouterr().err


def test_no_server(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:  # bound, and not listening
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        output = tmp_path / "out.csv"
        assert classify(place, "--server", f"127.0.0.1:{port}", "--output", output) == 1
    assert f"127.0.0.1:{port}" in capsys.readouterr().err
    assert not output.exists()


def test_a_server_that_dies_in_the_middle(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    local, remote = tmp_path / "local.csv", tmp_path / "remote.csv"
    assert classify(place, "--model", digits(place), "--output", local) == 0
    write = _row_writers.TextWriter.write
    with serving(digits(place)) as (address, process):

        def kill_and_write(writer: _row_writers.TextWriter, rows: list[_row_writers.Row]) -> None:
            process.kill()
            process.wait()
            write(writer, rows)

        monkeypatch.setattr(_row_writers.TextWriter, "write", kill_and_write)
        options = ["--output", remote, "--batch-size", 4]
        assert classify(place, "--server", address, *options) == 1
    assert "--resume goes on from there" in capsys.readouterr().err
    monkeypatch.undo()
    done = remote.read_bytes()
    assert local.read_bytes().startswith(done) and len(done) < len(local.read_bytes())
    with serving(digits(place)) as (address, _):
        assert classify(place, "--server", address, *options, "--resume") == 0
    assert remote.read_bytes() == local.read_bytes()
