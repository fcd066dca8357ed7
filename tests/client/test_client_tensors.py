"""Tensors to bytes and back; malformed bytes, shapes and contents are refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from convserve_client import protocol, tensors

NUMERIC = [name for name in tensors.DATATYPES if name not in ("BYTES", "BF16")]
arrays = st.sampled_from(NUMERIC).flatmap(
    lambda name: hnp.arrays(tensors.DATATYPES[name], hnp.array_shapes(max_dims=4, min_side=0))
)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@given(arrays)
def test_raw_form_keeps_every_bit(array: np.ndarray) -> None:
    raw = tensors.to_raw(array)
    assert same(tensors.from_raw(tensors.datatype_of(array), array.shape, raw), array)


@given(arrays)
def test_typed_form_keeps_every_value(array: np.ndarray) -> None:
    datatype = tensors.datatype_of(array)
    if datatype == "FP16":
        with pytest.raises(ValueError, match="raw form only"):
            tensors.to_contents(array)
        return
    contents = tensors.to_contents(array)
    read = tensors.from_contents(datatype, array.shape, contents)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_layouts_and_byte_orders_are_sent_alike() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for variant in (np.asfortranarray(array), array[::-1][::-1], array.astype(">f4")):
        assert tensors.datatype_of(variant) == "FP32"
        assert tensors.to_raw(variant) == array.tobytes()


def test_raw_arrays_are_read_only_views() -> None:
    raw = bytearray(8)
    array = tensors.from_raw("FP32", [2], raw)
    raw[3] = 0x40
    assert array[0] == 2 and not array.flags.writeable


def test_bf16_is_widened_exactly() -> None:
    raw = struct.pack("<4H", 0x3F80, 0xC000, 0x7F80, 0x0001)
    values = tensors.from_raw("BF16", [4], raw)
    assert values.dtype == np.float32
    assert values.tolist() == [1.0, -2.0, float("inf"), 2.0**-133]


@given(st.lists(st.binary(max_size=20)))
def test_byte_strings_come_back(items: list[bytes]) -> None:
    assert tensors.decode_bytes(tensors.encode_bytes(items), len(items)) == items


@given(st.binary(max_size=64), st.integers(0, 20))
@example(b"\xff\xff\xff\xff", 1)
@example(b"\x00\x00\x00", 1)
@example(b"", 2**62)
def test_any_bytes_decode_exactly_or_not_at_all(raw: bytes, count: int) -> None:
    try:
        items = tensors.decode_bytes(raw, count)
    except ValueError:
        return
    assert len(items) == count
    assert tensors.encode_bytes(items) == raw


@given(
    st.sampled_from([*tensors.DATATYPES, "", "FP8"]),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=5),
    st.binary(max_size=32),
)
@example("FP32", [1] * 1000, b"\0" * 4)
@example("FP32", [2**32, 2**32], b"")
@example("FP32", [0, 2**62, 2**62], b"")
@example("BYTES", [2**62], b"")
def test_any_tensor_is_read_whole_or_refused(datatype: str, shape: list[int], raw: bytes) -> None:
    try:
        array = tensors.from_raw(datatype, shape, raw)
    except ValueError:
        return
    assert array.shape == tuple(shape)


@pytest.mark.parametrize("size", [15, 17])
def test_a_byte_too_few_or_too_many_names_both_counts(size: int) -> None:
    with pytest.raises(ValueError, match=rf"expected 16 bytes for FP32 \[2, 2\], got {size}"):
        tensors.from_raw("FP32", [2, 2], bytes(size))


def test_a_bool_is_zero_or_one() -> None:
    assert tensors.from_raw("BOOL", [2], b"\0\1").tolist() == [False, True]
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        tensors.from_raw("BOOL", [2], b"\0\2")


@pytest.mark.parametrize(
    ("datatype", "fields", "message"),
    [
        ("UINT8", {"uint_contents": [1, 256]}, "outside UINT8, 0 to 255"),
        ("INT8", {"int_contents": [1, -129]}, "outside INT8"),
        ("FP32", {"fp32_contents": [1.0]}, "expected 2 elements"),
        ("FP32", {"fp64_contents": [1.0, 2.0]}, "belong in fp32_contents"),
        ("FP32", {"fp32_contents": [1, 2], "int_contents": [1]}, "belong in fp32_contents"),
        ("BF16", {}, "raw form only"),
        ("FP31", {}, "unknown datatype"),
    ],
)
def test_wrong_contents_are_refused(datatype: str, fields: dict, message: str) -> None:
    contents = protocol.InferTensorContents(**fields)
    with pytest.raises(ValueError, match=message):
        tensors.from_contents(datatype, [2], contents)


def request(**contents: list) -> protocol.ModelInferRequest:
    message = protocol.ModelInferRequest()
    for name in ("a", "b"):
        tensor = message.inputs.add(name=name, datatype="FP32", shape=[1])
        if contents:
            tensor.contents.fp32_contents.extend(contents[name])
    return message


def test_read_tensors_takes_either_form() -> None:
    typed = request(a=[1.5], b=[2.5])
    raw = request()
    raw.raw_input_contents.extend([struct.pack("<f", 1.5), struct.pack("<f", 2.5)])
    for message in (typed, raw):
        read = tensors.read_tensors(message.inputs, message.raw_input_contents)
        assert {name: array.tolist() for name, array in read.items()} == {"a": [1.5], "b": [2.5]}


def test_read_tensors_refuses_mixed_missing_and_repeated() -> None:
    both = request(a=[1.0], b=[2.0])
    with pytest.raises(ValueError, match="'a': both raw and typed"):
        tensors.read_tensors(both.inputs, [bytes(4), bytes(4)])
    with pytest.raises(ValueError, match="expected 2 raw contents, one a tensor, got 1"):
        tensors.read_tensors(request().inputs, [bytes(4)])
    twice = request(a=[1.0], b=[2.0])
    twice.inputs[1].name = "a"
    with pytest.raises(ValueError, match="'a' is given twice"):
        tensors.read_tensors(twice.inputs, [])


@given(arrays)
def test_serialize_writes_what_the_message_would(array: np.ndarray) -> None:
    message = protocol.ModelInferResponse(id="x")
    data = tensors.serialize(message, [array, array])
    message.raw_output_contents.extend([tensors.to_raw(array)] * 2)
    assert data == message.SerializeToString()


@pytest.mark.parametrize(
    "array", [np.zeros(2, np.complex64), np.zeros(2, "M8[s]"), np.array(["x"])]
)
def test_other_dtypes_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no datatype on the wire"):
        tensors.to_raw(array)
