"""`convserve bench`: what it prints, for a model, a server and layers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import convserve
from convserve.cli import cli
from convserve.cli._child_server import child_server
from convserve.cli._common import run
from convserve.cli._layer_bench import SHAPES, read_shapes
from convserve.cli._load import Limits
from convserve.cli._server_bench import FIRST_TIMEOUT, Load, _run
from convserve.cli._timing import Timing, measure
from convserve.model_file import ModelFile, save


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "lenet.npz"
    graph = convserve.architectures.build("lenet")
    save(path, ModelFile(graph, graph.initialise(np.random.default_rng(1))))
    return path


def bench(*arguments: object) -> int:
    return run(cli, ["bench", *map(str, arguments)])


def test_a_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [model, "--batch", "1,8", "--threads", "1,2", "--seconds", "0.02"]
    assert bench(*options) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["batch", "threads", "images/s"]
    assert [row.split()[:2] for row in rows] == [["1", "1"], ["8", "1"], ["1", "2"], ["8", "2"]]

    assert bench(*options, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    for row in rows:
        assert 0 < row["min_ms"] <= row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["max_ms"]
        assert sum(row["histogram"]) == row["calls"]
        assert row["images_per_second"] > 0


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    with child_server(model) as address:
        yield address


def test_callers_of_a_server(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--server", address, "--batch", "1,4", "--concurrency", "1,3", "--warm-up", "0"]
    assert bench(*options, "--requests", "30", "--connections", "2", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["batch"], row["concurrency"]) for row in rows] == [(1, 1), (4, 1), (1, 3), (4, 3)]
    for row in rows:
        assert row["statuses"] == {"OK": row["requests"]}
        assert sum(row["histogram"]["counts"]) == row["requests"]
        ms = row["latency_ms"]
        assert 0 < ms["min"] <= ms["p50"] <= ms["p99.9"] <= ms["max"]
        assert row["images_per_second"] == pytest.approx(
            row["batch"] * row["requests"] / row["seconds"]
        )


def test_requests_at_a_rate(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--server", address, "--batch", "2", "--rate", "200"]
    assert bench(*options, "--requests", "20", "--arrivals", "uniform", "--warm-up", "0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("batch 2 float32, 200 requests/s offered (uniform): ")
    assert "p99.9" in lines[1]
    assert sum(int(line.split()[-1]) for line in lines[2:]) == 20


def test_a_rate_below_one_in_the_time(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--server", address, "--batch", "1", "--rate", "0.01", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["statuses"] == {"OK": 1}


def test_a_request_that_the_server_refuses(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    options = ["--batch", "1", "--image", tmp_path / "x.png", "--requests", "3"]
    assert bench("--server", address, *options) == 1
    assert "INVALID_ARGUMENT: " in capsys.readouterr().err


def test_the_timeout_is_not_that_of_connecting() -> None:
    timeouts: list[float] = []

    def call(data: bytes, *, timeout: float, metadata: object) -> bytes:
        timeouts.append(timeout)
        return data

    _run([call], b"", Load(Limits(60, 2, 0), timeout=0.001), [])
    assert timeouts == [FIRST_TIMEOUT, 0.001, 0.001]


def test_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = tmp_path / "shapes.txt"
    shapes.write_text("# comment\n\nnet 32 8 8 32 3 1 1  # a layer\nnet 16 9 9 16 3 2 1\n")
    assert bench("--layers", "--shapes", shapes, "--seconds", "0.01", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["isa"] == convserve.kernels.isa()
    assert [row["layer"] for row in result["rows"]] == [
        "32@8x8 3x3 -> 32",
        "16@9x9 3x3 -> 16 stride 2",
    ]
    for row in result["rows"]:
        assert row["percent"] == pytest.approx(100 * row["gflops"] / row["peak"])
        assert row["gflops"] > 0

    assert bench("--layers", "--shapes", shapes, "--seconds", "0.01", "--threads", "1,2") == 0
    _, header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[-2:] == ["of", "peak"]
    assert len(rows) == 4 and all(row.startswith("net ") and row.endswith("%") for row in rows)


def test_the_layers_that_are_measured_are_in_the_range_of_the_target() -> None:
    shapes = read_shapes(SHAPES)
    assert len(shapes) > 20
    for shape in shapes:
        assert shape.kernel == 3 and 7 <= shape.height <= 56 and 7 <= shape.width <= 56
        assert 32 <= shape.channels <= 256 and 32 <= shape.filters <= 256


@pytest.mark.parametrize("line", ["net 1 2 3", "net a 8 8 32 3 1 1", "net 1 2 3 4 5 6 7 8"])
def test_a_shapes_file_with_a_fault(
    tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shapes.txt").write_text(f"net 32 8 8 32 3 1 1\n{line}\n")
    assert bench("--layers", "--shapes", tmp_path / "shapes.txt") == 1
    assert "line 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["m.npz", "--layers"],
        ["m.npz", "--server", "localhost:1"],
        ["--server", "http://localhost:1"],
        ["m.npz", "--batch", "0"],
        ["m.npz", "--batch", "1,x"],
        ["m.npz", "--threads", ""],
        ["m.npz", "--seconds", "0"],
        ["--server", "localhost:1", "--threads", "2"],
        ["--server", "localhost:1", "--rate", "5", "--concurrency", "2"],
        ["--server", "localhost:1", "--rate", "0"],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    assert bench(*arguments) == 2


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ("m.npz --rate 5", "--rate does not go with MODEL"),
        ("m.npz --concurrency 1", "--concurrency does not go with MODEL"),
        ("m.npz --dtype float32", "--dtype does not go with MODEL"),
        ("m.npz --model-name m", "--model-name does not go with MODEL"),
        ("m.npz --tune --batch 1", "--batch does not go with --tune"),
        ("--layers --batch 1", "--batch does not go with --layers"),
        (f"--server localhost:1 --shapes {SHAPES}", "--shapes does not go with --server"),
        ("--server localhost:1 --arrivals uniform", "--arrivals goes with --rate"),
        (f"--server localhost:1 --image {SHAPES} --dtype uint8", "one of --image and --dtype"),
    ],
)
def test_options_that_would_do_nothing(
    arguments: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(*arguments.split()) == 2
    assert fault in capsys.readouterr().err


def test_a_missing_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("missing.npz") == 1
    assert "missing.npz" in capsys.readouterr().err


def test_a_call_that_fails_ends_the_measurement() -> None:
    calls = 0

    def call(x: object) -> None:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        measure(call, np.zeros((1, 1), np.float32), 1, 1, 2, 60)


def test_the_histogram_shows_every_bin_that_is_not_empty() -> None:
    timing = Timing(1, 1, 1001, 1.0, 1, 1, 1, 1, 1, [1000, 0, 1, 500])
    assert timing.bars() == "█ ▁▄"


def test_tuning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep.npz"
    graph = convserve.architectures.build("deep_convnet")
    save(path, ModelFile(graph, graph.initialise(0)))
    assert bench(path, "--tune", "--seconds", "0.01") == 0
    *rows, last = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows] == [f"conv{i}" for i in range(2, 7)]
    assert last == f"5 layers had a choice; written to {tmp_path / 'deep.tune.json'}"
    assert bench(path, "--tune", "--seconds", "0.01", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["record"] == str(tmp_path / "deep.tune.json")
    for row in document["layers"]:
        assert row["tuned"] in row["nanoseconds"] and row["untuned"] in row["nanoseconds"]
    # what was printed is what a plan takes
    taken = {
        part.layers[0]: part.kernel.name
        for part in convserve.load(path).plan(1).parts
        if part.layers
    }
    assert all(taken[row["layer"]] == row["tuned"] for row in document["layers"])


def test_tuning_needs_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--layers", "--tune") == 2
    assert "--tune needs a MODEL" in capsys.readouterr().err
