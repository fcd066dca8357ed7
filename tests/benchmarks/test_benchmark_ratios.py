from pathlib import Path

import pytest

from benchmarks import ratios, report
from benchmarks.contestants import PEERS
from benchmarks.ratios import Row


def row(**rates: list[float]) -> Row:
    return Row("model", "lenet", 1, 2, macs=500_000_000, rates=rates, peak=[100.0, 50.0, 100.0])


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine halved its speed in the second round: the ratio must not see it.
    assert ratios.ratio([30, 15, 33], [20, 10, 30]) == (1.5, 1.1, 1.5)


def test_rounds_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError):
        ratios.ratio([1, 2], [1])


def test_the_best_peer_has_the_highest_median_not_the_highest_round() -> None:
    r = row(onnxruntime=[10, 10, 99], ncnn=[20, 20, 20], convserve=[30, 30, 10])
    assert ratios.best_peer(r, PEERS) == "ncnn"
    assert ratios.ratio_to_best(r, PEERS) == (1.5, 0.5, 1.5)


def test_missing_contestants_give_no_ratio() -> None:
    assert ratios.best_peer(row(convserve=[1]), PEERS) is None
    assert ratios.ratio_to_best(row(convserve=[1]), PEERS) is None
    assert ratios.ratio_to_best(row(ncnn=[1]), PEERS) is None
    assert ratios.rate(row(), "ncnn") is None


def test_the_share_of_the_peak_is_taken_within_each_round() -> None:
    # A multiply-add counts as two operations: 1 GFLOP an image here.
    assert ratios.percent_of_peak(row(convserve=[90, 45, 80])) == pytest.approx(90)


def test_the_geometric_mean() -> None:
    assert ratios.geometric_mean([2, 8]) == pytest.approx(4)
    assert ratios.geometric_mean([]) is None


def test_a_peer_below_its_known_ratio_is_suspect() -> None:
    expected = {("lenet", 1): {"onnxruntime": 100.0, "ncnn": 200.0, "mnn": 100.0}}
    fine = row(onnxruntime=[10], ncnn=[17.1], mnn=[9])
    assert ratios.suspects(fine, expected) == []
    [found] = ratios.suspects(row(onnxruntime=[10], ncnn=[16.9], mnn=[9]), expected)
    assert found == "lenet, batch 1: ncnn reached 1.69 of ONNX Runtime, 2.00 was known"
    assert ratios.suspects(row(ncnn=[1]), expected) == []


def test_the_known_rates_name_peers_and_models() -> None:
    expected = ratios.read_expected(report.EXPECTED)
    assert expected["lenet", 32]["mnn"] == 48500
    assert {name for rates in expected.values() for name in rates} == set(PEERS)


def test_a_malformed_line_of_known_rates_is_named(tmp_path: Path) -> None:
    path = tmp_path / "expected.txt"
    path.write_text("model batch ncnn mnn\nlenet 1 5 -\nlenet 32 5\n")
    with pytest.raises(ValueError, match="line 3: must be a model, a batch and 2 rates"):
        ratios.read_expected(path)
    path.write_text("model batch ncnn mnn\nlenet 1 5 -\n")
    assert ratios.read_expected(path) == {("lenet", 1): {"ncnn": 5.0}}
