"""What is fed with arbitrary bytes: the four places where a stranger's data is parsed.

Each target takes bytes and returns; only errors of our own tree may come of them, and those end
here. Anything else (another exception, a crash, a hang, memory beyond the limit) is a finding.
`make fuzz` mutates them for as long as wanted, the test suite tries the seeds and what was found
before.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fuzz.fuzz_seeds import (
    archive,
    config_seeds,
    good_members,
    image_seeds,
    model_file_seeds,
    npy,
    request_seeds,
)
from google.protobuf import json_format, text_format
from model_configs import make_config

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
from convserve_client import protocol

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
