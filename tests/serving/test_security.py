"""TLS, bearer tokens and calls that change the server, against a real process."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import sys

import certificates
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from convserve.errors import ConfigError
from convserve.serving import tls
from convserve.serving.access import Tokens, is_loopback
from convserve.serving.tls import TlsFiles
from convserve_client import Client, Tls, errors, protocol

INFER, ADMIN, OTHER = "infer-0123456789abcdef", "admin-0123456789abcdef", "other-0123456789abcdef"


@pytest.fixture
def token_file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"# who may call\ninfer {INFER}\n\nadmin {ADMIN}\n")
    return path


@pytest.fixture(scope="module")
def pems(tmp_path_factory):
    return certificates.make(tmp_path_factory.mktemp("certificates"))


def bearer(token):
    return [("authorization", f"Bearer {token}")]


def code_of(call, *arguments, **keywords):
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **keywords)
    return caught.value.code()


def test_tokens_and_their_scopes(start_server, digits_path, token_file, pixels):
    server = start_server(digits_path, "--token-file", token_file)
    live, load = protocol.ServerLiveRequest(), protocol.RepositoryModelLoadRequest(model_name="x")
    for metadata in (None, bearer(OTHER), [("authorization", INFER)], bearer("")):
        code = code_of(server.stub.ServerLive, live, metadata=metadata)
        assert code == grpc.StatusCode.UNAUTHENTICATED
    both = bearer(INFER) + bearer(INFER)
    assert code_of(server.stub.ServerLive, live, metadata=both) == grpc.StatusCode.UNAUTHENTICATED
    assert server.stub.ServerLive(live, metadata=bearer(INFER)).live
    assert server.stub.ServerLive(live, metadata=[("authorization", f"bearer {INFER}")]).live
    denied = code_of(server.stub.RepositoryModelLoad, load, metadata=bearer(INFER))
    assert denied == grpc.StatusCode.PERMISSION_DENIED
    # allowed to ask; that this server takes no such orders is another matter
    refused = code_of(server.stub.RepositoryModelLoad, load, metadata=bearer(ADMIN))
    assert refused == grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.RpcError) as caught:
        next(server.stub.ModelStreamInfer(iter([])))
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    health = health_pb2_grpc.HealthStub(server.channel)
    assert health.Check(health_pb2.HealthCheckRequest()).status == 1  # probes have no token
    names = health_pb2.HealthListRequest()
    assert code_of(health.List, names) == grpc.StatusCode.UNAUTHENTICATED
    assert server.model in health.List(names, metadata=bearer(INFER)).statuses
    with Client(server.address, token=INFER) as client:
        assert client.predict(pixels).shape == (16, 10)
    with Client(server.address, retries=0) as client, pytest.raises(errors.UnauthenticatedError):
        client.predict(pixels)
    assert INFER not in server.log and ADMIN not in server.log


def test_tokens_are_rotated_without_a_restart(token_file):
    now = [0.0]
    tokens = Tokens(token_file, clock=lambda: now[0])
    assert (tokens.scope(INFER), tokens.scope(ADMIN), tokens.scope(OTHER)) == (
        "infer",
        "admin",
        None,
    )
    token_file.write_text(f"infer {OTHER}\n")
    assert tokens.scope(OTHER) is None  # looked at once a second at most
    now[0] += 1.5
    assert (tokens.scope(OTHER), tokens.scope(INFER)) == ("infer", None)
    for broken in (b"", b"infer short\n", b"root " + OTHER.encode(), b"\xff\xfe", None):
        if broken is None:
            token_file.unlink()
        else:
            token_file.write_bytes(broken)
        now[0] += 1.5
        assert tokens.scope(OTHER) == "infer"  # the last good ones stay


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "no token"),
        ("# nothing\n", "no token"),
        (f"{INFER}\n", "line 1: must be a scope"),
        (f"infer {INFER} x\n", "line 1: must be a scope"),
        (f"\nroot {INFER}\n", "line 2: must be a scope"),
        ("infer 0123456789abcde\n", "at least 16"),
        (f"infer {INFER}\nadmin {INFER}\n", "line 2: the token stands there twice"),
    ],
)
def test_malformed_token_files(tmp_path, content, problem):
    path = tmp_path / "tokens"
    path.write_text(content)
    with pytest.raises(ConfigError, match=problem) as caught:
        Tokens(path)
    assert INFER not in str(caught.value)
    with pytest.raises(ConfigError, match="No such file"):
        Tokens(tmp_path / "none")


def test_changes_from_other_machines_need_permission(start_server, repository):
    load = protocol.RepositoryModelLoadRequest(model_name="nobody")
    explicit = ("--model-repository", repository, "--model-control-mode", "explicit",
                "--load-model", "plain")  # fmt: skip
    for options, expected in (
        (("--host", "0.0.0.0"), grpc.StatusCode.PERMISSION_DENIED),
        (("--host", "0.0.0.0", "--allow-admin"), grpc.StatusCode.INTERNAL),
        ((), grpc.StatusCode.INTERNAL),
    ):
        server = start_server(*explicit, *options)
        address = server.address.replace("0.0.0.0", "127.0.0.1")
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary(
                protocol.path("RepositoryModelLoad"),
                request_serializer=protocol.RepositoryModelLoadRequest.SerializeToString,
            )
            assert code_of(call, load) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("example.org", False), ("10.0.0.1", False)],
)  # fmt: skip
def test_what_is_loopback(host, expected):
    assert is_loopback(host) is expected


def tls_options(folder, *more):
    pair = ("--tls-certificate", folder / "server.pem", "--tls-key", folder / "server.key")
    return (*pair, *more)


def test_tls_and_a_new_certificate(start_server, digits_path, pems, tmp_path):
    folder = tmp_path / "served"
    shutil.copytree(pems, folder)
    server = start_server(digits_path, *tls_options(folder))
    with Client(server.address, tls=Tls(ca=pems / "ca.pem")) as client:
        assert client.server_live()
    with Client(server.address, retries=0) as plain, pytest.raises(errors.UnavailableError):
        plain.server_live()
    # another authority's certificate, taken over without a restart
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    certificates.make(fresh, "another")
    for name in ("server.key", "server.pem"):
        shutil.copy(fresh / name, folder / f"{name}.new")
    for name in ("server.key", "server.pem"):
        (folder / f"{name}.new").replace(folder / name)
    with Client(server.address, tls=Tls(ca=fresh / "ca.pem")) as client:
        assert client.server_live()
    # one that is none: the last good one stays
    (folder / "server.pem").write_text("no certificate")
    with Client(server.address, tls=Tls(ca=fresh / "ca.pem")) as client:
        assert client.server_live()
    assert "it stays as it was" in server.log


def test_a_certificate_that_is_replaced_while_it_is_read(pems, tmp_path, monkeypatch):
    """The key that goes with it came just before: both are taken, or neither."""
    certificates.make(tmp_path, "another")
    files = TlsFiles(tmp_path / "served.pem", tmp_path / "served.key")
    shutil.copy(pems / "server.pem", files.certificate)
    shutil.copy(tmp_path / "server.key", files.key)
    taken, check = [], ssl.SSLContext.load_cert_chain

    def replaced(context, *arguments, **keywords):
        shutil.copy(tmp_path / "server.pem", files.certificate)
        return check(context, *arguments, **keywords)

    def configuration(pairs, root_certificates):
        taken.extend(pairs)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", replaced)
    monkeypatch.setattr(tls.grpc, "ssl_server_certificate_configuration", configuration)
    tls._load(files)
    pair = [(tmp_path / f"server.{kind}").read_bytes() for kind in ("key", "pem")]
    assert taken == [tuple(pair)]


def test_mutual_tls(start_server, digits_path, pems):
    options = tls_options(pems, "--tls-client-ca", pems / "ca.pem")
    server = start_server(digits_path, *options)
    own = Tls(ca=pems / "ca.pem", certificate=pems / "client.pem", key=pems / "client.key")
    with Client(server.address, tls=own) as client:
        assert client.server_live()
    nameless = Client(server.address, retries=0, tls=Tls(ca=pems / "ca.pem"))
    with nameless, pytest.raises(errors.UnavailableError):
        nameless.server_live()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--tls-key", "server.key"], "go together"),
        (["--tls-client-ca", "ca.pem"], "needs --tls-certificate"),
        (["--tls-certificate", "none.pem", "--tls-key", "server.key"], "No such file"),
        (["--tls-certificate", "server.pem", "--tls-key", "client.key"], "not a certificate"),
        (["--tls-certificate", "server.key", "--tls-key", "server.key"], "not a certificate"),
        (["--tls-certificate", "server.pem", "--tls-key", "server.key", "--tls-client-ca",
          "server.key"], "no CA in PEM form"),
    ],
)  # fmt: skip
def test_wrong_certificates(pems, digits_path, options, problem):
    ports = ("--port", "0", "--metrics-port", "0")
    command = [sys.executable, "-c", "from convserve.cli import main; main()", "serve"]
    result = subprocess.run(
        [*command, str(digits_path), *ports, *options],
        cwd=pems, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode in (1, 2)
    assert result.stdout == ""
    assert problem in result.stderr
    assert "Traceback" not in result.stderr
