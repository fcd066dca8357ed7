"""The metrics page: names, labels, values, and the probes beside it."""

from __future__ import annotations

import re
import signal
import socket
import urllib.error
import urllib.request
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_process import suspend

WAIT = 120.0
MODEL = 'model="model",version="1"'


@pytest.fixture
def lone(start_server, digits_path):
    """A server of its own, whose counters start at nothing."""
    return start_server(digits_path)


def test_counters_count(lone, infer_request, images):
    sizes = [1, 2, 5]
    for size in sizes:
        lone.stub.ModelInfer(infer_request(images[:size], model="model"), timeout=WAIT)
    bad = infer_request(images[:1], model="model")
    bad.raw_input_contents[0] = b""
    with pytest.raises(grpc.RpcError):
        lone.stub.ModelInfer(bad, timeout=WAIT)

    assert lone.metric(f"nv_inference_request_success{{{MODEL}}}") == 3
    assert lone.metric(f"nv_inference_count{{{MODEL}}}") == 8
    assert lone.metric(f"nv_inference_exec_count{{{MODEL}}}") == 3
    assert lone.metric(f"nv_inference_pending_request_count{{{MODEL}}}") == 0
    for reason, count in {"OTHER": 1, "REJECTED": 0, "CANCELED": 0, "BACKEND": 0}.items():
        labels = f'model="model",reason="{reason}",version="1"'
        assert lone.metric(f"nv_inference_request_failure{{{labels}}}") == count
    total = lone.metric(f"nv_inference_request_duration_us{{{MODEL}}}")
    infer = lone.metric(f"nv_inference_compute_infer_duration_us{{{MODEL}}}")
    assert 0 < infer < total
    assert lone.metric(f"convserve_request_duration_seconds_count{{{MODEL}}}") == 3
    assert lone.metric(f'convserve_request_duration_seconds_bucket{{le="+Inf",{MODEL}}}') == 3
    assert lone.metric(f'convserve_batch_size_bucket{{le="1",{MODEL}}}') == 1
    assert lone.metric(f'convserve_batch_size_bucket{{le="2",{MODEL}}}') == 2
    assert lone.metric(f'convserve_batch_size_bucket{{le="8",{MODEL}}}') == 3
    assert lone.metric(f"convserve_batch_size_sum{{{MODEL}}}") == 8


def test_the_page_is_well_formed(server):
    page = server.page()
    families = {family.name: family for family in text_string_to_metric_families(page)}
    for name in (
        "nv_inference_request_success",
        "nv_inference_request_failure",
        "nv_inference_count",
        "nv_inference_exec_count",
        "nv_inference_request_duration_us",
        "nv_inference_queue_duration_us",
        "nv_inference_compute_input_duration_us",
        "nv_inference_compute_infer_duration_us",
        "nv_inference_compute_output_duration_us",
    ):
        assert families[name].type == "counter", name
        assert page.count(f"# TYPE {name} counter\n") == 1
        assert re.search(rf'^{name}{{model="digits",.*}} \d', page, re.M)
    assert families["nv_inference_pending_request_count"].type == "gauge"
    assert families["convserve_queue_limit"].type == "gauge"
    assert server.metric('convserve_queue_limit{model="digits",version="10"}') == 1024
    assert families["convserve_call_records_dropped"].type == "counter"
    assert families["convserve_request_duration_seconds"].type == "histogram"
    assert families["convserve_batch_size"].type == "histogram"
    assert "process_resident_memory_bytes" in families
    assert not re.search(r"nv_\w+_total", page)


@pytest.mark.parametrize(
    "name",
    [
        "deploy/grafana/convserve.json",
        "deploy/kubernetes/autoscaling.yaml",
        "deploy/prometheus/alerts.yaml",
        "docs/operations.md",
    ],
)
def test_what_is_watched_is_on_the_page(server, name):
    text = (Path(__file__).parents[2] / name).read_text("utf-8")
    text = re.sub(r"### Metrics of Triton that there are not\n.*?\n## ", "", text, flags=re.S)
    watched = set(re.findall(r"\b(?:nv|convserve)_\w+", text)) - {"convserve_client"}
    watched -= {"convserve_workers", "convserve_worker_restarts_total"}  # see test_workers.py
    there = set(re.findall(r"^(?:# TYPE )?([a-z]\w+)", server.page(), re.M))
    assert watched and watched <= there, watched - there


def test_metrics_of_triton_that_are_said_to_lack(server):
    text = (Path(__file__).parents[2] / "docs/operations.md").read_text("utf-8")
    section = text.split("### Metrics of Triton that there are not\n")[1].split("\n## ")[0]
    lacking = re.findall(r"`(nv_[\w*]+)`", section)
    assert len(lacking) >= 8
    for name in lacking:
        pattern = name.replace("*", r"\w+")
        assert not re.search(rf"^{pattern}\b", server.page(), re.M), name


def test_probes(server):
    assert server.page("/healthz") == "ok\n"
    assert server.page("/readyz") == "ready\n"


def test_unknown_pages(server):
    with pytest.raises(urllib.error.HTTPError) as caught:
        server.page("/")
    caught.value.close()
    assert caught.value.code == 404


def test_not_ready_is_503(gated):
    server = gated()
    server._servicer.ready = False
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"http://127.0.0.1:{server.metrics_port}/readyz", timeout=WAIT)
    caught.value.close()
    assert caught.value.code == 503


def ask(server, method, path):
    host, port = server.metrics_address.split(":")
    connection = HTTPConnection(host, int(port), timeout=WAIT)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, response.headers, body


def test_head_and_other_methods(server):
    status, headers, body = ask(server, "GET", "/readyz")
    assert (status, headers["Content-Length"], body) == (200, "6", b"ready\n")
    status, headers, body = ask(server, "HEAD", "/readyz")
    assert (status, headers["Content-Length"], body) == (200, "6", b"")
    status, headers, _ = ask(server, "POST", "/readyz")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_a_flood_of_connections_keeps_no_probe_out(server):
    """Each that finds no room among those that wait to be taken would lose a second."""
    host, port = server.metrics_address.split(":")
    most = int(Path("/proc/sys/net/core/somaxconn").read_text())  # that the system lets wait
    with ExitStack() as opened:
        suspend(server.process.pid)  # so that it takes none meanwhile
        opened.callback(server.signal, signal.SIGCONT)
        for _ in range(min(600, most)):
            silent = socket.create_connection((host, int(port)), timeout=20)
            opened.enter_context(silent)
        server.signal(signal.SIGCONT)
        assert ask(server, "GET", "/readyz")[0] == 200
