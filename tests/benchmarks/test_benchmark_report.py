from pathlib import Path

import pytest

from benchmarks import report, results
from benchmarks.ratios import Row
from benchmarks.results import Run

RUN = Run("Some CPU", 2, "2026-01-31", rounds=3, seconds=0.3, slow_settings=True)


def model(name: str, ours: float, threads: int = 2) -> Row:
    rates = {
        "onnxruntime": [1000.0, 1100.0, 900.0],
        "mnn": [2000.0, 2200.0, 1800.0],
        "convserve": [ours, 1.1 * ours, 0.9 * ours],
        "convserve_1_thread": [ours / 2] * 3,
    }
    return Row(
        "model", name, 32, threads, 10**6, rates, [100.0] * 3,
        {"onnxruntime": 0.0, "mnn": 2e-6, "convserve": 3e-7},
        {"onnxruntime": "ORT_ENABLE_ALL", "mnn": "Session", "convserve": "load"},
        {"onnxruntime": "1.2", "convserve": "0.1"},
        {"ncnn": "RuntimeError: no | such\nlayer"},
    )  # fmt: skip


def test_wins_and_losses_are_both_in_the_table() -> None:
    text = report.markdown(RUN, [model("won", 3000), model("lost", 1000)], {}, "plot.png")
    assert "geometric mean **0.87×** the best peer of each row; ahead in 1 of 2 rows" in text
    assert (
        "| images/s | batch | ONNX Runtime | MNN | convserve | to the best peer | to 1 thread "
        "| of peak | difference |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| won | 32 | 1,000 | **2,000** | 3,000 | **1.50×** (1.50–1.50) | 2.00× (1.80–2.20) "
        "| 6 % | 3e-07 |\n"
        "| lost | 32 | 1,000 | **2,000** | 1,000 | **0.50×** (0.50–0.50) | 2.00× (1.80–2.20) "
        "| 2 % | 3e-07 |\n"
    ) in text
    assert "![Images/s relative to the best peer](plot.png)" in text


def test_the_machine_the_settings_and_who_is_missing_are_told() -> None:
    text = report.markdown(RUN, [model("lenet", 3000)], {}, None)
    assert "Some CPU, 2 cores; 2026-01-31. ONNX Runtime 1.2; convserve 0.1." in text
    assert "| MNN | Session (1) |" in text
    assert "- ncnn: RuntimeError: no \\| such layer: lenet (32, 2 threads)" in text
    assert "![" not in text


def test_a_slow_peer_marks_the_run_as_suspect() -> None:
    expected = {("lenet", 32): {"onnxruntime": 100.0, "mnn": 300.0}}
    text = report.markdown(RUN, [model("lenet", 3000)], expected, None)
    assert "**Suspect**" in text
    assert "lenet, batch 32: mnn reached 2.00 of ONNX Runtime, 3.00 was known." in text


def test_each_number_of_threads_has_a_table_and_the_summary_is_of_the_most() -> None:
    text = report.markdown(RUN, [model("a", 1000, threads=1), model("a", 3000)], {}, None)
    assert text.index("### 2 threads") < text.index("### 1 thread\n")
    assert "convserve, 2 threads: geometric mean **1.50×**" in text


def test_layers_are_told_in_gflops_with_a_ratio_to_each_peer() -> None:
    rates = {"onnxruntime": [500.0], "ncnn": [250.0], "convserve": [1000.0]}
    row = Row("layer", "vgg16 3@8×8 3×3 → 4", 1, 1, 10**7, rates, [25.0])
    text = report.markdown(RUN, [row], {}, None)
    assert "## Layers, 1 thread" in text and "## Models" not in text
    cells = "10.0 | 5.0 | 20.0 | 2.00× (2.00–2.00) | 4.00× (4.00–4.00) | 80 % | –"
    assert f"| vgg16 3@8×8 3×3 → 4 | 1 | {cells} |" in text


def test_a_row_without_any_rate_is_still_a_row() -> None:
    row = Row("model", "vgg16", 1, 2, 10**9, errors={"convserve": "MemoryError"})
    text = report.markdown(RUN, [row], {}, None)
    assert "| vgg16 | 1 | – | – | – | – |" in text
    assert "- convserve: MemoryError: vgg16 (1, 2 threads)" in text


def test_results_are_read_back_and_a_newer_row_replaces_an_older(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    results.start(path, RUN)
    for row in (model("a", 1.0), model("b", 2.0), model("a", 3.0)):
        results.append(path, row)
    assert results.read(path) == (RUN, [model("a", 3.0), model("b", 2.0)])


def test_a_torn_last_line_is_passed_over_but_no_other(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    results.start(path, RUN)
    results.append(path, model("a", 1.0))
    whole = path.read_text("utf-8")
    path.write_text(whole + '{"kind": "mo', "utf-8")
    assert results.read(path)[1] == [model("a", 1.0)]
    path.write_text(whole + '{"kind": "mo\n' + whole.splitlines()[1] + "\n", "utf-8")
    with pytest.raises(ValueError):
        results.read(path)
