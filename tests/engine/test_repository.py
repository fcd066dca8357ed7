"""What a repository serves, what it refuses, and how it names models."""

from __future__ import annotations

import numpy as np
import pytest

from convserve import model_file
from convserve.engine.repository import ModelRepository
from convserve.errors import (
    InvalidRequestError,
    ModelFileError,
    ModelLoadError,
    ModelNotFoundError,
)
from convserve.graph import Graph, layers


@pytest.fixture
def save():
    """Write a tiny model that always answers softmax(bias) with `bias` = (value, 0)."""

    def write(path, value=0.0):
        graph = Graph((1, 2, 2))
        graph.add(layers.Flatten())
        graph.add(layers.Affine(2))
        params = {
            "affine1.weight": np.zeros((2, 4), np.float32),
            "affine1.bias": np.array([value, 0], np.float32),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        model_file.save(path, model_file.ModelFile(graph, params))
        return path

    return write


@pytest.fixture
def open_repository():
    opened = []

    def make(path, **keywords):
        opened.append(ModelRepository.open(path, defaults={"max_batch_size": 4}, **keywords))
        return opened[-1]

    yield make
    for repository in opened:
        assert repository.stop(10)


def answer(served):
    return served.model.predict(np.zeros((1, 1, 2, 2), np.float32))[0, 0]


def test_one_file(save, open_repository, tmp_path):
    repository = open_repository(save(tmp_path / "my-model.v2.npz", 3))
    served = repository.get("my-model.v2")
    assert (served.name, served.version, answer(served)) == ("my-model.v2", "1", 3)
    assert repository.get("my-model.v2", "1") is served
    assert repository.index() == [("my-model.v2", "1", "READY", "")]


def test_the_highest_version_is_served(save, open_repository, tmp_path):
    for version in (1, 9, 10):
        save(tmp_path / "a" / str(version) / "model.npz", version)
    save(tmp_path / "b" / "3" / "model.npz", 33)
    repository = open_repository(tmp_path)
    assert [(m.name, m.version, answer(m)) for m in repository.models()] == [
        ("a", "10", 10),
        ("b", "3", 33),
    ]
    with pytest.raises(ModelNotFoundError, match=r"'a' version 9 is not found; .* ready: 10"):
        repository.get("a", "9")


def test_what_is_no_version_is_left_alone(save, open_repository, tmp_path):
    save(tmp_path / "a" / "1" / "model.npz", 1)
    for other in ("0", "02", "-3", "latest", "2.tmp", ".3"):
        save(tmp_path / "a" / other / "model.npz", 9)
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").write_text("models\n")
    assert answer(open_repository(tmp_path).get("a")) == 1


def test_unknown_names(save, open_repository, tmp_path):
    repository = open_repository(save(tmp_path / "m.npz"))
    for name in ("", "M", "m.npz", "../m", "x" * 10_000):
        with pytest.raises(ModelNotFoundError, match="Request for unknown model") as caught:
            repository.get(name)
        assert len(str(caught.value)) < 300
    for version in ("abc", "0", "-1", "1.5", " 1", "1\n", "٣", "0" * 5000 + "1"):
        with pytest.raises(InvalidRequestError, match="integer > 0"):
            repository.get("m", version)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda path: None, "holds no <model>/<version>/model.npz"),
        (lambda path: (path / "a").mkdir(), "has no version"),
        (lambda path: (path / "a" / "1").mkdir(parents=True), "model.npz: no such file"),
        (lambda path: (path / "a b" / "1").mkdir(parents=True), "letters, digits"),
        (lambda path: (path / "a" / "1" / "model.npz").mkdir(parents=True), "no such file"),
    ],
)
def test_a_directory_that_can_not_be_served(tmp_path, build, message):
    build(tmp_path)
    with pytest.raises((ModelFileError, ModelLoadError), match=message):
        ModelRepository.open(tmp_path)


def test_a_damaged_model_is_named(save, tmp_path):
    save(tmp_path / "a" / "1" / "model.npz")
    (tmp_path / "b" / "2").mkdir(parents=True)
    (tmp_path / "b" / "2" / "model.npz").write_bytes(b"PK\3\4 and no more")
    with pytest.raises(ModelLoadError, match=r"b/2/model\.npz"):
        ModelRepository.open(tmp_path)


def test_no_such_path(tmp_path):
    with pytest.raises(ModelFileError, match="no such file or directory"):
        ModelRepository.open(tmp_path / "nothing")


def test_a_file_whose_name_is_no_model_name(save, tmp_path):
    with pytest.raises(ModelFileError, match="rename the file"):
        ModelRepository.open(save(tmp_path / "my model (1).npz"))


@pytest.mark.parametrize("level", ["model", "version", "file"])
def test_links_do_not_lead_outside(save, tmp_path, level):
    outside = save(tmp_path / "outside" / "1" / "model.npz").parent.parent
    root = tmp_path / "models"
    link = {
        "model": root / "a",
        "version": root / "a" / "1",
        "file": root / "a" / "1" / "model.npz",
    }[level]
    target = {"model": outside, "version": outside / "1", "file": outside / "1" / "model.npz"}
    link.parent.mkdir(parents=True)
    link.symlink_to(target[level])
    with pytest.raises(ModelLoadError, match="leads outside the model repository"):
        ModelRepository.open(root)


def test_links_inside_are_followed(save, open_repository, tmp_path):
    save(tmp_path / ".data" / "1" / "model.npz", 5)
    (tmp_path / "a").symlink_to(tmp_path / ".data")
    assert answer(open_repository(tmp_path).get("a")) == 5
