"""Start, ready line, ports, signals, graceful stop."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from post_state import WAIT, PostState, report, wait_until

from convserve.engine.repository import ModelRepository
from convserve.errors import ConvserveError
from convserve.serving.server import Options, Server
from convserve_client import protocol

PROGRAM = (sys.executable, "-c", "from convserve.cli import main; main()")

# Batches of 3 take for ever; the warm-up uses 1 and 8.
SLOW = """
import sys, time
from convserve.engine.model import Model
predict = Model.predict
def slow(self, x, *rest, **keywords):
    if len(x) == 3:
        print("computing", file=sys.stderr, flush=True)
        time.sleep(1000)
    return predict(self, x, *rest, **keywords)
Model.predict = slow
"""


# A model that may have batches of 3 takes for ever to load.
LOADING = """
import sys, time
from convserve.engine.loader import Loader
warm_up = Loader._warm_up
def slow(self, model, config):
    if config.max_batch_size == 3:
        print("loading", file=sys.stderr, flush=True)
        time.sleep(60)
    warm_up(self, model, config)
Loader._warm_up = slow
"""


# What the garbage collector passes over and what it looks through, at the end of each process.
COLLECTED = """
import atexit, gc, os
from pathlib import Path
def count():
    counts = f"{{gc.get_freeze_count()}} {{len(gc.get_objects())}}"
    Path({folder!r}, str(os.getpid())).write_text(counts)
atexit.register(count)
"""


def is_ready(server):
    return server.stub.ServerReady(protocol.ServerReadyRequest(), timeout=WAIT).ready


@pytest.mark.parametrize("workers", [1, 2])
def test_garbage_is_not_looked_for_among_modules(
    start_server, digits_path, tmp_path, monkeypatch, workers
):
    """Else all callers wait for tens of milliseconds, every few thousand requests."""
    counts = tmp_path / "counts"
    counts.mkdir()
    (tmp_path / "sitecustomize.py").write_text(COLLECTED.format(folder=str(counts)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # which workers have, too
    server = start_server(digits_path, "--workers", workers)
    server.signal()
    assert server.wait() == 0
    (counts / str(server.process.pid)).rename(tmp_path / "first")
    serving = [*counts.iterdir()] if workers > 1 else [tmp_path / "first"]
    assert len(serving) == workers
    for path in serving:
        passed_over, looked_through = map(int, path.read_text().split())
        assert passed_over > 5 * looked_through, (passed_over, looked_through)


def test_one_line_says_that_it_is_ready(start_server, digits_path):
    server = start_server(digits_path)
    assert re.fullmatch(
        r"ready grpc=127\.0\.0\.1:\d+ metrics=127\.0\.0\.1:\d+ model=model\n", server.line
    )
    assert is_ready(server)
    assert server.metric("process_resident_memory_bytes") < 80e6
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.process.stdout.read() == ""


def test_several_models_are_all_named(server):
    assert server.model == "digits,plain"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_with_status_0(start_server, digits_path, number):
    server = start_server(digits_path, "--log-level", "warning")
    watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    server.signal(number)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert server.wait() == 0  # an open Watch does not hold it up
    assert server.log == ""


def shared_files(pid):
    """What the process has open or mapped in /dev/shm, where other tests have files as well."""
    files = [line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            files.append(str(file.readlink()))
    return [file for file in files if file.startswith("/dev/shm/")]


def start_on(address, start_server, digits_path):
    """A server that takes a port over, which for a moment may be that of somebody who calls."""
    for tries in range(5):
        try:
            return start_server(digits_path, ports=("--port", address.rpartition(":")[2]))
        except AssertionError as error:
            if "Address already in use" not in str(error) or tries == 4:
                raise


def test_row_17_stop_under_load_answers_all_that_was_accepted(
    start_server, digits_path, infer_request, read_answer, images, digits
):
    server = start_server(digits_path, "--system-shared-memory")
    watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    expected = digits.predict(images)
    data = infer_request(images, model="model")
    outcomes, lock, begun = [], threading.Lock(), threading.Semaphore(0)

    def load():
        with server.connect() as channel:
            infer = channel.unary_unary(
                protocol.path("ModelInfer"),
                protocol.ModelInferRequest.SerializeToString,
                protocol.ModelInferResponse.FromString,
            )
            while True:
                try:
                    answer = read_answer(infer(data, timeout=WAIT))["output"]
                except grpc.RpcError as error:
                    with lock:
                        outcomes.append((error.code(), time.monotonic()))
                    return
                np.testing.assert_array_equal(answer, expected)
                begun.release()

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        assert begun.acquire(timeout=WAIT)
    assert not shared_files(server.process.pid)  # there is nothing that it could leave
    signalled = time.monotonic()
    server.signal()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    for thread in threads:
        thread.join(WAIT)
    assert server.wait() == 0
    report(17, seconds_to_the_end=time.monotonic() - signalled)
    assert [code for code, _ in outcomes] == [grpc.StatusCode.UNAVAILABLE] * 8
    # no socket is left: another process takes the port and answers the same
    again = start_on(server.address, start_server, digits_path)
    assert again.address == server.address
    PostState(again, data, expected).check()


def test_stop_in_order(gated, infer_request, images):
    server = gated(max_batch_size=4, max_queue_delay=30.0)
    health = health_pb2_grpc.HealthStub(server.channel)
    server.model.gate.clear()
    calls = [server.stub.ModelInfer.future(infer_request(images[:4]), timeout=WAIT)]
    assert server.model.entered.acquire(timeout=WAIT)
    calls += [server.stub.ModelInfer.future(infer_request(images[:3]), timeout=WAIT)]
    wait_until(lambda: server.scheduler.pending)
    results = []
    stopping = threading.Thread(target=lambda: results.append(server.stop(WAIT)))
    stopping.start()
    wait_until(lambda: not is_ready(server))
    assert server.stub.ServerLive(protocol.ServerLiveRequest(), timeout=WAIT).live
    ready = protocol.ModelReadyRequest(name="digits")
    assert not server.stub.ModelReady(ready, timeout=WAIT).ready
    for service in ("", "digits"):
        status = health.Check(health_pb2.HealthCheckRequest(service=service)).status
        assert status == health_pb2.HealthCheckResponse.NOT_SERVING
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.ModelInfer(infer_request(images[:1]), timeout=WAIT)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert "stopping" in caught.value.details()
    assert stopping.is_alive()
    server.model.gate.set()
    stopping.join(WAIT)
    assert results == [True]
    assert all(call.result().outputs for call in calls)
    assert server.model.batches == [4, 3]


def test_stop_gives_up_after_its_timeout(gated, infer_request, images):
    server = gated()
    server.model.gate.clear()
    call = server.stub.ModelInfer.future(infer_request(images[:1]), timeout=WAIT)
    assert server.model.entered.acquire(timeout=WAIT)
    assert not server.stop(0.05)
    assert call.exception().code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@pytest.fixture
def stuck(start_server, digits_path, infer_request, images):
    """A process that never ends its one request."""

    def start(*options):
        server = start_server(digits_path, *options, prelude=SLOW)
        request = infer_request(images[:3], model="model")
        server.call = server.stub.ModelInfer.future(request)  # cancelled if nobody kept it
        wait_until(lambda: "computing" in server.log)
        return server

    return start


def test_exit_status_1_after_the_timeout(stuck):
    server = stuck("--exit-timeout", "0.3")
    server.signal()
    assert server.wait() == 1
    assert "Exit timeout expired" in server.log


def test_a_second_signal_ends_it_at_once(stuck):
    server = stuck("--exit-timeout", 10 * WAIT)
    server.signal()
    wait_until(lambda: not is_ready(server))
    server.signal()
    assert server.wait() == 1


def test_a_load_under_way_does_not_hold_up_the_end(start_server, repository):
    server = start_server(
        "--model-repository", repository, "--model-control-mode", "explicit",
        "--load-model", "digits", prelude=LOADING,
    )  # fmt: skip
    load = protocol.RepositoryModelLoadRequest(model_name="digits")
    load.parameters["config"].string_param = '{"max_batch_size": 3}'
    call = server.stub.RepositoryModelLoad.future(load)
    wait_until(lambda: "loading" in server.log)
    began = time.monotonic()
    server.signal()
    assert server.wait() == 0
    assert time.monotonic() - began < 30
    assert call.code() is grpc.StatusCode.UNAVAILABLE


def run(*arguments):
    return subprocess.run(
        [*PROGRAM, "serve", *map(str, arguments)], capture_output=True, text=True, timeout=WAIT
    )


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize("option", ["--port", "--metrics-port"])
def test_a_port_in_use(server, digits_path, option):
    address = server.address if option == "--port" else server.metrics_address
    port = address.rpartition(":")[2]
    other = "--metrics-port" if option == "--port" else "--port"
    result = run(digits_path, option, port, other, 0, "--log-level", "error")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        f"convserve: error: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    )


def test_a_full_disk_for_the_log_stops_nobody(start_server, digits_path, infer_request, images):
    """Every message to the log, and to the access log, fails."""
    full = Path("/dev/full")
    server = start_server(digits_path, "--log-level", "debug", "--access-log", full, log=full)
    bad = infer_request(images[:2], model="model")
    bad.raw_input_contents[0] = b""
    before = PostState(server, infer_request(images[:2], model="model"))
    for _ in range(100):
        with pytest.raises(grpc.RpcError) as caught:
            server.stub.ModelInfer(bad, timeout=WAIT)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    before.check()
    wait_until(lambda: server.metric("convserve_call_records_dropped_total") > 100)
    server.signal()
    assert server.wait() == 0


def test_an_address_of_another_machine(digits_path):
    result = run(digits_path, "--host", "192.0.2.1", "--log-level", "error")
    assert result.returncode == 1
    assert "cannot listen on 192.0.2.1:8001" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "give either MODEL or --model-repository DIR"),
        (["{file}", "--model-repository", "{root}"], 2, "give either"),
        (["{root}"], 2, "use --model-repository"),
        (["--model-repository", "{file}"], 2, "is not a directory"),
        (["{root}/nothing.npz"], 1, "nothing.npz: no such file"),
        (["{file}", "--max-batch-size", "0"], 2, "--max-batch-size"),
        (["{file}", "--port", "65536"], 2, "--port"),
        (["{file}", "--max-message-mb", "0"], 2, "--max-message-mb"),
        (["{file}", "--max-pixels", "178956971"], 2, "--max-pixels"),  # Pillow has a limit, too
        (["{file}", "--host", ""], 2, "--host must not be empty"),
        (
            ["{file}", "--host", "no.such.host.invalid", "--log-level", "error"],
            1,
            "cannot listen on no.such",
        ),
    ],
)
def test_wrong_usage(repository, digits_path, arguments, status, message):
    result = run(*(a.format(file=digits_path, root=repository) for a in arguments))
    assert (result.returncode, result.stdout) == (status, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_damaged_model_ends_the_start(tmp_path):
    path = tmp_path / "broken.npz"
    path.write_bytes(b"PK\3\4")
    result = run(path, "--log-level", "error")
    assert result.returncode == 1
    assert "broken.npz" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_ipv6(start_server, digits_path):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    server = start_server(digits_path, "--host", "::1")
    assert server.address.startswith("[::1]:")
    assert server.stub.ServerLive(protocol.ServerLiveRequest(), timeout=WAIT).live
    assert server.page("/healthz") == "ok\n"


def test_a_server_that_can_not_listen_leaves_nothing_open(gated):
    taken = gated()
    with pytest.raises(ConvserveError, match=f"127.0.0.1:{taken.port}: Address already in use"):
        Server(ModelRepository(), Options(port=taken.port, metrics_port=0))


def test_serving_loads_nothing_heavy(digits_path):
    code = (
        "import sys; import convserve.cli.serve, convserve.serving.server as s;"
        "from convserve.engine.repository import ModelRepository as R;"
        f"s.Server(R.open({str(digits_path)!r}), s.Options(port=0, metrics_port=0)).stop(5);"
        "heavy = {'rich', 'PIL', 'onnx', 'matplotlib', 'pyarrow', 'opentelemetry',"
        " 'convserve.training', 'convserve.datasets', 'convserve_client._client'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT
    )
    assert (result.stdout, result.returncode) == ("[]\n", 0), result.stderr
