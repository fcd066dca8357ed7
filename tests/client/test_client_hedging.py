"""A slow inference is sent once more: who answers, what it costs, and when it is not done."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import certificates
import grpc
import numpy as np
import pytest

from convserve_client import errors
from convserve_client._hedging import Hedging, _due_after_failure

AFTER = 0.05  # seconds; what is slow here answers when the test lets it, or some times as late
WAIT = 60.0  # after which a test has failed
STUCK = WAIT / 2  # a call that took longer has waited for a server that is stuck, which is WAIT


def infers(server: Any) -> int:
    return int(server.calls.count("ModelInfer"))


def once_asked(server: Any, count: int) -> float:
    """A delay: it ends when the server has been asked `count` times."""
    deadline = time.monotonic() + WAIT
    while infers(server) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return 0.0


@pytest.fixture
def stuck(make_server: Any) -> Iterator[tuple[Any, Any]]:
    """Two servers, of which the first answers everything but inferences."""
    first, second = make_server(), make_server()
    first.hold = threading.Event()
    yield first, second


def balanced(connect: Any, servers: Any, addresses: Any = None, **options: Any) -> Any:
    """A client that is connected to both and knows the model."""
    addresses = addresses or [server.address for server in servers]
    client = connect(addresses, hedge_after=AFTER, **options)
    deadline = time.monotonic() + WAIT
    while not all(server.calls for server in servers):
        client.model_ready("toy")
        assert time.monotonic() < deadline
    client.predict(servers[0].images(0), model="toy")
    return client


def test_the_other_of_two_servers_answers(connect: Any, stuck: Any) -> None:
    client = balanced(connect, stuck)
    x = stuck[0].images(3)
    start = time.monotonic()
    for _ in range(8):
        np.testing.assert_array_equal(client.predict(x, model="toy"), stuck[0].scores_of(x))
    assert time.monotonic() - start < STUCK  # no call has waited for the stuck one
    assert infers(stuck[0]) >= 1
    assert stuck[0].cancelled.acquire(timeout=WAIT)  # the loser is


def test_streams_and_parts_of_a_batch_too(connect: Any, stuck: Any) -> None:
    client = balanced(connect, stuck)
    x = stuck[0].images(24)
    start = time.monotonic()
    results = list(client.predict_many(iter(x), batch=2, in_flight=4, model="toy"))
    np.testing.assert_array_equal(np.stack(results), stuck[0].scores_of(x))
    np.testing.assert_array_equal(client.predict(x, model="toy"), stuck[0].scores_of(x))
    assert time.monotonic() - start < STUCK
    assert infers(stuck[0]) >= 1


def test_what_is_asked_before_an_inference_too(connect: Any, stuck: Any) -> None:
    client = balanced(connect, stuck)
    stuck[0].held = {"ModelMetadata", "ModelConfig", "RepositoryIndex"}
    x = stuck[0].images(3)
    start = time.monotonic()
    for _ in range(3):
        results = list(client.predict_many(iter(x)))  # asks for the name, the metadata, the rest
        np.testing.assert_array_equal(np.stack(results), stuck[0].scores_of(x))
        assert client.model_metadata("toy").name == "toy"
    assert time.monotonic() - start < STUCK
    assert stuck[0].held & set(stuck[0].calls)


def test_a_name_with_many_addresses(connect: Any, server: Any) -> None:
    client = connect(server.address, load_balancing="round_robin", hedge_after=AFTER)
    client.predict(server.images(0), model="toy")
    server.calls.clear()
    server.delay = lambda request: once_asked(server, 3)
    client.predict(server.images(1), model="toy")
    assert infers(server) == 3


def test_quick_answers_cost_nothing(connect: Any, server: Any) -> None:
    client = connect(server.address, hedge_after=20)
    for _ in range(20):
        client.predict(server.images(1), model="toy")
    list(client.predict_many(server.images(40), model="toy"))
    assert infers(server) == 20 + 10
    assert len(set(server.peers)) == 1


def test_one_server_is_asked_over_a_second_connection(connect: Any, server: Any) -> None:
    client = connect(server.address, hedge_after=AFTER)
    client.predict(server.images(0), model="toy")
    server.calls.clear(), server.peers.clear()
    held, answered = threading.Event(), threading.Event()

    def delay(request: Any) -> float:
        if not held.is_set():
            held.set()
            answered.wait(WAIT)
        return 0.0

    server.delay = delay
    x = server.images(2)
    np.testing.assert_array_equal(client.predict(x, model="toy"), server.scores_of(x))
    assert server.calls == ["ModelInfer"] * 2
    assert len(set(server.peers)) == 2
    assert server.cancelled.acquire(timeout=WAIT)
    answered.set()


def test_the_budget_bounds_it(connect: Any, server: Any) -> None:
    client = connect(server.address, hedge_after=AFTER, retry_budget=2)
    client.predict(server.images(0), model="toy")
    getattr(client, "client", client)._hedging._tokens = 4.0  # connecting may have taken some
    # Of four tokens each second attempt takes one, and each answer gives a tenth back.
    for number in range(3):
        server.delay = lambda request, count=2 * number + 2: once_asked(server, count)
        client.predict(server.images(1), model="toy")
    server.delay = lambda request: 6 * AFTER
    for _ in range(3):
        client.predict(server.images(1), model="toy")
    assert infers(server) == 6 + 3


def test_the_budget_in_figures() -> None:
    hedging = Hedging(1.0, 3, 2)
    assert [hedging.take() for _ in range(5)] == [True, True, True, False, False]
    for _ in range(11):
        hedging.answered()
    assert [hedging.take() for _ in range(3)].count(True) in (1, 2)  # ten tenths, rounded
    for _ in range(1000):
        hedging.answered()
    assert sum(hedging.take() for _ in range(10)) == 3


def test_the_deadline_is_that_of_the_call(connect: Any, stuck: Any) -> None:
    stuck[1].hold = threading.Event()
    client = balanced(connect, stuck, retries=0)
    for timeout in (1.5, 6.0, 24.0):
        for server in stuck:
            server.calls.clear(), server.deadlines.clear()
        start = time.monotonic()
        with pytest.raises(errors.DeadlineExceededError):
            client.predict(stuck[0].images(1), model="toy", timeout=timeout)
        assert timeout - 0.05 < time.monotonic() - start < STUCK
        if infers(stuck[0]) + infers(stuck[1]) >= 2:  # else it was over before there was a second
            break
    left = [seconds for server in stuck for seconds in server.deadlines]
    assert len(left) >= 2 and min(left) < timeout


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INVALID_ARGUMENT"])
def test_how_an_attempt_fails(connect: Any, server: Any, code: str) -> None:
    client = connect(server.address, hedge_after=AFTER)
    client.predict(server.images(0), model="toy")
    server.calls.clear()
    server.fail = [None, (grpc.StatusCode[code], "no", "-1")]  # the second attempt
    ended = threading.Event()

    def delay(request: Any) -> float:
        once_asked(server, 2)
        if code != "UNAVAILABLE":
            ended.wait(WAIT)
        return 0.5  # the failure gets there first

    server.delay = delay
    x = server.images(1)
    if code == "UNAVAILABLE":  # the first one may still be answered
        np.testing.assert_array_equal(client.predict(x, model="toy"), server.scores_of(x))
        assert infers(server) == 2
    else:
        with pytest.raises(errors.InvalidRequestError, match="no"):
            client.predict(x, model="toy")
        assert server.cancelled.acquire(timeout=WAIT)
        ended.set()


@pytest.mark.parametrize(("pushback", "attempts"), [(None, 3), ("100", 3), ("-1", 2)])
def test_the_next_attempt_after_a_failure(
    connect: Any, server: Any, pushback: str | None, attempts: int
) -> None:
    """At once, or as the server has it: the third one would be due 2 s after the second one."""
    client = connect(server.address, load_balancing="round_robin", hedge_after=2, retries=0)
    client.predict(server.images(0), model="toy")
    server.delay = lambda request: once_asked(server, attempts)
    for _ in range(4):
        server.calls.clear()
        server.fail = [None, (grpc.StatusCode.UNAVAILABLE, "no", pushback)]
        start = time.monotonic()
        client.predict(server.images(1), model="toy")
        took = time.monotonic() - start
        assert took >= 2
        assert infers(server) == attempts
        if took < 3.8:
            return
    pytest.fail(f"it always waits for the time of the next one: {took:.1f} s")


def test_what_a_push_back_says() -> None:
    def due(before: float, *values: str) -> float:
        trailing = [("grpc-retry-pushback-ms", value) for value in values]
        return _due_after_failure(before, trailing) - time.monotonic()

    assert due(time.monotonic() + 60) <= 0 and _due_after_failure(1.0, None) > 1
    assert 59 < due(0.0, "60000") <= 60
    for wish in ("-1", "?", "", "1.5", "9" * 5000):
        assert due(0.0, wish) == math.inf
    assert due(math.inf) == due(math.inf, "5") == math.inf


def test_hedges_name_the_server_that_the_client_names(
    connect: Any, make_server: Any, tmp_path: Path
) -> None:
    """The certificates are for the first address only."""
    folder = certificates.make(tmp_path)
    pair = ((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())
    credentials = grpc.ssl_server_credentials([pair])
    servers = [make_server(credentials=credentials) for _ in range(2)]
    servers[0].hold = threading.Event()
    addresses = [servers[0].address, f"localhost:{servers[1].port}"]
    trusted = grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes())
    client = balanced(connect, servers, addresses, credentials=trusted)
    start = time.monotonic()
    while not infers(servers[0]):
        client.predict(servers[0].images(1), model="toy")
    assert time.monotonic() - start < STUCK


def test_a_failure_is_not_hedged(connect: Any, server: Any) -> None:
    client = connect(server.address, hedge_after=20)
    client.predict(server.images(0), model="toy")
    server.fail = [(grpc.StatusCode.UNAVAILABLE, "stopping", "-1")]
    with pytest.raises(errors.UnavailableError, match="stopping"):
        client.predict(server.images(1), model="toy")
    assert infers(server) == 1


def test_only_inferences_are_sent_again(connect: Any, server: Any) -> None:
    client = connect(server.address, hedge_after=AFTER)
    load = server.RepositoryModelLoad

    def slow(request: Any, context: Any) -> Any:
        time.sleep(4 * AFTER)
        return load(request, context)

    server.RepositoryModelLoad = slow
    client.load_model("other")
    assert server.calls == ["RepositoryModelLoad"]


def test_an_early_end_cancels_all_attempts(connect: Any, server: Any) -> None:
    client = connect(server.address, hedge_after=AFTER)
    client.predict(server.images(0), model="toy")
    ended, x = threading.Event(), server.images(3)

    def delay(request: Any) -> float:
        if request.raw_input_contents[0] != x[0].tobytes():
            ended.wait(WAIT)
        return once_asked(server, 6)

    server.calls.clear()
    server.delay = delay
    results = client.predict_many(x, batch=1, in_flight=3, model="toy")
    next(results)
    results.close()
    for _ in range(4):  # two of each of the others
        assert server.cancelled.acquire(timeout=WAIT)
    ended.set()


def test_closing_ends_what_waits(connect: Any, server: Any) -> None:
    server.hold = threading.Event()
    client = connect(server.address, hedge_after=AFTER)
    failures: list[Exception] = []

    def wait() -> None:
        try:
            client.predict(server.images(1), model="toy")
        except Exception as error:
            failures.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert server.arrived.acquire(timeout=WAIT) and server.arrived.acquire(timeout=WAIT)
    client.close()
    waiting.join(WAIT)
    assert [type(error) for error in failures] == [errors.ClientClosedError]
