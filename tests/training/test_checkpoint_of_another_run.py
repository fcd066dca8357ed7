"""What becomes of the checkpoint of an earlier run, which depends on whether that was finished."""

from __future__ import annotations

import numpy as np
import pytest

from convserve import layers
from convserve._npz import holds
from convserve.datasets.base import Split, build
from convserve.errors import ModelFileError, TrainingStoppedError
from convserve.graph import Graph
from convserve.training import Progress, checkpoint, train

SETTINGS = {"epochs": 2, "batch_size": 16, "shift": 0}
STEPS = 3  # an epoch


def made_data(validation=None):
    rng = np.random.default_rng(0)
    images = Split(rng.integers(0, 255, (48, 1, 4, 4), np.uint8), np.arange(48) % 2)
    return build("noise", images, images, ("a", "b"), validation=validation, seed=0)


def small_net():
    g = Graph((1, 4, 4))
    g.add(layers.Flatten())
    g.add(layers.Affine(2))
    g.add(layers.Softmax())
    return g


def stopped(path, asked, **settings):
    """A run that is told to stop when it asks for the time of that number."""
    answers = iter(range(1, 1000))
    with pytest.raises(TrainingStoppedError):
        train(
            small_net(), made_data(), checkpoint=path, stop=lambda: next(answers) == asked,
            **SETTINGS | settings,
        )  # fmt: skip


def test_a_file_that_is_no_model_is_not_replaced(tmp_path):
    out = tmp_path / "notes.npz"
    out.write_bytes(b"mine")
    with pytest.raises(ModelFileError, match="is not a model, and would be replaced by one"):
        train(small_net(), made_data(), out=out, **SETTINGS)
    assert out.read_bytes() == b"mine"


def test_a_run_is_finished_by_its_last_export(tmp_path):
    path, out = tmp_path / "state.npz", tmp_path / "m.npz"
    stopped(path, 2 * STEPS + 1, out=out)  # while it looks at the test images
    assert not out.exists()
    assert checkpoint.is_unfinished(path)
    train(small_net(), made_data(), checkpoint=path, out=out, resume=True, **SETTINGS)
    assert out.exists()
    assert not checkpoint.is_unfinished(path)
    train(small_net(), made_data(), checkpoint=path, lr=0.02, **SETTINGS)
    assert sorted(tmp_path.iterdir()) == [out, path]  # it was replaced


def test_a_run_that_stopped_early_is_finished(tmp_path):
    path = tmp_path / "state.npz"
    settings = {**SETTINGS, "epochs": 40, "lr": 1e-12, "patience": 1}
    result = train(small_net(), made_data(0.25), checkpoint=path, **settings)
    assert len(result.history) < 40
    assert not checkpoint.is_unfinished(path)


def test_an_unfinished_one_stays_in_place_until_the_new_one_is_written(tmp_path):
    path, kept = tmp_path / "state.npz", tmp_path / "state.earlier.npz"
    stopped(path, 1)
    before = path.read_bytes()

    class Look(Progress):
        def checkpoint_set_aside(self, where):
            assert where == kept
            assert path.read_bytes() == before
            (new,) = tmp_path.glob(".*.tmp")
            assert holds(new, checkpoint.ENTRY)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small_net(), made_data(), checkpoint=path, progress=Look(), lr=0.02, **SETTINGS)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    train(small_net(), made_data(), checkpoint=path, lr=0.02, **SETTINGS)
    assert kept.read_bytes() == before
    assert not checkpoint.is_unfinished(path)
