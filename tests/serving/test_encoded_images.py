"""Encoded images as the input: decoded as `convserve.images` does it, refused by index."""

from __future__ import annotations

import io
import struct
import time
import zlib

import grpc
import numpy as np
import pytest
from PIL import Image
from post_state import WAIT, PostState, report, resident_bytes

from convserve.images import to_pixels
from convserve_client import protocol, tensors

pytestmark = pytest.mark.usefixtures("unharmed")


def encode(array, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def ask(files, *, shape=None, raw=True):
    request = protocol.ModelInferRequest(model_name="digits")
    tensor = request.inputs.add(name="input", datatype="BYTES", shape=shape or [len(files)])
    if raw:
        request.raw_input_contents.append(tensors.encode_bytes(files))
    else:
        tensor.contents.bytes_contents.extend(files)
    return request


@pytest.fixture(scope="module")
def files(pixels):
    """The images, losslessly, in several formats."""
    kinds = ["PNG", "BMP", "TIFF", "GIF"]
    return [encode(image[0], kinds[n % 4]) for n, image in enumerate(pixels)]


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("column", [False, True])
def test_files_give_the_bits_of_their_pixels(stub, read_answer, files, pixels, digits, raw, column):
    shape = [len(files), 1] if column else [len(files)]
    answer = stub.ModelInfer(ask(files, shape=shape, raw=raw), timeout=WAIT)
    np.testing.assert_array_equal(read_answer(answer)["output"], digits.predict(pixels))


def test_colour_cmyk_grey_16_bit_and_other_sizes(stub, read_answer, digits):
    rng = np.random.default_rng(1)
    colour = rng.integers(0, 256, (40, 50, 3), np.uint8)
    cmyk = io.BytesIO()
    Image.fromarray(colour).convert("CMYK").save(cmyk, "JPEG")
    odd = [
        encode(colour, "JPEG"),
        encode(colour, "WEBP"),
        cmyk.getvalue(),
        encode(colour[..., 0], "JPEG"),
        encode(rng.integers(0, 65536, (28, 28), np.uint16)),
        encode(rng.integers(0, 256, (9, 9, 4), np.uint8)),
    ]
    expected = digits.predict(np.stack([to_pixels(file, digits.preprocessing) for file in odd]))
    answer = stub.ModelInfer(ask(odd), timeout=WAIT)
    np.testing.assert_array_equal(read_answer(answer)["output"], expected)


def bomb(width, height):
    """A PNG file that claims a size and holds next to nothing."""

    def chunk(kind, data):
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


def spoil(kind):
    rng = np.random.default_rng(2)
    jpeg = encode(rng.integers(0, 256, (64, 64, 3), np.uint8), "JPEG")
    return {
        "empty": b"",
        "truncated": jpeg[: len(jpeg) // 2],
        "text": b"this is not an image" * 10,
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "bomb": bomb(65535, 65535),
        "flat": bomb(2**31 - 1, 1),
        "half": encode(np.zeros((28, 28), np.uint8))[:40],
    }[kind]


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("empty", "empty"),
        ("truncated", ""),
        ("text", "not an image"),
        ("svg", "not an image"),
        ("bomb", "limit"),
        ("flat", "limit"),
        ("half", ""),
    ],
)
@pytest.mark.parametrize("index", [0, 2])
def test_a_bad_image_is_named_by_its_index(refused, files, kind, word, index):
    images = [*files[:index], spoil(kind), *files[index:3]]
    refused(ask(images), "INVALID_ARGUMENT", f"image {index} of 4", word)


def test_bad_images_beside_good_ones(server, read_answer, files, pixels, digits):
    good = [server.stub.ModelInfer.future(ask(files[n : n + 2])) for n in range(8)]
    bad = [server.stub.ModelInfer.future(ask([files[0], spoil("text")])) for _ in range(4)]
    for n, call in enumerate(good):
        answer = read_answer(call.result(WAIT))["output"]
        np.testing.assert_array_equal(answer, digits.predict(pixels[n : n + 2]))
    for call in bad:
        assert "image 1 of 2" in call.details()


@pytest.mark.parametrize("shape", [[3], [2, 2], [2, 1, 1], [], [-1], [0], [65]])
def test_wrong_shapes(refused, files, shape):
    refused(ask(files[:2], shape=shape) if shape else no_shape(files), "INVALID_ARGUMENT")


def no_shape(files):
    request = ask(files[:2])
    del request.inputs[0].shape[:]
    return request


def test_too_many_images(refused, files):
    refused(ask(files[:1] * 65), "INVALID_ARGUMENT", "batch-size must be <= 64", "got 65")


@pytest.mark.parametrize("change", [-1, 1])
def test_byte_count(refused, files, change):
    request = ask(files[:2])
    raw = request.raw_input_contents[0]
    request.raw_input_contents[0] = raw[:change] if change < 0 else raw + b"\0"
    refused(request, "INVALID_ARGUMENT", "input 'input' for model 'digits'")


def test_a_length_beyond_the_data(refused):
    request = ask([b"x"])
    request.raw_input_contents[0] = b"\xff\xff\xff\xff" + b"x" * 100
    refused(request, "INVALID_ARGUMENT", "element 0 of 1 ends beyond")


def test_a_model_without_preprocessing_takes_no_files(refused, files):
    request = ask(files[:1])
    request.model_name = "plain"
    request.inputs[0].name = "image"
    refused(request, "INVALID_ARGUMENT", "unexpected datatype 'BYTES'", "expected ['FP32']")


def of_side(side, kind):
    if kind == "grey":
        return encode(np.zeros((side, side), np.uint8))
    if kind == "transparent":
        return encode(np.zeros((side, side, 4), np.uint8))
    file = io.BytesIO()
    Image.new("P", (side, side)).save(file, "GIF", transparency=0, disposal=2)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["grey", "transparent", "GIF"])
def test_row_8_the_memory_for_decoding_is_bounded(start_server, digits_path, kind):
    """Many images of nine million pixels come at once, to eight threads with 64 MiB for them.

    Without that bound eight at a time took 170 MB as GIF, and 390 MB with transparency.
    """
    side = 3000
    server = start_server(
        digits_path, "--max-pixels", side * side, "--threads", 8, "--max-decode-mb", 64
    )
    request = ask([of_side(side, kind)])
    request.model_name = "model"
    server.stub.ModelInfer(request, timeout=WAIT)
    before = PostState(server, request, growth=0.1)
    calls = [server.stub.ModelInfer.future(request, timeout=WAIT) for _ in range(16)]
    highest = 0
    while not all(call.done() for call in calls):
        highest = max(highest, resident_bytes(server.process.pid))
        time.sleep(0.001)
    for call in calls:
        assert call.result().outputs
    grown = highest - before.bytes
    report(8, images=len(calls), kind=kind, grown_MB=grown / 1e6)
    assert grown < 1.25 * 64 * 2**20
    before.check()


def test_an_image_that_takes_more_memory_than_there_is(start_server, digits_path):
    server = start_server(digits_path, "--max-decode-mb", 16)
    request = ask([of_side(10, "grey"), of_side(2000, "transparent")])
    request.model_name = "model"
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.ModelInfer(request, timeout=WAIT)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    for words in ("image 1 of 2", "2000 x 2000 pixels", "MiB to decode", "limit of 16.0 MiB"):
        assert words in caught.value.details()
    request = ask([of_side(2000, "grey")] * 3)
    request.model_name = "model"
    assert server.stub.ModelInfer(request, timeout=WAIT).outputs


def test_the_pixel_limit_is_an_option(start_server, digits_path):
    server = start_server(digits_path, "--max-pixels", 1000)
    request = ask([encode(np.zeros((28, 28), np.uint8))])
    request.model_name = "model"
    assert server.stub.ModelInfer(request, timeout=WAIT).outputs
    request = ask([encode(np.zeros((28, 36), np.uint8))])
    request.model_name = "model"
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.ModelInfer(request, timeout=WAIT)
    assert "limit of 1,000" in caught.value.details()
