"""What goes with one call: priority, queue timeout, id, metadata; a model's config and files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convserve_client import errors

OPTIONS: dict[str, Any] = {
    "priority": 1,
    "queue_timeout": 0.25,
    "request_id": "7f30",
    "metadata": [("x-team", "vision"), ("org.team_2", "v")],
}


def infer(client: Any, x: np.ndarray, method: str, **options: Any) -> None:
    if method == "predict_many":
        list(client.predict_many(iter(x), batch=2, model="toy", **options))
    elif method == "classify files":
        client.classify([b"ab"] * len(x), model="toy", **options)
    else:
        getattr(client, method)(x, model="toy", **options)


METHODS = ["predict", "classify", "classify files", "predict_many"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [1, 9])
def test_each_request_of_a_call_has_them(
    connect: Any, server: Any, method: str, count: int
) -> None:
    client = connect(server.address, token="secret", metadata=[("x-app", "toy")])
    infer(client, server.images(count), method, **OPTIONS)
    assert len(server.requests) >= (1 if count == 1 else 3)
    for request in server.requests:
        assert request.id == "7f30"
        assert request.parameters["priority"].int64_param == 1
        assert request.parameters["timeout"].int64_param == 250_000
    sent = [m for m, name in zip(server.metadata, server.calls, strict=True) if "Infer" in name]
    wanted = {
        "x-team": "vision",
        "org.team_2": "v",
        "x-app": "toy",
        "authorization": "Bearer secret",
    }
    assert all(metadata.items() >= wanted.items() for metadata in sent)
    assert "x-team" not in server.metadata[0]  # that of the call that asks about the model


@pytest.mark.parametrize("method", METHODS)
def test_without_them_nothing_is_sent(client: Any, server: Any, method: str) -> None:
    infer(client, server.images(1), method)
    (request,) = server.requests
    assert not request.id and not request.parameters


def test_a_long_id_leaves_the_batch_below_the_limit(connect: Any, make_server: Any) -> None:
    server = make_server(max_receive=8192)
    server.models["toy"] = server.Model(shape=(1, 8, 8), max_batch_size=4096)
    client = connect(server.address, max_message_bytes=8192)
    x = server.images(40, shape=(1, 8, 8))
    answer = client.predict(x, request_id="i" * 4000)
    np.testing.assert_array_equal(answer, server.scores_of(x))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"priority": -1}, ValueError, "priority must be 0 to"),
        ({"priority": "high"}, TypeError, "priority must be a whole number, got str"),
        ({"queue_timeout": 0}, ValueError, "queue_timeout must be at least 1e-06 s, or None"),
        ({"queue_timeout": "1"}, TypeError, "queue_timeout must be a number of seconds"),
        ({"queue_timeout": 1e15}, ValueError, "queue_timeout in microseconds must be 1 to"),
        ({"request_id": 7}, TypeError, "request_id must be a string such as '7f30a1c2', got int"),
        ({"metadata": {"a": "b"}}, TypeError, "metadata must be pairs"),
        ({"metadata": [("A", "b")]}, ValueError, "lower case"),
        ({"metadata": [("authorization", "x")]}, ValueError, "the client has a token"),
    ],
)
def test_wrong_ones_are_refused_before_a_call(
    connect: Any,
    server: Any,
    method: str,
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    client = connect(server.address, token="secret")
    with pytest.raises(error, match=message):
        infer(client, server.images(1), method, **options)
    assert server.calls == []


# ---- Control ----


def test_load_with_a_config_and_files(client: Any, server: Any, tmp_path: Path) -> None:
    (tmp_path / "m.npz").write_bytes(b"from a path")
    files = {
        "5/model.npz": b"bytes",
        "6/model.npz": tmp_path / "m.npz",
        "7/model.npz": io.BytesIO(b"from a file"),
    }
    client.load_model("other", config={"max_batch_size": 8}, files=files)
    (request,) = server.loads
    assert json.loads(request.parameters["config"].string_param) == {"max_batch_size": 8}
    assert {
        name: parameter.bytes_param
        for name, parameter in request.parameters.items()
        if name != "config"
    } == {
        "file:5/model.npz": b"bytes",
        "file:6/model.npz": b"from a path",
        "file:7/model.npz": b"from a file",
    }
    client.load_model("other")
    assert not server.loads[-1].parameters


def test_a_model_that_was_loaded_anew_is_asked_about_anew(client: Any, server: Any) -> None:
    assert client.classify(server.images(1), top_k=1, model="toy")[0][0][0] in ("sum", "first")
    client.load_model("toy", config={})
    server.models["toy"] = server.Model(labels=["a", "b", "c"])
    ((best, _),) = client.classify(server.images(1) * 0, top_k=1, model="toy")[0]
    assert best == "c"


def test_log_settings(client: Any, server: Any) -> None:
    assert client.log_settings() == {}
    wanted = {"log_info": False, "log_verbose_level": 2, "log_format": "ISO8601"}
    assert client.update_log_settings(wanted) == wanted


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: c.load_model("a", config="{}"), TypeError, "config must be a dict"),
        (lambda c: c.load_model("a", config={}, files=[b"x"]), TypeError, "files must be a dict"),
        (lambda c: c.load_model("a", files={"1/x": b""}), ValueError, "files need config="),
        (lambda c: c.load_model("a", config={}, files={"1/x": 5}), TypeError, r"files\['1/x'\]"),
        (lambda c: c.load_model("a", config={}, files={5: b""}), TypeError, "each path of files"),
        (lambda c: c.update_log_settings([]), TypeError, "settings must be a dict"),
        (lambda c: c.update_log_settings({"a": 1.5}), TypeError, "'a' must be a bool, an int"),
        (lambda c: c.update_log_settings({"a": -1}), errors.InvalidRequestError, "0 to 4294967295"),
    ],
)
def test_wrong_control_arguments(
    client: Any, server: Any, call: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(client)
    assert server.calls == []
