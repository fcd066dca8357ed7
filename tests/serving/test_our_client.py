"""convserve_client against a real server: the two halves of the product meet."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest
from PIL import Image
from post_state import wait_until

import convserve_client
from convserve.engine.model import top_k
from convserve.errors import QueueFullError

WAIT = 20.0


@pytest.fixture
def client(server):
    with convserve_client.Client(server.address) as client:
        yield client


def test_any_number_of_images_gives_the_models_own_bits(client, digits):
    pixels = np.random.default_rng(3).integers(0, 256, (300, 1, 28, 28), np.uint8)
    expected = digits.predict(pixels)
    for n in (0, 1, 63, 64, 65, 300):  # the server's limit is 64
        np.testing.assert_array_equal(client.predict(pixels[:n], model="digits"), expected[:n])
    floats = digits.preprocessing.normalise(pixels)
    np.testing.assert_array_equal(client.predict(floats, model="digits"), expected)


def test_classify_files(client, pixels, digits):
    files = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image[0]).save(file, "PNG")
        files.append(file.getvalue())
    answers = client.classify(files, top_k=3, model="digits")
    assert answers == top_k(digits.predict(pixels), 3, digits.labels)


def test_predict_many(client, pixels, digits):
    results = list(client.predict_many(iter(pixels), model="digits", batch=5, in_flight=3))
    np.testing.assert_array_equal(np.stack(results), digits.predict(pixels))


def test_async(server, pixels, digits):
    async def main():
        async with convserve_client.AsyncClient(server.address) as client:
            return await asyncio.gather(*(client.predict(x, model="digits") for x in batches))

    batches = [pixels[n : n + 3] for n in range(10)]
    for x, answer in zip(batches, asyncio.run(main()), strict=True):
        np.testing.assert_array_equal(answer, digits.predict(x))


def test_errors_have_their_types(client, pixels):
    from convserve_client import errors

    with pytest.raises(errors.NotFoundError, match="'nobody'"):
        client.predict(pixels, model="nobody")
    with pytest.raises(errors.InvalidRequestError, match="image 0 of 1"):
        client.classify([b"not an image"], model="digits")


def test_a_full_queue_is_retried_and_answered(gated, infer_request, pixels, digits, monkeypatch):
    server = gated(max_queue_size=1)
    server.model.gate.clear()
    running = server.stub.ModelInfer.future(infer_request(pixels[:1]))
    assert server.model.entered.acquire(timeout=WAIT)
    waiting = server.stub.ModelInfer.future(infer_request(pixels[:1]))
    wait_until(lambda: server.scheduler.pending)
    run = server.scheduler.run

    def run_and_empty_the_queue(request):
        try:
            return run(request)
        except QueueFullError:  # which is not told before there is room
            server.model.gate.set()
            assert running.result(WAIT).outputs
            assert waiting.result(WAIT).outputs
            raise

    monkeypatch.setattr(server.scheduler, "run", run_and_empty_the_queue)
    with convserve_client.Client(f"127.0.0.1:{server.port}") as client:
        np.testing.assert_array_equal(client.predict(pixels), digits.predict(pixels))
    assert server.scheduler.statistics.snapshot().failures["REJECTED"] == 1
