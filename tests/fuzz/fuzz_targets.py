"""What is fed with arbitrary bytes: the four places where a stranger's data is parsed.

Each target takes bytes and returns; only errors of our own tree may come of them, and those end
here. Anything else (another exception, a crash, a hang, memory beyond the limit) is a finding.
`seeds` are small good inputs to start from. `make fuzz` mutates them for as long as wanted, the
test suite tries the seeds and what was found before.
"""

from __future__ import annotations

import io
import json
import os
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google.protobuf import json_format, text_format
from model_configs import make_config
from PIL import Image

from convserve import model_file
from convserve.engine import config_file
from convserve.engine.config import ModelConfig
from convserve.engine.model import Model
from convserve.engine.queues import PriorityQueues
from convserve.engine.repository import ServedModel
from convserve.engine.request import Request
from convserve.engine.scheduler import BatchScheduler
from convserve.errors import (
    ConfigError,
    ConvserveError,
    ImageError,
    InvalidRequestError,
    ModelFileError,
)
from convserve.graph import Graph, layers
from convserve.images import to_pixels
from convserve.preprocessing import Preprocessing
from convserve.serving import codec, config_message, status
from convserve.serving.access import Tokens
from convserve.serving.calls import parse
from convserve.serving.images import ImageDecoder
from convserve_client import protocol, tensors

__all__ = ["TARGETS", "Target"]

PREPROCESSING = Preprocessing(8, 6, "rgb", (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
TURNED = Preprocessing(12, 12, "grey", (0.5,), (0.5,), resize=16, interpolation="bicubic")
MAX_WEIGHTS = 1 << 16  # of a graph whose layers are tried out, not only read


class Target(NamedTuple):
    """`run` takes any bytes; `seeds` are good ones by name; `words` are what a mutator inserts."""

    run: Callable[[bytes], None]
    seeds: Callable[[], dict[str, bytes]]
    words: tuple[str, ...] = ()


@contextmanager
def file_of(data: bytes) -> Iterator[Path]:
    """A regular file that holds `data` and never touches a disk."""
    number = os.memfd_create("fuzz")
    try:
        os.write(number, data)
        yield Path(f"/proc/self/fd/{number}")
    finally:
        os.close(number)


# Requests: bytes to message to arrays to an answer


@cache
def served_models() -> dict[str, ServedModel]:
    """A model for images, one without preprocessing whose layers are open, one of two inputs."""
    images = Graph((3, 8, 6))
    images.add(layers.Conv2d(2, 3))
    images.add(layers.Flatten())
    images.add(layers.Affine(3))
    plain = Graph((1, 4, 4), input_name="image")
    plain.set_output(plain.add(layers.ReLU(), name="map"), "map")
    plain.set_output(plain.add(layers.Flatten()), "flat")
    pair = Graph((1, 3, 3), input_name="photo")
    pair.add_input("facts", (4,))
    flat = pair.add(layers.Flatten(), "photo")
    pair.add(layers.Affine(2), pair.add(layers.Concat(), flat, "facts"))
    served = {}
    for name, graph in {"images": images, "plain": plain, "pair": pair}.items():
        only = (
            {"labels": ("a", "b", "c"), "preprocessing": PREPROCESSING} if name == "images" else {}
        )
        model = Model.from_file(model_file.ModelFile(graph, graph.initialise(0), **only), name=name)
        config = make_config(max_batch_size=4, layer_outputs=name == "plain")
        served[name] = ServedModel(name, "1", model, BatchScheduler(model, config))
    return served


@cache
def decoder() -> ImageDecoder:
    return ImageDecoder(1)


def run_request(data: bytes) -> None:
    """As `ModelInfer` does it, without the transport; INTERNAL is what must not come of it.

    The first byte says what the rest is: the message on the wire, or as text, whose mutations are
    messages more often.
    """
    kind, data = data[:1], data[1:]
    if kind == b"T":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of escapes that are none
                message = text_format.Parse(data, protocol.ModelInferRequest())
        except (text_format.ParseError, ValueError):  # no text, or no text of a message
            return
        data = message.SerializeToString()
    try:
        message = parse(protocol.ModelInferRequest, data)
        served = served_models().get(message.model_name)
        if served is None:  # most of a fuzzer's bytes would end here
            served = served_models()[("images", "plain", "pair")[len(data) % 3]]
        x = codec.read_input(served, message)
        wanted = codec.read_wanted(served, message)
        priority, timeout = codec.read_schedule(message)
        if isinstance(x, list):
            x = decoder().decode(x, PREPROCESSING, lambda: None)
        request = Request(
            x, outputs=codec.layers(served, wanted), priority=priority, timeout=timeout
        )
        codec.response(
            served, message.id, wanted, served.scheduler.run(request)
        ).SerializeToString()
    except ConvserveError as error:
        assert status.reason(error) != "BACKEND", error
        status.of(error)


def request_seeds() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    shapes = {"images": {"input": (2, 3, 8, 6)}, "plain": {"image": (1, 1, 4, 4)},
              "pair": {"photo": (2, 1, 3, 3), "facts": (2, 4)}}  # fmt: skip
    messages = {}
    for model, inputs in shapes.items():
        for raw in (True, False):
            for dtype in (np.float32, np.uint8):
                message = protocol.ModelInferRequest(model_name=model, id="seed")
                for name, shape in inputs.items():
                    x = rng.integers(0, 256, shape).astype(dtype)
                    tensor = message.inputs.add(
                        name=name, datatype=tensors.datatype_of(x), shape=shape
                    )
                    if raw:
                        message.raw_input_contents.append(tensors.to_raw(x))
                    else:
                        tensor.contents.CopyFrom(tensors.to_contents(x))
                messages[f"{model} {np.dtype(dtype)} {raw}"] = message
    message = protocol.ModelInferRequest(model_name="images", model_version="1")
    message.inputs.add(name="input", datatype="BYTES", shape=[2])
    message.raw_input_contents.append(tensors.encode_bytes([encode("PNG"), encode("JPEG")]))
    message.parameters["priority"].int64_param = 1
    message.parameters["timeout"].int64_param = 1000
    output = message.outputs.add(name="output")
    output.parameters["classification"].int64_param = 2
    messages["encoded images"] = message
    message = protocol.ModelInferRequest(model_name="plain")
    message.inputs.add(name="image", datatype="FP32", shape=[1, 1, 4, 4])
    message.raw_input_contents.append(bytes(64))
    for name in ("flat", "relu1", "map"):
        message.outputs.add(name=name)
    messages["layers"] = message
    wire = {name: b"W" + message.SerializeToString() for name, message in messages.items()}
    text = {name: b"T" + str(message).encode() for name, message in messages.items()}
    return {**wire, **{f"{name} as text": data for name, data in text.items()}}


# Model files: read, compiled, run


def run_model_file(data: bytes) -> None:
    """The first byte says what the rest is: a file, its JSON document, or an array in it.

    A mutated file hardly ever has right checksums, so the other two are packed properly here.
    """
    kind, data = data[:1], data[1:]
    if kind == b"J":
        members = dict(good_members())
        members["__convserve__.npy"] = npy(np.frombuffer(data, np.uint8))
        data = archive(members)
    elif kind == b"A":
        members = dict(good_members())
        members["conv1.weight.npy"] = data
        data = archive(members)
    with file_of(data) as path:
        try:
            file = model_file.load(path)
        except ModelFileError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
            return
    graph = file.graph
    sizes = [*graph.inputs.values(), *(graph.shape(node) for node in graph.outputs.values())]
    if sum(map(np.prod, sizes)) > MAX_WEIGHTS or len(graph.nodes) > 50:
        return  # good, and too large to try within a fuzzer's time
    with suppress(ConvserveError):
        model = Model.from_file(file, threads=1)
        x = [np.zeros((1, *shape), np.float32) for shape in graph.inputs.values()]
        model.predict(x if len(x) > 1 else x[0])


@cache
def good_model() -> bytes:
    graph = Graph((1, 6, 6))
    graph.add(layers.Conv2d(2, 3))
    graph.add(layers.BatchNorm())
    graph.add(layers.MaxPool2d(2))
    graph.add(layers.Flatten())
    graph.add(layers.Affine(3))
    graph.add(layers.Softmax())
    file = model_file.ModelFile(
        graph,
        graph.initialise(0),
        ("a", "b", "c"),
        Preprocessing(6, 6, "grey", (0.5,), (0.5,), resize=6),
        {"note": "seed", "accuracy": 0.5},
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.npz"
        model_file.save(path, file)
        return path.read_bytes()


@cache
def good_members() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(good_model())) as opened:
        return {name: opened.read(name) for name in opened.namelist()}


def archive(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array)
    return out.getvalue()


def model_file_seeds() -> dict[str, bytes]:
    document = np.load(io.BytesIO(good_members()["__convserve__.npy"])).tobytes()
    pretty = json.dumps(json.loads(document), indent=1).encode()
    return {
        "file": b"F" + good_model(),
        "document": b"J" + document,
        "indented": b"J" + pretty,
        "array": b"A" + good_members()["conv1.weight.npy"],
    }


# Configuration: config.toml, and the file of tokens


def run_config(data: bytes) -> None:
    """The first byte says what the rest is: tokens, config.toml, or a ModelConfig in JSON."""
    kind, data = data[:1], data[1:]
    with suppress(ConfigError, InvalidRequestError):
        if kind == b"T":
            with file_of(data) as path:
                tokens = Tokens(path)
            assert tokens.scope("a token that nobody has") is None
        elif kind == b"J":
            check_config(config_file.build(config_message.tables(data.decode("latin-1"), "fuzz")))
        else:
            tables = config_file.parse(data, "config.toml")
            check_config(config_file.build(tables, source="config.toml"))


def check_config(config: ModelConfig) -> None:
    """It can be used, and comes back as it is from a ModelConfig message."""
    message = protocol.ModelConfig()
    config_message.fill(message, "fuzz", config)
    text = json_format.MessageToJson(message, preserving_proto_field_name=True)
    again = config_file.build(config_message.tables(text, "fuzz"))
    assert again.dynamic_batching == config.dynamic_batching
    PriorityQueues(config.dynamic_batching)
    assert 1 <= config.max_batch_size <= 65536
    assert 1 <= config.dynamic_batching.max_waiting <= 16 * 100_000
    with suppress(ConfigError):
        config.version_policy.choose([1, 2, 3])


CONFIG = """\
max_batch_size = 32
layer_outputs = true
[instance_group]
count = 2
threads = 1
[dynamic_batching]
preferred_batch_size = [8, 16]
max_queue_delay_microseconds = 100
priority_levels = 2
default_priority_level = 2
[dynamic_batching.default_queue_policy]
timeout_action = "DELAY"
default_timeout_microseconds = 5000
allow_timeout_override = true
max_queue_size = 64
[dynamic_batching.priority_queue_policy.1]
max_queue_size = 8
[version_policy.specific]
versions = [1, 3]
[[model_warmup]]
name = "first"
batch_size = 4
count = 2
[model_warmup.inputs.input]
data_type = "TYPE_UINT8"
random_data = true
"""


def config_seeds() -> dict[str, bytes]:
    message = protocol.ModelConfig()
    config_message.fill(message, "fuzz", config_file.build(config_file.parse(CONFIG.encode(), "")))
    text = json_format.MessageToJson(message, preserving_proto_field_name=True)
    return {
        "json": b"J" + text.encode(),
        "config": b"C" + CONFIG.encode(),
        "latest": b"C[version_policy.latest]\nnum_versions = 2\n",
        "all": b"Cversion_policy = { all = {} }\n",
        "tokens": b"T# who\ninfer 0123456789abcdef\nadmin fedcba9876543210\n",
    }


# Images


def run_image(data: bytes) -> None:
    """Decoded for two models: colour at a fixed size, and grey with a resized shorter side."""
    for preprocessing in (PREPROCESSING, TURNED):
        with suppress(ImageError):
            pixels = to_pixels(data, preprocessing)
            assert pixels.dtype == np.uint8
            assert pixels.shape == (
                preprocessing.channels,
                preprocessing.height,
                preprocessing.width,
            )


def encode(kind: str, mode: str = "RGB", **options: object) -> bytes:
    rng = np.random.default_rng(3)
    picture = Image.fromarray(rng.integers(0, 256, (9, 11, 3), np.uint8)).convert(mode)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def image_seeds() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = io.BytesIO()
    Image.fromarray(np.arange(99, dtype=np.uint16).reshape(9, 11) * 600).save(wide, "PNG")
    frames = io.BytesIO()
    Image.new("P", (5, 5)).save(
        frames, "GIF", save_all=True, append_images=[Image.new("P", (5, 5), 3)], transparency=0
    )
    return {
        "jpeg": encode("JPEG"),
        "grey jpeg": encode("JPEG", "L"),
        "cmyk jpeg": encode("JPEG", "CMYK"),
        "turned jpeg": encode("JPEG", exif=exif),
        "progressive jpeg": encode("JPEG", progressive=True),
        "png": encode("PNG"),
        "palette png": encode("PNG", "P", transparency=0),
        "transparent png": encode("PNG", "RGBA"),
        "16-bit png": wide.getvalue(),
        "bilevel png": encode("PNG", "1"),
        "webp": encode("WEBP"),
        "lossless webp": encode("WEBP", lossless=True),
        "gif": frames.getvalue(),
        "bmp": encode("BMP"),
        "tiff": encode("TIFF"),
        "lzw tiff": encode("TIFF", compression="tiff_lzw"),
        "fax tiff": encode("TIFF", "1", compression="group4"),
        "float tiff": encode("TIFF", "F"),
        "ppm": encode("PPM"),
        "ascii pgm": b"P2\n3 2\n255\n0 50 100\n150 200 255\n",
        "bomb": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
        + struct.pack(">II", 65535, 65535)
        + b"\x08"
        + bytes(8),
    }


TARGETS = {
    "requests": Target(
        run_request,
        request_seeds,
        ("FP32", "UINT8", "BYTES", "input", "image", "photo", "facts", "output", "classification",
         "priority", "timeout", "shared_memory_region", "images", "plain", "pair", "shape: ",
         "datatype: ", "inputs {", "outputs {", "raw_input_contents: ", "fp32_contents: ",
         "parameters {", "int64_param: ", "-1", "9223372036854775807"),
    ),
    "model-files": Target(
        run_model_file,
        model_file_seeds,
        ("\\x93NUMPY", "'descr': '<f4'", "'shape': (", "PK\\x03\\x04", "PK\\x01\\x02",
         "PK\\x05\\x06", "\\x22graph\\x22", "\\x22nodes\\x22", "\\x22inputs\\x22", "Infinity",
         "Conv2d", "MaxPool2d", "Affine", "Concat", "\\x22padding\\x22", "1e400", "-1"),
    ),
    "configs": Target(
        run_config,
        config_seeds,
        ("[dynamic_batching]", "[[model_warmup]]", "priority_levels", "max_batch_size", "infer ",
         "admin ", "\\x22\\x22\\x22", "inf", "nan", "0x", "1979-05-27", "true", "[version_policy"),
    ),
    "images": Target(
        run_image,
        image_seeds,
        ("\\xff\\xd8", "\\xff\\xda", "\\xff\\xc2", "IHDR", "IDAT", "PLTE", "tRNS", "acTL", "RIFF",
         "WEBP", "VP8L", "GIF89a", "II*\\x00", "MM\\x00*", "Exif\\x00\\x00", "P6\\x0a"),
    ),
}  # fmt: skip
