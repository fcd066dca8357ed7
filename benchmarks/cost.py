"""The cost model beside measurement: python -m benchmarks.cost [--fit] [--save FILE | --from FILE]

Every layer of benchmarks/shapes/*.txt is run as a plan of its own, by each kernel that can, one
image and a whole group at a time, on one thread. The kernels take turns, and the shortest of many
times counts, so that a busy machine does little harm. Printed are measured and predicted times, how
far the model is off, and what its choices cost against the best kernel and against F(4, 3)
everywhere. CONVSERVE_ISA chooses the instruction set. With --fit the constants that fit best.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from math import exp, log
from pathlib import Path

import numpy as np

from benchmarks.shapes import Layer, read_layers
from convserve import Graph, kernels, layers
from convserve.plan import Choice, Plan, compile_plan, cost

SHAPES = Path(__file__).parent / "shapes"
KERNELS = ("direct", "winograd2", "winograd4", "winograd6")
LONG = 3e6  # nanoseconds: about as long as a busy machine leaves a process alone
FEWEST = 7  # rounds
EVICT_FLOATS = 1 << 20  # four times a second-level cache


@dataclass
class Sample:
    """One kernel on one layer: nanoseconds for `images` images."""

    layer: str
    kernel: str
    images: int
    measured: float
    predicted: float


def measure(layer: Layer, seconds: float) -> Iterator[Sample]:
    """The layer by each kernel that can compute it."""
    plans = {}
    for wanted in KERNELS:
        plan = _plan(layer, wanted)
        plans.setdefault(_part(plan).kernel.name, plan)
    rng = np.random.default_rng(0)
    evicting = np.zeros(EVICT_FLOATS, np.float32)
    group = _part(next(iter(plans.values()))).group
    for images in sorted({1, group}):
        x = rng.standard_normal((images, *layer.input_shape), dtype=np.float32)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in plans}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(next(iter(taken.values()))) < FEWEST:
            for name, plan in plans.items():
                evicting += 1  # in a network the weights have not just been used
                taken[name].append(_nanoseconds(plan, x))
        for name, plan in plans.items():
            walls, shares = zip(*taken[name], strict=True)
            best = min(walls) if min(walls) < LONG else float(np.median(shares))
            yield Sample(str(layer), name, images, best, _part(plan).nanoseconds(images))


def _nanoseconds(plan: Plan, x: np.ndarray) -> tuple[float, float]:
    """The convolution's time in a call, and what of it this process had the core for, about."""
    wall, cpu = time.perf_counter(), time.thread_time()
    spent = 1e9 * float(plan.profile(x, runs=1)[0][plan.parts.index(_part(plan))])
    wall, cpu = time.perf_counter() - wall, time.thread_time() - cpu
    return spent, spent * min(1.0, cpu / wall)


def _plan(layer: Layer, kernel: str) -> Plan:
    graph = Graph(layer.input_shape)
    options = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
    graph.add(layers.Conv2d(layer.filters, layer.kernel, rounding="floor", **options))
    graph.add(layers.ReLU())
    params = graph.initialise(np.random.default_rng(0))
    return compile_plan(graph, params, choice=Choice(kernel=kernel))


def _part(plan: Plan):
    return next(part for part in plan.parts if part.macs)


def every_layer() -> list[Layer]:
    """The layers of all shape files, each once, whatever network it is from."""
    seen = {}
    for path in sorted(SHAPES.glob("*.txt")):
        for layer in read_layers(path):
            seen.setdefault(str(layer).split(" ", 1)[1] + str(layer.padding), layer)
    return list(seen.values())


def report(samples: list[Sample]) -> None:
    """Measured and predicted, and what the choices cost."""
    for s in samples:
        ratio = s.predicted / s.measured
        print(
            f"{s.layer:<44}{s.kernel:<11}{s.images:>3}{s.measured / 1e3:>11.1f} µs"
            f"{s.predicted / 1e3:>11.1f} µs{ratio:>7.2f}"
        )
    errors = np.abs([log(s.predicted / s.measured) for s in samples])
    worst = exp(errors.max())
    print(f"typical error (median) ×{exp(np.median(errors)):.2f}, 90 % within "
          f"×{exp(np.quantile(errors, 0.9)):.2f}, worst ×{worst:.2f}")  # fmt: skip
    times: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    for s in samples:
        times[s.layer, s.images].append(s)
    losses = []
    for (name, images), group in times.items():
        if len(group) > 1:
            best = min(group, key=lambda s: s.measured)
            taken = min(group, key=lambda s: s.predicted)
            losses.append(taken.measured / best.measured)
            if losses[-1] > 1.02:
                print(f"{name}, {images} images: {taken.kernel} predicted, {best.kernel} is "
                      f"{100 * losses[-1] - 100:.0f} % faster")  # fmt: skip
    print(f"choices: {np.mean(losses) * 100 - 100:.1f} % slower than the best kernel on average")


def fit(samples: list[Sample], parts: dict[tuple[str, str], object]) -> None:
    """Coordinate descent on the logarithm of each constant; prints the machine."""
    machine = cost.machines[kernels.isa()]

    def loss() -> float:
        total = 0.0
        for s in samples:
            error = log(parts[s.layer, s.kernel].nanoseconds(s.images) / s.measured)
            total += (error**2 + 0.05**2) ** 0.5  # outliers were measured wrong
        return total / len(samples)

    def error_with(candidate: cost.Machine) -> float:
        cost.machines[kernels.isa()] = candidate
        return loss()

    best = error_with(machine)
    for step in (1.5, 1.2, 1.1, 1.05, 1.02):
        improved = True
        while improved:
            improved = False
            for f in fields(machine):
                for factor in (step, 1 / step):
                    tried = replace(machine, **{f.name: getattr(machine, f.name) * factor})
                    error = error_with(tried)
                    if error < best * 0.9999:
                        machine, best, improved = tried, error, True
    cost.machines[kernels.isa()] = machine
    print(", ".join(f"{k}={v:.3g}" for k, v in asdict(machine).items()), f"mean {best:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="print constants that fit better")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each layer and batch")
    parser.add_argument("--save", type=Path, help="write the samples, as JSON lines")
    parser.add_argument("--from", dest="source", type=Path, help="samples instead of measuring")
    options = parser.parse_args()
    everything = every_layer()
    parts = {}
    for layer in everything:
        for name in KERNELS:
            part = _part(_plan(layer, name))
            parts[str(layer), part.kernel.name] = part
    if options.source:
        lines = options.source.read_text("utf-8").splitlines()
        samples = [Sample(**json.loads(line)) for line in lines]
        samples = [s for s in samples if (s.layer, s.kernel) in parts]
    else:
        samples = [s for layer in everything for s in measure(layer, options.seconds)]
    if options.save:
        options.save.write_text("".join(json.dumps(asdict(s)) + "\n" for s in samples), "utf-8")
    if options.fit:
        fit(samples, parts)
    for s in samples:
        s.predicted = parts[s.layer, s.kernel].nanoseconds(s.images)
    report(samples)


if __name__ == "__main__":
    main()
