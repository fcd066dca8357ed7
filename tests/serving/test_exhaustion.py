"""When the system gives no more: files, threads. The server lives on, and says so."""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from server_process import WAIT, ServerProcess, make_request
from tiny_models import image, save_tiny
from worker_crowd import Crowd, value, wait_until

from convserve.errors import ConvserveError, WorkerGoneError
from convserve.serving.files import allow_open_files
from convserve.serving.workers.peer import Peer
from convserve.serving.workers.process import WorkerProcess
from convserve_client import protocol

NOFILE = resource.RLIMIT_NOFILE


@contextmanager
def no_more_files(pid):
    """The process can open none, as the next descriptor would be beyond its limit."""
    before = resource.prlimit(pid, NOFILE)
    used = {int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir()}
    resource.prlimit(pid, NOFILE, (min({*range(len(used) + 1)} - used), before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, NOFILE, before)


def processor_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def root(tmp_path):
    save_tiny(tmp_path / "models" / "m" / "1" / "model.npz", 1)
    return tmp_path / "models"


def load(stub):
    return stub.RepositoryModelLoad(
        protocol.RepositoryModelLoadRequest(model_name="m"), timeout=WAIT
    )


EXPLICIT = ("--model-control-mode", "explicit", "--load-model", "*")


def test_no_more_files(start_server, root):
    server = start_server("--model-repository", root)
    pid, port = server.process.pid, int(server.metrics_address.rpartition(":")[2])
    assert value(server.stub) == (1, 1.0)
    with no_more_files(pid), socket.create_connection(("127.0.0.1", port)):
        before = processor_seconds(pid)
        time.sleep(1.5)  # what looks once a second has looked
        assert value(server.stub) == (1, 1.0)
        assert processor_seconds(pid) - before < 0.75  # it does not try for a connection for ever
    assert server.metric('nv_inference_request_success{model="m",version="1"}') == 2
    assert "Traceback" not in server.log
    server.signal()
    assert server.wait() == 0


def test_workers_that_can_open_no_more_files(root, tmp_path):
    server = ServerProcess(
        "--model-repository", root, *EXPLICIT, "--workers", 2, log=tmp_path / "l"
    )
    crowd = Crowd(server, 2)
    try:
        pids = crowd.workers()
        stubs = crowd.reach_all()
        save_tiny(root / "m" / "2" / "model.npz", 2)
        leader = next(pid for pid in pids if f"pid={pid} convserve.engine.loader" in server.log)
        (follower,) = set(pids) - {leader}
        with no_more_files(follower), pytest.raises(grpc.RpcError) as caught:
            load(stubs[0])
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert "Too many open files" in caught.value.details()
        assert {value(stub) for stub in stubs} == {(1, 1.0)}
        load(stubs[0])
        assert {value(stub) for stub in stubs} == {(2, 2.0)}
        assert crowd.workers() == pids

        with no_more_files(server.process.pid):
            os.kill(follower, 9)
            wait_until(lambda: "cannot start worker" in server.log)
            assert server.process.poll() is None
        crowd.wait_for_workers([follower])
        assert {value(stub) for stub in crowd.reach_all()} == {(2, 2.0)}
        assert "Traceback" not in server.log
    finally:
        crowd.close()
        server.close()


@pytest.mark.parametrize("program", ["/no/such/program", sys.executable])
def test_a_worker_that_cannot_be_started_leaves_nothing_open(program, monkeypatch):
    def no_start(peer):
        raise RuntimeError("can't start new thread")

    made, pair = [], socket.socketpair
    monkeypatch.setattr(socket, "socketpair", lambda: made.append(pair()) or made[-1])
    monkeypatch.setattr(Peer, "start", no_start)
    with pytest.raises((OSError, RuntimeError)):
        WorkerProcess(1, [program, "-c", ""], lambda _: {}, lambda _: {}, print)
    assert [end.fileno() for end in made[0]] == [-1, -1]


def test_as_many_files_as_the_system_lets_it_open(monkeypatch):
    asked = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: asked.append(limits))
    allow_open_files()
    assert asked == [(4096, 4096)]

    def refuse(kind, limits):
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    allow_open_files()


def test_a_peer_without_threads_answers_that_it_has_none(monkeypatch):
    """A reader that ends would end a worker, or the supervisor's hold on one."""
    ours, theirs = socket.socketpair()
    gone = threading.Event()
    one = Peer(ours, {}, {}, gone.set)
    other = Peer(theirs, {"ask": lambda: 5}, {}, lambda: None)
    one.start()
    other.start()

    def no_start(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_start)
        with pytest.raises(ConvserveError, match="ask failed: can't start new thread"):
            one.call("ask", timeout=WAIT)
    assert one.call("ask", timeout=WAIT) == 5
    assert not gone.is_set()
    one.close()


def test_a_peer_that_reads_nothing_holds_up_no_call_with_a_timeout():
    ours, theirs = socket.socketpair()
    one = Peer(ours, {}, {}, lambda: None)
    one.start()

    def tell():
        with pytest.raises(OSError):
            one.tell("news", bytes(64 << 20))

    large = threading.Thread(target=tell, daemon=True)
    large.start()
    wait_until(one._sending.locked)
    with pytest.raises(WorkerGoneError, match=r"does not answer in 0\.1 s"):
        one.call("ask", timeout=0.1)
    one.close()
    theirs.close()
    large.join(WAIT)


NO_THREADS = """
import os, threading
start = threading.Thread.start
def limited(thread):
    if os.path.exists({flag!r}):
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = limited
"""


def test_no_more_threads(start_server, root, tmp_path):
    """As under a limit on processes, which threads count towards."""
    flag = tmp_path / "limited"
    server = start_server(
        "--model-repository", root, *EXPLICIT, prelude=NO_THREADS.format(flag=str(flag))
    )
    assert value(server.stub) == (1, 1.0)
    flag.touch()
    request = make_request(image(), model="m")
    calls = [server.stub.ModelInfer.future(request, timeout=WAIT) for _ in range(200)]
    assert {call.result().model_version for call in calls} == {"1"}
    live = [
        server.stub.ServerLive.future(protocol.ServerLiveRequest(), timeout=WAIT) for _ in range(50)
    ]
    assert all(call.result().live for call in live)
    with pytest.raises(grpc.RpcError) as caught:
        next(stream(server.stub, request))
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    save_tiny(root / "m" / "2" / "model.npz", 2)
    with pytest.raises(grpc.RpcError) as caught:
        load(server.stub)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert value(server.stub) == (1, 1.0)
    flag.unlink()
    assert [a.infer_response.model_version for a in stream(server.stub, request)] == ["1"]
    load(server.stub)
    assert value(server.stub) == (2, 2.0)
    flag.touch()
    assert "Traceback" not in server.log
    server.signal()
    assert server.wait() == 0
    assert "Traceback" not in server.log


def stream(stub, request):
    return stub.ModelStreamInfer(iter([request]), timeout=WAIT)


def test_hangups_before_it_is_ready(start_server, root):
    early = """
import os, signal
from convserve.engine.loader import Loader
warm_up = Loader._warm_up
def hung_up(self, model, config):
    os.kill(os.getpid(), signal.SIGHUP)
    warm_up(self, model, config)
Loader._warm_up = hung_up
"""
    server = start_server("--model-repository", root, prelude=early)
    assert value(server.stub) == (1, 1.0)
