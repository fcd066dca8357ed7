"""convserve_client against a real server: the two halves of the product meet."""

from __future__ import annotations

import asyncio
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from post_state import wait_until
from tiny_models import image, save_tiny

import convserve_client
from convserve.engine.model import top_k
from convserve.engine.repository import ModelRepository
from convserve.errors import QueueFullError
from convserve.serving.server import Options, Server
from convserve_client import errors

WAIT = 120.0


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
    for picture in pixels:
        file = io.BytesIO()
        Image.fromarray(picture[0]).save(file, "PNG")
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
    with pytest.raises(errors.NotFoundError, match="'nobody'"):
        client.predict(pixels, model="nobody")
    with pytest.raises(errors.InvalidRequestError, match="image 0 of 1"):
        client.classify([b"not an image"], model="digits")


class Ids:
    """The ids of answered inferences, as the access log would have them."""

    metadata = frozenset()

    def __init__(self):
        self.seen = []

    def take(self, records):
        self.seen += [record.id for record in records if record.method == "ModelInfer"]
        return 0

    def close(self):
        pass


@pytest.fixture
def controlled(tmp_path):
    """A server of the model m, versions 1 and 3, that callers may control.

    Gives functions that make the call of a name, by the sync and by the async client, and the ids.
    """
    for version in (1, 3):
        save_tiny(tmp_path / "models" / "m" / str(version) / "model.npz", version)
    repository = ModelRepository.open(tmp_path / "models", names=["m"])
    ids = Ids()
    options = Options(port=0, metrics_port=0, explicit_control=True)
    server = Server(repository, options, sinks=[ids])
    address = f"127.0.0.1:{server.port}"

    def sync(name, *arguments, **keywords):
        with convserve_client.Client(address) as client:
            return getattr(client, name)(*arguments, **keywords)

    def asynchronous(name, *arguments, **keywords):
        async def main():
            async with convserve_client.AsyncClient(address) as client:
                return await getattr(client, name)(*arguments, **keywords)

        return asyncio.run(main())

    yield [sync, asynchronous], ids
    assert server.stop(WAIT)


def test_load_with_a_config_and_files(controlled, tmp_path):
    sent = save_tiny(tmp_path / "sent.npz", 50)
    for call in controlled[0]:
        both = {"version_policy": {"specific": {"versions": [1, 3]}}, "max_batch_size": 2}
        call("load_model", "m", config=both)
        assert [call("predict", image(5), "m", v)[4, 0] for v in ("1", "3")] == [1, 3]
        assert call("model_config", "m").max_batch_size == 2
        call("load_model", "m", config={}, files={"5/model.npz": sent})
        assert call("predict", image(), "m")[0, 0] == 50
        with pytest.raises(errors.InternalError, match=r"file:6/model\.npz"):
            call("load_model", "m", config={}, files={"6/model.npz": b"no model"})
        call("load_model", "m")
        assert call("predict", image(), "m")[0, 0] == 3


def test_log_settings(controlled):
    for call in controlled[0]:
        assert call("log_settings")["log_info"] is True
        changed = call("update_log_settings", {"log_info": False, "log_verbose_level": 1})
        assert (changed["log_info"], changed["log_verbose_level"]) == (False, 1)
        assert call("log_settings") == changed
        with pytest.raises(errors.InvalidRequestError, match="unknown log setting 'log_noise'"):
            call("update_log_settings", {"log_noise": True})
        call("update_log_settings", {"log_info": True, "log_verbose_level": 0})


def test_ids_and_metadata_reach_the_access_log(controlled):
    calls, ids = controlled
    for call in calls:
        call("predict", image(), "m", request_id="7f30")
        call("predict", image(), "m", metadata=[("x-request-id", "by metadata")])
    wait_until(lambda: len(ids.seen) == 4)
    assert ids.seen == ["7f30", "by metadata"] * 2


def test_priority_and_queue_timeout(gated, pixels, digits):
    server = gated(
        max_batch_size=2,
        priority_levels=2,
        default_priority_level=2,
        policy={"allow_timeout_override": True},
    )
    address = f"127.0.0.1:{server.port}"
    with ThreadPoolExecutor(3) as pool, convserve_client.Client(address, retries=0) as client:
        client.predict(pixels[:1])  # it knows the model
        assert server.model.entered.acquire(timeout=WAIT)
        server.model.gate.clear()
        running = pool.submit(client.predict, pixels[:1])
        assert server.model.entered.acquire(timeout=WAIT)
        plain = pool.submit(client.predict, pixels[1:3])
        wait_until(lambda: server.scheduler.pending == 1)
        urgent = pool.submit(client.predict, pixels[3:4], priority=1)
        wait_until(lambda: server.scheduler.pending == 2)
        with pytest.raises(errors.UnavailableError, match="Request timeout expired"):
            client.predict(pixels[:1], queue_timeout=0.01)
        server.model.gate.set()
        for future, part in ((running, [0]), (plain, [1, 2]), (urgent, [3])):
            np.testing.assert_array_equal(future.result(WAIT), digits.predict(pixels[part]))
    assert server.model.batches == [1, 1, 1, 2]  # the one image that came later went first


def test_a_full_queue_is_retried_and_answered(gated, infer_request, pixels, digits, monkeypatch):
    server = gated(max_queue_size=1)
    server.model.gate.clear()
    running = server.stub.ModelInfer.future(infer_request(pixels[:1]))
    assert server.model.entered.acquire(timeout=WAIT)
    waiting = server.stub.ModelInfer.future(infer_request(pixels[:1]))
    wait_until(lambda: server.scheduler.pending)
    run = server.scheduler.run

    def run_and_empty_the_queue(request, **how):
        try:
            return run(request, **how)
        except QueueFullError:  # which is not told before there is room
            server.model.gate.set()
            assert running.result(WAIT).outputs
            assert waiting.result(WAIT).outputs
            raise

    monkeypatch.setattr(server.scheduler, "run", run_and_empty_the_queue)
    with convserve_client.Client(f"127.0.0.1:{server.port}") as client:
        np.testing.assert_array_equal(client.predict(pixels), digits.predict(pixels))
    assert server.scheduler.statistics.snapshot().failures["REJECTED"] == 1
