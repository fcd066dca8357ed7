"""`convserve demo`: the whole job works, and its server never outlives it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import convserve
from convserve.cli import cli
from convserve.cli._child_server import child_server
from convserve.cli._common import run
from convserve.model_file import ModelFile, save


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "lenet.npz"
    graph = convserve.architectures.build("lenet")
    save(path, ModelFile(graph, graph.initialise(np.random.default_rng(1))))
    return path


def answers(address: str) -> bool:
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_the_whole_job(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a demo"
    for _ in range(2):  # again over what is there
        assert run(cli, ["demo", "--dir", str(folder), "--epochs", "1"]) == 0
        out = capfd.readouterr().out
        accuracy = re.search(r"^accuracy (\d+\.\d\d) % on 2,000 held-out digits$", out, re.M)
        assert accuracy and float(accuracy[1]) > 90
        assert re.search(r"^[\d,]+ images/s over gRPC", out, re.M)
        assert out.count(".png  ") == 8 and f"convserve serve '{folder / 'lenet.npz'}'" in out
        address = re.search(r"# now at (\S+)$", out, re.M)
        assert address and not answers(address[1])
    assert len(list((folder / "digits").iterdir())) == 2000
    with Image.open(folder / "feature_maps.png") as picture:
        assert picture.size[0] > 900
    assert convserve.load(folder / "lenet.npz").labels == tuple("0123456789")
    assert sorted(p.name for p in folder.iterdir()) == [
        "digits",
        "feature_maps.png",
        "lenet.npz",
        "lenet.run.toml",
    ]


def test_the_server_ends_with_the_block(model: Path) -> None:
    with pytest.raises(ValueError, match="broken"), child_server(model) as address:
        assert answers(address)
        raise ValueError("broken")
    assert not answers(address)


def test_the_server_ends_when_its_parent_is_told_to(model: Path) -> None:
    code = (
        "import pathlib, signal, sys\n"
        "from convserve.cli._child_server import child_server\n"
        "with child_server(pathlib.Path(sys.argv[1])) as address:\n"
        "    print(address, flush=True)\n"
        "    signal.pause()\n"
    )
    command = [sys.executable, "-c", code, str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        address = parent.stdout.readline().strip()
        assert answers(address)
        parent.terminate()
        assert parent.wait(120) == 128 + signal.SIGTERM
    assert not answers(address)


def test_a_server_that_does_not_get_ready(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.npz").write_bytes(b"no model")
    with (
        pytest.raises(Exception, match="did not get ready; its messages are above"),
        child_server(tmp_path / "bad.npz"),
    ):
        pytest.fail("no server")
    assert "bad.npz" in capfd.readouterr().err
