"""Every public method of `tritonclient.grpc`, sync and asyncio, against our server.

Left out: CUDA shared memory and tracing, which the server has not (a test says that they answer
UNIMPLEMENTED), and plugins, which never reach a server.
"""

from __future__ import annotations

import asyncio
import json
import queue
from contextlib import contextmanager
from multiprocessing import shared_memory

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from server_process import Stub
from tiny_models import image, save_tiny
from tritonclient.utils import InferenceServerException

from convserve.engine.repository import ModelRepository
from convserve.serving.server import Options, Server
from convserve_client import protocol

WAIT = 120.0
METHODS = {
    "infer", "async_infer", "start_stream", "async_stream_infer", "stop_stream", "close",
    "is_server_live", "is_server_ready", "is_model_ready", "get_server_metadata",
    "get_model_metadata", "get_model_config", "get_inference_statistics",
    "get_model_repository_index", "load_model", "unload_model", "get_log_settings",
    "update_log_settings", "get_system_shared_memory_status", "register_system_shared_memory",
    "unregister_system_shared_memory",
}  # fmt: skip
NOT_OURS = {
    "get_cuda_shared_memory_status", "register_cuda_shared_memory",
    "unregister_cuda_shared_memory", "get_trace_settings", "update_trace_settings",
    "plugin", "register_plugin", "unregister_plugin",
}  # fmt: skip


@pytest.fixture
def root(tmp_path):
    save_tiny(tmp_path / "models" / "m" / "1" / "model.npz", 1)
    save_tiny(tmp_path / "models" / "m" / "3" / "model.npz", 3)
    return tmp_path / "models"


@pytest.fixture
def server(root):
    repository = ModelRepository.open(root, names=["m"])
    options = Options(port=0, metrics_port=0, explicit_control=True, shared_memory=True)
    server = Server(repository, options)
    yield server
    assert server.stop(WAIT)


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def given(x=None, name="input"):
    x = image() if x is None else x
    tensor = triton.InferInput(name, list(x.shape), "FP32")
    return tensor.set_data_from_numpy(x)


def value(result):
    return float(result.as_numpy("output")[0, 0])


@contextmanager
def region(size):
    """A POSIX shared memory object, gone afterwards."""
    memory = shared_memory.SharedMemory(create=True, size=size)
    try:
        yield memory
    finally:
        memory.close()
        memory.unlink()


def test_the_list_of_methods_is_complete():
    for client in (triton.InferenceServerClient, triton_aio.InferenceServerClient):
        public = {name for name in vars(client) if not name.startswith("_")}
        assert public <= METHODS | NOT_OURS | {"stream_infer"}, public


def test_health_and_metadata(client):
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("m") and client.is_model_ready("m", "3")
    assert not client.is_model_ready("m", "1")
    assert "system_shared_memory" in client.get_server_metadata().extensions
    assert client.get_model_metadata("m").versions == ["3"]
    assert client.get_model_config("m").config.version_policy.latest.num_versions == 1


def test_infer_async_infer_and_classification(client):
    assert value(client.infer("m", [given()], client_timeout=WAIT)) == 3
    answers = queue.Queue()
    client.async_infer("m", [given()], lambda result, error: answers.put((result, error)))
    result, error = answers.get(timeout=WAIT)
    assert error is None and value(result) == 3
    wanted = [triton.InferRequestedOutput("output", class_count=1)]
    result = client.infer("m", [given()], outputs=wanted, priority=2, timeout=10**6)
    assert result.as_numpy("output").tolist() == [[b"3.000000:0:first"]]


def test_streams_keep_the_order_and_carry_errors(client):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for n in range(40):
        name = "nobody" if n % 10 == 9 else "m"
        client.async_stream_infer(name, [given()], request_id=str(n))
    for n in range(40):
        result, error = answers.get(timeout=WAIT)
        if n % 10 == 9:
            assert "unknown model: 'nobody'" in error.message()
        else:
            assert error is None and result.get_response().id == str(n)
    client.async_stream_infer("m", [given()], enable_empty_final_response=True)
    result, _ = answers.get(timeout=WAIT)
    assert result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()


@pytest.mark.parametrize(
    ("value", "marked", "fault"),
    [(True, True, ""), (False, False, ""), ("yes", False, "expected bool_param, got string_param")],
)
def test_the_final_response_is_marked_where_that_is_wanted(client, value, marked, fault):
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    asked = {"triton_enable_empty_final_response": value}
    client.async_stream_infer("m", [given()], parameters=asked)
    result, error = answers.get(timeout=WAIT)
    client.stop_stream()
    if fault:
        assert fault in error.message()
    else:
        assert ("triton_final_response" in result.get_response().parameters) == marked


def test_statistics(client):
    for size in (1, 2, 2):
        client.infer("m", [given(image(size))])
    with pytest.raises(InferenceServerException):
        client.infer("m", [given(name="x")])
    (stats,) = client.get_inference_statistics("m", "3").model_stats
    assert (stats.name, stats.version, stats.inference_count, stats.execution_count) == (
        "m", "3", 5, 3,
    )  # fmt: skip
    inferences = stats.inference_stats
    assert (inferences.success.count, inferences.fail.count) == (3, 1)
    for part in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert getattr(inferences, part).count == 3
    assert inferences.success.ns >= inferences.compute_infer.ns > 0
    assert [(b.batch_size, b.compute_infer.count) for b in stats.batch_stats] == [(1, 1), (2, 2)]
    assert stats.last_inference > 1_600_000_000_000
    assert len(client.get_inference_statistics().model_stats) == 1
    with pytest.raises(InferenceServerException, match="NOT_FOUND"):
        client.get_inference_statistics("nobody")


def index(client):
    lines = client.get_model_repository_index().models
    return [(line.name, line.version, line.state) for line in lines]


def test_model_control(client, root):
    assert index(client) == [("m", "3", "READY")]
    save_tiny(root / "m" / "4" / "model.npz", 4)
    save_tiny(root / "other" / "7" / "model.npz", 7)
    assert index(client) == [("m", "3", "READY"), ("other", "", "UNAVAILABLE")]
    client.load_model("m")
    client.load_model("other")
    assert value(client.infer("m", [given()])) == 4
    assert value(client.infer("other", [given()])) == 7
    client.unload_model("m")
    assert not client.is_model_ready("m")
    client.unload_model("m")  # changes nothing
    assert index(client) == [("m", "4", "UNAVAILABLE"), ("other", "7", "READY")]
    with pytest.raises(InferenceServerException, match="has no available versions"):
        client.infer("m", [given()])
    client.load_model("m")
    assert value(client.infer("m", [given()])) == 4


def test_a_config_given_to_load(client):
    specific = {"version_policy": {"specific": {"versions": ["1", "3"]}}, "max_batch_size": 2}
    client.load_model("m", config=json.dumps(specific))
    assert [value(client.infer("m", [given()], v)) for v in ("1", "3", "")] == [1, 3, 3]
    with pytest.raises(InferenceServerException, match="batch-size must be <= 2"):
        client.infer("m", [given(image(3))])
    # What ModelConfig answers can be given back as it is.
    config = client.get_model_config("m", as_json=True)["config"]
    client.load_model("m", config=json.dumps(config))
    assert client.get_model_config("m", as_json=True)["config"] == config
    client.load_model("m")  # without one the repository's own is used again
    assert not client.is_model_ready("m", "1")


def test_the_policy_of_a_level_comes_back_as_it_was(client, root):
    """JSON leaves out what is zero: REJECT, no timeout, no override."""
    path = root / "m" / "config.toml"
    path.write_text("""
        [dynamic_batching]
        priority_levels = 2
        default_priority_level = 1
        [dynamic_batching.default_queue_policy]
        timeout_action = "DELAY"
        default_timeout_microseconds = 5
        allow_timeout_override = true
        max_queue_size = 9
        [dynamic_batching.priority_queue_policy.2]
        timeout_action = "REJECT"
        default_timeout_microseconds = 0
        allow_timeout_override = false
        """)
    try:
        client.load_model("m")
        config = client.get_model_config("m", as_json=True)["config"]
        assert config["dynamic_batching"]["priority_queue_policy"] == {"2": {"max_queue_size": 9}}
        client.load_model("m", config=json.dumps(config))
        assert client.get_model_config("m", as_json=True)["config"] == config
    finally:
        path.unlink()
        client.load_model("m")


def test_files_given_to_load(client, tmp_path):
    data = save_tiny(tmp_path / "sent.npz", 50).read_bytes()
    client.load_model("m", config="{}", files={"file:5/model.npz": data})
    assert value(client.infer("m", [given()], "5")) == 50
    with pytest.raises(InferenceServerException, match=r"file:6/model\.npz: "):
        client.load_model("m", config="{}", files={"file:6/model.npz": data[:-9]})
    with pytest.raises(InferenceServerException, match="'config' must be given"):
        client.load_model("m", files={"file:5/model.npz": data})
    with pytest.raises(InferenceServerException, match="unrecognized load parameter"):
        client.load_model("m", config="{}", files={"file:../x/model.npz": data})
    assert value(client.infer("m", [given()], "5")) == 50


def test_files_of_a_model_that_the_repository_does_not_hold(client, tmp_path):
    data = save_tiny(tmp_path / "sent.npz", 50).read_bytes()
    client.load_model("sent", config="{}", files={"file:2/model.npz": data})
    assert value(client.infer("sent", [given()])) == 50
    client.unload_model("sent")
    assert not client.is_model_ready("sent")
    for files in ({}, {"file:2/model.npz": data[:-9]}):
        config = "{}" if files else None
        with pytest.raises(InferenceServerException, match="failed to load 'sent2'"):
            client.load_model("sent2", config=config, files=files)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "no ModelConfig"),
        ("{", "no ModelConfig"),
        ('{"max_batch": 1}', "no ModelConfig"),
        ('{"name": "other"}', "is of model 'other'"),
        ('{"backend": "onnxruntime"}', "backend must be 'convserve'"),
        ('{"max_batch_size": -1}', "max_batch_size must be 1 to"),
        ('{"instance_group": [{"kind": "KIND_GPU"}]}', "KIND_CPU"),
        ('{"version_policy": {"specific": {"versions": [9]}}}', "version 9, which is missing"),
        ('{"dynamic_batching": {"preserve_ordering": true}}', "preserve_ordering"),
        ('{"default_model_filename": "model.onnx"}', "default_model_filename must be 'model.npz'"),
        ('{"metric_tags": {"team": "vision"}}', "metric_tags does not exist here"),
        ('{"instance_group": [{"gpus": [0]}]}', "instance_group.gpus does not exist here"),
        ('{"dynamic_batching": {"priority_levels": 2}}', "default_priority_level must be 1 to 2"),
        ("[" * 5000, "no ModelConfig"),
    ],
)
def test_a_wrong_config_changes_nothing(client, config, message):
    with pytest.raises(InferenceServerException, match=message):
        client.load_model("m", config=config)
    assert index(client) == [("m", "3", "READY")]
    assert value(client.infer("m", [given()])) == 3


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"max_batch_size": 0}, "max_batch_size"),
        ({"maxBatchSize": 0}, "max_batch_size"),
        ({"max_batch_size": -1}, "max_batch_size"),
        ({"version_policy": {"latest": {"num_versions": 0}}}, "latest.num_versions"),
        ({"instance_group": [{"count": 0}]}, r"instance_group\.count"),
        ({"model_warmup": [{"batch_size": 0}]}, r"model_warmup\[0\]\.batch_size"),
        (
            {"dynamic_batching": {"default_queue_policy": {"max_queue_size": 0}}},
            r"default_queue_policy\.max_queue_size",
        ),
        (
            {
                "dynamic_batching": {
                    "priority_levels": 2,
                    "defaultPriorityLevel": 1,
                    "priority_queue_policy": {"2": {"maxQueueSize": "0"}},
                }
            },
            r"priority_queue_policy\.2\.max_queue_size",
        ),
    ],
)
def test_a_given_zero_is_checked_like_any_other_value(client, config, key):
    """Protobuf does not tell a zero from a field that was left out; JSON does."""
    message = rf"\[StatusCode\.INVALID_ARGUMENT\] .*{key} must be 1 to "
    with pytest.raises(InferenceServerException, match=message):
        client.load_model("m", config=json.dumps(config))
    assert index(client) == [("m", "3", "READY")]


def test_zeros_and_nulls_that_mean_something(client):
    policy = {"timeout_action": "DELAY", "default_timeout_microseconds": "0", "max_queue_size": 7}
    batching = {"max_queue_delay_microseconds": "0", "default_queue_policy": policy}
    config = {"max_batch_size": None, "instance_group": [], "dynamic_batching": batching}
    client.load_model("m", config=json.dumps(config))
    found = client.get_model_config("m", as_json=True)["config"]
    assert found["max_batch_size"] == 64
    assert found["dynamic_batching"]["default_queue_policy"]["max_queue_size"] == 7
    assert found["dynamic_batching"]["default_queue_policy"]["timeout_action"] == "DELAY"


def test_unload_dependents(client, server):
    """There are none, so it is taken as it is; anything else is not."""
    client.unload_model("m", unload_dependents=True)
    assert not client.is_model_ready("m")
    client.load_model("m")
    request = protocol.RepositoryModelUnloadRequest(model_name="m")
    request.parameters["unload_dependents"].string_param = "true"
    refused = pytest.raises(grpc.RpcError, match="unrecognized unload parameter")
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel, refused:
        Stub(channel).RepositoryModelUnload(request, timeout=WAIT)
    assert client.is_model_ready("m")


def test_log_settings(client):
    settings = client.get_log_settings(as_json=True)["settings"]
    assert settings["log_info"] == {"bool_param": True}
    assert settings["log_verbose_level"] == {"uint32_param": 0}
    changed = client.update_log_settings({"log_info": False, "log_verbose_level": 1}, as_json=True)
    assert changed["settings"]["log_info"] == {"bool_param": False}
    for wrong in (
        {"log_noise": True},
        {"log_verbose_level": 11},
        {"log_file": "x"},
        {"log_format": "x"},
    ):
        with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT"):
            client.update_log_settings(wrong)
    assert client.get_log_settings(as_json=True) == changed


def test_shared_memory_in_and_out(client):
    x = image(2)
    with region(4096) as memory:
        memory.buf[100 : 100 + x.nbytes] = x.tobytes()
        client.register_system_shared_memory("r", memory.name, 4000, offset=96)
        status = client.get_system_shared_memory_status(as_json=True)["regions"]["r"]
        assert (status["key"], status["byte_size"]) == (memory.name, "4000")
        tensor = triton.InferInput("input", [2, 1, 2, 2], "FP32")
        tensor.set_shared_memory("r", x.nbytes, offset=4)
        output = triton.InferRequestedOutput("output")
        output.set_shared_memory("r", 16, offset=1024)
        result = client.infer("m", [tensor], outputs=[output])
        assert result.get_output("output").parameters["shared_memory_region"].string_param == "r"
        start = 96 + 1024
        answer = np.frombuffer(bytes(memory.buf[start : start + 16]), np.float32)
        assert answer.tolist() == [3, 0, 3, 0]
        client.unregister_system_shared_memory("r")
        assert not client.get_system_shared_memory_status().regions
        with pytest.raises(InferenceServerException, match="Unable to find shared memory region"):
            client.infer("m", [tensor])


def test_what_is_not_there(client):
    for call in (
        client.get_cuda_shared_memory_status,
        client.unregister_cuda_shared_memory,
        client.get_trace_settings,
    ):
        with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
            call()


def test_aio(server, root):
    save_tiny(root / "m" / "4" / "model.npz", 4)

    async def main():
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            assert await client.is_server_live() and await client.is_server_ready()
            assert (await client.get_server_metadata()).name == "convserve"
            assert value(await client.infer("m", [given()])) == 3
            await client.load_model("m")
            assert await client.is_model_ready("m", "4")
            assert (await client.get_model_metadata("m")).versions == ["4"]
            assert (await client.get_model_config("m")).config.name == "m"
            assert value(await client.infer("m", [given()])) == 4
            stats = (await client.get_inference_statistics("m")).model_stats
            assert [s.inference_count for s in stats] == [1]
            lines = (await client.get_model_repository_index()).models
            assert [(line.version, line.state) for line in lines] == [("4", "READY")]
            settings = await client.update_log_settings({"log_warning": False})
            assert settings == await client.get_log_settings()
            with region(64) as memory:
                await client.register_system_shared_memory("r", memory.name, 64)
                assert "r" in (await client.get_system_shared_memory_status()).regions
                await client.unregister_system_shared_memory("r")

            async def requests():
                for n in range(20):
                    name = "nobody" if n == 7 else "m"
                    yield {"model_name": name, "inputs": [given()], "request_id": str(n)}

            n = 0
            async for result, error in client.stream_infer(requests()):
                if n == 7:
                    assert "'nobody'" in error.message()
                else:
                    assert error is None and result.get_response().id == str(n)
                n += 1
            assert n == 20
            await client.unload_model("m")
            assert not await client.is_model_ready("m")

    asyncio.run(main())


def test_where_control_and_memory_are_switched_off(root):
    server = Server(ModelRepository.open(root), Options(port=0, metrics_port=0))
    try:
        with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
            for call in (client.load_model, client.unload_model):
                with pytest.raises(InferenceServerException, match=r"UNAVAILABLE.*not allowed"):
                    call("m")
            for call in (
                client.get_system_shared_memory_status,
                client.unregister_system_shared_memory,
                lambda: client.register_system_shared_memory("r", "k", 1),
            ):
                with pytest.raises(InferenceServerException, match="PERMISSION_DENIED"):
                    call()
            assert "system_shared_memory" not in client.get_server_metadata().extensions
    finally:
        assert server.stop(WAIT)
