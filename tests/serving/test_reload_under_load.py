"""Rows 18 and 19 of the reliability table: versions change and models come and go under load.

CONVSERVE_SWITCHES sets how often versions are switched (`make soak-reload`: 100).
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from post_state import FULL, WAIT, PostState, report, wait_until
from tiny_models import image, save_tiny

from convserve.engine.loader import Override
from convserve.engine.repository import ModelRepository
from convserve.engine.request import Request
from convserve.errors import ModelNotFoundError
from convserve_client import protocol, tensors

SWITCHES = int(os.environ.get("CONVSERVE_SWITCHES", "10"))
LOADS = 1024 if FULL else 32  # of each of 32 threads
RATE = 200  # batched requests a second

# Says on the log which files of the folder "outside" the process opens or lists.
AUDIT = """
import sys
def audit(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and "outside" in str(arguments[0]):
        print("OUTSIDE:", arguments[0], file=sys.stderr, flush=True)
sys.addaudithook(audit)
"""


@pytest.fixture
def root(tmp_path):
    save_tiny(tmp_path / "models" / "m" / "1" / "model.npz", 1)
    return tmp_path / "models"


@pytest.fixture
def server(root, start_server):
    options = ("--model-control-mode", "explicit", "--load-model", "*")
    return start_server("--model-repository", root, *options, prelude=AUDIT)


@pytest.fixture
def call(server):
    def make(method, message):
        return getattr(server.stub, method)(message, timeout=WAIT)

    return make


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


class Load:
    """Four callers with batches; each answer is checked to be wholly of one version."""

    def __init__(self, call, counts=(2, 3, 8, 8)):
        self._call, self._stop = call, threading.Event()
        self.seen = []  # (when it was answered, seconds it took, version)
        self._pool = ThreadPoolExecutor(len(counts))
        self._callers = [self._pool.submit(self._run, count) for count in counts]

    def _run(self, count):
        while not self._stop.is_set():
            began = time.monotonic()
            version = check_answer(self._call("ModelInfer", infer_message(count)), count)
            now = time.monotonic()
            self.seen.append((now, now - began, version))

    def since(self, began):
        """The seconds that those answered since took."""
        return [took for when, took, _ in self.seen if when >= began]

    def wait_for(self, count, seconds=0.0):
        """Until that many more have been answered, and so much time is over."""
        began, target = time.monotonic(), len(self.seen) + count
        while len(self.seen) < target or time.monotonic() < began + seconds:
            assert not any(caller.done() for caller in self._callers), "a request failed"
            assert time.monotonic() < began + WAIT
            time.sleep(0.001)

    def wait_for_version(self, version, seconds=0.0):
        """Until it has answered, and some more requests have been, and so much time is over."""
        began = len(self.seen)
        self.wait_for(4, seconds)
        while version not in [answered for _, _, answered in self.seen[began:]]:
            self.wait_for(1)

    def stop(self):
        self._stop.set()
        for caller in self._callers:
            caller.result(WAIT)
        self._pool.shutdown()


def percentile(times, share=0.99):
    return sorted(times)[int(len(times) * share)]


def test_row_18_no_request_fails_while_versions_switch(server, call, root):
    before = PostState(server, infer_message(3))
    load = Load(call)
    try:
        load.wait_for(50, 3.0 if FULL else 0.0)
        quiet = [took for _, took, _ in load.seen]
        rates, switching = [], []
        for version in range(2, SWITCHES + 2):
            save_tiny(root / "m" / str(version) / "model.npz", version)
            began, seen = time.monotonic(), len(load.seen)
            if version % 5 == 0:
                refuse_a_damaged_version(call, root, str(version + 1000))
            call("RepositoryModelLoad", load_message())
            assert check_answer(call("ModelInfer", infer_message(1)), 1) == version
            load.wait_for_version(version, 0.2 if FULL else 0.0)
            rates.append((len(load.seen) - seen) / (time.monotonic() - began))
            switching += load.since(began)
    finally:
        load.stop()
    versions = {version for _, _, version in load.seen}
    ratio = percentile(switching) / percentile(quiet)
    report(
        18,
        switches=SWITCHES,
        requests=len(load.seen),
        failed=0,
        versions_seen=len(versions),
        least_rate=min(rates),
        p99_ratio=ratio,
    )
    assert versions == set(range(1, SWITCHES + 2))
    if FULL:
        assert min(rates) >= RATE
        assert ratio < 1.5
    # back to what it was, and as large as it was
    save_tiny(root / "m" / str(SWITCHES + 2) / "model.npz", 1)
    call("RepositoryModelLoad", load_message())
    before.check()


def refuse_a_damaged_version(call, root, version):
    """It is an error of the one who loads, and nothing has changed."""
    broken = root / "m" / version / "model.npz"
    broken.parent.mkdir()
    broken.write_bytes((root / "m" / "1" / "model.npz").read_bytes()[:-30])
    with pytest.raises(grpc.RpcError) as caught:
        call("RepositoryModelLoad", load_message())
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    broken.unlink()
    broken.parent.rmdir()


def test_row_19_loading_and_unloading_by_many(server, call, root):
    """From 32 threads; bad names too. Live and ready in between, and good after."""
    save_tiny(root.parent / "outside" / "1" / "model.npz", 9)
    bad = ["../outside", "m/../../outside", "../x", "..", "", " ", "a\0b", "/etc", "-x", "x" * 200]
    refused = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}

    def work(seed, loads):
        for n in range(loads):
            name = bad[(seed + n // 4) % len(bad)] if n % 4 == 3 else "m"
            kind = "Load" if (seed + n) % 2 else "Unload"
            message = getattr(protocol, f"RepositoryModel{kind}Request")(model_name=name)
            try:
                call(f"RepositoryModel{kind}", message)
                assert name == "m"
            except grpc.RpcError as error:
                assert name != "m" and error.code() == grpc.StatusCode.INVALID_ARGUMENT
            if n % 8 == 0:
                assert call("ServerLive", protocol.ServerLiveRequest()).live
                assert call("ServerReady", protocol.ServerReadyRequest()).ready
                try:
                    check_answer(call("ModelInfer", infer_message(2)), 2)
                except grpc.RpcError as error:
                    assert error.code() in refused

    def run(loads):
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(work, range(32), [loads] * 32))
        call("RepositoryModelLoad", load_message())
        assert check_answer(call("ModelInfer", infer_message(3)), 3) == 1

    run(4)  # warm
    before = PostState(server, infer_message(3))
    threads = len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))
    run(LOADS)
    before.check()
    report(19, calls=32 * LOADS, memory_grown=f"{before.grown:+.2%}")
    # the compute threads of the models that went are gone
    tasks = Path(f"/proc/{server.process.pid}/task")
    wait_until(lambda: len(list(tasks.iterdir())) < threads + 32)
    assert "OUTSIDE" not in server.log


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
    followed.refresh()
    with pytest.raises(ModelNotFoundError):
        followed.acquire("new")


def test_a_model_that_is_gone_at_one_look_is_served_on(followed, root):
    away = root / ".m"
    (root / "m").rename(away)  # as a deployment does that puts a new directory in its place
    followed.refresh()
    away.rename(root / "m")
    followed.refresh()
    followed.refresh()
    assert followed.versions("m") == ["1"]


def test_a_model_that_comes_back_as_it_was_is_served_again(followed, root):
    away = root / ".m"
    (root / "m").rename(away)
    followed.refresh(settled=False)
    assert followed.versions("m") == []
    away.rename(root / "m")
    followed.refresh()
    followed.refresh()
    assert followed.versions("m") == ["1"]


def test_a_model_that_was_sent_is_served_although_the_repository_does_not_hold_it(followed, root):
    data = (root / "m" / "1" / "model.npz").read_bytes()
    followed.load("sent", Override({}, {2: data}))
    for _ in range(2):
        followed.refresh()
        followed.refresh(settled=False)
    assert followed.versions("sent") == ["2"]
    followed.unload("sent")
    with pytest.raises(ModelNotFoundError):
        followed.acquire("sent")


def test_the_index_while_the_repository_is_out_of_reach(followed, root):
    away = root.with_name("away")
    root.rename(away)
    assert followed.index() == [("m", "1", "READY", "")]
    followed.refresh(settled=False)
    assert followed.versions("m") == ["1"]
    away.rename(root)


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
