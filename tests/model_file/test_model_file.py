"""Model files as they should be: what is saved is loaded, NumPy can open it, writing is atomic."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convserve import _npz
from convserve.errors import ModelFileError
from convserve.graph import Graph, architectures, layers
from convserve.model_file import ModelFile, Preprocessing, load, save, weights_hash

PREPROCESSING = Preprocessing(28, 28, "grey", (0.1307,), (0.3081,))
PROVENANCE = {"data": "mnist", "accuracy": 0.991, "history": [1, 2.5, None], "über": {"a": True}}


def lenet() -> ModelFile:
    graph = architectures.build("lenet")
    labels = tuple("0123456789")
    return ModelFile(graph, graph.initialise(3), labels, PREPROCESSING, dict(PROVENANCE))


def entries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def assert_same(a: ModelFile, b: ModelFile) -> None:
    assert a.graph == b.graph and list(a.params) == list(b.params)
    for name in a.params:
        np.testing.assert_array_equal(a.params[name], b.params[name], strict=True)
    assert (a.labels, a.preprocessing, a.provenance) == (b.labels, b.preprocessing, b.provenance)


def test_round_trip(tmp_path: Path) -> None:
    model = lenet()
    save(tmp_path / "model.npz", model)
    loaded = load(tmp_path / "model.npz")
    assert_same(loaded, model)
    assert list(loaded.params) == list(model.graph.parameter_specs())
    for array in loaded.params.values():
        assert array.dtype == np.float32
        assert array.flags.c_contiguous and array.flags.writeable and array.flags.owndata


def test_round_trip_of_the_least(tmp_path: Path) -> None:
    """No parameters, labels, preprocessing or provenance; and a plain string as the path."""
    graph = Graph((1, 2, 2))
    graph.add(layers.ReLU())
    save(str(tmp_path / "m"), ModelFile(graph, {}))
    assert_same(load(str(tmp_path / "m")), ModelFile(graph, {}))


def test_plain_numpy_opens_it(tmp_path: Path) -> None:
    model = lenet()
    save(tmp_path / "model.npz", model)
    with np.load(tmp_path / "model.npz", allow_pickle=False) as archive:
        assert set(archive.files) == {*model.params, "__convserve__"}
        for name, array in model.params.items():
            np.testing.assert_array_equal(archive[name], array, strict=True)
        description = json.loads(archive["__convserve__"].tobytes().decode())
    assert description["version"] == 1
    assert description["inputs"] == [{"name": "input", "dtype": "float32", "shape": [1, 28, 28]}]
    assert description["outputs"] == [{"name": "output", "dtype": "float32", "shape": [10]}]
    assert description["labels"] == list("0123456789")
    assert description["weights_hash"] == weights_hash(model.params)


def test_a_file_that_numpy_has_written_again_is_read(tmp_path: Path) -> None:
    model = lenet()
    save(tmp_path / "model.npz", model)
    with np.load(tmp_path / "model.npz") as archive:
        np.savez(tmp_path / "again.npz", **dict(archive))
    assert_same(load(tmp_path / "again.npz"), model)


def test_strided_and_read_only_parameters_are_saved(tmp_path: Path) -> None:
    model = lenet()
    model.params = {name: np.asfortranarray(array) for name, array in model.params.items()}
    model.params["conv1.bias"].flags.writeable = False
    save(tmp_path / "model.npz", model)
    assert_same(load(tmp_path / "model.npz"), lenet())


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", lenet())
    save(tmp_path / "b.npz", lenet())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@settings(max_examples=25)
@given(data=st.data())
def test_random_graphs_round_trip(tmp_path: Path, data: st.DataObject) -> None:
    graph = Graph((2, 6, 5), input_name=data.draw(st.sampled_from(["input", "input.1", "x:0"])))
    names = iter(["a", "b.c", "/d/e", "f:0", "g-h", "0"])
    last = graph.input_name
    for width in data.draw(st.lists(st.integers(1, 4), max_size=5)):
        conv = graph.add(layers.Conv2d(width, 3, padding=1), last, name=next(names))
        norm = graph.add(layers.BatchNorm())
        last = data.draw(st.sampled_from([graph.add(layers.Concat(), conv, norm), norm]))
    graph.set_output(graph.add(layers.Flatten(), last), data.draw(st.text("ab é:/", min_size=1)))
    model = ModelFile(graph, graph.initialise(0), provenance={"text": data.draw(st.text())})
    if any(0xD800 <= ord(c) < 0xE000 for c in model.provenance["text"]):
        with pytest.raises(ModelFileError, match="surrogates not allowed"):
            save(tmp_path / "model.npz", model)
        return
    save(tmp_path / "model.npz", model)
    assert_same(load(tmp_path / "model.npz"), model)


def test_weights_hash_sees_names_shapes_and_values_but_no_order_or_layout() -> None:
    params = {"a.w": np.arange(6, dtype=np.float32).reshape(2, 3), "b.w": np.ones(2, np.float32)}
    reference = weights_hash(params)
    assert reference.startswith("sha256:") and len(reference) == len("sha256:") + 64
    assert weights_hash(dict(reversed(params.items()))) == reference
    assert weights_hash({**params, "a.w": np.asfortranarray(params["a.w"])}) == reference
    for other in (
        {**params, "a.w": params["a.w"].reshape(3, 2)},
        {**params, "a.w": -params["a.w"]},
        {"a.w": params["a.w"], "b.x": params["b.w"]},
    ):
        assert weights_hash(other) != reference


def test_a_large_file_loads_quickly(tmp_path: Path) -> None:
    graph = architectures.build("mlp", hidden=(3000, 3000))
    path = tmp_path / "large.npz"
    save(path, ModelFile(graph, graph.initialise(0)))
    tries = [
        (_seconds(lambda: load(path)), _seconds(lambda: hashlib.sha256(path.read_bytes())))
        for _ in range(5)
    ]
    loading, hashing = (min(seconds) for seconds in zip(*tries, strict=True))
    # Measured 1.1; on this machine, so that it does not matter how quick or busy it is.
    assert loading < 8 * hashing


def _seconds(call: object) -> float:
    started = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - started


# Writing


def test_saving_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "model.npz").write_bytes(b"old")
    save(tmp_path / "model.npz", lenet())
    assert entries(tmp_path) == ["model.npz"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "model.npz").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("stage", ["write_array", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException
) -> None:
    save(tmp_path / "model.npz", lenet())
    before = (tmp_path / "model.npz").read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise error

    owner = {"write_array": np.lib.format, "fsync": _npz.os, "replace": Path}[stage]
    monkeypatch.setattr(owner, stage, fail)
    changed = lenet()
    changed.params["conv1.bias"] += 1
    with pytest.raises(BaseException) as caught:
        save(tmp_path / "model.npz", changed)
    if isinstance(error, OSError):
        assert isinstance(caught.value, ModelFileError)
        assert str(caught.value) == f"{tmp_path / 'model.npz'}: no space left on device"
    monkeypatch.undo()
    assert entries(tmp_path) == ["model.npz"]
    assert (tmp_path / "model.npz").read_bytes() == before


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """One thread saves over and over while this one loads: every load succeeds."""
    models = [lenet(), lenet()]
    models[1].params["conv1.bias"] += 1
    save(tmp_path / "model.npz", models[0])
    stop = threading.Event()

    def write() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            save(tmp_path / "model.npz", models[turn % 2])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        biases = {load(tmp_path / "model.npz").params["conv1.bias"][0] for _ in range(60)}
    finally:
        stop.set()
        writer.join()
    assert biases <= {np.float32(0), np.float32(1)}


def test_saving_where_it_can_not_be(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"missing/model\.npz: no such file or directory"):
        save(tmp_path / "missing" / "model.npz", lenet())
    with pytest.raises(ModelFileError, match="not a regular file"):
        save(tmp_path, lenet())
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="not a regular file"):
        save(tmp_path / "pipe", lenet())
    assert entries(tmp_path) == ["pipe"]


def with_param(name: str, value: object) -> ModelFile:
    model = lenet()
    model.params[name] = value  # type: ignore[assignment]
    return model


def changed(**changes: object) -> ModelFile:
    model = lenet()
    for name, value in changes.items():
        setattr(model, name, value)
    return model


NAN = np.full(6, np.nan, np.float32)


@pytest.mark.parametrize(
    "model, message",
    [
        (with_param("conv1.bias", NAN), r"'conv1\.bias' holds NaN or infinity"),
        (with_param("conv1.bias", -NAN * np.inf), r"'conv1\.bias' holds NaN or infinity"),
        (with_param("conv1.bias", np.zeros(6)), r"'conv1\.bias' must be an array of float32"),
        (with_param("conv1.bias", [0.0] * 6), r"'conv1\.bias' must be an array of float32"),
        (with_param("conv1.bias", np.zeros(7, np.float32)), r"must have the shape \(6,\)"),
        (with_param("conv9.bias", NAN), r"it has an unexpected array 'conv9\.bias'"),
        (changed(params={}), r"it lacks the array 'conv1\.weight' and 9 more"),
        (changed(labels=("a", "b")), r"2 labels for an output of shape \(10,\)"),
        (changed(labels=(*range(10),)), "labels must be strings"),
        (changed(labels=("\ud800", *"123456789")), "its labels hold surrogates"),
        (
            changed(preprocessing=Preprocessing(28, 28, "rgb", (0, 0, 0), (1, 1, 1))),
            r"preprocessing makes images of \(3, 28, 28\), its graph takes \(1, 28, 28\)",
        ),
        (changed(provenance={"a": {1, 2}}), "provenance must be JSON values: .* set"),
        (changed(provenance={"a": float("nan")}), "not JSON compliant"),
        (changed(provenance={"a": "x" * (8 << 20)}), "over the limit of 8388608"),
        (changed(graph=Graph((1, 28, 28)), params={}), "its graph has no layers"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(
    tmp_path: Path, model: ModelFile, message: str
) -> None:
    with pytest.raises(ModelFileError, match=message):
        save(tmp_path / "model.npz", model)
    assert entries(tmp_path) == []
