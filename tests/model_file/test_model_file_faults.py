"""Malformed model files: each is one ModelFileError that names the file and the fault."""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convserve.errors import ModelFileError
from convserve.graph import Graph, layers
from convserve.model_file import ENTRY, ModelFile, Preprocessing, load, save

Members = dict[str, bytes]


def small() -> ModelFile:
    graph = Graph((1, 4, 4))
    graph.add(layers.Conv2d(2, 3))
    graph.add(layers.BatchNorm())
    graph.add(layers.Flatten())
    graph.add(layers.Affine(3))
    graph.add(layers.Softmax())
    preprocessing = Preprocessing(4, 4, "grey", (0.5,), (0.5,))
    return ModelFile(graph, graph.initialise(1), ("a", "b", "c"), preprocessing, {"note": "x"})


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "model.npz"
    save(path, small())
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.npz"


def members_of(data: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def archive_of(members: Members | list[tuple[str, bytes]], **options: Any) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", **options) as archive:
        warnings.simplefilter("ignore")  # duplicate names
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, data)
    return out.getvalue()


def npy(array: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array)
    return out.getvalue()


def refused(path: Path, data: bytes, message: str = ".") -> None:
    path.write_bytes(data)
    with pytest.raises(ModelFileError, match=message) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and len(text) < 1000


def with_json(good: bytes, change: Callable[[dict[str, Any]], object] | bytes) -> bytes:
    """The good file with its description changed, or replaced by these bytes."""
    members = members_of(good)
    if callable(change):
        value = np.load(io.BytesIO(members[f"{ENTRY}.npy"]))
        description = json.loads(value.tobytes())
        change(description)
        change = json.dumps(description).encode()
    members[f"{ENTRY}.npy"] = npy(np.frombuffer(change, np.uint8))
    return archive_of(members)


def with_array(good: bytes, name: str, array: np.ndarray[Any, Any] | bytes) -> bytes:
    members = members_of(good)
    members[f"{name}.npy"] = array if isinstance(array, bytes) else npy(array)
    return archive_of(members)


def test_the_helpers_make_loadable_files(good: bytes, path: Path) -> None:
    path.write_bytes(with_json(good, lambda d: None))
    load(path)


# Damage


def test_truncated_anywhere(good: bytes, path: Path) -> None:
    for length in range(0, len(good), 3):
        refused(path, good[:length])
    refused(path, good[:-1], "its end is missing: it is truncated")
    refused(path, b"", "it is empty")


def test_any_byte_flipped(good: bytes, path: Path) -> None:
    """Found, or without effect: never another exception, and never other weights."""
    model = small()
    for at in range(len(good)):
        damaged = bytearray(good)
        damaged[at] ^= (0xFF, 0x01, 0x80)[at % 3]
        path.write_bytes(damaged)
        try:
            loaded = load(path)
        except ModelFileError:
            continue
        assert loaded.graph == model.graph and loaded.labels == model.labels
        for name, array in model.params.items():
            np.testing.assert_array_equal(loaded.params[name], array)


@settings(max_examples=150)
@given(data=st.data())
def test_random_damage(good: bytes, path: Path, data: st.DataObject) -> None:
    damaged = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged)))
        cut = data.draw(st.integers(0, 40))
        damaged[at : at + cut] = data.draw(st.binary(max_size=40))
    path.write_bytes(damaged)
    try:
        load(path)
    except ModelFileError as error:
        assert str(error).startswith(f"{path}: ")


def test_garbage_before_and_after(good: bytes, path: Path) -> None:
    refused(path, good + b"\0")
    refused(path, b"garbage" + good)
    refused(path, b"PK" + os.urandom(1000), "its end is missing")
    refused(path, b"\x93NUMPY" + bytes(100), r"it is not an \.npz archive")
    refused(path, os.urandom(7), r"it is not an \.npz archive")


# The archive


def test_not_a_file_that_can_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"model\.npz: no such file or directory"):
        load(tmp_path / "model.npz")
    with pytest.raises(ModelFileError, match="it is a folder"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="it is not a regular file"):  # and does not wait
        load(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="the path holds a null byte"):
        load("a\0b")
    with pytest.raises(ModelFileError, match="not a directory"):
        (tmp_path / "file").touch()
        load(tmp_path / "file" / "model.npz")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(good: bytes, path: Path) -> None:
    path.write_bytes(good)
    path.chmod(0)
    with pytest.raises(ModelFileError, match="permission denied"):
        load(path)


def test_compressed_members(good: bytes, path: Path) -> None:
    deflated = archive_of(members_of(good), compression=zipfile.ZIP_DEFLATED)
    refused(path, deflated, "is compressed; write it with numpy.savez, not savez_compressed")
    bomb = archive_of(
        {f"{ENTRY}.npy": npy(np.zeros(50_000_000, np.uint8))}, compression=zipfile.ZIP_DEFLATED
    )
    assert len(bomb) < 100_000
    refused(path, bomb, "is compressed")


def patched(data: bytes, name: str, offset: int, value: bytes) -> bytes:
    """The archive with a field of a member's central directory entry overwritten."""
    at = data.rindex(name.encode()) - 46 + offset
    assert data[at - offset : at - offset + 4] == b"PK\x01\x02"
    return data[:at] + value + data[at + len(value) :]


def test_a_directory_that_lies(good: bytes, path: Path) -> None:
    size = 10**9
    claimed = struct.pack("<II", size, size)
    refused(path, patched(good, "conv1.weight.npy", 20, claimed), "claim 1000.* bytes, the file")
    grown = struct.pack("<II", 500, 500)
    refused(path, patched(good, "conv1.weight.npy", 20, grown))
    refused(path, patched(good, "conv1.weight.npy", 8, b"\x01\x00"), "damaged: .*encrypted")
    refused(path, patched(good, "conv1.weight.npy", 10, b"\x63\x00"), "is compressed")
    refused(path, patched(good, "conv1.weight.npy", 6, b"\xff\x00"), "damaged: zip file version")
    refused(
        path, patched(good, "conv1.weight.npy", 42, b"\xff\xff\xff\x7f"), "the archive is damaged"
    )


def test_a_long_list_of_members_is_not_read(good: bytes, path: Path) -> None:
    end = bytearray(good[-22:])
    end[12:16] = struct.pack("<I", 17 << 20)
    refused(path, good[:-22] + end, "its list of members has 17825792 bytes, over 16777216")
    record = b"PK\x06\x06" + bytes(36) + struct.pack("<QQ", 1 << 30, 0)
    locator = b"PK\x06\x07" + bytes(16)
    refused(path, good[:-22] + record + locator + good[-22:], "list of members has 1073741824")


def test_duplicate_members(good: bytes, path: Path) -> None:
    members = [*members_of(good).items()]
    refused(path, archive_of([*members, members[3]]), "is there twice")


def test_missing_and_extra_arrays(good: bytes, path: Path) -> None:
    members = members_of(good)
    del members["conv1.bias.npy"]
    refused(path, archive_of(members), r"it lacks the array 'conv1\.bias'")
    refused(path, with_array(good, "conv9.bias", np.zeros(2)), "an unexpected array 'conv9.bias'")
    refused(path, archive_of({**members_of(good), "readme.txt": b"hi"}), "'readme.txt' is no .npy")
    del members["affine1.bias.npy"]
    refused(path, archive_of(members), "'conv1.bias' and 1 more")
    refused(path, archive_of({}), "no entry '__convserve__': it is not a convserve model")
    refused(path, archive_of({"x.npy": npy(np.zeros(3))}), "it is not a convserve model")
    refused(path, with_array(good, "../../evil", np.zeros(2)), "unexpected array '../../evil'")


# Arrays


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros(2, np.float64), "'conv1.bias' must have the dtype '<f4', it has <f8"),
        (np.zeros(2, ">f4"), "must have the dtype '<f4', it has >f4"),
        (np.zeros(2, np.int32), "must have the dtype '<f4', it has <i4"),
        (np.zeros(2, [("a", "<f4")]), r"must have the dtype '<f4', it has \[\('a', '<f4'\)\]"),
        (np.array([object()] * 2), r"must have the dtype '<f4', it has \|O"),
        (np.zeros(3, np.float32), r"must have the shape \(2,\), it has \(3,\)"),
        (np.zeros((2, 1), np.float32), r"must have the shape \(2,\), it has \(2, 1\)"),
        (np.zeros((), np.float32), r"must have the shape \(2,\), it has \(\)"),
        (np.array([0, np.nan], np.float32), "holds NaN or infinity"),
        (np.array([-np.inf, 0], np.float32), "holds NaN or infinity"),
        (np.ones(2, np.float32), "weights do not match their hash"),
        (b"", "is no .npy array"),
        (b"\x93NUMPY\x04\x00\x10\x00" + b" " * 16, "is no .npy array"),
        (b"\x93NUMPY\x01\x00\xff\xff" + b" " * 65535, "has a header of 65535 bytes"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "has a header of 4294967295 bytes"),
        (b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16, "has a malformed header"),
        (npy(np.zeros(2, np.float32))[:-1], "must have 8 bytes of data"),
        (npy(np.zeros(2, np.float32)) + b"\0", "must have 8 bytes of data"),
    ],
)
def test_wrong_arrays(good: bytes, path: Path, array: Any, message: str) -> None:
    refused(path, with_array(good, "conv1.bias", array), message)


def test_fortran_order(good: bytes, path: Path) -> None:
    weight = np.asfortranarray(np.zeros((3, 8), np.float32))
    refused(path, with_array(good, "affine1.weight", weight), "it is in Fortran order")


def test_a_shape_that_claims_much(good: bytes, path: Path) -> None:
    header = npy(np.zeros(2, np.float32)).replace(b"(2,)", b"(99999999999999999999,)")
    refused(path, with_array(good, "conv1.bias", header))
    header = npy(np.zeros(2, np.uint8)).replace(b"(2,)   ", b"(99999,)")[: -2 - 1] + b"\n{}"
    refused(path, with_array(good, ENTRY, header))


def test_negative_variance(good: bytes, path: Path) -> None:
    data = with_array(good, "bn1.running_var", np.array([1, -1], np.float32))
    refused(path, data, "'bn1.running_var' holds a negative variance")


def test_memory_is_not_taken_for_what_is_not_there(tmp_path: Path) -> None:
    """A graph of 1.9 G weights in a file of a few KB, and a list of huge layers, under a limit."""
    graph = Graph((1, 4, 4))
    graph.add(layers.Flatten())
    for _ in range(2):
        graph.add(layers.Affine(40_000))
    with zipfile.ZipFile(tmp_path / "model.npz", "w") as archive:
        save(tmp_path / "small.npz", small())
        description = json.loads(np.load(tmp_path / "small.npz")[ENTRY].tobytes())
        outputs = [{"name": "output", "dtype": "float32", "shape": [40_000]}]
        description |= {"graph": graph.to_dict(), "labels": None, "outputs": outputs}
        entry = np.frombuffer(json.dumps(description).encode(), np.uint8)
        archive.writestr(f"{ENTRY}.npy", npy(entry))
        for name, spec in graph.parameter_specs().items():
            header = npy(np.zeros(2, np.float32))[:-8].replace(b"(2,)", b"")
            shape = str(spec.shape).encode()
            padded = header.replace(b"'shape': ", b"'shape': " + shape)
            cut = len(padded) - len(npy(np.zeros(2, np.float32))[:-8])
            archive.writestr(f"{name}.npy", padded.replace(b" " * cut + b"\n", b"\n") + bytes(8))
    code = (
        "import resource, sys\n"
        "from convserve.model_file import load\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: load(sys.argv[1])\n"
        "except ValueError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.npz")],
        capture_output=True, text=True, check=True, timeout=300,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)),
    ).stdout.splitlines()  # fmt: skip
    assert "must have" in out[0] and "bytes of data for its shape" in out[0]
    assert int(out[1]) < 20_000  # KB


# The description


def set_to(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(description: dict[str, Any]) -> None:
        place: Any = description
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (b"", r"must have the shape|no valid JSON"),
        (b"{", "its description is no valid JSON"),
        (b"\xff\xfe", "its description is no valid JSON: .*utf-8"),
        (b"[]", "its description must be a JSON object"),
        (b'{"version": 1, "version": 1}', "the same key twice"),
        (b'{"version": NaN}', "NaN is not a finite number"),
        (b'{"version": 1e999}', "1e999 is not a finite number"),
        (b'{"version": 1, "x": ' + b"9" * 10_000 + b"}", "its description"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"{}", "its format version must be a number from 1, got None"),
        (set_to("version", value=3), "its format version is 3, this convserve reads up to 2"),
        (set_to("version", value=0), "version must be a number from 1, got 0"),
        (set_to("version", value="1"), "version must be a number from 1, got '1'"),
        (set_to("version", value=True), "version must be a number from 1, got True"),
        (set_to("version", value=10**400), "its format version is 1000"),
        (lambda d: d.pop("labels"), "its description lacks entry 'labels'"),
        (set_to("extra", value=1), "its description has an unknown entry 'extra'"),
        (set_to("graph", value=[]), "graph must be an object"),
        (set_to("graph", "nodes", 0, "op", value="x"), "layer 'conv1': unknown operator 'x'"),
        (
            set_to("graph", "nodes", 0, "attributes", "stride", value=[2, 2]),
            "layer 'conv1': conv2d: stride 2 does not divide",
        ),
        (
            set_to("graph", "nodes", 3, "attributes", "out_features", value=4),
            r"its outputs do not fit its graph",
        ),
        (set_to("inputs", 0, "name", value="x"), "its inputs do not fit its graph"),
        (set_to("labels", value="abc"), "its labels must be a list"),
        (set_to("labels", value=["a", "b"]), r"2 labels for an output of shape \(3,\)"),
        (set_to("labels", value=["a", "b", 3]), "its labels must be strings"),
        (set_to("labels", value=["a", "b", "\ud800"]), "its labels hold surrogates"),
        (set_to("preprocessing", value=3), "preprocessing must be an object"),
        (set_to("preprocessing", "std", value=[0]), "std must be above 0"),
        (set_to("preprocessing", "mean", value="0"), "mean must be a list of numbers"),
        (set_to("preprocessing", "height", value=5), r"makes images of \(1, 5, 4\)"),
        (set_to("provenance", value=None), "its provenance must be an object"),
        (set_to("weights_hash", value="sha256:00"), "do not match their hash"),
        (set_to("weights_hash", value=None), "do not match their hash"),
    ],
)  # fmt: skip
def test_wrong_descriptions(good: bytes, path: Path, change: Any, message: str) -> None:
    refused(path, with_json(good, change), message)


def test_a_huge_description(good: bytes, path: Path) -> None:
    refused(path, with_json(good, b" " * ((8 << 20) + 1)), "'__convserve__' has 8388609 bytes")


def test_a_description_of_another_dtype(good: bytes, path: Path) -> None:
    refused(path, with_array(good, ENTRY, np.zeros(3)), r"'__convserve__' must have the dtype")
    pickled = np.array([{}], object)
    refused(path, with_array(good, ENTRY, pickled), r"must have the dtype '\|u1', it has \|O")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@settings(max_examples=150)
@given(key=st.sampled_from(["graph", "inputs", "labels", "preprocessing", "version"]), value=JSON)
def test_random_descriptions(good: bytes, path: Path, key: str, value: Any) -> None:
    path.write_bytes(with_json(good, set_to(key, value=value)))
    try:
        load(path)
    except ModelFileError as error:
        assert str(error).startswith(f"{path}: ")
