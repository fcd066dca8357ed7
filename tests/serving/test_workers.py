"""`serve --workers N`: several processes that behave as one server."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import grpc
import pytest
from server_process import WAIT, ServerProcess, Stub, make_request, open_files
from tiny_models import save_tiny
from worker_crowd import Crowd, index, value, wait_until

from convserve.serving.workers.process import ENDINGS
from convserve_client import protocol


@pytest.fixture(scope="module")
def root(tmp_path_factory, digits_path):
    root = tmp_path_factory.mktemp("workers")
    (root / "digits" / "1").mkdir(parents=True)
    (root / "digits" / "1" / "model.npz").write_bytes(digits_path.read_bytes())
    save_tiny(root / "m" / "1" / "model.npz", 1)
    save_tiny(root / "other" / "1" / "model.npz", 5)
    return root


@pytest.fixture(scope="module")
def crowd(root, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "log"
    options = ("--model-control-mode", "explicit", "--load-model", "*", "--system-shared-memory")
    server = ServerProcess("--model-repository", root, *options, "--workers", 2, log=log)
    crowd = Crowd(server, 2)
    yield crowd
    crowd.close()
    server.close()
    assert "Traceback" not in server.log, server.log


def load(stub, name, **parameters):
    message = protocol.RepositoryModelLoadRequest(model_name=name)
    for key, text in parameters.items():
        message.parameters[key].string_param = text
    stub.RepositoryModelLoad(message, timeout=WAIT)


def unload(stub, name):
    message = protocol.RepositoryModelUnloadRequest(model_name=name)
    stub.RepositoryModelUnload(message, timeout=WAIT)


def test_lines_of_the_logs_name_the_worker(start_server, digits_path, tmp_path):
    path = tmp_path / "access.log"
    server = start_server(
        digits_path, "--workers", 2, "--access-log", path, "--access-log-format", "json"
    )
    stubs = [Stub(server.connect()) for _ in range(40)]  # by chance all of 16 reach one worker
    for stub in stubs:
        stub.ServerLive(protocol.ServerLiveRequest(), timeout=WAIT)
        stub.channel.close()
    server.signal()
    assert server.wait() == 0
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    seen = {(line["worker"], line["pid"]) for line in lines}
    assert {worker for worker, _ in seen} == {1, 2}
    assert len(seen) == 2
    for worker, pid in seen:
        assert f" INFO worker={worker} pid={pid} convserve." in server.log


def test_the_ready_line_is_one_and_names_the_models(crowd):
    assert crowd.server.model == "digits,m,other"
    assert len(crowd.workers()) == 2
    loaded = Path(f"/proc/{crowd.server.process.pid}/maps").read_text()
    assert "cygrpc" not in loaded and "numpy" not in loaded  # the supervisor stays light


def test_a_load_and_an_unload_are_seen_on_every_connection(crowd, root):
    stubs = crowd.reach_all()
    save_tiny(root / "m" / "2" / "model.npz", 2)
    for turn, stub in enumerate(stubs[-2:]):  # it does not matter who is asked
        load(stub, "m")
        assert {value(other) for other in stubs} == {(2, 2.0)}
        unload(stub, "other")
        for other in stubs:
            with pytest.raises(grpc.RpcError) as caught:
                value(other, "other")
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        assert len({tuple(index(other)) for other in stubs}) == 1
        load(stubs[turn], "other")
        assert {value(other, "other") for other in stubs} == {(1, 5.0)}


def test_a_load_that_fails_changes_nothing_anywhere(crowd, root):
    stubs = crowd.reach_all()
    before = [value(stub) for stub in stubs]
    broken = root / "m" / "3" / "model.npz"
    broken.parent.mkdir()
    broken.write_bytes((root / "m" / "1" / "model.npz").read_bytes()[:-30])
    with pytest.raises(grpc.RpcError) as caught:
        load(stubs[-1], "m")
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "failed to load 'm'" in caught.value.details()
    assert [value(stub) for stub in stubs] == before
    (lines,) = {tuple(index(stub)) for stub in stubs}
    assert [line[1:3] for line in lines if line[0] == "m"][-1] == ("3", "UNAVAILABLE")
    broken.unlink()
    broken.parent.rmdir()


def test_counters_are_sums_and_survive_a_worker(crowd, images):
    stubs = crowd.reach_all(each=2)
    sample = 'nv_inference_count{model="digits",version="1"}'
    before = crowd.server.metric(sample)
    for stub in stubs:
        stub.ModelInfer(make_request(images[:3]), timeout=WAIT)
    expected = before + 3 * len(stubs)
    # Of a worker that does not answer within a second, what it reported before counts.
    wait_until(lambda: crowd.server.metric(sample) == expected)
    asked = protocol.ModelStatisticsRequest(name="digits")

    def counted(stub):
        (statistics,) = stub.ModelStatistics(asked, timeout=WAIT).model_stats
        computed = sum(batch.batch_size * batch.compute_infer.count
                       for batch in statistics.batch_stats)  # fmt: skip
        return statistics.inference_count, computed

    for stub in stubs:
        wait_until(lambda: counted(stub) == (expected, expected))  # noqa: B023
    killed = 'convserve_worker_restarts_total{reason="signal SIGKILL"}'
    assert f"{killed} 0.0" in crowd.server.page()  # else an alert misses the first one
    crowd.kill(crowd.pids[0])
    assert crowd.server.metric(sample) == expected
    page = crowd.server.page()
    assert f"{killed} 1.0" in page
    assert page.count("\nconvserve_worker_restarts_total{") == len(ENDINGS)
    assert page.count("\nprocess_resident_memory_bytes ") == 1
    assert crowd.server.page("/readyz") == "ready\n"


def test_what_a_worker_that_comes_later_holds(crowd, root, tmp_path):
    """Models as they were loaded, whatever lies on disk by now; log; shared memory."""
    (stub, *_) = crowd.reach_all()
    load(stub, "m", config=json.dumps({"max_batch_size": 3}))
    unload(stub, "other")
    save_tiny(root / "m" / "9" / "model.npz", 9)  # nobody has loaded it
    settings = protocol.LogSettingsRequest()
    settings.settings["log_verbose_level"].uint32_param = 1
    stub.LogSettings(settings, timeout=WAIT)
    path = Path(f"/dev/shm/convserve-test-{os.getpid()}")
    path.write_bytes(b"\0" * 64)
    region = protocol.SystemSharedMemoryRegisterRequest(
        name="region", key=path.name, offset=16, byte_size=48
    )
    stub.SystemSharedMemoryRegister(region, timeout=WAIT)
    path.unlink()

    def state(stub):
        status = protocol.SystemSharedMemoryStatusRequest()
        config = stub.ModelConfig(protocol.ModelConfigRequest(name="m"), timeout=WAIT).config
        return (
            config.max_batch_size,
            value(stub),
            tuple(line for line in index(stub) if line[0] != "m"),
            str(stub.LogSettings(protocol.LogSettingsRequest(), timeout=WAIT)),
            str(stub.SystemSharedMemoryStatus(status, timeout=WAIT)),
        )

    (before,) = {state(stub) for stub in crowd.reach_all()}
    assert before[:2] == (3, (2, 2.0)) and "region" in before[4]
    for pid in crowd.workers():
        crowd.kill(pid)
        assert {state(stub) for stub in crowd.reach_all()} == {before}
    load(crowd.reach_all()[0], "m")
    assert {value(stub) for stub in crowd.reach_all()} == {(9, 9.0)}


def memory(pid):
    """Inode -> (bytes mapped, resident, this process's share) of its segments."""
    found = {}
    for entry in re.split(r"\n(?=[0-9a-f]+-)", Path(f"/proc/{pid}/smaps").read_text()):
        if "/memfd:convserve-model" in entry.partition("\n")[0]:
            sizes = {k: int(n) * 1024 for k, n in re.findall(r"(\w+): +(\d+) kB", entry)}
            found[entry.split()[4]] = sizes["Size"], sizes["Rss"], sizes["Pss"]
    return found


def test_weights_are_in_memory_once(crowd):
    stubs = crowd.reach_all()
    pids = crowd.workers()
    first, second = map(memory, pids)
    assert first.keys() == second.keys() and len(first) >= 2
    for inode, (size, resident, share) in first.items():
        assert resident > 0.5 * size
        assert share + second[inode][2] <= 1.01 * size
    files = open_files(crowd.server.process.pid)
    for _ in range(3):
        load(stubs[0], "m", config=json.dumps({"max_batch_size": 4}))
        load(stubs[0], "m", config=json.dumps({"max_batch_size": 5}))
    wait_until(lambda: all(len(memory(pid)) == len(first) for pid in pids))
    wait_until(lambda: open_files(crowd.server.process.pid) <= files + 1)
