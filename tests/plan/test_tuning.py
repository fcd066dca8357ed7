"""The tuning record: made, written, found beside a model, refused where it does not fit."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

import convserve
from convserve.engine.repository import ModelRepository
from convserve.errors import ModelFileError
from convserve.graph import Graph, architectures, layers
from convserve.kernels import isa
from convserve.model_file import ModelFile, save
from convserve.plan import Choice, compile_plan, tuning

KERNELS = ["direct", "winograd2", "winograd4"]


def small_graph(channels: int = 16) -> Graph:
    graph = Graph((8, 6, 6))
    graph.add(layers.Conv2d(channels, 3, padding=1))
    graph.add(layers.ReLU())
    graph.add(layers.Conv2d(8, 1))
    return graph


def times(fast: str) -> dict[str, dict[str, dict[int, float]]]:
    """A record in which one kernel is the fastest."""
    return {"conv1": {name: {1: 10.0 if name == fast else 20.0, 8: 100.0} for name in KERNELS}}


def kernel_of(model: convserve.Model) -> str:
    return next(part.kernel.name for part in model.plan(1).parts if "conv1" in part.layers)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    graph = small_graph()
    save(tmp_path / "model.npz", ModelFile(graph, graph.initialise(0)))
    return tmp_path / "model.npz"


def test_tuning_times_every_kernel_of_layers_with_a_choice() -> None:
    graph = architectures.build("deep_convnet")
    params = graph.initialise(0)
    found = tuning.tune(graph, params, seconds=0.01)
    assert sorted(found) == [f"conv{i}" for i in range(2, 7)]  # conv1 reads one channel
    for kernels in found.values():
        assert sorted(kernels) == KERNELS
        for measured in kernels.values():
            assert sorted(measured)[0] == 1 and len(measured) == 2
            assert all(0 < t < 1e10 for t in measured.values())
    plan = compile_plan(graph, params, choice=Choice(times=found))
    assert len(plan.run(np.zeros((2, 1, 28, 28), np.float32))[0]) == 2


def test_a_record_beside_the_model_is_used(model: Path) -> None:
    assert tuning.record_path(model) == model.parent / "model.tune.json"
    for fast in KERNELS:
        tuning.write(tuning.record_path(model), small_graph(), times(fast))
        assert kernel_of(convserve.load(model)) == fast
        served = ModelRepository.open(model, threads=1)
        assert kernel_of(served.get("model").model) == fast
        served.stop()
    # the plan follows from model, instruction set and record
    x = np.random.default_rng(0).standard_normal((3, 8, 6, 6), dtype=np.float32)
    one, other = (convserve.load(model).predict(x) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    # written atomically: nothing else is left
    assert sorted(p.name for p in model.parent.iterdir()) == ["model.npz", "model.tune.json"]


def test_a_record_may_be_named_or_left_aside(model: Path, tmp_path: Path) -> None:
    untuned = kernel_of(convserve.load(model))
    fast = next(name for name in KERNELS if name != untuned)
    named = tmp_path / "other.json"
    tuning.write(named, small_graph(), times(fast))
    assert kernel_of(convserve.load(model)) == untuned
    assert kernel_of(convserve.load(model, tuning=named)) == fast
    named.rename(tuning.record_path(model))
    assert kernel_of(convserve.load(model, tuning=False)) == untuned
    with pytest.raises(ModelFileError, match=r"other\.json: no such file"):
        convserve.load(model, tuning=named)
    with pytest.raises(TypeError, match="tuning must be a path, None or False, got True"):
        convserve.load(model, tuning=True)  # type: ignore[arg-type]


def changed(**entries: object) -> str:
    """A valid record but for some entries."""
    document = {
        "format": 1,
        **tuning._key(small_graph()),
        "layers": {"conv1": {name: {"1": 5.0} for name in KERNELS}},
    }
    return json.dumps(document | entries)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "Expecting value"),
        ("[" * 100_000, "."),
        ("[]", "no tuning record of format 1"),
        (changed(format=2), "no tuning record of format 1"),
        (changed(isa="vax"), "it was made for isa 'vax', this is"),
        (changed(convserve="0.0.0"), "made for convserve '0.0.0'"),
        (changed(graph="sha256:0"), "make it anew with: convserve bench MODEL --tune"),
        (changed(layers=[]), "its layers must be an object"),
        (changed(layers={"conv1": {}}), "'conv1' must have, for each of"),
        (changed(layers={"conv1": {name: {} for name in KERNELS}}), "'conv1' must have"),
        (changed(layers={"conv1": {name: {"x": 1} for name in KERNELS}}), "'conv1' must have"),
        (changed(layers={"conv1": {name: {"1": 0} for name in KERNELS}}), "'conv1' must have"),
        (changed(layers={"conv1": {name: {"1": "3"} for name in KERNELS}}), "'conv1' must have"),
        (changed().replace("5.0", "NaN"), "'conv1' must have"),
    ],
)
def test_what_does_not_fit_is_not_used(
    model: Path, caplog: pytest.LogCaptureFixture, text: str, fault: str
) -> None:
    untuned = kernel_of(convserve.load(model))
    record = tuning.record_path(model)
    record.write_text(text, "utf-8")
    with pytest.raises(ModelFileError, match=r"model\.tune\.json: .*" + fault):
        convserve.load(model, tuning=record)
    with caplog.at_level(logging.WARNING):
        assert kernel_of(convserve.load(model)) == untuned
    (message,) = caplog.messages
    assert "not used" in message and "model.tune.json" in message


def test_a_folder_or_a_huge_file_is_no_record(model: Path) -> None:
    record = tuning.record_path(model)
    record.mkdir()
    with pytest.raises(ModelFileError, match="it is a folder"):
        tuning.read(record, small_graph())
    with pytest.raises(ModelFileError, match="regular file"):
        tuning.write(record, small_graph(), times("direct"))
    convserve.load(model)
    record.rmdir()
    record.write_bytes(b" " * (tuning.MAX_BYTES + 1))
    with pytest.raises(ModelFileError, match="larger than"):
        tuning.read(record, small_graph())


def test_a_record_survives_new_weights_and_not_another_graph(tmp_path: Path) -> None:
    graph, record = small_graph(), tmp_path / "model.tune.json"
    tuning.write(record, graph, times("direct"))
    assert json.loads(record.read_text())["isa"] == isa()
    assert tuning.read(record, small_graph()) == times("direct")
    with pytest.raises(ModelFileError, match="made for graph"):
        tuning.read(record, small_graph(channels=24))
