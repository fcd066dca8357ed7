"""The manifests and the client call in the docs fit together: what they say is done on loopback."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import certificates
import numpy as np
import pytest
import yaml
from server_process import ServerProcess
from tiny_models import image, save_tiny

from convserve_client import Client, Tls, errors

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy/kubernetes"
TOKENS = {"infer": "0123456789abcdef" * 4, "admin": "fedcba9876543210" * 4}


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((MANIFESTS / name).read_text("utf-8")))


def pod() -> dict[str, Any]:
    (deployment,) = manifests("deployment.yaml")
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    return spec


def documented_call() -> str:
    """The client's construction in docs/operations.md."""
    text = (ROOT / "docs/operations.md").read_text("utf-8")
    found = re.findall(r"```python\n(client = Client\(\n.*?\n\))\n```", text, re.S)
    assert len(found) == 1
    return textwrap.dedent(found[0])


def made(call: str, replaced: dict[str, str], server_name: str | None, address: str) -> Client:
    """The client that `call` makes, with paths of this test, and the server where it is."""
    for there, here in replaced.items():
        assert there in call
        call = call.replace(there, here)
    names: dict[str, Any] = {
        "Client": lambda _, **options: Client(address, **options),
        "Tls": lambda **options: Tls(**options, server_name=server_name),
        "Path": Path,
    }
    exec(call, names)
    client = names["client"]
    assert isinstance(client, Client)
    return client


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the volumes hold, at their paths below a folder; the secrets as the docs make them."""
    root = tmp_path_factory.mktemp("pod")
    spec = pod()
    (container,) = spec["containers"]
    kinds = {volume["name"]: volume for volume in spec["volumes"]}
    for mount in container["volumeMounts"]:
        folder = root / mount["mountPath"].lstrip("/")
        folder.mkdir(parents=True)
        match kinds[mount["name"]]:
            case {"secret": {"secretName": "convserve-tokens"}}:
                lines = (f"{scope} {token}\n" for scope, token in TOKENS.items())
                (folder / "tokens").write_text("".join(lines))
            case {"secret": {"secretName": "convserve-tls"}}:
                certificate = manifests("cert-manager/certificate.yaml")[-1]["spec"]
                assert certificate["secretName"] == "convserve-tls"
                pem = tmp_path_factory.mktemp("certificates")
                certificates.make(pem, names=certificate["dnsNames"])
                for name, key in (
                    ("server.pem", "tls.crt"),
                    ("server.key", "tls.key"),
                    ("ca.pem", "ca.crt"),
                ):
                    shutil.copy(pem / name, folder / key)
            case {"persistentVolumeClaim": _}:
                save_tiny(folder / "tiny" / "1" / "model.npz", 7)
    caller = root / "etc/convserve-client"
    caller.mkdir()
    shutil.copy(root / "etc/convserve-tls/ca.crt", caller)
    (caller / "token").write_text(TOKENS["infer"] + "\n")
    return root


@pytest.fixture(scope="module")
def server(mounted: Path) -> Any:
    """A server with the manifest's options, on a loopback port."""
    (container,) = pod()["containers"]
    serve, *options = container["args"]
    assert serve == "serve"
    options = [re.sub(r"=/", f"={mounted}/", option) for option in options]
    options[options.index("--host=0.0.0.0")] = "--host=127.0.0.1"
    process = ServerProcess(*options, log=mounted / "log")
    yield process
    process.close()


@pytest.mark.parametrize("service", ["convserve", "convserve-pods"])
def test_the_documented_client_calls_the_manifests_server(
    server: ServerProcess, mounted: Path, service: str
) -> None:
    replaced = {"/etc/convserve-client": f"{mounted}/etc/convserve-client"}
    with made(documented_call(), replaced, service, server.address) as client:
        np.testing.assert_array_equal(client.predict(image(3))[:, 0], [7, 7, 7])
        with pytest.raises(errors.PermissionDeniedError):
            client.load_model("tiny")
    ca = mounted / "etc/convserve-client/ca.crt"
    with (
        Client(server.address, tls=Tls(ca=ca), retries=0) as nobody,
        pytest.raises(errors.UnauthenticatedError),
    ):
        nobody.server_live()


def test_the_documented_call_balances_and_names_a_service(mounted: Path) -> None:
    """With the address as it is there: nothing is called, and nothing is refused either."""
    call = documented_call()
    (address,) = re.findall(r'"([\w-]+:\d+)"', call)
    services = {s["metadata"]["name"]: s["spec"] for s in manifests("services.yaml")}
    host, port = address.split(":")
    assert services[host]["clusterIP"] == "None"  # the name gives every pod
    assert int(port) in [entry["port"] for entry in services[host]["ports"]]
    replaced = {"/etc/convserve-client": f"{mounted}/etc/convserve-client"}
    with made(call, replaced, None, address) as client:
        assert client._options.balanced
    comment = re.findall(r"# (Client\(.*)", (MANIFESTS / "services.yaml").read_text("utf-8"))
    assert len(comment) == 1
    assert all(word in comment[0] for word in (address, 'load_balancing="round_robin"', "tls="))


def test_the_certificate_has_the_services_names() -> None:
    names = manifests("cert-manager/certificate.yaml")[-1]["spec"]["dnsNames"]
    assert names == [service["metadata"]["name"] for service in manifests("services.yaml")]


def test_secrets_of_the_deployment_are_made_in_the_docs() -> None:
    text = (ROOT / "docs/operations.md").read_text("utf-8")
    made = set(re.findall(r"kubectl create secret generic (\S+)", text))
    secrets = {v["secret"]["secretName"] for v in pod()["volumes"] if "secret" in v}
    assert secrets == made
