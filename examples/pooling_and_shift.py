"""What pooling does to a shifted image, and a CNN beside a fully connected network, measured.

    pip install 'convserve[plots]'
    python examples/pooling_and_shift.py [--quick] [docs/images/pooling]

Trains small networks on the embedded digits (a few minutes; --quick: one epoch of a few, to see
that it runs), prints the tables of docs/pooling-and-shift.md and draws its figures.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from convolution_figures import INK, LINE, SOFT, save, write
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

import convserve
from convserve import Graph, datasets, kernels, layers
from convserve.datasets import Dataset
from convserve.engine.model import Model
from convserve.feature_maps import draw
from convserve.graph import summarise

COLOURS = {
    "fully connected": "#868e96",
    "no pooling": "#0f7b8a",
    "average pooling": "#8d7fc4",
    "max pooling": "#4c3a8f",
    "max, then global average": "#d9541e",
}
NUDGE = {"max pooling": 2.5, "no pooling": -2.5}  # percent, so that names do not meet
SHIFTS = range(5)  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("docs/images/pooling"))
    parser.add_argument("--quick", action="store_true", help="a try: few images, one epoch")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    data, epochs, seeds = datasets.load(), 8, 3
    if options.quick:
        few = np.arange(100)
        data = replace(data, train=data.train.take(few), test=data.test.take(few))
        epochs, seeds = 1, 1

    shift_table, model = accuracy_by_shift(data, epochs, seeds, options.folder)
    print(*shift_table, "", sep="\n", flush=True)
    print(*maps_by_shift(model, data, options.folder), "", sep="\n", flush=True)
    print(*cnn_and_dense(data, epochs, seeds, options.quick, options.folder), sep="\n")
    feature_maps(model, data, options.folder)


def cnn(kind: str, widths: tuple[int, int] = (8, 16)) -> Graph:
    """Two convolutions of 5×5, each with what `kind` says after it, and one affine layer."""
    graph = Graph((1, 28, 28))
    for width in widths:
        graph.add(layers.Conv2d(width, 5, padding=2))
        graph.add(layers.ReLU())
        if kind == "average pooling":
            graph.add(layers.AvgPool2d(2))
        elif kind.startswith("max"):
            graph.add(layers.MaxPool2d(2))
    if kind.endswith("global average"):
        graph.add(layers.GlobalAvgPool2d())
    return classifier(graph)


def dense(hidden: int) -> Graph:
    """One hidden layer."""
    graph = Graph((1, 28, 28))
    graph.add(layers.Flatten())
    graph.add(layers.Affine(hidden))
    graph.add(layers.ReLU())
    graph.add(layers.Affine(10))
    graph.add(layers.Softmax())
    return graph


def classifier(graph: Graph) -> Graph:
    graph.add(layers.Flatten())
    graph.add(layers.Affine(10))
    graph.add(layers.Softmax())
    return graph


def train(graph: Graph, data: Dataset, epochs: int, seed: int) -> Model:
    """Trained on the digits as they are: no shifted ones among them."""
    result = convserve.train(graph, data, epochs=epochs, seed=seed, shift=0, optimiser="adamw")
    return Model.from_file(result.model)


def shifted(x: np.ndarray, down: int, right: int) -> np.ndarray:
    """Images moved by so many pixels; what comes in is black, what leaves is lost."""
    height, width = x.shape[-2:]
    room = max(SHIFTS)
    wide = np.pad(x, ((0, 0), (0, 0), (room, room), (room, room)))
    return wide[..., room - down :, room - right :][..., :height, :width]


def accuracy(model: Model, data: Dataset, pixels: int) -> float:
    """Percent, the mean over moves up, down, left and right."""
    moves = [(pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels)] if pixels else [(0, 0)]
    x, y = data.test.x, data.test.y
    right = [(model.predict(shifted(x, *move)).argmax(axis=1) == y).mean() for move in moves]
    return 100 * float(np.mean(right))


def cost(graph: Graph) -> tuple[int, int]:
    """Parameters, and multiply-accumulates for an image."""
    rows = summarise(graph)
    return sum(row.parameters for row in rows), sum(row.macs for row in rows)


def accuracy_by_shift(
    data: Dataset, epochs: int, seeds: int, folder: Path
) -> tuple[list[str], Model]:
    """A table, a figure, and the first network with max pooling."""
    graphs = {kind: cnn(kind) for kind in list(COLOURS)[1:]}
    graphs = {"fully connected": dense(128), **graphs}
    heads = " | ".join(f"{pixels} px" for pixels in SHIFTS)
    table = [f"| network | parameters | {heads} |", f"|---|---:|{'---:|' * len(SHIFTS)}"]
    figure = Figure(figsize=(7.2, 3.4), layout="constrained")
    axes = figure.subplots()
    kept: Model | None = None
    for kind, graph in graphs.items():
        models = [train(graph, data, epochs, seed) for seed in range(seeds)]
        if kind == "max pooling":
            kept = models[0]
        means = [np.mean([accuracy(m, data, pixels) for m in models]) for pixels in SHIFTS]
        cells = " | ".join(f"{mean:.1f} %" for mean in means)
        table.append(f"| {kind} | {cost(graph)[0]:,} | {cells} |")
        axes.plot(SHIFTS, means, "o-", color=COLOURS[kind], markersize=5)
        up = NUDGE.get(kind, 0.0)
        axes.text(
            SHIFTS[-1] + 0.1, means[-1] + up, kind, color=COLOURS[kind], va="center", fontsize=9
        )
    polish(axes, "test images moved by, pixels", "accuracy, %")
    axes.set(xlim=(-0.1, 5.6), xticks=list(SHIFTS))
    save(figure, folder / "shift-accuracy.png")
    assert kept is not None
    return table, kept


def maps_by_shift(model: Model, data: Dataset, folder: Path) -> list[str]:
    """How much of a map changes when the image moves: the map, and the map pooled."""
    x, count = data.test.x[:200], len(data.test.x[:200])

    def maps(x: np.ndarray) -> dict[str, np.ndarray]:
        relu = model.predict(x, outputs=["relu1"])["relu1"]
        return {
            "not pooled": relu,
            "average 2×2": kernels.avg_pool2d(relu, 2),
            "max 2×2": kernels.max_pool2d(relu, 2),
            "max 4×4": kernels.max_pool2d(relu, 4),
            "max 7×7": kernels.max_pool2d(relu, 7),
            "global average": kernels.global_avg_pool2d(relu),
        }

    still, moved = maps(x), [maps(shifted(x, 0, pixels)) for pixels in (1, 2)]
    table = ["| first feature maps | moved by 1 px | by 2 px |", "|---|---:|---:|"]
    for name, before in still.items():
        changes = [
            np.linalg.norm((m[name] - before).reshape(count, -1), axis=1)
            / np.linalg.norm(before.reshape(count, -1), axis=1)
            for m in moved
        ]
        table.append(f"| {name} | " + " | ".join(f"{100 * c.mean():.0f} %" for c in changes) + " |")

    shown = int(np.flatnonzero(data.test.y == 4)[0])
    channel = int(still["not pooled"][shown].sum(axis=(1, 2)).argmax())
    rows = {
        "not pooled": "not pooled, 28×28",
        "max 2×2": "max 2×2, 14×14",
        "max 4×4": "max 4×4, 7×7",
    }
    figure = Figure(figsize=(7.2, 4.9), layout="constrained")
    grid = figure.subplots(len(rows), 4)
    for place, (row, (name, title)) in enumerate(zip(grid, rows.items(), strict=True)):
        first, second = still[name][shown, channel], moved[0][name][shown, channel]
        top = still["not pooled"][shown, channel].max()
        images = {"image": x[shown, 0], "its map": first, "moved by 1 px": second}
        images["difference"] = np.abs(second - first)
        for axes, (what, values) in zip(row, images.items(), strict=True):
            grey = what == "image"
            axes.imshow(values, "gray" if grey else "inferno", vmin=0, vmax=255 if grey else top)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color(LINE)
            if place == 0:
                axes.set_title(what, fontsize=9, color=INK)
        row[0].set_ylabel(title, fontsize=9, color=INK)
    save(figure, folder / "shift-maps.png")
    return table


def cnn_and_dense(data: Dataset, epochs: int, seeds: int, quick: bool, folder: Path) -> list[str]:
    """Networks of several sizes of both kinds: accuracy beside what they cost."""
    widths = [(2, 4)] if quick else [(2, 4), (3, 6), (4, 8), (8, 16), (16, 32)]
    hidden = [32] if quick else [16, 32, 64, 128, 256, 512, 1024]
    kinds = {
        "max pooling": {f"CNN, {a} and {b} filters": cnn("max pooling", (a, b)) for a, b in widths},
        "fully connected": {f"fully connected, {h} hidden": dense(h) for h in hidden},
    }
    table = ["| network | parameters | MACs | accuracy |", "|---|---:|---:|---:|"]
    found: dict[str, list[tuple[str, int, int, float]]] = {}
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for kind, graphs in kinds.items():
        points = found[kind] = []
        for name, graph in graphs.items():
            reached = [accuracy(train(graph, data, epochs, s), data, 0) for s in range(seeds)]
            parameters, macs = cost(graph)
            points.append((name, parameters, macs, float(np.mean(reached))))
            table.append(f"| {name} | {parameters:,} | {macs:,} | {points[-1][3]:.1f} % |")
        _, x, y, z = zip(*points, strict=True)
        label = "CNN" if kind == "max pooling" else kind
        left.plot(x, z, "o-", color=COLOURS[kind], markersize=5, label=label)
        right.plot(y, z, "o-", color=COLOURS[kind], markersize=5, label=label)
    for axes, title in ((left, "parameters"), (right, "multiply-accumulates")):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        polish(axes, title, "accuracy, %" if axes is left else "")
    left.legend(loc="lower right", frameon=False, fontsize=9)
    save(figure, folder / "cnn-dense.png")
    return [*table, "", *at_equal_accuracy(*found.values())]


def at_equal_accuracy(cnns: list, denses: list) -> list[str]:
    """Beside each CNN the smallest fully connected network that is as accurate."""
    table = [
        "| CNN | as accurate, fully connected | times the parameters | times the MACs |",
        "|---|---|---:|---:|",
    ]
    for name, parameters, macs, reached in cnns:
        equal = next((dense for dense in denses if dense[3] >= reached), None)
        if equal is None:
            table.append(f"| {name.removeprefix('CNN, ')} | none of these | | |")
            continue
        other, more, work, _ = equal
        ratios = f"{more / parameters:.0f} | {work / macs:.1f}"
        cells = (name.removeprefix("CNN, "), other.removeprefix("fully connected, "), ratios)
        table.append(f"| {' | '.join(cells)} |")
    return table


def feature_maps(model: Model, data: Dataset, folder: Path) -> None:
    names = ["relu1", "pool1", "relu2", "pool2", "output"]
    pixels = data.test.x[int(np.flatnonzero(data.test.y == 4)[0])]
    maps = model.predict(pixels[None], outputs=names)
    drawn = draw(pixels, {name: maps[name][0] for name in names}, model.labels)
    write(drawn, folder / "feature-maps.png")


def polish(axes, across: str, up: str) -> None:
    axes.set_xlabel(across, color=SOFT)
    axes.set_ylabel(up, color=SOFT)
    axes.grid(color="#eef0f3")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(LINE)
    axes.tick_params(color=LINE, labelcolor=SOFT, which="both")


if __name__ == "__main__":
    main()
