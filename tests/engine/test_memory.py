"""What loading takes at its peak, and that predicting allocates nothing but its results."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from convserve import Graph, architectures, layers, model_file
from convserve.model_file import ModelFile

# Counts calls that ask the C library for `LARGE` bytes or more; smaller ones are the
# interpreter's own objects.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>
#define LARGE 1024
static atomic_long count;
long large_allocations(void) { return count; }
#define NEXT(name) real = real ? real : dlsym(RTLD_NEXT, name)
void *malloc(size_t n) {
    static void *(*real)(size_t);
    NEXT("malloc");
    count += n >= LARGE;
    return real(n);
}
void *realloc(void *p, size_t n) {
    static void *(*real)(void *, size_t);
    NEXT("realloc");
    count += n >= LARGE;
    return real(p, n);
}
int posix_memalign(void **p, size_t alignment, size_t n) {
    static int (*real)(void **, size_t, size_t);
    NEXT("posix_memalign");
    count += n >= 64;
    return real(p, alignment, n);
}
void *mmap(void *a, size_t n, int protection, int flags, int file, long offset) {
    static void *(*real)(void *, size_t, int, int, int, long);
    NEXT("mmap");
    count++;
    return real(a, n, protection, flags, file, offset);
}
"""

COUNT = r"""
import ctypes, sys
import numpy as np
import convserve
count = ctypes.CDLL(None).large_allocations
count.restype = ctypes.c_long
model = convserve.load(sys.argv[1], threads=2)
x = np.ones((16, *model.input_shape), np.float32)
for n in (1, 16) * 20:                  # both ways of sharing, and numpy's cache of small arrays
    model.predict(x[:n])
before = count()
for n in (1, 16) * 100:
    model.predict(x[:n])
in_steady_state = count() - before
big = [np.empty(100_000) for _ in range(10)]
print(in_steady_state, count() - before - in_steady_state)
"""

PEAK = r"""
import sys
import convserve, convserve.engine.model
def kib(key):
    with open("/proc/self/status") as status:
        return int(dict(line.split(":", 1) for line in status)[key].split()[0])
before = kib("VmRSS")
model = convserve.load(sys.argv[1])
print((kib("VmHWM") - before) * 1024)
"""


def run(code: str, *arguments: object, **environment: str) -> list[int]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    env = {**os.environ, **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to build the counter with")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer counts allocations itself")
def test_predicting_allocates_nothing_but_the_results(tmp_path: Path) -> None:
    source, shim, model = tmp_path / "shim.c", tmp_path / "shim.so", tmp_path / "model.npz"
    source.write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, source, "-ldl"], check=True)
    graph = architectures.build("deep_convnet")
    model_file.save(model, ModelFile(graph, graph.initialise(0)))
    steady, control = run(COUNT, model, LD_PRELOAD=str(shim))
    assert control >= 10, "the counter does not count"
    assert steady == 0


@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer's own memory counts too")
def test_loading_takes_at_most_three_times_the_weights(tmp_path: Path) -> None:
    graph = Graph((64, 7, 7))
    for channels in (512, 2048, 512, 2048, 512, 2048, 512):
        graph.add(layers.Conv2d(channels, 1, bias=False))
        graph.add(layers.BatchNorm())
        graph.add(layers.ReLU())
    path = tmp_path / "model.npz"
    model_file.save(path, ModelFile(graph, graph.initialise(0)))
    (peak,) = run(PEAK, path)
    assert peak <= 3 * path.stat().st_size, f"{peak / path.stat().st_size:.2f} times the file"
