"""Small good inputs of each fuzz target by name, for a mutator to start from."""

from __future__ import annotations

import io
import json
import struct
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from google.protobuf import json_format
from PIL import Image

from convserve import model_file
from convserve.engine import config_file
from convserve.graph import Graph, layers
from convserve.preprocessing import Preprocessing
from convserve.serving import config_message
from convserve_client import protocol, tensors


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
