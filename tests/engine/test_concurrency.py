"""Many Python threads on the same models: exact answers, and memory that stays what it was.

`make soak-engine SECONDS=60` runs the first test for longer.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import reference

from convserve import architectures
from convserve.engine.model import Model
from convserve.kernels._packed import PackedConv
from convserve.model_file import ModelFile
from convserve.plan import compile_plan

CALLERS = 8
BATCHES = (1, 2, 3, 8, 17, 40)
SECONDS = float(os.environ.get("CONVSERVE_SOAK_SECONDS", "2"))
# bytes; AddressSanitizer keeps what was freed for a while
LIMIT = 400e6 if "LD_PRELOAD" in os.environ else 4e6


def make_model(name: str) -> Model:
    graph = architectures.build(name)
    return Model.from_file(ModelFile(graph, graph.initialise(0)), name=name)


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def highest_memory(futures: list[Future[int]]) -> int:
    """In half the time, unless one of the callers fails."""
    end, highest = time.monotonic() + SECONDS / 2, resident_bytes()
    while time.monotonic() < end and not any(future.done() for future in futures):
        time.sleep(0.02)
        highest = max(highest, resident_bytes())
    return highest


def test_eight_callers_get_the_same_bits_and_memory_is_flat() -> None:
    models = [make_model("lenet"), make_model("deep_convnet")]
    images = [np.random.default_rng(1).random((64, *m.input_shape), np.float32) for m in models]
    expected = [m.predict(x) for m, x in zip(models, images, strict=True)]
    warm, stop = threading.Barrier(CALLERS + 1, timeout=60), threading.Event()

    def calls(seed: int) -> int:
        rng = np.random.default_rng(seed)
        done = 0
        while not stop.is_set():
            i, n = int(rng.integers(len(models))), int(rng.choice(BATCHES))
            start = int(rng.integers(64 - n + 1))
            found = models[i].predict(images[i][start : start + n])
            reference.assert_same_bits(found, expected[i][start : start + n], model=i, batch=n)
            done += 1
            if done == 50:
                warm.wait()
        return done

    with ThreadPoolExecutor(CALLERS) as pool:
        futures = [pool.submit(calls, seed) for seed in range(CALLERS)]
        try:
            warm.wait()
            highest = [highest_memory(futures)]  # arenas come and go with the callers
            # Which of them is at its largest at the same time is chance, and may come late; a leak
            # grows in each period.
            for _ in range(6):
                highest.append(highest_memory(futures))
                growth = highest[-1] - max(highest[:-1])
                if growth < LIMIT:
                    break
        finally:
            stop.set()
        done = [future.result() for future in futures]
    print(
        f"{sum(done)} calls in {len(highest) * SECONDS / 2:g} s, "
        f"resident memory {growth / 1e6:+.2f} MB in the last half"
    )
    assert growth < LIMIT, f"{growth / 1e6:.1f} MB more after {sum(done)} calls"


def test_arenas_are_bounded_and_given_back() -> None:
    graph = architectures.build("deep_convnet")
    plan = compile_plan(graph, graph.initialise(0))
    executor, threads = plan._executor, 3
    x = np.zeros((8, *graph.input_shape), np.float32)
    barrier = threading.Barrier(CALLERS)

    def calls(_: int) -> None:
        for _ in range(5):
            barrier.wait(60)
            plan.run(x, threads)

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(calls, range(CALLERS)))
    # one for each caller, and those of the only call that may have the team of threads
    assert threads <= executor.held_arenas <= CALLERS + threads - 1
    held = executor.held_arenas
    for _ in range(3 * 1024):  # periods of a single caller
        plan.run(x[:1], 1)
    assert executor.held_arenas == max(1, held - (threads - 1) - 2) + threads - 1


def test_packing_weights_lets_other_threads_run():
    weight = np.ones((4096, 4096, 1, 1), np.float32)
    ticks, done = [0], threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks[0] += 1

    def ticked():
        before = ticks[0]
        PackedConv(weight, None, 1, 1)
        return ticks[0] - before > 3

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        assert any(ticked() for _ in range(10))  # a busy machine may not let it run each time
    finally:
        done.set()
        thread.join()
