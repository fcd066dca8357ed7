"""The loop: it learns, repeats itself bit for bit, survives interrupts, and says what is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

import convserve
from convserve import kernels, layers, model_file
from convserve.datasets.base import Split, build
from convserve.errors import CheckpointError, ModelFileError, ShapeError, TrainingError
from convserve.graph import Graph
from convserve.training import Progress, TrainConfig, train

CLASSES = 3
SETTINGS = {"epochs": 4, "batch_size": 16, "lr": 0.05, "shift": 1, "label_smoothing": 0.05}


def made_data(seed=0, validation=None, test=True, count=120):
    """Bars at three places, with noise: easy, but not for a network that has learned nothing."""
    rng = np.random.default_rng(seed)

    def split(n):
        y = np.arange(n) % CLASSES
        x = rng.integers(0, 120, (n, 1, 8, 8), np.uint8)
        for image, label in zip(x, y, strict=True):
            image[0, 1 + 2 * label : 3 + 2 * label] += 100
        return Split(x, y)

    return build(
        "bars",
        split(count),
        split(30) if test else None,
        ("top", "middle", "bottom"),
        validation=validation,
        seed=0,
    )


def small_net():
    g = Graph((1, 8, 8))
    g.add(layers.Conv2d(4, 3, padding=1))
    g.add(layers.BatchNorm())
    g.add(layers.ReLU())
    g.add(layers.MaxPool2d(2))
    g.add(layers.Flatten())
    g.add(layers.Dropout(0.2))
    g.add(layers.Affine(CLASSES))
    g.add(layers.Softmax())
    return g


def same_bits(a, b):
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


class Interrupt(Progress):
    """Interrupts, as Ctrl-C does, after some batches of an epoch."""

    def __init__(self, epoch, batches=3, error=KeyboardInterrupt):
        self.epoch, self.batches, self.error = epoch, batches, error
        self.now = self.count = 0

    def epoch_started(self, epoch):
        self.now, self.count = epoch, 0

    def batch_done(self, images, loss):
        self.count += 1
        if (self.now, self.count) == (self.epoch, self.batches):
            raise self.error


def test_it_learns_and_says_what_it_did(tmp_path):
    events = []

    class Log(Progress):
        def run_started(self, epochs, images, resumed):
            events.append(("run", epochs, images, resumed))

        def epoch_started(self, epoch):
            events.append(("epoch", epoch))

        def batch_done(self, images, loss):
            events.append(("batch", images))

        def epoch_done(self, record):
            events.append(("done", record.epoch))

    data = made_data()
    out = tmp_path / "m.npz"
    result = train(
        small_net(), data, out=out, progress=Log(), provenance={"command": "x"}, **SETTINGS
    )
    assert [record.epoch for record in result.history] == [1, 2, 3, 4]
    assert result.history[-1].loss < result.history[0].loss / 2
    assert result.test_accuracy is not None
    assert result.test_accuracy > 0.9
    assert result.validation_accuracy is None
    assert result.epoch == 4
    assert events[:3] == [("run", 4, 120, 0), ("epoch", 1), ("batch", 16)]
    assert sum(event == ("batch", 16) for event in events) == 4 * 7
    assert sum(event == ("batch", 8) for event in events) == 4
    assert events[-1] == ("done", 4)

    loaded = model_file.load(out)
    assert same_bits(loaded.params, result.model.params)
    assert loaded.labels == data.labels
    assert loaded.preprocessing == data.preprocessing
    told = loaded.provenance
    assert (told["accuracy"], told["accuracy_on"]) == (result.test_accuracy, "test")
    assert (told["data"], told["command"], told["epochs"], told["seed"]) == ("bars", "x", 4, 0)
    assert told["convserve"] == convserve.__version__
    assert told["config"]["lr"] == 0.05

    scores = convserve.load(out).predict(data.test.x)
    assert float((scores.argmax(axis=1) == data.test.y).mean()) == result.test_accuracy


def test_the_same_bits_with_one_thread_or_two_and_others_for_another_seed():
    data = made_data()
    before = kernels.num_threads()
    one = train(small_net(), data, threads=1, **SETTINGS)
    two = train(small_net(), data, threads=2, **SETTINGS)
    other = train(small_net(), data, seed=1, **SETTINGS)
    assert same_bits(one.model.params, two.model.params)
    assert one.history[-1].loss == two.history[-1].loss
    assert not same_bits(one.model.params, other.model.params)
    assert kernels.num_threads() == before


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("validation", [None, 0.2])
@pytest.mark.parametrize("epoch", [2, 4])
def test_an_interrupted_run_resumes_bit_for_bit(tmp_path, optimiser, validation, epoch):
    data = made_data(validation=validation)
    settings = {**SETTINGS, "optimiser": optimiser, "flip": "random", "mixup": 0.2}
    whole = train(small_net(), data, checkpoint=tmp_path / "whole.npz", **settings)
    state = tmp_path / "state.npz"
    with pytest.raises(KeyboardInterrupt):
        train(small_net(), data, checkpoint=state, progress=Interrupt(epoch), **settings)
    rest = train(small_net(), data, checkpoint=state, resume=True, **settings)
    assert same_bits(rest.model.params, whole.model.params)
    assert [r.loss for r in rest.history] == [r.loss for r in whole.history]
    assert rest.epoch == whole.epoch
    assert rest.test_accuracy == whole.test_accuracy
    with np.load(state) as a, np.load(tmp_path / "whole.npz") as b:
        names = [name for name in a.files if name != "__checkpoint__"]
        assert set(a.files) == set(b.files)
        assert all(a[name].tobytes() == b[name].tobytes() for name in names)


def test_a_finished_run_can_be_resumed_to_its_result(tmp_path):
    state = tmp_path / "state.npz"
    whole = train(small_net(), made_data(), checkpoint=state, **SETTINGS)
    again = train(small_net(), made_data(), checkpoint=state, resume=True, **SETTINGS)
    assert same_bits(whole.model.params, again.model.params)


def test_an_interrupt_leaves_checkpoint_and_model_as_they_were(tmp_path):
    out, state = tmp_path / "m.npz", tmp_path / "state.npz"
    kept = {}

    class Keep(Interrupt):
        def epoch_done(self, record):
            kept[record.epoch] = (out.read_bytes(), state.read_bytes())

    data = made_data(validation=0.2)
    with pytest.raises(KeyboardInterrupt):
        train(small_net(), data, out=out, checkpoint=state, progress=Keep(3), **SETTINGS)
    assert (out.read_bytes(), state.read_bytes()) == kept[2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.npz", "state.npz"]
    model_file.load(out)


def test_without_validation_the_old_model_stays_until_the_end(tmp_path):
    out = tmp_path / "m.npz"
    train(small_net(), made_data(), out=out, **SETTINGS)
    old = out.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        train(small_net(), made_data(), out=out, progress=Interrupt(2), **SETTINGS)
    assert out.read_bytes() == old


def test_the_best_epoch_on_validation_is_exported(tmp_path):
    data = made_data(validation=0.2)
    out = tmp_path / "m.npz"
    result = train(small_net(), data, out=out, **{**SETTINGS, "epochs": 6})
    reached = [record.validation_accuracy for record in result.history]
    assert result.validation_accuracy == max(reached)
    assert reached[result.epoch - 1] == max(reached)
    scores = convserve.load(out).predict(data.validation.x)
    assert float((scores.argmax(axis=1) == data.validation.y).mean()) == max(reached)


def test_a_diverging_run_stops_with_an_explanation_and_keeps_its_checkpoint(tmp_path):
    state, out = tmp_path / "state.npz", tmp_path / "m.npz"
    with pytest.raises(TrainingError, match=r"training diverged\. Try a lower lr"):
        train(small_net(), made_data(), out=out, checkpoint=state, **{**SETTINGS, "lr": 1e25})
    assert not state.exists()
    assert not out.exists()

    # Fine for an epoch, and then a step that no parameter survives.
    config = TrainConfig(**SETTINGS)

    class Raise(Progress):
        def epoch_started(self, epoch):
            if epoch == 2:
                object.__setattr__(config, "label_smoothing", float("nan"))

    with pytest.raises(TrainingError, match=r"of epoch 2.*last checkpoint is intact"):
        train(small_net(), made_data(), config, checkpoint=state, progress=Raise())
    assert "progress" in json.loads(bytes(np.load(state)["__checkpoint__"]))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "state.npz"
    train(small_net(), made_data(), checkpoint=path, **{**SETTINGS, "epochs": 1})
    return path


def other_net():
    g = small_net()
    g.set_output("softmax1", "scores")
    return g


@pytest.mark.parametrize(
    ("graph", "data", "settings", "message"),
    [
        (small_net, made_data, {"lr": 0.1}, "of another run: lr was 0.05, is 0.1"),
        (small_net, made_data, {"seed": 3, "epochs": 2}, "seed was 0, is 3; epochs was 1, is 2"),
        (small_net, lambda: made_data(seed=1), {}, "of another run: crc32"),
        (small_net, lambda: made_data(count=60), {}, "of another run: images was"),
        (other_net, made_data, {}, "of another run: the network"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(finished, graph, data, settings, message):
    settings = {**SETTINGS, "epochs": 1, **settings}
    before = finished.read_bytes()
    with pytest.raises(CheckpointError, match=message):
        train(graph(), data(), checkpoint=finished, resume=True, **settings)
    assert finished.read_bytes() == before


def rewritten(path, change):
    with np.load(path) as archive:
        arrays = dict(archive)
    document = json.loads(bytes(arrays["__checkpoint__"]))
    change(arrays, document)
    if "__checkpoint__" in arrays:
        arrays["__checkpoint__"] = np.frombuffer(json.dumps(document).encode(), np.uint8)
    return arrays


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, d: a.pop("__checkpoint__"), "not a checkpoint"),
        (lambda a, d: a.pop("params.conv1.weight"), "arrays do not fit: params.conv1.weight"),
        (lambda a, d: a.update(more=np.zeros(3, np.float32)), "arrays do not fit: more"),
        (lambda a, d: a.update({"params.conv1.bias": np.zeros(5, np.float32)}), "conv1.bias"),
        (lambda a, d: a.update({"params.conv1.bias": np.zeros(4)}), "dtype"),
        (lambda a, d: d.update(version=1), "format version is 1"),
        (lambda a, d: d.pop("progress"), "progress"),
        (lambda a, d: d["progress"].pop("step"), "step"),
        (lambda a, d: d["progress"]["run"]["history"][0].pop("loss"), "loss"),
        (lambda a, d: d["progress"]["run"].update(history=None), "progress"),
        (lambda a, d: d["progress"]["run"].pop("step"), "step"),
        (lambda a, d: d["run"].pop("config"), "config"),
        (lambda a, d: d.update(run=[]), "resumed"),
    ],
)
def test_damaged_checkpoints_are_refused(finished, tmp_path, change, message):
    path = tmp_path / "state.npz"
    np.savez(path, **rewritten(finished, change))
    with pytest.raises(CheckpointError, match=message):
        train(small_net(), made_data(), checkpoint=path, resume=True, **{**SETTINGS, "epochs": 1})


def test_truncated_and_missing_checkpoints_are_refused(finished, tmp_path):
    path = tmp_path / "state.npz"
    settings = {**SETTINGS, "epochs": 1, "checkpoint": path, "resume": True}
    with pytest.raises(CheckpointError, match="no checkpoint to resume from"):
        train(small_net(), made_data(), **settings)
    whole = finished.read_bytes()
    for content in (b"", whole[:100], whole[:-30], b"x" * 1000):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="can't be resumed from"):
            train(small_net(), made_data(), **settings)
    with pytest.raises(CheckpointError, match="needs the path"):
        train(small_net(), made_data(), resume=True)


def test_places_that_can_not_be_written_are_found_out_first(tmp_path):
    class Never(Progress):
        def run_started(self, epochs, images, resumed):
            raise AssertionError("training has begun")

    for out in (tmp_path / "absent" / "m.npz", tmp_path):
        with pytest.raises(ModelFileError, match=str(out)):
            train(small_net(), made_data(), out=out, progress=Never())
        with pytest.raises(CheckpointError, match=str(out)):
            train(small_net(), made_data(), checkpoint=out, progress=Never())


def test_model_and_checkpoint_must_be_two_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="can't be the same file"):
        train(small_net(), made_data(), out="m.npz", checkpoint=tmp_path / "m.npz")


def test_a_disk_that_fails_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    state = tmp_path / "state.npz"

    class Full(Progress):
        def epoch_done(self, record):
            def fail(*args, **kwargs):
                raise OSError(28, "No space left on device")

            self.kept = state.read_bytes()
            monkeypatch.setattr(np.lib.format, "write_array", fail)

    full = Full()
    with pytest.raises(CheckpointError, match="No space left"):
        train(small_net(), made_data(), checkpoint=state, progress=full, **SETTINGS)
    assert state.read_bytes() == full.kept
    assert list(tmp_path.iterdir()) == [state]


def test_graph_data_and_settings_must_fit():
    data = made_data()
    g = Graph((1, 8, 9))
    g.add(layers.Flatten())
    g.add(layers.Affine(CLASSES))
    with pytest.raises(ShapeError, match=r"takes images of \(1, 8, 9\)"):
        train(g, data)
    g = Graph((1, 8, 8))
    g.add(layers.Flatten())
    g.add(layers.Affine(5))
    with pytest.raises(ShapeError, match="one score for each of 3 classes"):
        train(g, data)
    with pytest.raises(TrainingError, match="batch_size 500 is more than the 120"):
        train(small_net(), data, batch_size=500)
    with pytest.raises(TypeError, match=r"graph must be a convserve\.Graph, not 'lenet'"):
        train("lenet", data)
    with pytest.raises(TypeError, match=r"must be a Dataset, of datasets.load\(…\), not 'npz:a'"):
        train(small_net(), "npz:a")
    with pytest.raises(TypeError, match="config or settings, not both: epochs"):
        train(small_net(), data, TrainConfig(), epochs=3)
    with pytest.raises(TypeError, match="learning_rate"):
        train(small_net(), data, learning_rate=3)


def test_the_first_checkpoint_is_there_before_the_first_model(tmp_path):
    # A run that is killed between the two is not taken for one that is done.
    written = []

    class Log(Progress):
        def model_written(self):
            written.append("model")

        def checkpoint_written(self):
            written.append("checkpoint")

    files = {"out": tmp_path / "m.npz", "checkpoint": tmp_path / "c.npz"}
    train(small_net(), made_data(validation=0.2), epochs=1, progress=Log(), **files)
    assert written == ["checkpoint", "model", "model", "checkpoint"]


@pytest.mark.parametrize("value", [object(), float("nan"), "\udc80", {1, 2}])
def test_a_provenance_that_is_no_json_is_refused_before_training(value):
    class Started(Progress):
        def run_started(self, epochs, images, done):
            raise AssertionError("it trains")

    with pytest.raises(TrainingError, match="provenance must be JSON values: "):
        train(small_net(), made_data(), progress=Started(), provenance={"why": value})
