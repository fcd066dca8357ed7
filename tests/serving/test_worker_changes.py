"""What changes while several workers serve changes in all of them, or, where one can't, in none."""

from __future__ import annotations

import shutil

import certificates
import grpc
import pytest
from server_process import WAIT, ServerProcess
from tiny_models import save_tiny
from worker_crowd import Crowd, index, run_at_start, value, wait_until

from convserve_client import protocol

OLD, NEW = "old-0123456789abcdef", "new-0123456789abcdef"

# Workers say who leads, and do as files in this folder tell them: `refuse` names a process that
# finds no memory to follow the others, `die` is for the next one that writes a segment.
ORDERS = """
import os, signal
from pathlib import Path
from convserve.engine.loader import Loader
folder = Path({folder!r})
load, adopt, pwrite = Loader.load, Loader.adopt, os.pwrite
def leading(*arguments):
    (folder / "leader.new").write_text(str(os.getpid()))
    (folder / "leader.new").replace(folder / "leader")
    return load(*arguments)
def following(*arguments):
    if (folder / "refuse").read_text() == str(os.getpid()):
        raise MemoryError("no memory to follow")
    return adopt(*arguments)
def writing(*arguments):
    if (folder / "die").exists():
        (folder / "die").unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    return pwrite(*arguments)
Loader.load, Loader.adopt, os.pwrite = leading, following, writing
"""


class SecureServer(ServerProcess):
    """One that callers need a CA and a token for."""

    def __init__(self, *arguments, ca, token, **keywords):
        self.ca, self.token = ca, token
        super().__init__(*arguments, **keywords)

    def connect(self):
        encrypted = grpc.ssl_channel_credentials(self.ca.read_bytes())
        caller = grpc.access_token_call_credentials(self.token)
        both = grpc.composite_channel_credentials(encrypted, caller)
        return grpc.secure_channel(self.address, both, [("grpc.use_local_subchannel_pool", 1)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("changes")


@pytest.fixture(scope="module")
def crowd(folder):
    save_tiny(folder / "models" / "m" / "1" / "model.npz", 1)
    certificates.make(folder)
    (folder / "tokens").write_text(f"infer {OLD}\n")
    (folder / "refuse").touch()
    with pytest.MonkeyPatch.context() as patch:
        run_at_start(ORDERS.format(folder=str(folder)), folder, patch)
        server = SecureServer(
            "--model-repository", folder / "models", "--model-control-mode", "poll",
            "--repository-poll-secs", 0.05, "--tls-certificate", folder / "server.pem",
            "--tls-key", folder / "server.key", "--token-file", folder / "tokens", "--workers", 3,
            ca=folder / "ca.pem", token=OLD, log=folder / "log",
        )  # fmt: skip
        crowd = Crowd(server, 3)
        yield crowd
        crowd.close()
        server.close()


def write(folder, version):
    save_tiny(folder / "models" / "m" / str(version) / "model.npz", version)


def order_to_refuse(folder, pid):
    """At once, as a worker that reads half an order would not refuse."""
    (folder / "refuse.new").write_text(str(pid))
    (folder / "refuse.new").replace(folder / "refuse")


def wait_for(stubs, version):
    wait_until(lambda: {value(stub) for stub in stubs} == {(version, float(version))})


def test_all_follow_the_repository(crowd, folder):
    stubs = crowd.reach_all()
    write(folder, 2)
    wait_for(stubs, 2)
    shutil.rmtree(folder / "models" / "m" / "2")
    wait_for(stubs, 1)


def test_no_worker_switches_to_a_version_that_one_of_them_can_not_prepare(crowd, folder):
    stubs = crowd.reach_all()
    leader = int((folder / "leader").read_text())
    followers = set(crowd.workers()) - {leader}
    assert len(followers) == 2
    for version, pid in enumerate(followers, 3):  # before or after the other one has prepared
        order_to_refuse(folder, pid)
        write(folder, version)
        tried = "m", str(version), "UNAVAILABLE"
        wait_until(lambda: all(tried in [line[:3] for line in index(stub)] for stub in stubs))  # noqa: B023
        assert {value(stub) for stub in stubs} == {(1, 1.0)}
        (reason,) = {line[3] for stub in stubs for line in index(stub) if line[:3] == tried}
        assert "no memory to follow" in reason
    order_to_refuse(folder, "")
    write(folder, 4)
    wait_for(stubs, 4)
    assert set(crowd.workers()) == followers | {leader}


def test_a_leader_that_dies_while_it_shares_a_version_leaves_that_to_the_next_one(crowd, folder):
    leader = int((folder / "leader").read_text())
    (folder / "die").touch()
    write(folder, 5)
    crowd.wait_for_workers([leader])
    wait_for(crowd.reach_all(), 5)
    assert not (folder / "die").exists()
    assert int((folder / "leader").read_text()) in crowd.workers()


def test_all_take_over_new_certificates_and_tokens(crowd, folder):
    stubs = crowd.reach_all()
    (folder / "tokens").write_text(f"infer {NEW}\n")

    def is_refused(stub):
        try:
            stub.ServerLive(protocol.ServerLiveRequest(), timeout=WAIT)
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.UNAUTHENTICATED
        return False

    wait_until(lambda: all(map(is_refused, stubs)))
    fresh = folder / "fresh"
    fresh.mkdir()
    certificates.make(fresh, "another")
    for name in ("server.key", "server.pem"):
        (fresh / name).replace(folder / name)
    crowd.server.ca, crowd.server.token = fresh / "ca.pem", NEW
    wait_for(crowd.reach_all(), 5)
