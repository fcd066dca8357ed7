"""The wire protocol: field by field what tritonclient has, in a pool that nobody else shares."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convserve_client import protocol, tensors

tritonclient = pytest.importorskip("tritonclient.grpc")
from google.protobuf.descriptor_pool import Default  # noqa: E402

MESSAGES = sorted(
    name
    for file in ("inference.proto", "model_config.proto")
    for name in protocol.POOL.FindFileByName(file).message_types_by_name
)


def fields(message: Any) -> dict[int, Any]:
    return {
        field.number: (
            field.name,
            field.type,
            field.is_repeated if hasattr(field, "is_repeated") else field.label == 3,
            field.containing_oneof and field.containing_oneof.name,
            field.message_type and field.message_type.full_name,
            field.enum_type and field.enum_type.full_name,
        )
        for field in message.fields
    }


def enums(owner: Any) -> dict[str, list[tuple[str, int]]]:
    return {
        name: [(value.name, value.number) for value in enum.values]
        for name, enum in {e.name: e for e in owner.enum_types}.items()
    }


def agree(ours: Any, theirs: Any) -> None:
    """Field by field; an older tritonclient may lack what the protocol has got since."""
    known, written = fields(theirs), fields(ours)
    shared = known.keys() & written.keys()
    assert {n: written[n] for n in shared} == {n: known[n] for n in shared}
    assert all(number > max(known) for number in written.keys() - known.keys())
    assert enums(ours) == enums(theirs)
    for nested in ours.nested_types:
        if nested.name in theirs.nested_types_by_name:
            agree(nested, theirs.nested_types_by_name[nested.name])


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_agrees_with_tritonclient(name: str) -> None:
    try:
        theirs = Default().FindMessageTypeByName(f"inference.{name}")
    except KeyError:
        assert name == "InferResponseStatistics"  # new in 2.42
    else:
        agree(protocol.POOL.FindMessageTypeByName(f"inference.{name}"), theirs)


def test_datatype_enum_agrees_with_tritonclient() -> None:
    theirs = Default().FindEnumTypeByName("inference.DataType")
    assert protocol.DataType.items() == [(value.name, value.number) for value in theirs.values]


def test_the_service_has_the_calls_of_tritonclient() -> None:
    theirs = Default().FindServiceByName(protocol.SERVICE)
    assert len(protocol.METHODS) == 20
    for method in theirs.methods:
        ours = protocol.METHODS[method.name]
        assert ours.request.DESCRIPTOR.full_name == method.input_type.full_name
        assert ours.response.DESCRIPTOR.full_name == method.output_type.full_name
        assert ours.client_streaming == method.client_streaming
        assert ours.server_streaming == method.server_streaming
    assert protocol.path("ModelInfer") == "/inference.GRPCInferenceService/ModelInfer"
    assert protocol.METHODS["ModelInfer"].request is protocol.ModelInferRequest


def test_unknown_parts_of_a_model_config_are_kept() -> None:
    from tritonclient.grpc import model_config_pb2

    theirs = model_config_pb2.ModelConfig(name="m", max_batch_size=8)
    theirs.optimization.priority = 1
    theirs.sequence_batching.max_sequence_idle_microseconds = 7
    ours = protocol.ModelConfig.FromString(theirs.SerializeToString())
    assert (ours.name, ours.max_batch_size) == ("m", 8)
    assert model_config_pb2.ModelConfig.FromString(ours.SerializeToString()) == theirs


@pytest.mark.parametrize("array", [np.arange(24, dtype=np.float32).reshape(2, 3, 4), None])
def test_request_bytes_are_those_of_tritonclient(array: np.ndarray | None) -> None:
    if array is None:
        array = np.array([b"\x00one", b"", b"three"], dtype=object)
    datatype = tensors.datatype_of(array)
    sent = tritonclient.InferInput("input", list(array.shape), datatype)
    sent.set_data_from_numpy(array)
    theirs = tritonclient.service_pb2.ModelInferRequest(model_name="m", model_version="2")
    theirs.inputs.append(sent._get_tensor())
    theirs.raw_input_contents.append(sent._get_content())
    theirs.outputs.add(name="output")

    ours = protocol.ModelInferRequest(model_name="m", model_version="2")
    ours.inputs.add(name="input", datatype=datatype, shape=array.shape)
    ours.outputs.add(name="output")
    data = tensors.serialize(ours, [array])
    assert data == theirs.SerializeToString()
    ours.raw_input_contents.append(tensors.to_raw(array))
    assert data == ours.SerializeToString()


def test_tritonclient_reads_our_answer() -> None:
    scores = np.random.default_rng(0).random((2, 3)).astype(np.float32)
    response = protocol.ModelInferResponse(model_name="m", model_version="1")
    response.outputs.add(name="output", datatype="FP32", shape=scores.shape)
    data = tensors.serialize(response, [scores])
    theirs = tritonclient.service_pb2.ModelInferResponse.FromString(data)
    np.testing.assert_array_equal(tritonclient.InferResult(theirs).as_numpy("output"), scores)


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["convserve", "convserve_client", "tritonclient.grpc"]))
)
def test_packages_share_a_process_in_any_order(order: tuple[str, ...], tmp_path: Path) -> None:
    code = "; ".join(f"import {name}" for name in order)
    code += "; from convserve_client import protocol; import tritonclient.grpc.service_pb2 as t"
    code += "; assert protocol.ModelInferRequest is not t.ModelInferRequest"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)


def test_the_client_imports_neither_convserve_nor_an_image_library(tmp_path: Path) -> None:
    code = "import convserve_client, sys; print(*{m.split('.')[0] for m in sys.modules})"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60, capture_output=True
    )
    assert not {"convserve", "PIL", "onnx", "click"} & set(result.stdout.decode().split())


def test_a_source_distribution_builds_by_itself(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools")
    root = Path(__file__).parents[2]
    client = tmp_path / "clients" / "python"
    ignore = shutil.ignore_patterns("build", "dist", "*.egg-info", "*.binpb", "__pycache__")
    shutil.copytree(root / "clients" / "python", client, ignore=ignore)
    shutil.copytree(root / "protos", tmp_path / "protos")

    def build(kind: str, folder: Path) -> None:
        code = f"from setuptools import build_meta as b; b.build_{kind}({str(tmp_path)!r})"
        subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)

    build("sdist", client)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    build("wheel", unpacked)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as zipped:
        compiled = zipped.read("convserve_client/protocol.binpb")
        assert "convserve_client/py.typed" in zipped.namelist()
    installed = Path(protocol.__file__).with_name("protocol.binpb").read_bytes()
    assert compiled == installed
