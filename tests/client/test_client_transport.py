"""Several servers, health, the retry budget, deadlines, keepalive, compression, TLS, tokens."""

from __future__ import annotations

import time
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import certificates as certificate_files
import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from convserve_client import Client, Tls, errors
from convserve_client._flows import Flows

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def wait_until(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---- Several servers ----


@pytest.fixture
def servers(make_server: Any) -> Any:
    return [make_server(), make_server()]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_servers_take_turns(connect: Any, servers: Any, host: str) -> None:
    client = connect([f"{host}:{server.port}" for server in servers])
    x = servers[0].images(3)
    wait_until(lambda: client.server_live() and all(server.calls for server in servers))
    for server in servers:
        server.calls.clear()
    for _ in range(10):
        np.testing.assert_array_equal(client.predict(x, model="toy"), servers[0].scores_of(x))
    counts = [server.calls.count("ModelInfer") for server in servers]
    assert sum(counts) == 10
    assert min(counts) >= 4


def test_a_server_that_is_not_serving_is_left_out(connect: Any, servers: Any) -> None:
    client = connect([server.address for server in servers])
    wait_until(lambda: client.server_live() and all(server.calls for server in servers))
    servers[0].health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)

    def left_out() -> bool:
        servers[0].calls.clear()
        return all(client.server_live() for _ in range(4)) and not servers[0].calls

    wait_until(left_out)
    servers[0].health.set("", health_pb2.HealthCheckResponse.SERVING)
    servers[0].calls.clear()
    wait_until(lambda: client.server_live() and servers[0].calls)


def test_a_server_that_dies_costs_no_call(connect: Any, servers: Any) -> None:
    client = connect([server.address for server in servers])
    wait_until(lambda: client.server_live() and all(server.calls for server in servers))
    servers[0].stop()
    x = servers[1].images(1)
    for _ in range(8):
        np.testing.assert_array_equal(client.predict(x, model="toy"), servers[1].scores_of(x))


def test_a_server_without_a_name_is_left_out(
    connect: Any, server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    client = connect(["gone.invalid:8001", server.address])
    np.testing.assert_array_equal(
        client.predict(server.images(3)), server.scores_of(server.images(3))
    )
    assert "'gone.invalid:8001' can't be resolved" in caplog.text
    with pytest.raises(errors.UnavailableError, match=r"'gone\.invalid:1' can't be resolved"):
        connect(["gone.invalid:1", "lost.invalid:1"]).server_live()


def test_one_address_can_take_turns_too(connect: Any, server: Any) -> None:
    assert connect(server.address, load_balancing="round_robin").server_live()
    pinned = connect([server.address, "127.0.0.1:9"], load_balancing="pick_first")
    assert pinned.server_live()
    mixed = connect([server.address, "[::1]:9"])
    assert mixed.server_live()


# ---- Retries, deadlines ----


def test_failures_in_a_row_use_the_budget_up(connect: Any, server: Any) -> None:
    client = connect(server.address, retries=1, retry_budget=5)
    server.fail = [(UNAVAILABLE, "overloaded", "1")] * 100
    for _ in range(10):
        with pytest.raises(errors.UnavailableError, match="overloaded"):
            client.server_live()
    # Of ten tokens each failure takes one; at five no failed call is made again.
    assert len(server.calls) == 10 + 2
    server.fail = []
    for _ in range(80):  # each success gives a tenth of a token
        client.server_live()
    server.calls.clear()
    server.fail = [(UNAVAILABLE, "overloaded", "1")]
    assert client.server_live()
    assert len(server.calls) == 2


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "INTERNAL", "ABORTED", "DEADLINE_EXCEEDED"])
def test_only_unavailable_is_retried(client: Any, server: Any, code: str) -> None:
    server.fail = [(grpc.StatusCode[code], "no", None)] * 2
    with pytest.raises(errors.ConvserveClientError, match="no"):
        client.server_live()
    assert len(server.calls) == 1


def test_the_server_is_told_the_deadline(connect: Any, server: Any) -> None:
    client = connect(server.address, timeout=7)
    client.predict(server.images(9), model="toy")
    assert len(server.deadlines) == 5  # two about the model, three parts
    assert all(0 < left < 8.1 for left in server.deadlines)
    client.server_live(timeout=100)
    assert 50 < server.deadlines[-1] < 101.1  # gRPC rounds up to whole seconds
    patient = connect(server.address, timeout=None)
    patient.server_live()
    assert server.deadlines[-1] is None or server.deadlines[-1] > 1e6


@pytest.mark.parametrize("kind", [np.float32, np.int64, Fraction])
def test_times_of_other_kinds_of_numbers(connect: Any, server: Any, kind: Any) -> None:
    options = {"timeout": kind(8), "connect_timeout": kind(7), "keepalive": kind(60)}
    client = connect(server.address, **options)
    client.predict(server.images(1), queue_timeout=kind(2))
    assert server.requests[-1].parameters["timeout"].int64_param == 2_000_000
    client.server_live(timeout=kind(9))
    assert all(4 < left < 9.1 for left in server.deadlines)
    # float32 can't tell the seconds of a machine that has run for years
    with Client(server.address, **options) as plain:
        assert type(plain._limit(None)) is type(plain._limit(kind(9))) is float


def test_grpc_does_not_hedge(server: Any) -> None:
    """Why the client does it by itself: grpcio takes the policy, and ignores it."""
    config = (
        '{"methodConfig": [{"name": [{}], "hedgingPolicy": {"maxAttempts": 3, "hedgingDelay":'
        ' "0.01s", "nonFatalStatusCodes": ["UNAVAILABLE"]}}]}'
    )
    server.delay = lambda request: 0.2
    with Client(server.address) as plain:
        plain._channel.close()
        options = [*plain._options.channel_arguments(), ("grpc.service_config", config)]
        options.append(("grpc.experimental.enable_hedging", 1))
        plain._channel = grpc.insecure_channel(server.address, options=options)
        plain._calls = plain._stubs(plain._channel)
        plain.predict(server.images(1), model="toy")
    assert server.calls.count("ModelInfer") == 1


# ---- The connection ----


def test_a_silent_connection_is_given_up(connect: Any, wire: Any) -> None:
    client = connect(wire.address, retries=0, keepalive=1, timeout=60)
    assert client.server_live()
    wire.silent.set()
    with pytest.raises(errors.UnavailableError):  # and not that the call took too long
        client.server_live()


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_compression(connect: Any, server: Any, wire: Any, compression: str | None) -> None:
    server.models["toy"] = server.Model(shape=(1, 256, 256))
    client = connect(wire.address, compression=compression)
    x = np.zeros((1, 1, 256, 256), np.float32)
    np.testing.assert_array_equal(client.predict(x), server.scores_of(x))
    assert (wire.sent < 20_000) == (compression is not None)


# ---- Who may ----


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate_files.make(tmp_path_factory.mktemp("certificates"))


def secure(folder: Path, mutual: bool) -> grpc.ServerCredentials:
    pair = [((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())]
    ca = (folder / "ca.pem").read_bytes() if mutual else None
    return grpc.ssl_server_credentials(pair, ca, mutual)


def test_tls(connect: Any, make_server: Any, certificates: Path) -> None:
    server = make_server(credentials=secure(certificates, mutual=False))
    ca = certificates / "ca.pem"
    assert connect(server.address, tls=Tls(ca=ca)).server_live()
    named = connect(server.address, tls=Tls(ca=ca, server_name="toy.example"))
    assert named.server_live()
    others = [{}, {"tls": True}, {"tls": Tls(ca=ca, server_name="other.example")}]
    for options in others:
        with pytest.raises(errors.UnavailableError):
            connect(server.address, retries=0, **options).server_live()


def test_tls_to_several(connect: Any, make_server: Any, certificates: Path) -> None:
    servers = [make_server(credentials=secure(certificates, mutual=False)) for _ in range(2)]
    tls = Tls(ca=certificates / "ca.pem", server_name="toy.example")
    client = connect([server.address for server in servers], tls=tls, token="secret")
    wait_until(lambda: client.server_live() and all(server.calls for server in servers))
    assert {m["authorization"] for s in servers for m in s.metadata} == {"Bearer secret"}


def test_mutual_tls(connect: Any, make_server: Any, certificates: Path) -> None:
    server = make_server(credentials=secure(certificates, mutual=True))
    ca = certificates / "ca.pem"
    own = {"certificate": certificates / "client.pem", "key": certificates / "client.key"}
    assert connect(server.address, tls=Tls(ca=ca, **own)).server_live()
    with pytest.raises(errors.UnavailableError):
        connect(server.address, retries=0, tls=Tls(ca=ca)).server_live()


def test_a_token_goes_with_each_call_and_can_change(connect: Any, server: Any) -> None:
    tokens = ["one"]
    client = connect(server.address, token=lambda: tokens[-1])
    client.predict(server.images(9))
    assert {m["authorization"] for m in server.metadata} == {"Bearer one"}
    tokens.append("two")
    client.server_live()
    assert server.metadata[-1]["authorization"] == "Bearer two"
    list(client.predict_many(server.images(3)))
    assert server.metadata[-1]["authorization"] == "Bearer two"


@pytest.mark.parametrize("hedge_after", [None, 60.0])
def test_the_error_of_a_token_function_is_its_own(
    connect: Any, server: Any, hedge_after: float | None
) -> None:
    tokens = ["one"]
    client = connect(server.address, token=lambda: tokens.pop(), hedge_after=hedge_after)
    with pytest.raises(IndexError):
        client.predict(server.images(1))
    tokens += ["not a token"] * 2
    with pytest.raises(ValueError, match="token must be printable ASCII without spaces"):
        client.server_live()

    def expired() -> str:
        raise ValueError("expired")

    client = connect(server.address, token=expired, hedge_after=hedge_after)
    calls = len(server.calls)
    for call in (client.server_live, lambda: client.predict(server.images(1))):
        with pytest.raises(ValueError, match="expired"):
            call()
    client = connect(server.address, token=lambda: tokens[0], hedge_after=hedge_after)
    tokens[:] = ["one"]
    client.predict(server.images(1))
    tokens[:] = [""]
    for call in (client.predict, lambda x: list(client.predict_many(x))):
        with pytest.raises(ValueError, match="token must be"):
            call(server.images(9))
    assert "ModelInfer" in server.calls[calls:]


# ---- What there is on the server ----


def test_control_and_statistics(client: Any, server: Any) -> None:
    assert client.server_metadata().name == "toy"
    client.load_model("other")
    assert [entry.name for entry in client.repository_index()] == ["toy", "other"]
    assert [entry.state for entry in client.repository_index(ready=True)] == ["READY"] * 2
    assert [s.name for s in client.model_statistics()] == ["toy", "other"]
    (statistics,) = client.model_statistics("other")
    assert (statistics.name, statistics.inference_count) == ("other", 3)
    client.unload_model("other")
    assert not client.model_ready("other")
    for call in (client.unload_model, client.model_statistics):
        with pytest.raises(errors.NotFoundError):
            call("other")
    server.missing = {"RepositoryModelLoad"}
    with pytest.raises(errors.UnimplementedError):
        client.load_model("other")


def test_a_model_is_forgotten_while_other_threads_learn() -> None:
    flows = Flows("here", 1 << 20, None)

    class Meanwhile(str):
        """A name at whose comparison another thread has its turn."""

        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            flows.forget("toy")
            for known in (flows._models, flows._labels):
                known["other", str(len(known))] = cast(Any, None)
            return str(self) == other

    for known in (flows._models, flows._labels):
        known.update({("toy", "1"): cast(Any, None), ("toy", "2"): cast(Any, None)})
    flows.forget(Meanwhile("toy"))
    assert {name for name, _ in (*flows._models, *flows._labels)} == {"other"}
