"""`classify` and `bench` against a server that wants TLS, a certificate and a token."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import certificates
import numpy as np
import pytest
from PIL import Image

import convserve
from convserve.cli import cli
from convserve.cli._common import run
from convserve.model_file import ModelFile, save
from convserve.preprocessing import Preprocessing

TOKEN = "target-0123456789abcdef"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, an image, certificates, and the token as either side keeps it."""
    root = tmp_path_factory.mktemp("target")
    graph = convserve.architectures.build("lenet")
    params = graph.initialise(np.random.default_rng(1))
    meaning = Preprocessing(28, 28, "grey", (0.13,), (0.31,))
    save(root / "model.npz", ModelFile(graph, params, tuple("abcdefghij"), meaning))
    Image.fromarray(np.full((28, 28), 200, np.uint8)).save(root / "image.png")
    certificates.make(root)
    (root / "tokens").write_text(f"infer {TOKEN}\n")
    (root / "token").write_text(f"{TOKEN}\n")
    return root


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "convserve", "serve", "model.npz", "--port", "0"]
    pair = ["--tls-certificate", "server.pem", "--tls-key", "server.key"]
    others = ["--metrics-port", "0", "--tls-client-ca", "ca.pem", "--token-file", "tokens"]
    with subprocess.Popen(
        [*command, *pair, *others], cwd=place, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[1].removeprefix("grpc=")
        finally:
            process.kill()


@pytest.fixture
def proof(place: Path) -> list[str]:
    files = {
        "--tls-ca": "ca.pem",
        "--tls-certificate": "client.pem",
        "--tls-key": "client.key",
        "--token-file": "token",
    }
    return [part for option, name in files.items() for part in (option, str(place / name))]


def test_bench(address: str, proof: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--batch", "1", "--requests", "3", "--warm-up", "0", "--json"]
    for loop in (["--concurrency", "1"], ["--rate", "500"]):
        assert run(cli, ["bench", "--server", address, *proof, *few, *loop]) == 0
        (row,) = json.loads(capsys.readouterr().out)["rows"]
        assert row["statuses"] == {"OK": 3}


def test_classify(
    address: str, place: Path, proof: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    image = str(place / "image.png")
    assert run(cli, ["classify", image, "--server", address, *proof]) == 0
    served = capsys.readouterr().out
    assert run(cli, ["classify", image, "--model", str(place / "model.npz")]) == 0
    assert served == capsys.readouterr().out


def test_without_a_token(
    address: str, proof: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cli, ["bench", "--server", address, *proof[:-2]]) == 1
    assert "a bearer token is needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--model", "m.npz", "--tls"], "go with --server"),
        (["--server", "localhost:1", "--tls-key", "x"], "go together"),
        (["--server", "localhost:1", "--token-file", "{tokens}"], "a token and nothing else"),
        (["--server", "localhost:1", "--token-file", "{none}"], "No such file"),
        (["--server", "localhost:1", "--tls-ca", "{none}"], "No such file"),
    ],
)
def test_wrong_usage(
    place: Path, options: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {"tokens": place / "tokens", "none": place / "none"}
    arguments = [option.format(**known) for option in options]
    assert run(cli, ["classify", str(place / "image.png"), *arguments]) in (1, 2)
    assert problem in capsys.readouterr().err
