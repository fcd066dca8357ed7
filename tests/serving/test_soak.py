"""Row 20 of the reliability table: a mixed load for a long time, and a leak that must be caught.

CONVSERVE_SOAK_SECONDS: 60 here, 1,800 in `make soak`, 25,000 in `make soak-long`.
"""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from post_state import WAIT, PostState, report, resident_bytes
from soak_load import CALLERS, Soak, growth, is_flat

SECONDS = float(os.environ.get("CONVSERVE_SOAK_SECONDS", "60"))
WORKERS = os.environ.get("CONVSERVE_SOAK_WORKERS")  # none: one process without a supervisor
LEAK_BYTES, LEAK_CALLS = 1 << 18, 240

# What a server that leaks would do, planted before it starts.
LEAK = f"""
from convserve.engine.model import Model
predict, kept = Model.predict, []
def leaking(*arguments, **keywords):
    kept.append(b"x" * {LEAK_BYTES})
    return predict(*arguments, **keywords)
Model.predict = leaking
"""


@pytest.fixture(scope="module")
def all_images(digits):
    pixels = np.random.default_rng(20).integers(0, 256, (64, 1, 28, 28), np.uint8)
    return digits.preprocessing.normalise(pixels)


@pytest.fixture
def make(infer_request):
    return lambda x: infer_request(x, model="model")


def bad_requests(make, images):
    """As bytes: what rows 1 to 6 and 8 are about."""
    requests = [make(images[:8]) for _ in range(6)]
    requests[0].model_name = "nobody"
    requests[1].model_version = "abc"
    requests[2].inputs[0].name = "nothing"
    requests[3].inputs[0].shape[:] = [2**62, 1, 28, 28]
    requests[4].raw_input_contents[0] += b"\0"
    requests[5].inputs[0].datatype = "BYTES"
    return [*(request.SerializeToString() for request in requests), b"\xff" * 40]


def test_row_20_a_mixed_load_leaves_no_trace(start_server, digits_path, digits, all_images, make):
    server = start_server(digits_path, *([] if WORKERS is None else ["--workers", WORKERS]))
    expected = digits.predict(all_images)
    bad = bad_requests(make, all_images)
    before = PostState(server, make(all_images[:8]), expected[:8], growth=0.25)
    soak = Soak(server, make, all_images, expected, bad)
    began, samples = time.monotonic(), []
    try:
        while (gone := time.monotonic() - began) < SECONDS:
            if gone > min(SECONDS / 20, 60):  # warmed up
                samples.append(resident_bytes(server.process.pid))
            time.sleep(min(SECONDS / 200, 1.0))
    finally:
        soak.stop()
    health = sorted(soak.health)
    report(
        20,
        seconds=SECONDS,
        requests=soak.counts.total(),
        **soak.counts,
        processes_killed=soak.kills,
        wrong=len(soak.wrong),
        hung=len(soak.hung),
        megabytes=samples[-1] / 1e6,
        growth_in_the_second_half_MB=growth(samples) / 1e6,
        health_p99_ms=health[len(health) * 99 // 100] * 1e3,
        outcomes={f"{kind} {code}": n for (kind, code), n in sorted(soak.codes.items())},
    )
    assert not soak.wrong, soak.wrong[:10]
    assert not soak.hung, soak.hung[:10]
    assert all(soak.counts[kind] for kind in ("infer", "cancel", "late", "bad", "killed"))
    assert soak.counts.total() > 10 * CALLERS
    assert soak.kills
    assert soak.codes["late", "DEADLINE_EXCEEDED"] and soak.codes["cancel", "CANCELLED"]
    assert is_flat(samples), f"{growth(samples) / 1e6:.1f} MB more in the second half"
    before.check()
    assert "Traceback" not in server.log, server.log


def test_row_20_control_a_planted_leak_is_caught(start_server, digits_path, all_images, make):
    samples = {}
    for name, prelude in {"sound": "", "leaking": LEAK}.items():
        server = start_server(digits_path, prelude=prelude)
        request = make(all_images[:8])
        samples[name] = []
        for _ in range(LEAK_CALLS):
            server.stub.ModelInfer(request, timeout=WAIT)
            samples[name].append(resident_bytes(server.process.pid))
    report("20 (control)", **{name: f"{growth(s) / 1e6:.1f} MB" for name, s in samples.items()})
    assert is_flat(samples["sound"])
    assert not is_flat(samples["leaking"])
