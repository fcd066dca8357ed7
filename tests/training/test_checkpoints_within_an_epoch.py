"""Stopping and resuming in the middle of an epoch, with everything on that has a state."""

from __future__ import annotations

import numpy as np
import pytest

from convserve import kernels, layers
from convserve._npz import atomic_file
from convserve.datasets.base import Split, build
from convserve.errors import TrainingError, TrainingStoppedError
from convserve.graph import Graph
from convserve.training import CompiledStep, Group, Progress, train
from convserve.training.every import Every

SETTINGS = {
    "epochs": 3,
    "batch_size": 16,
    "lr": 0.05,
    "shift": 1,
    "flip": "random",
    "ema": 0.9,
    "lookahead": 3,
    "clip": 5.0,
    "label_smoothing": 0.1,
    "class_weights": "balanced",
    "groups": (Group("conv1.bias", until=1), Group("bn1.bias", lr=4)),
}
STEPS = 6  # an epoch


def made_data():
    rng = np.random.default_rng(0)
    y = np.arange(120) % 3
    x = rng.integers(0, 120, (120, 1, 8, 8), np.uint8)
    for image, label in zip(x, y, strict=True):
        image[0, 1 + 2 * label : 3 + 2 * label] += 100
    return build("bars", Split(x, y), None, ("a", "b", "c"), validation=0.2, seed=0)


def small_net():
    g = Graph((1, 8, 8))
    g.add(layers.Conv2d(4, 3, padding=1))
    g.add(layers.BatchNorm())
    g.add(layers.ReLU())
    g.add(layers.MaxPool2d(2))
    g.add(layers.Flatten())
    g.add(layers.Dropout(0.2))
    g.add(layers.Affine(3))
    g.add(layers.Softmax())
    return g


def stop_after(steps):
    """A `stop` that turns true once so many steps are done, counted in all of the run."""
    count = iter(range(1, 1000))
    return lambda: next(count) > steps


class Count(Progress):
    def __init__(self):
        self.steps, self.resumed = 0, []

    def epoch_resumed(self, images):
        self.resumed.append(images)

    def batch_done(self, images, loss):
        self.steps += 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "state.npz"
    return train(small_net(), made_data(), checkpoint=path, **SETTINGS), path


def same_arrays(a, b):
    with np.load(a) as first, np.load(b) as second:
        names = [name for name in first.files if name != "__checkpoint__"]
        assert set(first.files) == set(second.files)
        return all(first[name].tobytes() == second[name].tobytes() for name in names)


@pytest.mark.parametrize("steps", [0, 3, STEPS - 1, STEPS + 4])
def test_a_stopped_run_resumes_bit_for_bit(whole, tmp_path, steps):
    result, path = whole
    state = tmp_path / "state.npz"
    count = Count()
    with pytest.raises(TrainingStoppedError, match=r"stopped at step \d of epoch \d"):
        train(
            small_net(),
            made_data(),
            checkpoint=state,
            stop=stop_after(steps),
            progress=count,
            threads=2,
            **SETTINGS,
        )
    rest = train(
        small_net(),
        made_data(),
        checkpoint=state,
        resume=True,
        progress=count,
        threads=1,
        **SETTINGS,
    )
    assert count.steps == 3 * STEPS  # no step was done twice
    if steps == 3:
        assert count.resumed == [4 * 16]
    assert [record.loss for record in rest.history] == [r.loss for r in result.history]
    assert [r.train_accuracy for r in rest.history] == [r.train_accuracy for r in result.history]
    assert rest.epoch == result.epoch
    for name, value in result.model.params.items():
        assert rest.model.params[name].tobytes() == value.tobytes()
    assert same_arrays(state, path)


def test_a_run_that_is_stopped_while_it_validates_keeps_the_epoch(whole, tmp_path):
    """All steps of the epoch are done then, and none is repeated."""
    state, count = tmp_path / "state.npz", Count()
    with pytest.raises(TrainingStoppedError, match="stopped at step 6 of epoch 1"):
        train(
            small_net(),
            made_data(),
            checkpoint=state,
            stop=stop_after(STEPS),
            progress=count,
            **SETTINGS,
        )
    train(small_net(), made_data(), checkpoint=state, resume=True, progress=count, **SETTINGS)
    assert count.steps == 3 * STEPS
    assert same_arrays(state, whole[1])


def test_checkpoints_every_few_steps_resume_without_a_stop(whole, tmp_path):
    """As after SIGKILL: an exception out of nowhere, and the file of the last multiple of 4."""
    state = tmp_path / "state.npz"

    class Killed(Count):
        def batch_done(self, images, loss):
            super().batch_done(images, loss)
            if self.steps == 10:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            small_net(),
            made_data(),
            checkpoint=state,
            checkpoint_every=4,
            progress=Killed(),
            **SETTINGS,
        )
    count = Count()
    train(small_net(), made_data(), checkpoint=state, resume=True, progress=count, **SETTINGS)
    # 4 steps into the epoch, then its end at 6 (which begins the count anew).
    assert count.steps == 3 * STEPS - STEPS
    assert same_arrays(state, whole[1])


def test_a_run_that_goes_on_with_a_small_batch_is_built_for_large_ones(tmp_path, monkeypatch):
    state, built, build_ = tmp_path / "state.npz", [], CompiledStep._build

    def spy(self, batch):
        built.append(batch)
        return build_(self, batch)

    monkeypatch.setattr(CompiledStep, "_build", spy)
    settings = {**SETTINGS, "batch_size": 20, "checkpoint": state}  # 96 images: 16 are the last
    count = Count()
    with pytest.raises(TrainingStoppedError):
        train(small_net(), made_data(), progress=count, stop=lambda: count.steps == 4, **settings)
    train(small_net(), made_data(), resume=True, **settings)
    assert built == [20, 20]


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    out, state = tmp_path / "model.npz", tmp_path / "state.npz"
    mine = [tmp_path / f".{path.name}.{'0a' * 8}.tmp" for path in (out, state)]
    others = [tmp_path / f".other.npz.{'0a' * 8}.tmp", tmp_path / ".state.npz.tmp"]
    for path in (*mine, *others):
        path.write_bytes(b"half")
    # Another run may be writing the same model: it does not lose what it has written.
    with atomic_file(out) as file:
        train(small_net(), made_data(), out=out, checkpoint=state, **{**SETTINGS, "epochs": 1})
        assert not any(path.exists() for path in mine)
        assert all(path.exists() for path in others)
        file.write(b"the other's")
    assert out.read_bytes() == b"the other's"


def test_how_often_a_checkpoint_is_due():
    now = [0.0]
    steps, seconds = Every("3", lambda: now[0]), Every("5m", lambda: now[0])
    assert [steps.due() for _ in range(7)] == [False, False, True] * 2 + [False]
    seen = []
    for now[0] in (200.0, 299.0, 300.0, 301.0, 599.0, 600.0):
        seen.append(seconds.due())
    assert seen == [False, False, True, False, False, True]
    for never in (Every(None), Every(0)):
        assert not any(never.due() for _ in range(5))
    for bad in ("soon", "-3", "5 m", 1.5, True):
        with pytest.raises(TrainingError, match="checkpoint_every must be a number of steps, or"):
            Every(bad)


def test_patience_ends_a_run_and_needs_validation():
    data = made_data()
    settings = {**SETTINGS, "epochs": 40, "lr": 1e-12, "patience": 2, "ema": 0.0}
    result = train(small_net(), data, **settings)
    reached = [record.validation_accuracy for record in result.history]
    assert len(reached) < 40
    assert max(reached) == max(reached[:-2])
    assert reached[-1] <= max(reached)
    without = build("bars", data.train, None, data.labels, validation=None, seed=0)
    with pytest.raises(TrainingError, match="patience needs validation images"):
        train(small_net(), without, patience=2)


def test_class_weights_scale_the_gradient_of_their_images():
    """A class that weighs nothing is not learned; balanced weights of equal classes change
    nothing."""
    data = made_data()
    before = kernels.num_threads()
    plain = {"epochs": 2, "batch_size": 16, "lr": 0.05, "shift": 0}
    equal = train(small_net(), data, **plain)
    balanced = train(small_net(), data, class_weights="balanced", **plain)
    for name, value in equal.model.params.items():
        assert balanced.model.params[name].tobytes() == value.tobytes()
    none = train(small_net(), data, class_weights=(1.0, 1.0, 0.0), **plain)
    assert none.history[-1].validation_accuracy <= 2 / 3 + 1e-9
    with pytest.raises(TrainingError, match="class_weights has 2 values, there are 3 classes"):
        train(small_net(), data, class_weights=(1.0, 1.0), **plain)
    assert kernels.num_threads() == before


def test_the_last_incomplete_batch_can_be_left_out():
    count = Count()
    train(small_net(), made_data(), progress=count, epochs=2, batch_size=36, drop_last=True)
    assert count.steps == 2 * 2  # of 96 images
