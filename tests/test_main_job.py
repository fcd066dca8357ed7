"""The main job from end to end: train, evaluate, serve, and ask in every way for the same scores.

On the 10,000 test images of MNIST where the shared data are there, else on the embedded sample's
2,000.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton
from PIL import Image

import convserve
from convserve import datasets
from convserve.cli._child_server import child_server
from convserve_client import Client

SHARED = Path(__file__).parents[2] / "shared" / "data" / "mnist"


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", "convserve", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """(model path, test pixels uint8[N, 1, 28, 28], labels, folder of the same as PNG files)."""
    folder = tmp_path_factory.mktemp("main_job")
    model = folder / "lenet.npz"
    run("train", "--arch", "lenet", "--epochs", 1, "--out", model)
    test = datasets.load(f"mnist:{SHARED}" if SHARED.is_dir() else None).test
    digits = folder / "digits"
    digits.mkdir()
    for number, pixels in enumerate(test.x):
        Image.fromarray(pixels[0]).save(digits / f"{number:05d}.png", compress_level=1)
    return model, test.x, test.y, digits


@pytest.fixture(scope="module")
def scores(job):
    model, pixels, _, _ = job
    return convserve.load(model).predict(pixels)


@pytest.fixture(scope="module")
def address(job):
    with child_server(job[0]) as address:
        yield address


def same(found: np.ndarray, scores: np.ndarray) -> None:
    assert found.dtype == scores.dtype and found.shape == scores.shape
    assert (found.view(np.int32) == scores.view(np.int32)).all()


def test_any_batches_in_process(job, scores):
    model = convserve.load(job[0])
    rng = np.random.default_rng(0)
    parts, at = [], 0
    while at < len(scores):
        size = int(rng.integers(1, 200))
        parts.append(model.predict(job[1][at : at + size]))
        at += size
    same(np.concatenate(parts), scores)


def test_eval_counts_the_same(job, scores):
    spec = f"mnist:{SHARED}" if SHARED.is_dir() else None
    last = run("eval", job[0], *(["--data", spec] if spec else [])).splitlines()[-1]
    accuracy = float(re.fullmatch(r"accuracy (\d+\.\d\d) %", last)[1])
    assert accuracy == round(100 * float((scores.argmax(axis=1) == job[2]).mean()), 2)
    assert accuracy > 90


@pytest.mark.parametrize("where", ["model", "server"])
def test_classify_a_folder(job, scores, address, where, tmp_path):
    output = tmp_path / "scores.csv"
    source = ["--model", job[0]] if where == "model" else ["--server", address]
    run("classify", job[3], *source, "--top-k", 10, "--output", output)
    found = np.full_like(scores, np.nan)
    with output.open(newline="") as file:
        for row, line in zip(found, csv.DictReader(file), strict=True):
            for k in range(1, 11):
                row[int(line[f"label_{k}"])] = np.float32(line[f"score_{k}"])
    same(found, scores)


def test_our_client(job, scores, address):
    model, pixels, _, digits = job
    normalised = convserve.load(model).preprocessing.normalise(pixels)
    with Client(address) as client:
        same(client.predict(pixels), scores)
        same(np.concatenate([client.predict(p) for p in np.array_split(normalised, 77)]), scores)
        same(np.stack(list(client.predict_many(pixels[:2000], batch=7))), scores[:2000])
        ranked = client.classify(sorted(digits.iterdir())[:1000], top_k=10)
    found = np.full_like(scores[:1000], np.nan)
    for row, ranking in zip(found, ranked, strict=True):
        for label, score in ranking:
            row[int(label)] = score
    same(found, scores[:1000])


def test_tritonclient(job, scores, address):
    normalised = convserve.load(job[0]).preprocessing.normalise(job[1])
    client = triton.InferenceServerClient(address)
    parts = []
    for part in np.array_split(normalised, len(normalised) // 50):
        tensor = triton.InferInput("input", list(part.shape), "FP32")
        tensor.set_data_from_numpy(part)
        parts.append(client.infer("lenet", [tensor]).as_numpy("output"))
    client.close()
    same(np.concatenate(parts), scores)
