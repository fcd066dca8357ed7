"""`make bench-training`: both train the same networks, in turn, in processes of their own."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from benchmarks.process import Process
from benchmarks.sections import write_section
from benchmarks.training import networks
from benchmarks.training.networks import CASES, Case
from benchmarks.training.report import Row, markdown

MODULE = "benchmarks.training.worker"
CHECKED_IMAGES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", type=Path, required=True, help="Python that has PyTorch")
    parser.add_argument("--models", default=",".join(case.name for case in CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--docs", type=Path, help="where to write the report")
    options = parser.parse_args()
    rows, load = [], os.getloadavg()[0]
    for case in [case for case in CASES if case.name in options.models.split(",")]:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(_row(case, options, Path(folder)))
        print(rows[-1].text(), flush=True)
    if options.docs:
        text = markdown(rows, options.rounds, options.seconds, load)
        write_section(options.docs, "training", text)


def _row(case: Case, options: argparse.Namespace, folder: Path) -> Row:
    path = str(networks.write(case.name, folder))
    environment = {"OMP_NUM_THREADS": str(options.threads)}
    pythons = {"ours": Path(sys.executable), "torch_peer": options.torch}
    row = Row(case.name, case.batch, case.target)
    with ExitStack() as stack:

        def process(name: str) -> Process:
            python, log = pythons[name], folder / f"{name}.log"
            started = Process(python, name, log, environment, module=MODULE)
            stack.callback(started.close)
            return started

        # What tries settings and compares gradients has used more memory than what is measured.
        load = {"path": path, "batch": case.batch, "threads": options.threads}
        for name in pythons:
            trial = process(name)
            trial.ask("gradients", path=path, batch=CHECKED_IMAGES, to=str(folder / f"{name}.npz"))
            answer = trial.ask("load", **load, setting=None)
            row.settings[name], row.versions[name] = answer["setting"], answer["version"]
            trial.close()
        row.difference = _difference(folder / "ours.npz", folder / "torch_peer.npz")
        workers = {name: process(name) for name in pythons}
        for name, worker in workers.items():
            worker.ask("load", **load, setting=row.settings[name])
        order = random.Random(0)
        for _ in range(options.rounds):
            for name in order.sample(list(workers), len(workers)):
                answer = workers[name].ask("time", seconds=options.seconds)
                row.rates.setdefault(name, []).append(answer["rate"])
                row.peak_mb[name] = answer["peak_mb"]
    return row


def _difference(ours: Path, theirs: Path) -> float:
    """The largest, of all parameters, root mean square difference relative to PyTorch's gradient.

    Not of single values: where two inputs of a pooling window are equal but for rounding, the
    gradient may go to either.
    """
    with np.load(ours) as a, np.load(theirs) as b:
        if set(a) != set(b):
            raise ValueError(f"gradients of different parameters: {set(a) ^ set(b)}")
        scale = max(float(np.sqrt(np.square(b[name]).mean())) for name in b)
        return max(
            float(np.sqrt(np.square(a[name] - b[name]).mean()))
            / max(float(np.sqrt(np.square(b[name]).mean())), 1e-3 * scale)
            for name in b
        )


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[2])
    main()
