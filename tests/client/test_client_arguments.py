"""Wrong arguments are refused at once, by name, and without a call."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import grpc
import numpy as np
import pytest

from convserve_client import AsyncClient, Client, Tls

X = np.zeros((1, 1, 2, 2), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: c.predict(X, model=5), TypeError, "model must be a string.*got int 5"),
        (lambda c: c.predict(X, model=["a"]), TypeError, "model must be a string"),
        (lambda c: c.predict(X, version=1), TypeError, "version must be a string such as '1'"),
        (lambda c: c.predict(X, model="\ud800"), ValueError, "model is not valid Unicode"),
        (lambda c: c.predict(X, outputs=[3]), TypeError, "each of outputs must be a string"),
        (lambda c: c.predict(X, timeout="1"), TypeError, "timeout must be a number of seconds"),
        (lambda c: c.predict(X, timeout=-1), ValueError, "timeout must be above 0 s"),
        (lambda c: c.predict(X, timeout=1e10), ValueError, "timeout must be at most 1,000,000,000"),
        (lambda c: c.predict(X, timeout=10**400), ValueError, "timeout must be at most"),
        (lambda c: c.predict(X, outputs=iter([3])), TypeError, "each of outputs must be a string"),
        (lambda c: c.predict(X, outputs=iter([])), ValueError, "outputs must name at least one"),
        (lambda c: c.predict(X, outputs=3), TypeError, "outputs must be a sequence of names"),
        (lambda c: c.predict([[1.0]]), TypeError, "x must be a numpy.ndarray, got list"),
        (lambda c: c.predict(np.ma.masked_array(X, X == 0)), TypeError, "x must not be a masked"),
        (lambda c: c.classify([np.ma.array(X[0])]), TypeError, r"images\[0\] must not be a masked"),
        (lambda c: c.predict(), TypeError, "missing 1 required positional argument: 'x'"),
        (lambda c: c.classify(X, top_k="5"), TypeError, "top_k must be a whole number, got str"),
        (lambda c: c.classify(X, top_k=True), TypeError, "top_k must be a whole number, got bool"),
        (lambda c: c.classify(None), TypeError, "images must be a list of images"),
        (lambda c: c.classify(np.float32(1)[...]), TypeError, "images must be .* got a number"),
        (lambda c: c.classify([object()]), TypeError, "bytes, a path, a binary file or a numpy"),
        (lambda c: c.predict_many(None), TypeError, "items must be an iterable of arrays"),
        (lambda c: c.predict_many("ab"), TypeError, "items must be an iterable of arrays"),
        (lambda c: c.predict_many([], batch=2.5), TypeError, "batch must be a whole number"),
        (lambda c: c.predict_many([], in_flight=0), ValueError, "in_flight must be at least 1"),
        (lambda c: c.model_ready(3), TypeError, "model must be a string"),
        (lambda c: c.model_metadata("toy", 1), TypeError, "version must be a string"),
        (lambda c: c.wait_ready(1, model=2), TypeError, "model must be a string"),
        (lambda c: c.model_statistics(version="1"), ValueError, "version '1' of which model"),
        (lambda c: c.repository_index(ready="yes"), TypeError, "ready must be True or False"),
        (lambda c: c.load_model(None), TypeError, "model must be a string"),
        (lambda c: c.unload_model(b"toy"), TypeError, "model must be a string"),
    ],
)
def test_of_calls(client: Any, server: Any, call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        result = call(client)
        list(result)  # predict_many of the async client
    assert server.calls == []


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"address": 5}, TypeError, "address must be a string, got int"),
        ({"address": b"localhost:1"}, TypeError, "address must be a string, got bytes"),
        ({"address": "localhost"}, ValueError, "HOST:PORT"),
        ({"address": "http://localhost:1"}, ValueError, "without a scheme"),
        ({"address": "::1:8001"}, ValueError, "HOST:PORT"),
        ({"address": "host:99999"}, ValueError, "HOST:PORT"),
        ({"address": ":8001"}, ValueError, "HOST:PORT"),
        ({"address": []}, ValueError, "at least one server"),
        ({"address": ["a:1", "unix:/x"], "timeout": None}, ValueError, "socket file"),
        ({"timeout": True}, TypeError, "timeout must be a number"),
        ({"connect_timeout": None}, TypeError, "connect_timeout must be a number"),
        ({"connect_timeout": 1e7}, ValueError, "connect_timeout must be at most 2,000,000 s"),
        ({"retries": 5}, ValueError, "retries must be 0 to 4, got 5"),
        ({"retries": 1.0}, TypeError, "retries must be a whole number"),
        ({"retry_budget": 0}, ValueError, "retry_budget must be 1 to 500"),
        ({"max_message_bytes": 10}, ValueError, "max_message_bytes must be 4096 to"),
        ({"metadata": {"a": "b"}}, TypeError, "metadata must be pairs"),
        ({"metadata": [("a", 1)]}, TypeError, "metadata 'a' must be a string, got int"),
        ({"metadata": [("a-bin", "x")]}, TypeError, "metadata 'a-bin' must be bytes"),
        ({"metadata": [("A", "x")]}, ValueError, "lower case"),
        ({"metadata": [("é", "x")]}, ValueError, "a-z, 0-9"),
        ({"metadata": [("", "x")]}, ValueError, "a-z, 0-9"),
        ({"metadata": [("grpc-status", "5")]}, ValueError, "'grpc-status' is gRPC's own"),
        ({"metadata": [("a", "x\n")]}, ValueError, "printable ASCII"),
        ({"tls": "yes"}, TypeError, "tls must be a Tls, True or False"),
        ({"credentials": "yes"}, TypeError, "credentials must be grpc.ChannelCredentials"),
        ({"load_balancing": "random"}, ValueError, "load_balancing must be 'pick_first', 'round"),
        ({"compression": "zip"}, ValueError, "compression must be 'gzip', 'deflate' or None"),
        ({"keepalive": 0.1}, ValueError, "keepalive must be at least 1 s"),
        ({"keepalive": 1e12}, ValueError, "keepalive must be at most 2,000,000 s"),
        ({"shared_memory": 1}, TypeError, "shared_memory must be True or False"),
        ({"hedge_after": 0}, ValueError, "hedge_after must be above 0 s, or None"),
        ({"hedge_after": "1"}, TypeError, "hedge_after must be a number of seconds"),
        ({"hedge_after": 1, "shared_memory": True}, ValueError, "exclude each other"),
        ({"token": 5}, TypeError, "token must be a string"),
        ({"token": "a b"}, ValueError, "token must be printable ASCII without spaces"),
        ({"token": "a", "metadata": [("authorization", "b")]}, ValueError, "not both"),
        ({"token": "a", "address": "10.1.1.1:8001"}, ValueError, "in the clear"),
        ({"address": ["a:1", "b:1"], "tls": True}, ValueError, "server_name"),
        ({"tls": True, "credentials": grpc.ssl_channel_credentials()}, ValueError, "not both"),
    ],
)
def test_of_the_client(options: dict[str, Any], error: Any, message: str) -> None:
    with pytest.raises(error, match=message), Client(**{"address": "localhost:1", **options}) as c:
        assert c


def test_of_tls() -> None:
    with pytest.raises(ValueError, match="key is missing"):
        Tls(certificate="c.pem")
    with pytest.raises(FileNotFoundError, match="none"):
        Client("localhost:1", tls=Tls(ca="none.pem"))


def test_a_token_is_not_shown(server: Any) -> None:
    with Client(server.address, token="secret") as client:
        assert "secret" not in repr(client)
        assert "secret" not in repr(client._options)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_client_is_neither_copied_nor_pickled(kind: Any, make: Any) -> None:
    """A copy would share the connection, and closing it would end the calls of the other."""
    with pytest.raises(TypeError, match=f"a {kind.__name__} can't be copied or pickled.* another"):
        make(kind("localhost:1"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ca": b"-----BEGIN CERTIFICATE-----"}, "Tls ca must be a path, got bytes"),
        ({"certificate": "a", "key": 5}, "Tls key must be a path, got int"),
        ({"server_name": 5}, "Tls server_name must be a string, got int"),
    ],
)
def test_of_the_types_of_tls(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Tls(**options)
