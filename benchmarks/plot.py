"""The picture of the model rows: each contestant's images/s relative to the best peer's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.contestants import OURS, PEERS
from benchmarks.ratios import Row, best_peer, rate, ratio_to_best

COLOURS = {"onnxruntime": "#4c72b0", "openvino": "#8172b3", "torch": "#dd8452",
           "ncnn": "#55a868", "mnn": "#937860"}  # fmt: skip


def draw(path: Path, rows: Sequence[Row]) -> None:
    """A PNG of the rows with the most threads; every row has a best peer and ours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    threads = max(row.threads for row in rows)
    rows = [row for row in rows if row.threads == threads]
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.28 * len(rows)), layout="constrained")
    places = range(len(rows) - 1, -1, -1)
    for peer in PEERS:
        points = [(r / _best(row), y) for row, y in zip(rows, places, strict=True)
                  if (r := rate(row, peer)) is not None]  # fmt: skip
        if points:
            axes.scatter(*zip(*points, strict=True), s=18, color=COLOURS[peer], label=peer)
    for row, y in zip(rows, places, strict=True):
        ours = ratio_to_best(row, PEERS)
        assert ours is not None
        axes.barh(y, ours.median, height=0.62, color="#c44e52", alpha=0.3, zorder=0)
        axes.hlines(y, ours.low, ours.high, color="#c44e52", linewidth=1)
        axes.scatter(ours.median, y, s=42, marker="D", color="#c44e52",
                     label=OURS if y == 0 else None)  # fmt: skip
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    ticks = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5]
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.set_yticks(list(places), [f"{row.name}, batch {row.batch}" for row in rows])
    axes.set_xlabel(f"images/s relative to the best peer, {threads} threads")
    figure.legend(loc="outside upper center", ncols=6, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _best(row: Row) -> float:
    best = best_peer(row, PEERS)
    assert best is not None
    value = rate(row, best)
    assert value is not None
    return value
