"""What the benchmark of training trains, and its table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.training import networks, ours
from benchmarks.training.__main__ import _difference
from benchmarks.training.report import Row, markdown
from convserve import kernels


def test_a_network_is_written_with_all_that_both_need(tmp_path: Path) -> None:
    path = networks.write("lenet", tmp_path)
    graph, params = networks.read(path)
    x, y, classes = networks.batch(graph, 3)
    assert x.shape == (3, 1, 28, 28)
    assert y.shape == (3,)
    assert classes == 10
    assert params["conv1.weight"].shape == (6, 1, 5, 5)
    grads = ours.gradients(str(path), 3)
    assert grads.keys() == params.keys()
    ((name, run),) = ours.settings(str(path), 3, kernels.num_threads())
    run()
    assert name == "CompiledStep"


def test_gradients_differ_by_the_worst_parameter(tmp_path: Path) -> None:
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    np.savez(a, w=np.array([1.0, 1.1]), v=np.ones(2))
    np.savez(b, w=np.ones(2), v=np.ones(2))
    assert _difference(a, b) == pytest.approx(0.1 / np.sqrt(2))
    np.savez(b, w=np.ones(2))
    with pytest.raises(ValueError, match="different parameters"):
        _difference(a, b)


def test_the_table_has_medians_ratios_and_whether_the_target_is_met() -> None:
    row = Row("lenet", 128, 2.0)
    row.rates = {"ours": [30.0, 50.0, 44.0], "torch_peer": [20.0, 20.0, 20.0]}
    row.peak_mb = {"ours": 50.0, "torch_peer": 300.0}
    row.settings = {"ours": "CompiledStep", "torch_peer": "channels_last"}
    row.versions = {"ours": "0.1", "torch_peer": "2"}
    row.difference = 1e-6
    assert row.cells() == [
        "lenet", "128", "20", "44", "**2.20×** (1.50–2.50)", "≥ 2: yes", "300", "50", "1e-06",
        "channels_last",
    ]  # fmt: skip
    *_, header, rule, line = markdown([row], 3, 1.0, 0.1).splitlines()
    assert header.count("|") == rule.count("|") == line.count("|") == 11
