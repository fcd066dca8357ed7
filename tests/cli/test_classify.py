"""`convserve classify` with a model in the process: files in, rows out, bits as predict gives."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import convserve
from convserve.cli import cli
from convserve.cli._common import run
from convserve.cli._image_files import Decoder, ImageFiles
from convserve.model_file import ModelFile, save
from convserve.preprocessing import Preprocessing

LABELS = ("zero", 'a "quoted", one', "two", "three", "four", "five", "six", "seven", "8", "neun é")
PREPROCESSING = Preprocessing(28, 28, "grey", (0.13,), (0.31,))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "lenet.npz"
    graph = convserve.architectures.build("lenet")
    params = graph.initialise(np.random.default_rng(1))
    save(path, ModelFile(graph, params, LABELS, PREPROCESSING))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """70 images of many kinds in three folders, with files beside them that are none."""
    rng = np.random.default_rng(2)
    root = tmp_path / "images"
    for number in range(70):
        place = root / ("", "b", "b/c")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        size = (28, 28) if number % 2 else (40, 31, 3)
        suffix = ("png", "jpg", "webp", "PNG")[number % 4]
        image = Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
        image.save(place / f"{number:03d}.{suffix}")
    (root / "notes.txt").write_text("no image")
    (root / ".hidden.png").write_text("no image")
    return root


def classify(*args: object) -> int:
    return run(cli, ["classify", *map(str, args)])


def in_order(folder: Path) -> list[str]:
    """A folder's sorted images before those of its sorted subfolders."""
    kinds = {".png", ".jpg", ".webp", ".pgm"}
    images = sorted(
        str(p) for p in folder.iterdir() if p.suffix.lower() in kinds and not p.name.startswith(".")
    )
    folders = sorted(p for p in folder.iterdir() if p.is_dir())
    return images + [path for sub in folders for path in in_order(sub)]


def expected_rows(model: Path, paths: list[str], top_k: int) -> list[tuple[str, float]]:
    from convserve.images import to_pixels

    loaded = convserve.load(model)
    pixels = np.stack([to_pixels(path, PREPROCESSING) for path in paths])
    scores = loaded.predict(pixels)
    rows = []
    for path, row in zip(paths, scores, strict=True):
        order = np.argsort(-row, kind="stable")[:top_k]
        rows.append([path, *(v for i in order for v in (LABELS[i], row[i]))])
    return rows


def read_csv(text: str) -> list[list[object]]:
    [header, *rows] = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert header[:3] == ["path", "label_1", "score_1"]
    return [[v if i % 2 or not i else np.float32(v) for i, v in enumerate(row)] for row in rows]


def read_jsonl(text: str) -> list[list[object]]:
    rows = [list(json.loads(line).values()) for line in text.splitlines()]
    return [[v if i % 2 or not i else np.float32(v) for i, v in enumerate(row)] for row in rows]


def read_parquet(path: Path) -> list[list[object]]:
    table = pq.read_table(path)
    assert all(
        str(f.type) == ("float" if f.name.startswith("score") else "string") for f in table.schema
    )
    columns = [c.to_pylist() if i % 2 or not i else c.to_numpy() for i, c in enumerate(table)]
    return [list(row) for row in zip(*columns, strict=True)]


def test_csv_on_standard_output_is_bit_exact(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert classify(folder, "--model", model) == 0
    out, err = capsys.readouterr()
    assert read_csv(out) == expected_rows(model, in_order(folder), 5)
    assert "classified 70 images" in err and "images/s" in err


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(("top_k", "batch"), [(1, 1), (3, 64), (99, 7)])
def test_formats_agree(
    model: Path, folder: Path, tmp_path: Path, suffix: str, top_k: int, batch: int
) -> None:
    output = tmp_path / f"out.{suffix}"
    options = ["--top-k", top_k, "--batch-size", batch, "--threads", 2, "--decode-threads", 3]
    assert classify(folder, "--model", model, "--output", output, *options) == 0
    if suffix == "parquet":
        rows = read_parquet(output)
    else:
        rows = (read_csv if suffix == "csv" else read_jsonl)(output.read_text("utf-8"))
    assert rows == expected_rows(model, in_order(folder), min(top_k, 10))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", output.name]


def test_files_globs_and_folders_in_the_order_given(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = str(folder / "b" / "001.jpg")
    arguments = [first, f"{folder}/0[01]*.png", f"{folder}/**/*.webp", folder / "b" / "c", first]
    assert classify(*arguments, "--model", model) == 0
    paths = [row[0] for row in read_csv(capsys.readouterr().out)]
    top = [p for p in in_order(folder) if Path(p).parent == folder]
    assert paths == [
        first,
        *(p for p in top if p.endswith(".png") and Path(p).name.startswith(("00", "01"))),
        *sorted(p for p in in_order(folder) if p.endswith(".webp")),
        *in_order(folder / "b" / "c"),
        first,
    ]


def test_unreadable_files_are_reported_and_passed_over(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = in_order(folder)
    (folder / "000zero.png").touch()
    (folder / "b" / "text.jpg").write_text("text with the name of an image")
    whole = Path(good[3]).read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    missing, nothing = tmp_path / "missing.png", tmp_path / "none*.png"
    arguments = [folder, missing, nothing, "--model", model, "--batch-size", 8]
    assert classify(*arguments) == 1
    out, err = capsys.readouterr()
    assert read_csv(out) == expected_rows(model, good, 5)
    for name in ("000zero.png", "text.jpg", "cut.png", "missing.png", "none*.png"):
        assert sum(name in line for line in err.splitlines()) == 1, name
    assert "5 unreadable" in err
    assert classify(*arguments, "--ignore-errors") == 0


def test_no_images_at_all(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert classify(tmp_path, "--model", model) == 1
    out, err = capsys.readouterr()
    assert out.startswith("path,label_1,score_1") and out.count("\n") == 1
    assert "no image files were found" in err and "unreadable" not in err


AWKWARD = ["a,b.png", 'quo"te.png', "line\nbreak.png", "re\rturn.png", " space .png", "é.png"]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_awkward_names(model: Path, tmp_path: Path, suffix: str) -> None:
    names = [*AWKWARD, os.fsdecode(b"\xff\xfe.png"), "[1].png"]
    images = tmp_path / "images"
    images.mkdir()
    for name in names:
        Image.new("L", (28, 28), len(name)).save(images / name)
    output = tmp_path / f"out.{suffix}"
    arguments = [images, images / "[1].png", "--model", model, "--output", output, "--top-k", 1]
    assert classify(*arguments) == 0
    expected = [*sorted(str(images / name) for name in names), str(images / "[1].png")]
    if suffix == "parquet":
        rows = read_parquet(output)
        expected = [os.fsencode(p).decode("utf-8", "backslashreplace") for p in expected]
    elif suffix == "csv":
        rows = read_csv(output.read_bytes().decode("utf-8", "surrogateescape"))
    else:
        rows = read_jsonl(output.read_text("ascii"))
    assert [row[0] for row in rows] == expected
    before = output.read_bytes()
    assert classify(*arguments, "--resume") == 0
    if suffix != "parquet":
        assert output.read_bytes() == before
    else:
        assert read_parquet(output) == rows


def test_many_tiny_images(model: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(3)
    for number in range(3000):
        image = Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8))
        image.save(images / f"{number:05d}.pgm")
    output = tmp_path / "out.csv"
    assert classify(images, "--model", model, "--output", output) == 0
    assert read_csv(output.read_text("utf-8")) == expected_rows(model, in_order(images), 5)


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "either --model FILE or --server"),
        (["--model", "m.npz", "--server", "localhost:1"], "either --model FILE or --server"),
        (["--model", "m.npz", "--model-name", "x"], "--model-name goes with --server"),
        (["--server", "http://localhost:1"], "--server: address must be HOST:PORT"),
        (["--model", "m.npz", "--top-k", "0"], "--top-k"),
        (["--model", "m.npz", "--output", "x.txt"], "suffix must be one of .csv"),
        (["--model", "m.npz", "--output", "nowhere/x.csv"], "there is no folder nowhere"),
        (["--model", "m.npz", "--resume"], "--resume needs"),
        (["--model", "m.npz", "-o", "x.csv", "--resume", "--overwrite"], "exclude each other"),
        (["--server", "localhost:1", "--threads", "2"], "--threads is for --model"),
    ],
)
def test_wrong_usage(
    arguments: list[str],
    fault: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert classify("images", *arguments) == 2
    assert fault in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_can_not_classify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.csv"
    graph = convserve.architectures.build("lenet")
    params = graph.initialise(np.random.default_rng(1))
    save(tmp_path / "bare.npz", ModelFile(graph, params))
    maps = convserve.Graph((1, 4, 4))
    maps.add(convserve.layers.ReLU())
    save(tmp_path / "maps.npz", ModelFile(maps, {}, None, Preprocessing(4, 4, "grey", (0,), (1,))))
    for name, fault in [
        ("bare", "no preprocessing"),
        ("maps", "no classifier"),
        ("missing", "missing.npz"),
    ]:
        arguments = [tmp_path, "--model", tmp_path / f"{name}.npz", "--output", output]
        assert classify(*arguments) == 1
        assert fault in capsys.readouterr().err
        assert not output.exists()


def test_without_labels_classes_are_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = convserve.architectures.build("lenet")
    params = graph.initialise(np.random.default_rng(1))
    save(tmp_path / "m.npz", ModelFile(graph, params, None, PREPROCESSING))
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    assert classify(tmp_path / "a.png", "--model", tmp_path / "m.npz", "--top-k", 10) == 0
    [row] = read_csv(capsys.readouterr().out)
    assert sorted(map(int, row[1::2])) == list(range(10))


def test_scores_of_one_pixel_are_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = convserve.Graph((1, 28, 28))
    graph.add(convserve.layers.Conv2d(3, 5))
    graph.add(convserve.layers.GlobalAvgPool2d())
    graph.add(convserve.layers.Softmax())
    model = ModelFile(graph, graph.initialise(1), ("a", "b", "c"), PREPROCESSING)
    save(tmp_path / "m.npz", model)
    Image.new("L", (28, 28), 200).save(tmp_path / "a.png")
    assert classify(tmp_path / "a.png", "--model", tmp_path / "m.npz", "--top-k", 3) == 0
    [row] = read_csv(capsys.readouterr().out)
    assert sorted(row[1::2]) == ["a", "b", "c"]


def test_decoding_stays_a_few_batches_ahead(folder: Path) -> None:
    taken = 0

    def paths(report: Callable[[str], None]) -> object:
        nonlocal taken
        for _ in range(50):
            for path in ImageFiles((str(folder),), report):
                taken += 1
                yield path

    batches = Decoder(PREPROCESSING, batch_size=10, threads=2).batches(paths(pytest.fail))
    next(batches)
    assert taken <= 10 * (2 + 1)
    batches.close()


def test_a_folder_that_can_not_be_read_is_reported(tmp_path: Path) -> None:
    faults: list[str] = []
    files = ImageFiles((str(tmp_path / "gone"), str(tmp_path)), faults.append)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.png").touch()
    (tmp_path / "link").symlink_to(tmp_path)  # a loop
    assert list(files) == [str(tmp_path / "gone"), str(tmp_path / "b" / "x.png")]
    assert files.found == 2 and faults == []
