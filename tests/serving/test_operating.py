"""A running process, its operators and its neighbours: new versions, SIGHUP, layers, memory."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest

from convserve import model_file
from convserve.engine.model import Model
from convserve.engine.repository import ModelRepository
from convserve.errors import ConvserveError
from convserve_client import Client, errors

WAIT = 120.0
HIDDEN = ["conv1", "pool1"]


@pytest.fixture
def own(tmp_path, digits_path):
    """A repository of the test's own: digits/1, whose layers may be asked for, and closed/1."""
    for name in ("digits", "closed"):
        publish(tmp_path / "models" / name, 1, digits_path)
    (tmp_path / "models" / "digits" / "config.toml").write_text("layer_outputs = true\n")
    return tmp_path / "models"


def publish(folder, version, source):
    """As operators do it: write beside, then rename."""
    made = folder / f"{version}.tmp"
    made.mkdir(parents=True)
    (made / "model.npz").write_bytes(source if isinstance(source, bytes) else source.read_bytes())
    made.rename(folder / str(version))


def wait_until(condition):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_polling_layers_and_shared_memory(start_server, own, repository, digits, pixels):
    server = start_server(
        "--model-repository", own, "--model-control-mode", "poll",
        "--repository-poll-secs", "0.05", "--system-shared-memory",
    )  # fmt: skip
    expected = digits.predict(pixels, outputs=HIDDEN)
    with Client(server.address) as client, Client(server.address, shared_memory=True) as local:
        for caller in (client, local):
            answer = caller.predict(pixels, model="digits", outputs=HIDDEN)
            assert list(answer) == HIDDEN
            for name in HIDDEN:
                np.testing.assert_array_equal(answer[name], expected[name])
        many = np.concatenate([pixels] * 4)
        np.testing.assert_array_equal(local.predict(many, model="digits"), digits.predict(many))
        with pytest.raises(errors.InvalidRequestError, match="unexpected inference output 'conv1'"):
            client.predict(pixels, model="closed", outputs=["conv1"])
        with pytest.raises(errors.InvalidRequestError, match="unexpected inference output 'conv9'"):
            client.predict(pixels, model="digits", outputs=["conv9"])

        other = repository / "digits" / "2" / "model.npz"
        publish(own / "digits", 2, other)
        fresh = Model.from_file(model_file.load(other), name="digits").predict(pixels)
        wait_until(lambda: np.array_equal(client.predict(pixels, model="digits"), fresh))
        publish(own / "digits", 3, b"PK\3\4 no model")
        wait_until(lambda: "3" in server.log and "model.npz" in server.log)
        np.testing.assert_array_equal(client.predict(pixels, model="digits"), fresh)


def test_deleting_the_newest_version_rolls_back(start_server, own, repository, digits, pixels):
    other = repository / "digits" / "2" / "model.npz"
    publish(own / "digits", 2, other)
    fresh = Model.from_file(model_file.load(other), name="digits").predict(pixels)
    server = start_server(
        "--model-repository", own, "--model-control-mode", "poll", "--repository-poll-secs", "0.05"
    )
    with Client(server.address) as client:
        np.testing.assert_array_equal(client.predict(pixels, model="digits"), fresh)
        (own / "digits" / "2").rename(own / "digits" / "2.old")
        old = digits.predict(pixels)
        wait_until(lambda: np.array_equal(client.predict(pixels, model="digits"), old))


def warmup(own, file):
    text = f"""
        [[model_warmup]]
        batch_size = 3
        [model_warmup.inputs.input]
        input_data_file = {file!r}
    """
    (own / "digits" / "config.toml").write_text(text)


def test_warmup_with_a_file(start_server, own, pixels):
    """It is read: one of the wrong size, or outside the model's own folder, ends the start."""
    folder = own / "digits" / "warmup"
    folder.mkdir()
    (folder / "image").write_bytes(pixels[0].astype("<f4").tobytes())
    warmup(own, "image")
    server = start_server("--model-repository", own)
    with Client(server.address) as client:
        assert client.predict(pixels, model="digits").shape == (16, 10)
    outside = own.parent / "outside"
    outside.write_bytes((folder / "image").read_bytes())
    (folder / "link").symlink_to(outside)
    (folder / "short").write_bytes(b"1234")
    problems = {"short": "has 4 bytes", "none": "no such file"}
    for file in ("../../../outside", str(outside), "link"):
        problems[file] = "no such file inside"
    for file, problem in problems.items():
        warmup(own, file)
        with pytest.raises(ConvserveError, match=problem):
            ModelRepository.open(own)


def test_hangup_takes_over_what_is_new(start_server, own, repository, pixels):
    server = start_server("--model-repository", own)
    other = repository / "digits" / "2" / "model.npz"
    fresh = Model.from_file(model_file.load(other), name="digits").predict(pixels)
    with Client(server.address) as client:
        before = client.predict(pixels, model="digits")
        publish(own / "digits", 2, other)
        np.testing.assert_array_equal(client.predict(pixels, model="digits"), before)
        server.signal(signal.SIGHUP)
        wait_until(lambda: np.array_equal(client.predict(pixels, model="digits"), fresh))
        publish(own / "digits", 3, b"")
        server.signal(signal.SIGHUP)
        wait_until(lambda: "model.npz" in server.log)
        np.testing.assert_array_equal(client.predict(pixels, model="digits"), fresh)
    server.signal()
    assert server.wait() == 0
