"""`tritonclient`, written by others for another server, calls ours and agrees with it."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys

import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from PIL import Image
from tritonclient.utils import InferenceServerException

WAIT = 120.0


@pytest.fixture
def client(server):
    client = triton.InferenceServerClient(server.address)
    yield client
    client.close()


def tensor(x, name="input", datatype=None):
    from tritonclient.utils import np_to_triton_dtype

    given = triton.InferInput(name, list(x.shape), datatype or np_to_triton_dtype(x.dtype))
    given.set_data_from_numpy(x)
    return given


def test_liveness_and_readiness(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "10")
    assert not client.is_model_ready("digits", "1")
    assert not client.is_model_ready("nobody")


def test_metadata_and_config(client, digits):
    server = client.get_server_metadata()
    assert server.name == "convserve"
    metadata = client.get_model_metadata("digits", as_json=True)
    assert metadata["inputs"] == [
        {"name": "input", "datatype": "FP32", "shape": ["-1", "1", "28", "28"]}
    ]
    config = client.get_model_config("digits").config
    assert config.max_batch_size == 64
    assert config.backend == "convserve"
    assert '"ninth: Ω"' in config.parameters["labels"].string_value
    index = client.get_model_repository_index(as_json=True)["models"]
    assert [(model["name"], model["state"]) for model in index] == [
        ("digits", "READY"),
        ("plain", "READY"),
    ]


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_infer(client, images, pixels, digits, kind):
    x = images if kind == "float32" else pixels
    result = client.infer("digits", [tensor(x)], request_id="7", client_timeout=WAIT)
    np.testing.assert_array_equal(result.as_numpy("output"), digits.predict(images))
    assert result.get_response().id == "7"
    wanted = [triton.InferRequestedOutput("output")]
    result = client.infer("digits", [tensor(x)], "10", outputs=wanted, priority=1, timeout=10**6)
    np.testing.assert_array_equal(result.as_numpy("output"), digits.predict(images))


def test_encoded_images(client, pixels, digits):
    files = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image[0]).save(file, "PNG")
        files.append(file.getvalue())
    x = np.array(files, dtype=object)
    for shaped in (x, x[:, None]):
        result = client.infer("digits", [tensor(shaped, datatype="BYTES")])
        np.testing.assert_array_equal(result.as_numpy("output"), digits.predict(pixels))


def test_classification(client, images, digits):
    wanted = [triton.InferRequestedOutput("output", class_count=2)]
    classes = client.infer("digits", [tensor(images)], outputs=wanted).as_numpy("output")
    assert classes.shape == (16, 2)
    for row, best in zip(digits.predict(images), classes, strict=True):
        value, index, label = best[0].decode().split(":", 2)
        assert int(index) == row.argmax()
        assert value == f"{row.max():.6f}"
        assert label == digits.labels[row.argmax()]


def test_async_infer(client, images, digits):
    import queue

    done = queue.Queue()
    for n in range(16):
        client.async_infer(
            "digits",
            [tensor(images[n : n + 1])],
            lambda result, error, n=n: done.put((n, result, error)),
            client_timeout=WAIT,
        )
    for _ in range(16):
        n, result, error = done.get(timeout=WAIT)
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("output"), digits.predict(images[n : n + 1]))


def test_aio(server, images, digits):
    async def main():
        async with triton_aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_ready()
            assert (await client.get_model_config("digits")).config.max_batch_size == 64
            results = await asyncio.gather(
                *(client.infer("digits", [tensor(images[n : n + 2])]) for n in range(14))
            )
            for n, result in enumerate(results):
                expected = digits.predict(images[n : n + 2])
                np.testing.assert_array_equal(result.as_numpy("output"), expected)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("call", "status", "words"),
    [
        (lambda c, x: c.infer("nobody", [tensor(x)]), "NOT_FOUND", "unknown model: 'nobody'"),
        (lambda c, x: c.infer("digits", [tensor(x, "x")]), "INVALID_ARGUMENT", "['input']"),
        (lambda c, x: c.infer("digits", [tensor(x[:, 0])]), "INVALID_ARGUMENT", "[16,28,28]"),
        (lambda c, x: c.get_model_metadata("nobody"), "NOT_FOUND", "'nobody'"),
        (lambda c, x: c.load_model("digits"), "UNAVAILABLE", "is not allowed"),
        (lambda c, x: c.get_trace_settings(), "UNIMPLEMENTED", "TraceSetting"),
    ],
)
def test_errors(client, images, call, status, words):
    with pytest.raises(InferenceServerException) as caught:
        call(client, images)
    assert caught.value.status() == f"StatusCode.{status}"
    assert words in caught.value.message()


@pytest.mark.parametrize("triton_first", [True, False])
def test_all_packages_in_one_process_in_any_order(server, digits_path, images, triton_first):
    ours = "import convserve, convserve_client, convserve.serving.server"
    theirs = "import tritonclient.grpc as t"
    code = f"""
import warnings; warnings.simplefilter("ignore")
{theirs if triton_first else ours}
{ours if triton_first else theirs}
import numpy as np
model = convserve.load({str(digits_path)!r})
x = np.linspace(-1, 1, 2 * 784, dtype=np.float32).reshape(2, 1, 28, 28)
given = t.InferInput("input", [2, 1, 28, 28], "FP32"); given.set_data_from_numpy(x)
with t.InferenceServerClient({server.address!r}) as client:
    theirs = client.infer("digits", [given]).as_numpy("output")
with convserve_client.Client({server.address!r}) as client:
    ours = client.predict(x, model="digits")
assert (theirs == model.predict(x)).all() and (ours == model.predict(x)).all()
from convserve.engine.repository import ModelRepository
from convserve.serving.server import Options, Server
mine = Server(ModelRepository.open({str(digits_path)!r}), Options(port=0, metrics_port=0))
with t.InferenceServerClient(f"127.0.0.1:{{mine.port}}") as client:
    assert (client.infer("model", [given]).as_numpy("output") == theirs).all()
assert mine.stop(10)
print("fine")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT
    )
    assert (result.returncode, result.stdout) == (0, "fine\n"), result.stderr
