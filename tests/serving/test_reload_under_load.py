"""Rows 18 and 19 of the reliability table: versions change and models come and go under load.

CONVSERVE_SWITCHES sets how often versions are switched (`make soak-reload`: 100).
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from tiny_models import image, save_tiny

from convserve.engine.repository import ModelRepository
from convserve.engine.request import Request
from convserve.errors import ModelNotFoundError
from convserve.serving.server import Options, Server
from convserve_client import protocol, tensors

WAIT = 60.0
SWITCHES = int(os.environ.get("CONVSERVE_SWITCHES", "10"))


@pytest.fixture
def root(tmp_path):
    save_tiny(tmp_path / "models" / "m" / "1" / "model.npz", 1)
    return tmp_path / "models"


@pytest.fixture
def server(root):
    repository = ModelRepository.open(root)
    server = Server(repository, Options(port=0, metrics_port=0, explicit_control=True))
    yield server
    assert server.stop(WAIT)


@pytest.fixture
def call(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:

        def make(method, message):
            return channel.unary_unary(
                protocol.path(method),
                type(message).SerializeToString,
                protocol.METHODS[method].response.FromString,
            )(message, timeout=WAIT)

        yield make


def infer_message(count):
    x = image(count)
    message = protocol.ModelInferRequest(model_name="m")
    message.inputs.add(name="input", datatype="FP32", shape=x.shape)
    message.raw_input_contents.append(x.tobytes())
    return message


def load_message(name="m"):
    return protocol.RepositoryModelLoadRequest(model_name=name)


def check_answer(answer, count):
    """All rows are of the version that the answer names; returns that."""
    (rows,) = tensors.read_tensors(answer.outputs, answer.raw_output_contents).values()
    assert rows.shape == (count, 2)
    np.testing.assert_array_equal(rows[:, 0], float(answer.model_version))
    return int(answer.model_version)


def test_no_request_fails_while_versions_switch(call, root):
    stop, seen, switched = threading.Event(), [], threading.Semaphore(0)

    def load(count):
        while not stop.is_set():
            seen.append(check_answer(call("ModelInfer", infer_message(count)), count))
            switched.release()

    with ThreadPoolExecutor(4) as pool:
        callers = [pool.submit(load, count) for count in (1, 2, 3, 8)]
        try:
            for version in range(2, SWITCHES + 2):
                save_tiny(root / "m" / str(version) / "model.npz", version)
                if version % 5 == 0:  # a damaged one in between changes nothing
                    broken = root / "m" / str(version + 1000) / "model.npz"
                    broken.parent.mkdir()
                    broken.write_bytes((root / "m" / "1" / "model.npz").read_bytes()[:-30])
                    with pytest.raises(grpc.RpcError) as caught:
                        call("RepositoryModelLoad", load_message())
                    assert caught.value.code() == grpc.StatusCode.INTERNAL
                    broken.unlink()
                    broken.parent.rmdir()
                call("RepositoryModelLoad", load_message())
                assert check_answer(call("ModelInfer", infer_message(1)), 1) == version
                assert switched.acquire(timeout=WAIT)
        finally:
            stop.set()
        for caller in callers:
            caller.result(WAIT)
    assert len(set(seen)) > SWITCHES // 2


def test_loading_and_unloading_by_many(server, call, root):
    """1,024 of them from 32 threads; bad names too. Live and ready in between, and good after."""
    bad = ["../x", "..", "", " ", "a\0b", "/etc", "a/../b", "-x", "x" * 200]
    allowed = {
        grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND,
    }  # fmt: skip

    def work(seed):
        codes = set()
        for n in range(32):
            name = bad[(seed + n) % len(bad)] if n % 4 == 3 else "m"
            kind = "Load" if (seed + n) % 2 else "Unload"
            message = getattr(protocol, f"RepositoryModel{kind}Request")(model_name=name)
            try:
                call(f"RepositoryModel{kind}", message)
                assert name == "m"
            except grpc.RpcError as error:
                codes.add(error.code())
                assert name != "m" and error.code() == grpc.StatusCode.INVALID_ARGUMENT
            if n % 8 == 0:
                assert call("ServerLive", protocol.ServerLiveRequest()).live
                assert call("ServerReady", protocol.ServerReadyRequest()).ready
                try:
                    check_answer(call("ModelInfer", infer_message(2)), 2)
                except grpc.RpcError as error:
                    codes.add(error.code())
        return codes

    with ThreadPoolExecutor(32) as pool:
        for codes in pool.map(work, range(32)):
            assert codes <= allowed
    call("RepositoryModelLoad", load_message())
    assert check_answer(call("ModelInfer", infer_message(3)), 3) == 1
    names = [thread.name for thread in threading.enumerate()]
    assert sum(name == "compute m" for name in names) == 1  # the others are gone


# Following the directory


@pytest.fixture
def followed(root):
    repository = ModelRepository.open(root)
    yield repository
    assert repository.stop(WAIT)


def test_a_change_is_taken_over_when_it_has_settled(followed, root):
    save_tiny(root / "m" / "2" / "model.npz", 2)
    followed.refresh()
    assert followed.versions("m") == ["1"]  # it may be under way still
    followed.refresh()
    assert followed.versions("m") == ["2"]
    save_tiny(root / "new" / "1" / "model.npz", 7)
    followed.refresh(settled=False)  # SIGHUP does not wait
    assert followed.versions("new") == ["1"]
    (root / "new" / "1" / "model.npz").unlink()
    (root / "new" / "1").rmdir()
    (root / "new").rmdir()
    followed.refresh()
    with pytest.raises(ModelNotFoundError):
        followed.acquire("new")


def test_a_half_copied_file_is_never_served(followed, root):
    data = (root / "m" / "1" / "model.npz").read_bytes()
    path = root / "m" / "2" / "model.npz"
    path.parent.mkdir()
    for size in range(0, len(data), len(data) // 12):
        path.write_bytes(data[:size])
        followed.refresh()
        followed.refresh()  # the copy has stalled for longer than a look takes
        assert followed.versions("m") == ["1"]
    path.write_bytes(data)
    followed.refresh()
    followed.refresh()
    assert followed.versions("m") == ["2"]


def test_a_changed_configuration_is_taken_over_and_a_wrong_one_is_not(followed, root, caplog):
    path = root / "m" / "config.toml"
    path.write_text("max_batch_size = 3\n[version_policy.all]\n")
    save_tiny(root / "m" / "2" / "model.npz", 2)
    followed.refresh(settled=False)
    assert followed.versions("m") == ["1", "2"]
    assert followed.get("m").config.max_batch_size == 3
    path.write_text("max_batchsize = 3\n")
    followed.refresh(settled=False)
    assert "did you mean max_batch_size?" in caplog.text
    assert followed.versions("m") == ["1", "2"]


def test_a_version_in_use_is_not_stopped_before_it_is_released(followed, root):
    held = followed.acquire("m")
    save_tiny(root / "m" / "2" / "model.npz", 2)
    followed.load("m")
    assert [line[1:3] for line in followed.index()] == [("1", "UNLOADING"), ("2", "READY")]
    assert held.scheduler.run(Request(image()))["output"][0, 0] == 1
    followed.release(held)
    assert followed.stop(WAIT)
    assert [line[1:3] for line in followed.index()] == [("2", "READY")]
