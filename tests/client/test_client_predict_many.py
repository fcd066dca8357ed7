"""predict_many: lazily pulled, bounded, in order, and cancelled where it ends early."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from convserve_client import AsyncClient, errors


def cut(x: np.ndarray, seed: int) -> list[np.ndarray]:
    """The images of `x` as single ones and batches of 0 to 9, mixed."""
    rng = random.Random(seed)
    items = []
    while len(x):
        count = rng.randint(0, 9)
        items.append(x[0] if count == 1 else x[:count])
        x = x[count:]
    return items


@pytest.mark.parametrize(("batch", "in_flight"), [(1, 8), (3, 1), (4, 3), (32, 8)])
def test_items_of_any_size_come_back_in_order(
    client: Any, server: Any, batch: int, in_flight: int
) -> None:
    rng = random.Random(batch)
    server.delay = lambda request: rng.random() * 0.004
    items = [*cut(server.images(60, batch), batch), server.images(0)]
    results = list(client.predict_many(items, batch=batch, in_flight=in_flight))
    assert len(results) == len(items)
    for item, result in zip(items, results, strict=True):
        single = item.ndim == 3
        expected = server.scores_of(item[None] if single else item)
        np.testing.assert_array_equal(result, expected[0] if single else expected)
        assert result.flags.writeable and result.base is None
    full = [request.inputs[0].shape[0] for request in server.requests]
    assert sorted(full)[1:] == [min(batch, 4)] * (len(full) - 1)  # only the last is not full
    assert server.most_running <= in_flight


def test_never_more_in_flight_and_nothing_pulled_early(client: Any, server: Any) -> None:
    server.hold = threading.Event()
    pulled: list[int] = []

    def source() -> Iterator[np.ndarray]:
        for index in range(40):
            pulled.append(index)
            yield server.images(1, index)[0]

    results = client.predict_many(source(), batch=2, in_flight=3)
    assert pulled == []
    consumer = threading.Thread(target=next, args=(results,))
    consumer.start()
    for _ in range(3):
        assert server.arrived.acquire(timeout=60)
    assert not server.arrived.acquire(timeout=0.1)  # a fourth does not come
    assert pulled == list(range(6))
    server.hold.set()
    consumer.join()
    assert len(list(results)) == 39 and server.most_running == 3


def test_kinds_that_do_not_mix_go_separately(client: Any, server: Any) -> None:
    server.models["toy"] = server.Model(max_batch_size=100)
    floats, pixels = server.images(3), np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2)
    items = [*floats, *pixels, *floats]
    results = np.stack(list(client.predict_many(items)))
    np.testing.assert_array_equal(
        results, server.scores_of(np.concatenate([floats, pixels.astype(np.float32), floats]))
    )
    assert [request.inputs[0].datatype for request in server.requests].count("UINT8") == 1


def test_named_outputs_are_dicts(client: Any, server: Any) -> None:
    x = server.images(5)
    for item, result in zip(x, client.predict_many(x, outputs=["output"]), strict=True):
        np.testing.assert_array_equal(result["output"], server.scores_of(item[None])[0])


@pytest.mark.parametrize("in_flight", [1, 4])
def test_a_bad_item_fails_at_its_place(client: Any, server: Any, in_flight: int) -> None:
    good = server.images(7)
    for bad, kind, text in (
        (good[0].astype(float), TypeError, "item 7 must be float32"),
        (np.zeros((1, 2, 3), np.float32), errors.InvalidRequestError, "item 7: model 'toy' takes"),
        (None, TypeError, "item 7 must be a numpy.ndarray"),
    ):
        results = client.predict_many([*good, bad, *good], batch=2, in_flight=in_flight)
        before = [next(results) for _ in good]
        np.testing.assert_array_equal(np.stack(before), server.scores_of(good))
        with pytest.raises(kind, match=text):
            next(results)
        assert list(results) == []


def test_an_error_of_the_source_comes_up_at_its_place(client: Any, server: Any) -> None:
    def source() -> Iterator[np.ndarray]:
        yield from server.images(3)
        raise OSError("disk gone")

    results = client.predict_many(source(), batch=2)
    assert len([next(results) for _ in range(3)]) == 3
    with pytest.raises(OSError, match="disk gone"):
        next(results)


def test_an_error_of_the_server_comes_up_at_its_place_and_cancels(
    client: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = server.images(40)
    right = server.ModelInfer

    def infer(request: Any, context: Any) -> Any:
        first = np.frombuffer(request.raw_input_contents[0], np.float32)[0]
        if first == x[6].ravel()[0]:
            context.abort(grpc.StatusCode.INTERNAL, "boom")
        return right(request, context)

    monkeypatch.setattr(server, "ModelInfer", infer)
    results = client.predict_many(x, batch=2, in_flight=4)
    np.testing.assert_array_equal(
        np.stack([next(results) for _ in range(6)]), server.scores_of(x[:6])
    )
    with pytest.raises(errors.InternalError, match="boom"):
        next(results)
    assert list(results) == []
    assert len(server.requests) <= 3 + 4


def test_closing_early_cancels_what_is_out(client: Any, server: Any) -> None:
    x = server.images(40)
    all_out, gate = threading.Barrier(4), threading.Event()

    def delay(request: Any) -> float:
        all_out.wait(60)
        if request.raw_input_contents[0] != x[0].tobytes():
            gate.wait(60)
        return 0.0

    server.delay = delay
    results = client.predict_many(x, batch=1, in_flight=4)
    next(results)
    results.close()
    for _ in range(3):
        assert server.cancelled.acquire(timeout=60)
    gate.set()
    server.delay = lambda request: 0.0
    np.testing.assert_array_equal(client.predict(x), server.scores_of(x))


def test_arguments_are_checked_at_once(client: Any) -> None:
    for wrong in ({"batch": 0}, {"in_flight": -1}, {"timeout": 0}):
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name} must be"):
            client.predict_many([], **wrong)


def test_nothing_in_nothing_out(client: Any) -> None:
    assert list(client.predict_many([])) == []


def test_async_iterables_are_pulled_as_they_are_needed(server: Any) -> None:
    x = server.images(20)
    pulled = 0

    async def source() -> AsyncIterator[np.ndarray]:
        nonlocal pulled
        for image in x:
            await asyncio.sleep(0)
            pulled += 1
            yield image

    async def main() -> list[np.ndarray]:
        async with AsyncClient(server.address) as client:
            results = client.predict_many(source(), batch=2, in_flight=2)
            first = await anext(results)
            assert pulled <= 2 * 2 + 2
            return [first, *[result async for result in results]]

    np.testing.assert_array_equal(np.stack(asyncio.run(main())), server.scores_of(x))


@pytest.mark.parametrize("many", [False, True])
def test_cancelling_the_task_cancels_the_calls(server: Any, many: bool) -> None:
    server.hold = threading.Event()
    x = server.images(12)

    async def main() -> None:
        async with AsyncClient(server.address) as client:
            call = anext(client.predict_many(x, batch=4)) if many else client.predict(x)
            task = asyncio.ensure_future(call)
            for _ in range(3):
                assert await asyncio.to_thread(server.arrived.acquire, timeout=60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            for _ in range(3):
                assert await asyncio.to_thread(server.cancelled.acquire, timeout=60)

    asyncio.run(main())
