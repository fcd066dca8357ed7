"""Measure convserve beside its peers: `make bench`, or `python -m benchmarks.run --help`."""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import report, results
from benchmarks.contestants import OURS, OURS_1_THREAD, OURS_BY_BATCH, PEERS
from benchmarks.models import NETWORKS, Network, write_layer, write_network
from benchmarks.ratios import Row, best_peer, rate, ratio_to_best, read_expected, suspects
from benchmarks.results import Run
from benchmarks.rounds import Plan, measure
from benchmarks.shapes import read_layers

SHAPES = Path(__file__).with_name("shapes")
LAYER_PEERS = ("onnxruntime", "ncnn")
LAYER_BATCHES = (1, 8)
SMALL = 32  # pixels: up to here a network is measured with larger batches
SMALL_BATCHES = (1, 32, 256)
LARGE_BATCHES = (1, 8)
QUICK_MODELS = ("lenet", "deep_convnet", "resnet20", "cifar_vgg", "mobilenet_v2")


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    names = lambda text: [part for part in text.split(",") if part]  # noqa: E731
    counts = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    add = parser.add_argument
    add("--models", type=names, metavar="A,B", help="'' for none; " + ",".join(NETWORKS))
    add("--layers", nargs="*", type=Path, metavar="FILE", help=f"files of layers [{SHAPES}/*.txt]")
    add("--no-layers", action="store_true", help="models only")
    add("--peers", type=names, default=list(PEERS), metavar="A,B", help=",".join(PEERS))
    add(
        "--threads",
        type=counts,
        default=[1, 2],
        metavar="N,N",
        help="of models; layers take the most",
    )
    add("--batches", type=counts, metavar="N,N", help="[1,32,256 up to 32 pixels, 1,8 above]")
    add("--rounds", type=int, help="[11; 3 if quick]")
    add("--seconds", type=float, help="of each contestant in a round [0.3; 0.15 if quick]")
    add("--quick", action="store_true", help="five models, no layers, most threads, few rounds")
    add("--resume", action="store_true", help="go on with the results file: skip its rows")
    add("--update", action="store_true", help="keep the results file: measure rows of it again")
    add("--convserve", type=Path, default=Path(sys.executable), metavar="PYTHON",
        help="the interpreter that has convserve")  # fmt: skip
    add("--results", type=Path, default=Path("runs/bench/results.jsonl"))
    add("--docs", type=Path, help="write the Markdown report here, and its plot beside it")
    given = parser.parse_args(arguments)
    if given.models is None:
        given.models = list(QUICK_MODELS if given.quick else NETWORKS)
    given.rounds = given.rounds or (3 if given.quick else 11)
    given.seconds = given.seconds or (0.15 if given.quick else 0.3)
    for kind, known in (("models", NETWORKS), ("peers", PEERS)):
        if unknown := set(getattr(given, kind)) - set(known):
            parser.error(f"--{kind}: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if min(*given.threads, *(given.batches or [1]), given.rounds) < 1 or given.seconds <= 0:
        parser.error("--threads, --batches, --rounds and --seconds must be above 0")
    if given.quick:
        given.threads = [max(given.threads)]
        given.batches = given.batches or [1, 32]
        given.no_layers = given.no_layers or given.layers is None
    return given


def cases(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Network, int, int]]:
    """What to measure, each network written when it is its turn."""
    for name in given.models:
        network = write_network(name, folder)
        small = network.input_shape[1] <= SMALL
        batches = given.batches or (SMALL_BATCHES if small else LARGE_BATCHES)
        if given.quick and not small:
            batches = [1]
        for threads in given.threads:
            for batch in batches:
                yield "model", network, batch, threads
    files = [] if given.no_layers else given.layers or sorted(SHAPES.glob("*.txt"))
    layers = dict.fromkeys(layer for file in files for layer in read_layers(file))
    for layer in layers:
        network = write_layer(layer, folder)
        for batch in given.batches or LAYER_BATCHES:
            yield "layer", network, batch, max(given.threads)


def contestants(kind: str, threads: int, peers: Sequence[str]) -> list[str]:
    """A reference comes first: ONNX Runtime stands at the head of the peers."""
    if kind == "layer":
        return [peer for peer in LAYER_PEERS if peer in peers] + [OURS]
    scaling = [OURS_1_THREAD] if threads > 1 else []
    return [peer for peer in PEERS if peer in peers] + [OURS, OURS_BY_BATCH, *scaling]


def main() -> None:
    given = options()
    given.results.parent.mkdir(parents=True, exist_ok=True)
    folder = (given.results.parent / "models").resolve()
    folder.mkdir(exist_ok=True)
    run = Run(
        results.describe_cpu(), len(os.sched_getaffinity(0)), datetime.date.today().isoformat(),
        given.rounds, given.seconds, not given.quick,
    )  # fmt: skip
    done: set[tuple[str, str, int, int]] = set()
    if not (given.resume or given.update) or not given.results.exists():
        results.start(given.results, run)
    elif given.resume:
        done = {row.key for row in results.read(given.results)[1]}
    expected = read_expected(report.EXPECTED)
    for kind, network, batch, threads in cases(given, folder):
        if (kind, network.name, batch, threads) in done:
            continue
        began = time.monotonic()
        plan = Plan(
            contestants(kind, threads, given.peers), given.rounds, given.seconds,
            run.slow_settings, Path(sys.executable), given.convserve, folder,
        )  # fmt: skip
        row = measure(kind, network, batch, threads, plan)
        results.append(given.results, row)
        show(row, given.peers, time.monotonic() - began)
        for text in suspects(row, expected):
            print(f"  suspect: {text}", flush=True)
    if given.docs:
        report.write(given.docs, *results.read(given.results), expected)
        print(f"written: {given.docs}")


def show(row: Row, peers: Sequence[str], seconds: float) -> None:
    """The row on the terminal, as soon as it is there."""
    best = best_peer(row, peers)
    print(f"{row.name}, batch {row.batch}, threads {row.threads}  ({seconds:.0f} s)")
    for name in [*row.rates, *(name for name in row.errors if name not in row.rates)]:
        value = rate(row, name)
        if value is None:
            print(f"    {name:<20} {row.errors[name]}")
            continue
        to_best = ratio_to_best(row, peers, name)
        words = f"{to_best.median:5.2f} ({to_best.low:.2f}-{to_best.high:.2f})" if to_best else ""
        mark = "*" if name == best else " "
        print(
            f"  {mark} {name:<20}{value:12,.1f} img/s {words}  diff {row.difference[name]:.0e}  "
            f"{row.settings[name]}"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("interrupted; --resume goes on")
