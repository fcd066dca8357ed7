"""An interrupted `convserve classify` goes on with `--resume` and ends with the same output."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

import convserve
from convserve.cli import _parquet_writer, _row_writers, cli
from convserve.cli._common import run
from convserve.model_file import ModelFile, save
from convserve.preprocessing import Preprocessing

SUFFIXES = ["csv", "jsonl", "parquet"]
ROWS = 120


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with lenet.npz and images/ of ROWS files, one name with a line break."""
    root = tmp_path_factory.mktemp("resume")
    graph = convserve.architectures.build("lenet")
    params = graph.initialise(np.random.default_rng(1))
    labels = (*"abcdefghi", '"j",')
    preprocessing = Preprocessing(28, 28, "grey", (0.13,), (0.31,))
    save(root / "lenet.npz", ModelFile(graph, params, labels, preprocessing))
    (root / "images").mkdir()
    rng = np.random.default_rng(2)
    for number in range(ROWS):
        image = Image.fromarray(rng.integers(0, 256, (28, 28), dtype=np.uint8))
        image.save(
            root / "images" / f"{number:04d}{',' * (number % 2)}{chr(10) * (number % 3)}.png"
        )
    return root


def arguments(place: Path, output: Path, *more: object) -> list[str]:
    images = [place / "images", place / "images" / "0000.png"]  # one of them twice
    options = ["--model", place / "lenet.npz", "--batch-size", 8, "--output", output]
    return ["classify", *map(str, [*images, *options, *more])]


def content(output: Path) -> object:
    return pq.read_table(output) if output.suffix == ".parquet" else output.read_bytes()


@pytest.fixture
def whole(place: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The output of a run that nothing interrupts."""
    output = tmp_path / f"whole.{request.getfixturevalue('suffix')}"
    assert run(cli, arguments(place, output)) == 0
    return output


# Runs the command, and kills its process with half of a row on its way to the output.
KILLED = """
import os, signal, sys
from convserve.cli import _parquet_writer, _row_writers, main

writes = 0
_parquet_writer.PART_ROWS = 20

def dies(write, half_a_row):
    def wrapper(self, rows):
        global writes
        writes += 1
        if writes == 9:
            half_a_row(self, rows)
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, rows)
    return wrapper

def half_line(writer, rows):
    line = writer._form.line(rows[0]).encode()
    writer._file.write(line[: len(line) // 2])

def half_part(writer, rows):
    (writer._folder / "000003.tmp").write_bytes(b"PAR1half")

text, parquet = _row_writers.TextWriter, _parquet_writer.ParquetWriter
text.write = dies(text.write, half_line)
parquet.write = dies(parquet.write, half_part)
main()
"""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_killed_in_the_middle(place: Path, tmp_path: Path, suffix: str, whole: Path) -> None:
    output = tmp_path / f"out.{suffix}"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments(place, output)], timeout=300, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    if suffix == "parquet":
        assert not output.exists()
    else:
        written = output.read_bytes()
        assert whole.read_bytes().startswith(written) and not written.endswith(b"\n")
    assert run(cli, arguments(place, output)) == 2  # neither --resume nor --overwrite
    assert run(cli, arguments(place, output, "--resume")) == 0
    assert content(output) == content(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([output.name, whole.name])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("writes", [0, 1, 5])
def test_interrupted_by_the_user(
    place: Path,
    tmp_path: Path,
    suffix: str,
    writes: int,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind = _parquet_writer.ParquetWriter if suffix == "parquet" else _row_writers.TextWriter
    write = kind.write
    left = writes

    def interrupted(self: object, rows: object) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        write(self, rows)  # type: ignore[arg-type]

    output = tmp_path / f"out.{suffix}"
    monkeypatch.setattr(kind, "write", interrupted)
    assert run(cli, arguments(place, output)) == 130
    assert f"stopped after {8 * writes} images; --resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(cli, arguments(place, output, "--resume")) == 0
    assert f"classified {ROWS + 1 - 8 * writes} images" in capsys.readouterr().err
    assert content(output) == content(whole)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_cut_anywhere(place: Path, tmp_path: Path, suffix: str, whole: Path) -> None:
    data = whole.read_bytes()
    output = tmp_path / f"out.{suffix}"
    for cut in [0, 1, 10, 11, 60, len(data) // 2, len(data) // 2 + 37, len(data) - 1, len(data)]:
        output.write_bytes(data[:cut])
        assert run(cli, arguments(place, output, "--resume")) == 0
        assert output.read_bytes() == data, cut


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_new_files_are_added(
    place: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    options = ["--model", place / "lenet.npz", "--output", tmp_path / f"out.{suffix}"]
    command = ["classify", *map(str, [images, *options]), "--resume"]
    for count in (3, 5):
        for number in range(count):
            Image.new("L", (28, 28), number).save(images / f"{number}.png")
        assert run(cli, command) == 0
    assert "classified 2 images" in capsys.readouterr().err
    assert run(cli, command) == 0
    assert "classified 0 images" in capsys.readouterr().err
    if suffix == "parquet":
        assert pq.read_table(tmp_path / "out.parquet").num_rows == 5


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_overwrite_replaces(place: Path, tmp_path: Path, suffix: str, whole: Path) -> None:
    output = tmp_path / f"out.{suffix}"
    output.write_bytes(b"something else")
    assert run(cli, arguments(place, output)) == 2
    assert output.read_bytes() == b"something else"
    assert run(cli, arguments(place, output, "--overwrite")) == 0
    assert content(output) == content(whole)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_another_kind_is_left_alone(
    place: Path, tmp_path: Path, suffix: str, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / f"out.{suffix}"
    others = [b"something else\n", b"a,b,c\n1,2,3\n", b'{"path": 3}\n{"path": 4}\n', b"PAR1" * 9]
    if suffix != "parquet":
        others.append(whole.read_bytes() + b"\n{\n" + whole.read_bytes()[-40:])
    for other in others:
        output.write_bytes(other)
        assert run(cli, arguments(place, output, "--resume")) == 1
        assert "--resume continues a file that this command wrote" in capsys.readouterr().err
        assert output.read_bytes() == other
    output.write_bytes(whole.read_bytes())
    assert run(cli, arguments(place, output, "--resume", "--top-k", 3)) == 1
    assert "same --top-k" in capsys.readouterr().err
    assert output.read_bytes() == whole.read_bytes()


def test_parquet_joins_parts_into_row_groups(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_parquet_writer, "PART_ROWS", 10)
    monkeypatch.setattr(_parquet_writer, "GROUP_ROWS", 50)
    output = tmp_path / "out.parquet"
    assert run(cli, arguments(place, output)) == 0
    metadata = pq.read_metadata(output)
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert rows == [64, 57]  # parts of 16 rows, two batches each


def test_parquet_that_was_joined_but_not_cleared_up(place: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.parquet"
    assert run(cli, arguments(place, output)) == 0
    table = pq.read_table(output)
    folder = tmp_path / "out.parquet.parts"
    folder.mkdir()
    pq.write_table(table.slice(0, 7), folder / "000000.parquet")
    assert run(cli, arguments(place, output, "--resume")) == 0
    assert pq.read_table(output) == table and not folder.exists()


def test_parquet_without_pyarrow(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run(cli, arguments(place, tmp_path / "out.parquet")) == 1
    assert "pip install 'convserve[parquet]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
