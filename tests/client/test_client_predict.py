"""predict and classify, of both clients, against a real server."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import convserve_client
from convserve_client import Client, errors, protocol
from convserve_client._model import labels_of


def rows(server: Any) -> list[int]:
    """Images in each request that the server has had, in the order of arrival."""
    return [request.inputs[0].shape[0] for request in server.requests]


def test_public_names_are_sorted() -> None:
    assert convserve_client.__all__ == sorted(convserve_client.__all__)
    assert errors.__all__ == sorted(errors.__all__)
    assert all(hasattr(convserve_client, name) for name in convserve_client.__all__)


@pytest.mark.parametrize("count", [1, 4, 5, 23])
def test_predict_splits_and_joins_in_order(client: Any, server: Any, count: int) -> None:
    server.delay = lambda request: (
        0.02 * (request.inputs[0].shape[0] == 4)
    )  # the last one overtakes
    x = server.images(count)
    scores = client.predict(x)
    np.testing.assert_array_equal(scores, server.scores_of(x))
    assert scores.dtype == np.float32 and scores.flags.writeable
    assert sorted(rows(server), reverse=True) == [4] * (count // 4) + [count % 4] * (count % 4 > 0)


def test_predict_sends_raw_pixels_and_strided_arrays(client: Any, server: Any) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(6, 1, 2, 2)
    np.testing.assert_array_equal(client.predict(pixels), server.scores_of(pixels))
    assert {request.inputs[0].datatype for request in server.requests} == {"UINT8"}
    x = server.images(12)[::-2].transpose(0, 1, 3, 2)
    np.testing.assert_array_equal(client.predict(x), server.scores_of(x))


def test_several_or_named_outputs_are_a_dict(client: Any, server: Any) -> None:
    x = server.images(6)
    assert list(client.predict(x, outputs=["output"])) == ["output"]
    server.models["two"] = server.Model(outputs=("a", "b"))
    both = client.predict(x, model="two")
    assert list(both) == ["a", "b"]
    np.testing.assert_array_equal(both["b"], server.scores_of(x))
    assert list(client.predict(x, model="two", outputs=["b"])) == ["b"]
    assert list(client.predict(x[:0], model="two", outputs=["b"])) == ["b"]
    server.models["none"] = server.Model(outputs=())
    with pytest.raises(errors.InvalidRequestError, match="no output in its metadata"):
        client.predict(x[:0], model="none")
    with pytest.raises(errors.InvalidRequestError, match="at least one output"):
        client.predict(x, outputs=[])
    with pytest.raises(TypeError, match="sequence of names"):
        client.predict(x, outputs="output")


def test_no_images_are_answered_without_a_call(client: Any, server: Any) -> None:
    scores = client.predict(server.images(0))
    assert scores.shape == (0, 3) and scores.dtype == np.float32
    assert client.classify([]) == [] and client.classify(server.images(0)) == []
    assert "ModelInfer" not in server.calls
    with pytest.raises(errors.InvalidRequestError, match="no output 'conv1'"):
        client.predict(server.images(0), outputs=["conv1"])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 1, 2, 2)), r"got float64; convert with x.astype\(numpy.float32\)"),
        (np.zeros((1, 1, 2, 2), complex), "got complex128"),
        ([[1.0]], "must be a numpy.ndarray, got list"),
    ],
)
def test_wrong_types_say_what_to_do(client: Any, x: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        client.predict(x)


@pytest.mark.parametrize("shape", [(), (1, 2, 2), (1, 1, 2, 3), (1, 1, 1, 2, 2), (4,)])
def test_wrong_shapes_are_refused_before_they_are_sent(
    client: Any, server: Any, shape: tuple[int, ...]
) -> None:
    with pytest.raises(errors.InvalidRequestError, match=r"\[N, 1, 2, 2\], got"):
        client.predict(np.zeros(shape, np.float32))
    assert "ModelInfer" not in server.calls


def test_metadata_is_asked_for_once(client: Any, server: Any) -> None:
    for _ in range(3):
        client.predict(server.images(1))
    assert server.calls.count("ModelMetadata") == server.calls.count("ModelConfig") == 1
    assert server.calls.count("RepositoryIndex") == 1


def test_a_changed_model_is_noticed(client: Any, server: Any) -> None:
    client.predict(server.images(9))
    server.models["toy"] = server.Model(max_batch_size=2)  # the server refuses what it took before
    x = server.images(9)
    np.testing.assert_array_equal(client.predict(x), server.scores_of(x))
    server.models["toy"] = server.Model(shape=(1, 3, 3))  # the client would refuse it
    x = server.images(9, shape=(1, 3, 3))
    np.testing.assert_array_equal(client.predict(x), server.scores_of(x))
    server.models = {"other": server.Model()}  # the server does not know the name
    x = server.images(2)
    np.testing.assert_array_equal(client.predict(x), server.scores_of(x))
    server.models = {"third": server.Model()}
    assert client.model_config().name == client.model_metadata().name == "third"
    server.models = {}
    with pytest.raises(errors.NotFoundError, match="no models"):
        client.predict(x)


def test_one_batch_is_answered_by_one_version(
    client: Any, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = server._infer

    def reloading(model: Any, request: Any, context: Any) -> Any:
        response = right(model, request, context)
        if request.raw_input_contents[0] == x[:4].tobytes() and not request.model_version:
            response.model_version = "0"
        return response

    monkeypatch.setattr(server, "_infer", reloading)
    x = server.images(12)
    np.testing.assert_array_equal(client.predict(x), server.scores_of(x))
    assert [request.model_version for request in server.requests] == [""] * 3 + ["1"] * 3


def test_model_none_means_the_only_one(client: Any, server: Any) -> None:
    server.models["zoo"] = server.Model()
    with pytest.raises(errors.InvalidRequestError, match=r"name one of \['toy', 'zoo'\]"):
        client.predict(server.images(1))
    with pytest.raises(errors.NotFoundError, match="unknown model: 'nope'") as caught:
        client.predict(server.images(1), model="nope")
    assert caught.value.code is grpc.StatusCode.NOT_FOUND
    assert caught.value.details.endswith("is not found")


def test_servers_of_the_base_protocol_work(client: Any, server: Any) -> None:
    server.missing = {"RepositoryIndex", "ModelConfig"}
    x = server.images(3)
    np.testing.assert_array_equal(client.predict(x, model="toy"), server.scores_of(x))
    assert client.classify(x, model="toy", top_k=1)[0][0][0] == "0"
    with pytest.raises(errors.InvalidRequestError, match="name one with model="):
        client.predict(x)
    with pytest.raises(errors.UnimplementedError):
        client.model_config("toy")


def test_a_model_without_batches_takes_one_array(client: Any, server: Any) -> None:
    server.models["one"] = server.Model(shape=(7, 1, 2, 2), max_batch_size=0)
    x = server.images(7)
    np.testing.assert_array_equal(client.predict(x, model="one"), server.scores_of(x))
    with pytest.raises(errors.InvalidRequestError, match="no batch dimension"):
        next(client.predict_many([x], model="one"))


def test_classify_orders_ties_and_nan(client: Any, server: Any) -> None:
    x = np.array([[1, 0, 0, 0], [np.nan, 0, 0, 0], [3, 1, 0, 0]], np.float32).reshape(3, 1, 2, 2)
    first, nan, third = client.classify(x, top_k=5)
    assert first == [("sum", 1.0), ("first", 1.0), ("one", 1.0)]
    assert [label for label, _ in nan] == ["one", "sum", "first"]
    assert third[:2] == [("sum", 4.0), ("first", 3.0)]
    assert client.classify(list(x)[::2], top_k=2) == [first[:2], third[:2]]
    with pytest.raises(errors.InvalidRequestError, match="top_k must be at least 1, got 0"):
        client.classify(x, top_k=0)


def test_classify_sends_files_as_they_are(client: Any, server: Any, tmp_path: Path) -> None:
    contents = [bytes([i]) * (i + 3) for i in range(6)]
    (tmp_path / "a.png").write_bytes(contents[0])
    images = [tmp_path / "a.png", str(tmp_path / "a.png"), io.BytesIO(contents[2]), *contents[3:]]
    contents[1] = contents[0]
    ranked = client.classify(images, top_k=1)
    assert [dict(row)["sum"] for row in ranked] == [len(data) + data[0] for data in contents]
    assert sorted(rows(server)) == [2, 4]
    for request in server.requests:
        assert (request.inputs[0].name, request.inputs[0].datatype) == ("input", "BYTES")


def test_classify_refuses_what_is_no_list_of_images(client: Any, tmp_path: Path) -> None:
    for wrong in (b"data", str(tmp_path / "a.png"), tmp_path, io.BytesIO(b"data")):
        with pytest.raises(TypeError, match="got one image"):
            client.classify(wrong)
    with pytest.raises(TypeError, match="all arrays or all encoded"):
        client.classify([b"data", np.zeros((1, 2, 2), np.float32)])
    with pytest.raises(TypeError, match="binary mode"):
        client.classify([io.StringIO("text")])
    with pytest.raises(errors.InvalidRequestError, match="must be alike"):
        client.classify([np.zeros((1, 2, 2), np.float32), np.zeros((1, 2, 2), np.uint8)])
    with pytest.raises(FileNotFoundError):
        client.classify([tmp_path / "missing.png"])


def test_labels_follow_the_version_that_answered(client: Any, server: Any) -> None:
    x = server.images(1)
    assert client.classify(x, top_k=1)[0][0][0] == "sum"
    server.models["toy"] = server.Model(labels=["SUM", "FIRST", "ONE"], version="2")
    assert client.classify(x, top_k=1)[0][0][0] == "SUM"
    server.models["toy"] = server.Model(labels=["too few"], version="3")
    with pytest.raises(errors.InvalidResponseError, match="1 labels and answers 3 scores"):
        client.classify(x)
    server.models["toy"] = server.Model(labels=None, version="4")
    assert client.classify(x, top_k=1)[0][0][0] == "0"


@pytest.mark.parametrize("text", ["", "[", "{}", "[1]", "NaN", "[" * 100_000])
def test_labels_that_are_none(text: str) -> None:
    config = protocol.ModelConfig(name="toy")
    config.parameters["labels"].string_value = text
    with pytest.raises(errors.InvalidResponseError, match="not a JSON array of strings"):
        labels_of(config)


def test_messages_stay_below_the_limit(connect: Any, server: Any) -> None:
    server.models["toy"] = server.Model(shape=(1, 20, 20), max_batch_size=1000)
    client = connect(server.address, max_message_bytes=8192)
    x = server.images(20, shape=(1, 20, 20))
    np.testing.assert_array_equal(client.predict(x), server.scores_of(x))
    assert max(request.ByteSize() for request in server.requests) <= 8192
    assert max(rows(server)) > 1
    server.requests.clear()
    client.classify([bytes(3000)] * 5)
    assert sorted(rows(server)) == [1, 2, 2]
    with pytest.raises(errors.ResourceExhaustedError, match="9004 bytes does not fit") as caught:
        client.classify([b"x", bytes(9000)])
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    server.models["toy"] = server.Model(shape=(1, 64, 64))
    with pytest.raises(errors.ResourceExhaustedError, match="16384 bytes does not fit"):
        client.predict(server.images(1, shape=(1, 64, 64)))


def test_the_servers_limit_is_reported_and_the_channel_lives(
    connect: Any, make_server: Any
) -> None:
    server = make_server(max_receive=10_000)
    server.models["toy"] = server.Model(shape=(1, 64, 64))
    client = connect(server.address)
    with pytest.raises(errors.ResourceExhaustedError, match="larger than max"):
        client.predict(server.images(1, shape=(1, 64, 64)))
    assert client.server_live()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequestError),
        (grpc.StatusCode.UNAUTHENTICATED, errors.UnauthenticatedError),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDeniedError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.ResourceExhaustedError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceededError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.UnimplementedError),
        (grpc.StatusCode.CANCELLED, errors.RequestCancelledError),
        (grpc.StatusCode.INTERNAL, errors.InternalError),
        (grpc.StatusCode.DATA_LOSS, errors.ConvserveClientError),
    ],
)
def test_every_status_has_its_error(client: Any, server: Any, code: Any, kind: type) -> None:
    server.fail = [(code, "as told", None)]
    with pytest.raises(errors.ConvserveClientError) as caught:
        client.server_live()
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.details) == (code, "as told")
    assert server.calls == ["ServerLive"]  # only UNAVAILABLE is retried


def change(**fields: Any) -> Any:
    def edit(response: Any) -> None:
        for name, value in fields.items():
            if name == "raw":
                response.raw_output_contents[0] = value
            elif name == "shape":
                response.outputs[0].shape[:] = value
            else:
                setattr(response.outputs[0], name, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change(raw=b"123"), "malformed: tensor 'output': expected 24 bytes"),
        (change(shape=[1, 6]), "shape .1, 6. for 2 images"),
        (change(name="other"), "lacks output"),
        (change(datatype="FP31"), "unknown datatype"),
    ],
)
def test_a_wrong_answer_is_never_passed_on(
    client: Any, server: Any, monkeypatch: pytest.MonkeyPatch, edit: Any, message: str
) -> None:
    right = server._infer

    def wrong(*args: Any) -> Any:
        response = right(*args)
        edit(response)
        return response

    monkeypatch.setattr(server, "_infer", wrong)
    with pytest.raises(errors.InvalidResponseError, match=message):
        client.predict(server.images(2))


def test_typed_answers_are_read(client: Any, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = server._infer

    def typed(*args: Any) -> Any:
        response = right(*args)
        scores = np.frombuffer(response.raw_output_contents.pop(), np.float32)
        response.outputs[0].contents.fp32_contents.extend(scores.tolist())
        return response

    monkeypatch.setattr(server, "_infer", typed)
    x = server.images(2)
    np.testing.assert_array_equal(client.predict(x), server.scores_of(x))


def test_questions_about_server_and_model(connect: Any, server: Any) -> None:
    client = connect(server.address, metadata=[("x-key", "value")])
    assert client.server_live() and client.server_ready() and client.model_ready()
    assert not client.model_ready("nope")
    assert client.model_metadata().inputs[0].name == "input"
    assert client.model_config("toy").max_batch_size == 4
    assert isinstance(client.model_config(), protocol.ModelConfig)
    client.predict(server.images(1))
    assert all(call["x-key"] == "value" for call in server.metadata)


def test_one_client_serves_many_threads(server: Any) -> None:
    server.models["toy"] = server.Model(max_batch_size=2)
    batches = [server.images(1 + seed % 5, seed) for seed in range(48)]
    start = threading.Barrier(8)
    with Client(server.address) as client, ThreadPoolExecutor(8, initializer=start.wait) as pool:
        for x, scores in zip(batches, pool.map(client.predict, batches), strict=True):
            np.testing.assert_array_equal(scores, server.scores_of(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": ""}, "HOST:PORT"),
        ({"address": "http://localhost:8001"}, "without a scheme"),
        ({"timeout": 0}, "timeout must be above 0 s"),
        ({"timeout": float("nan")}, "timeout must be above 0 s"),
        ({"connect_timeout": -1}, "connect_timeout"),
        ({"retries": 5}, "retries must be 0 to 4, got 5"),
        ({"max_message_bytes": 2**31}, "max_message_bytes"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Client(**{"address": "localhost:1", **options})
