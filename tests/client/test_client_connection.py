"""Deadlines, retries, lost and returning servers, closing."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from convserve_client import AsyncClient, Client, errors

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
WAIT = 60.0  # seconds after which a test has failed; never waited for in full


def timed(call: Callable[[], Any]) -> float:
    start = time.monotonic()
    call()
    return time.monotonic() - start


@pytest.fixture
def nobody() -> Any:
    """An address where nothing listens."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{reserved.getsockname()[1]}"


@pytest.mark.parametrize("failures", [1, 3])
def test_unavailable_is_retried_with_back_off(client: Any, server: Any, failures: int) -> None:
    x = server.images(1)
    client.predict(x)
    server.calls.clear()
    server.fail = [(UNAVAILABLE, "queue full", None)] * failures
    scores: list[np.ndarray] = []
    seconds = timed(lambda: scores.append(client.predict(x)))
    np.testing.assert_array_equal(scores[0], server.scores_of(x))
    assert server.calls == ["ModelInfer"] * (failures + 1)
    assert seconds > 0.05 * (3**failures - 1) / 2 * 0.7


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 2)])
def test_retries_are_counted(connect: Any, server: Any, retries: int, attempts: int) -> None:
    client = connect(server.address, retries=retries)
    server.fail = [(UNAVAILABLE, "queue full", None)] * 5
    with pytest.raises(errors.UnavailableError, match="queue full"):
        client.server_live()
    assert len(server.calls) == attempts


def test_a_large_request_is_retried_whole(connect: Any, server: Any) -> None:
    server.models["toy"] = server.Model(shape=(1, 1024, 1024))
    client = connect(server.address)
    x = server.images(2, shape=(1, 1024, 1024))
    client.predict(x)
    server.calls.clear()
    server.fail = [(UNAVAILABLE, "queue full", "1")]
    np.testing.assert_array_equal(client.predict(x), server.scores_of(x))
    assert server.calls == ["ModelInfer"] * 2


def test_push_back_sets_the_wait(connect: Any, server: Any) -> None:
    seconds = []
    for _ in range(5):
        client = connect(server.address)
        client.server_live()
        server.fail = [(UNAVAILABLE, "queue full", "250")]
        long = timed(client.server_live)
        assert long > 0.24
        server.fail = [(UNAVAILABLE, "queue full", "1")] * 3
        seconds.append((long, timed(client.server_live)))
    best = [min(some) for some in zip(*seconds, strict=True)]
    assert best[0] < 2
    assert best[1] < 0.9  # the back-off would be 0.1 s, 0.3 s and 0.9 s, give or take a fifth


def test_a_negative_push_back_forbids_the_retry(client: Any, server: Any) -> None:
    server.fail = [(UNAVAILABLE, "stopping", "-1")]
    with pytest.raises(errors.UnavailableError, match="stopping"):
        client.server_live()
    assert len(server.calls) == 1


def test_retries_end_at_the_deadline(client: Any, server: Any) -> None:
    client.server_live()
    server.fail = [(UNAVAILABLE, "queue full", "50000")]
    start = time.monotonic()
    with pytest.raises(errors.DeadlineExceededError):
        client.server_live(timeout=0.2)
    assert time.monotonic() - start < 40  # and does not wait for what the server asks for


def test_pipelined_requests_are_retried_in_order(client: Any, server: Any) -> None:
    x = server.images(40)
    client.predict(x[:1])
    server.fail = [(UNAVAILABLE, "queue full", "5")] * 6
    np.testing.assert_array_equal(client.predict(x), server.scores_of(x))
    results = client.predict_many(x)
    first = next(results)
    server.fail = [(UNAVAILABLE, "queue full", "5")] * 2
    np.testing.assert_array_equal(np.stack([first, *results]), server.scores_of(x))


def test_the_deadline_holds_for_the_whole_call(client: Any, server: Any) -> None:
    client.predict(server.images(1))
    server.delay = lambda request: 0.1
    with pytest.raises(errors.DeadlineExceededError) as caught:
        client.predict(server.images(400), timeout=0.25)  # 100 requests, 8 at once
    assert len(server.requests) < 1 + 100
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    server.delay = lambda request: 0.0
    assert client.server_live()


def test_the_clients_own_timeout_is_the_default(connect: Any, server: Any) -> None:
    client = connect(server.address, timeout=0.15)
    client.predict(server.images(1), timeout=WAIT)  # it knows the model
    server.hold = threading.Event()
    with pytest.raises(errors.DeadlineExceededError):
        client.predict(server.images(1))
    with pytest.raises(errors.DeadlineExceededError):
        next(client.predict_many(server.images(1)))
    server.hold.set()


def test_no_server_is_unavailable(connect: Any, nobody: str) -> None:
    client = connect(nobody, retries=1)
    start = time.monotonic()
    with pytest.raises(errors.UnavailableError, match="connect"):
        client.server_live()
    assert time.monotonic() - start < WAIT / 2  # that of a call, which is 60 s


def test_a_silent_server_is_given_up_after_connect_timeout(connect: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = connect(
            f"127.0.0.1:{silent.getsockname()[1]}", retries=0, connect_timeout=0.3, timeout=WAIT
        )
        start = time.monotonic()
        with pytest.raises(errors.UnavailableError):  # and not that the call took too long
            client.server_live()
        assert time.monotonic() - start > 0.2


def test_a_server_that_comes_back_is_found(connect: Any, make_server: Any) -> None:
    servers = [make_server()]
    client = connect(servers[0].address, retries=4)
    x = servers[0].images(9)
    client.predict(x)
    for late in range(3):
        servers[-1].stop()
        again = lambda: servers.append(make_server(port=servers[0].port))  # noqa: E731
        starter = threading.Timer(0.3, again)
        starter.start()
        try:
            np.testing.assert_array_equal(client.predict(x), servers[0].scores_of(x))
            return
        except errors.UnavailableError:  # it was away for longer than the four retries take
            assert late < 2
        finally:
            starter.join()


def refuses_to_wait(client: Any, match: str, **options: Any) -> None:
    """With a time that is long enough to find out why."""
    for seconds in (0.2, 1.0, 5.0, 25.0):
        with pytest.raises(errors.DeadlineExceededError) as caught:
            client.wait_ready(seconds, **options)
        if match in str(caught.value):
            return
    raise caught.value


def test_wait_ready_waits_for_server_and_model(connect: Any, make_server: Any) -> None:
    gone = make_server()
    gone.stop()
    client = connect(gone.address)
    with pytest.raises(
        errors.DeadlineExceededError, match=f"{gone.address} is not ready: no answer"
    ):
        client.wait_ready(0.2)
    made: list[Any] = []
    starter = threading.Timer(0.1, lambda: made.append(make_server(port=gone.port)))
    starter.start()
    client.wait_ready(WAIT)
    starter.join()
    (server,) = made
    server.ready = False
    refuses_to_wait(client, "says that it is not ready")
    server.ready = True
    refuses_to_wait(client, "model 'late' is not ready", model="late")
    server.models["late"] = server.Model()
    client.wait_ready(WAIT, model="late")


def test_a_closed_client_says_so(connect: Any, server: Any) -> None:
    client = connect(server.address)
    x = server.images(1)
    client.predict(x)
    unfinished = client.predict_many(x)
    client.close()
    client.close()
    for call in (lambda: client.predict(x), client.server_live, lambda: next(unfinished)):
        with pytest.raises(errors.ClientClosedError, match="is closed"):
            call()
    with pytest.raises(errors.ClientClosedError):
        client.predict(x[:0])


def test_closing_ends_the_calls_of_other_threads(connect: Any, server: Any) -> None:
    client = connect(server.address)
    client.predict(server.images(1))
    assert server.arrived.acquire(timeout=WAIT)
    server.hold = threading.Event()
    caught: list[BaseException] = []

    def call(count: int) -> None:
        try:
            client.predict(server.images(count))
        except BaseException as error:
            caught.append(error)

    threads = [threading.Thread(target=call, args=(count,)) for count in (1, 30)]
    for thread in threads:
        thread.start()
    for _ in range(9):
        assert server.arrived.acquire(timeout=WAIT)
    client.close()
    for thread in threads:
        thread.join(WAIT)
    assert [type(error) for error in caught] == [errors.ClientClosedError] * 2


def test_context_managers_close(server: Any) -> None:
    with Client(server.address) as client:
        assert client.server_live()
    with pytest.raises(errors.ClientClosedError), client:
        pass
    assert repr(client) == f"Client('{server.address}', closed)"

    async def main() -> None:
        async with AsyncClient(server.address) as client:
            assert await client.server_live()
        with pytest.raises(errors.ClientClosedError):
            await client.server_live()

    asyncio.run(main())


def test_an_async_client_stays_with_its_loop(server: Any) -> None:
    client = AsyncClient(server.address)

    async def use() -> None:
        assert await client.server_live()

    async def main() -> None:
        await use()

        def elsewhere() -> None:
            with pytest.raises(RuntimeError, match="another event loop"):
                asyncio.run(use())

        await asyncio.to_thread(elsewhere)
        await client.close()

    asyncio.run(main())
