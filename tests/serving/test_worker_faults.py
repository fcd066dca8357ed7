"""Rows 15 to 17 of the reliability table with several workers: killed, stuck, told to stop."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest
from post_state import FULL, PostState, report
from server_process import WAIT, ServerProcess, make_request, suspend
from worker_crowd import Crowd, Load, children, is_running, run_at_start, wait_until

from convserve_client import tensors

PROGRAM = (sys.executable, "-m", "convserve", "serve", "--port", "0", "--metrics-port", "0")


@pytest.fixture(scope="module")
def crowd(repository, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "log"
    server = ServerProcess("--model-repository", repository, "--workers", 2, log=log)
    crowd = Crowd(server, 2)
    yield crowd
    crowd.close()
    server.close()
    assert "Traceback" not in server.log, server.log


def test_a_worker_is_killed_during_a_batch(crowd, images, digits):
    before = PostState(crowd.server, make_request(images[:3]), digits.predict(images[:3]))
    crowd.reach_all(each=3)
    load = Load(crowd, images, digits.predict(images), patient=True)
    victim = crowd.pids[0]
    hit = sorted(n for n, pid in crowd.pids.items() if pid == victim)
    others = set(crowd.pids) - set(hit)
    suspend(victim)  # so that each of its connections has one request under way

    def all_wait():
        asking, answered = [load.asking[n] for n in hit], len(load.outcomes)
        wait_until(lambda: len(load.outcomes) >= answered + 20 * len(others))
        return asking == [load.asking[n] for n in hit]

    wait_until(all_wait)
    assert not load.failed
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(load.failed) >= len(hit))
    crowd.wait_for_workers([victim])
    back = time.monotonic() - killed
    done = len(load.outcomes)
    wait_until(lambda: len(load.outcomes) > done + 50)
    load.end()
    # A second time at most: the kernel may take a new connection for a socket that it is closing.
    failed = [n for n, _, _ in load.failed]
    assert sorted(set(failed)) == hit
    assert max(map(failed.count, hit)) <= 2
    assert {code for _, code, _ in load.failed} == {grpc.StatusCode.UNAVAILABLE}
    last = max(when for *_, when in load.failed) - killed
    report(15, workers=2, seconds_to_the_last_failure=last, seconds_until_it_is_back=back)
    if FULL:  # on a machine that does nothing else
        assert last < 1.0
        assert back < 5.0
    before.check()


def test_sigterm_under_load_answers_what_was_accepted(crowd, images, digits):
    """The last test of this server."""
    crowd.reach_all(each=2)
    load = Load(crowd, images, digits.predict(images), patient=False)
    pids = crowd.workers()
    crowd.server.signal(signal.SIGTERM)
    assert crowd.server.wait() == 0
    load.end()
    assert {code for _, code, _ in load.failed} == {grpc.StatusCode.UNAVAILABLE}
    assert not any(map(is_running, pids))
    assert crowd.server.process.stdout.read() == ""


WATCHDOG = 1.5 if FULL else 6.0  # seconds; a sound worker may be held up by others

# Batches of 3 take for ever.
ENDLESS = """
import time
from convserve.engine.model import Model
predict = Model.predict
def slow(self, x, *rest, **keywords):
    if len(x) == 3:
        time.sleep(1000)
    return predict(self, x, *rest, **keywords)
Model.predict = slow
"""


def test_stuck_workers_are_killed_and_nothing_outlives_the_supervisor(
    start_server, tmp_path, monkeypatch, digits_path, images, digits
):
    run_at_start(ENDLESS, tmp_path, monkeypatch)
    server = start_server(digits_path, "--workers", 3, "--watchdog-seconds", WATCHDOG)
    crowd = Crowd(server, 3)
    stubs = crowd.reach_all()
    of = {pid: stubs[n] for n, pid in crowd.pids.items()}
    stopped, endless, sound = of
    before = PostState(server, make_request(images[:2], model="model"), digits.predict(images[:2]))
    suspend(stopped)
    begun = time.monotonic()
    asked = [
        of[stopped].ModelInfer.future(make_request(images[:1], model="model"), timeout=WAIT),
        of[endless].ModelInfer.future(make_request(images[:3], model="model"), timeout=WAIT),
    ]
    assert [call.exception(WAIT).code() for call in asked] == [grpc.StatusCode.UNAVAILABLE] * 2
    took = time.monotonic() - begun
    report(16, watchdog_seconds=WATCHDOG, seconds_to_the_failure=took)
    if FULL:  # on a machine that does nothing else
        assert took < WATCHDOG + 2.0
    for stub in of.values():  # the next try is answered, by others until the workers are back
        request = make_request(images[:2], model="model")
        answer = stub.ModelInfer(request, timeout=WAIT, wait_for_ready=True)
        (rows,) = tensors.read_tensors(answer.outputs, answer.raw_output_contents).values()
        np.testing.assert_array_equal(rows, digits.predict(images[:2]))
    crowd.wait_for_workers([stopped, endless])
    assert sound in crowd.workers()
    assert f"(process {stopped}) is stuck (it has not reported for" in server.log
    assert f"(process {endless}) is stuck (a batch has been running for" in server.log
    before.check()

    pids = crowd.workers()
    suspend(pids[0])  # one that can't notice anything
    server.signal(signal.SIGKILL)
    wait_until(lambda: not any(map(is_running, pids)))
    crowd.close()


# The import of NumPy takes for ever.
IMPORTING = """
import sys, time
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            print("importing", file=sys.stderr, flush=True)
            time.sleep(1000)
sys.meta_path.insert(0, Slow())
"""


def test_workers_that_are_being_started_end_with_the_supervisor(tmp_path, monkeypatch, digits_path):
    run_at_start(IMPORTING, tmp_path, monkeypatch)
    log = tmp_path / "log"
    with (
        log.open("wb") as stderr,
        subprocess.Popen([*PROGRAM, digits_path, "--workers", "2"], stderr=stderr) as supervisor,
    ):
        try:
            wait_until(lambda: log.read_text().count("importing") == 2)
            pids = children(supervisor.pid)
        finally:
            supervisor.kill()
    wait_until(lambda: not any(map(is_running, pids)))


def run(*arguments):
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=WAIT
    )


def test_a_crash_loop_at_the_start_ends_the_server(tmp_path, monkeypatch, digits_path):
    run_at_start("import os; os._exit(3)", tmp_path, monkeypatch)
    ended = run(digits_path, "--workers", 2)
    assert ended.returncode == 1 and ended.stdout == ""
    last = ended.stderr.splitlines()[-1]
    assert re.fullmatch(
        r"convserve: error: worker \d did not get ready in 3 attempts; the last one ended with "
        r"exit code 3",
        last,
    )


def test_a_model_that_can_not_be_loaded_ends_the_start_at_once(tmp_path):
    path = tmp_path / "bad.npz"
    path.write_bytes(b"PK nothing")
    ended = run(path, "--workers", 2)
    assert ended.returncode == 1 and ended.stdout == ""
    assert f"{path}: " in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_refused(digits_path):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as another server's would be
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run(digits_path, "--workers", 2, "--port", port)
    assert ended.returncode == 1
    assert ended.stderr.endswith(f"cannot listen on 127.0.0.1:{port}: Address already in use\n")
