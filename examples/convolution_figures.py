"""The pictures of convolution and pooling in docs/pooling-and-shift.md, and the numbers in them.

    pip install 'convserve[plots]'
    python examples/convolution_figures.py [docs/images/pooling]

All are computed by `convserve.kernels`; nothing is trained.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from convserve import datasets, kernels

VIOLET, ORANGE, INK, SOFT, LINE = "#4c3a8f", "#d9541e", "#212529", "#5c636a", "#dfe3e8"
SIGNED = LinearSegmentedColormap.from_list("signed", [VIOLET, "white", ORANGE])
MAPS = LinearSegmentedColormap.from_list(
    "maps", ["#0c0a2d", "#57156e", "#aa2f5e", "#e55c30", "#fba519", "#fcf7be"]
)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    digits = datasets.load().test
    digit = digits.x[int(np.flatnonzero(digits.y == 4)[0]), 0].astype(np.float32) / 255
    for name, figure in {
        "by-hand": by_hand(),
        "padding-stride": padding_and_stride(),
        "channels": channels(digit),
        "max-average": max_and_average(digit),
    }.items():
        save(figure, folder / f"{name}.png")


def by_hand() -> Figure:
    """One window of a 5×5 image: nine products, their sum, a bias."""
    image = np.array(
        [[0, 0, 3, 0, 0], [0, 1, 3, 0, 0], [0, 2, 3, 2, 0], [0, 0, 3, 1, 0], [0, 0, 3, 0, 0]],
        np.float32,
    )
    weight = np.array([[1, 0, -1], [2, 0, -2], [1, 0, -1]], np.float32)
    bias = 1.0
    result = kernels.conv2d(image[None, None], weight[None, None], np.array([bias], np.float32))
    result = result[0, 0]
    row, column = 1, 2
    window = image[row : row + 3, column : column + 3]
    products = " + ".join(
        f"{pixel:.0f}·{f'({w:.0f})' if w < 0 else f'{w:.0f}'}"
        for pixel, w in zip(window.ravel(), weight.ravel(), strict=True)
    )
    total = float((window * weight).sum() + bias)
    assert total == result[row, column]
    print(f"by hand: {products} + {bias:.0f} = {total:.0f}")

    figure = new_figure(7.4, 2.9)
    left, middle, right = figure.subplots(1, 3, width_ratios=(5, 3.4, 3.4))
    numbers(left, image, "image, 5×5", MAPS_SOFT, (0, 6))
    left.add_patch(frame(column, row, 3))
    numbers(middle, weight, "filter, 3×3, and bias 1", SIGNED, (-4, 4))
    numbers(right, result, "output, 3×3", SIGNED, (-16, 16))
    right.add_patch(frame(column, row, 1))
    figure.supxlabel(f"{products} + {bias:.0f} = {total:.0f}", fontsize=9, color=ORANGE)
    return figure


def padding_and_stride() -> Figure:
    """Where the middle of a 3×3 filter stands in a 7×7 image."""
    figure = new_figure(8, 2.75)
    image = np.ones((1, 1, 7, 7), np.float32)
    cases = [(0, 1), (1, 1), (0, 2), (1, 2)]
    for axes, (padding, stride) in zip(figure.subplots(1, len(cases)), cases, strict=True):
        weight = np.ones((1, 1, 3, 3), np.float32)
        size = kernels.conv2d(image, weight, stride=stride, padding=padding).shape[-1]
        formula = f"(7 + 2·{padding} − 3) / {stride} + 1 = {size}"
        print(f"padding {padding}, stride {stride}: {formula}")
        full = np.zeros((9, 9))
        full[1:8, 1:8] = 1
        for y, x in np.ndindex(9, 9):
            inside = full[y, x] == 1
            if inside or padding:
                axes.add_patch(
                    Rectangle(
                        (x - 0.5, y - 0.5), 1, 1, edgecolor="white", linewidth=1.5,
                        facecolor="#cfc8ea" if inside else LINE,
                    )
                )  # fmt: skip
        first = 1 - padding + 1
        places = first + stride * np.arange(size)
        x, y = np.meshgrid(places, places)
        axes.plot(x.ravel(), y.ravel(), "o", color=VIOLET, markersize=5)
        axes.add_patch(frame(first - 1, first - 1, 3))
        axes.set(xlim=(-0.7, 8.7), ylim=(8.7, -0.7), aspect="equal")
        axes.set_axis_off()
        axes.set_title(f"P = {padding}, S = {stride}", fontsize=10, color=INK)
        axes.text(4, 9.6, formula, ha="center", fontsize=8, color=SOFT)
    return figure


def channels(digit: np.ndarray) -> Figure:
    """A filter has a part for each channel; their sums make one map."""
    image = np.stack([0.15 + 0.85 * digit, 0.35 + 0.4 * digit, 0.75 - 0.55 * digit])
    image = image.astype(np.float32)
    rng = np.random.default_rng(4)
    line = np.array([[1, 0, -1]] * 3, np.float32) / 3
    weight = np.stack([
        np.stack([line, line, -line]),
        np.stack([line.T, line.T, -line.T]),
        rng.standard_normal((3, 3, 3)).astype(np.float32) / 3,
    ])  # fmt: skip
    maps = kernels.conv2d(image[None], weight, padding=1)[0]
    parts = " × ".join(map(str, weight.shape))
    print(f"channels: x 1 × 3 × 28 × 28, weight {parts}, y 1 × 3 × 28 × 28")
    batch = np.stack([image, image[::-1], image[:, ::-1]])
    alone = [kernels.conv2d(one[None], weight, padding=1)[0] for one in batch]
    assert (kernels.conv2d(batch, weight, padding=1) == np.stack(alone)).all()
    print(f"batch: {len(batch)} images at once have the bits of {len(batch)} images alone")

    figure = new_figure(8, 3.9)
    rows = [["image", f"x{i}", f"w{i}0", f"w{i}1", f"w{i}2", f"y{i}"] for i in range(3)]
    axes = figure.subplot_mosaic(rows, width_ratios=(1.2, 1, 0.5, 0.5, 0.5, 1))
    picture(axes["image"], image.transpose(1, 2, 0), "image")
    for i, name in enumerate(("red", "green", "blue")):
        picture(axes[f"x{i}"], image[i], name, "gray", (0, 1))
        for channel in range(3):
            title = f"filter {i + 1}" if channel == 1 else ""
            picture(axes[f"w{i}{channel}"], weight[i, channel], title, SIGNED, (-0.7, 0.7))
        picture(axes[f"y{i}"], maps[i], f"map {i + 1}", SIGNED, (-1.6, 1.6))
    return figure


def max_and_average(digit: np.ndarray) -> Figure:
    """A map of edges, pooled in five ways."""
    weight = np.array([[[[1, 0, -1]] * 3]], np.float32) / 3
    edges = kernels.relu(kernels.conv2d(digit[None, None], weight, padding=1))
    pooled = {
        "max 2×2": kernels.max_pool2d(edges, 2),
        "average 2×2": kernels.avg_pool2d(edges, 2),
        "max 4×4": kernels.max_pool2d(edges, 4),
        "average 4×4": kernels.avg_pool2d(edges, 4),
    }
    mean = kernels.global_avg_pool2d(edges).item()
    print(f"pooling: 28×28 → 14×14 → 7×7; highest value {edges.max():.2f}", end="")
    print("".join(f", {name} {values.max():.2f}" for name, values in pooled.items()), end="")
    print(f"; global average {mean:.3f}")
    figure = new_figure(8, 2.1)
    shown = {"edges on the right": edges, **pooled}
    for axes, (name, values) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        side = values.shape[-1]
        picture(axes, values[0, 0], f"{name}\n{side}×{side}", MAPS, (0, 1))
    return figure


MAPS_SOFT = LinearSegmentedColormap.from_list("soft", ["white", "#8d7fc4"])


def numbers(axes, values, title, colours, limits) -> None:
    """An array as a table on colours."""
    axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1])
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, f"{value:.0f}", ha="center", va="center_baseline", fontsize=11)
    axes.set_xticks(np.arange(values.shape[1] + 1) - 0.5, [])
    axes.set_yticks(np.arange(values.shape[0] + 1) - 0.5, [])
    axes.tick_params(length=0)
    axes.grid(color=LINE)
    axes.spines[:].set_color(LINE)
    axes.set_title(title, fontsize=10, color=INK)


def picture(axes, values, title, colours=None, limits=(0, 1)) -> None:
    """An array as pixels."""
    axes.imshow(values, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(LINE)
    axes.set_title(title, fontsize=9, color=INK)


def frame(column: float, row: float, side: int) -> Rectangle:
    """Around cells of an image."""
    return Rectangle(
        (column - 0.5, row - 0.5), side, side,
        fill=False, edgecolor=ORANGE, linewidth=2.5, zorder=5,
        clip_on=False,
    )  # fmt: skip


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return figure


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=130)
    with Image.open(path) as image:
        write(image.convert("RGB"), path)


def write(image: Image.Image, path: Path) -> None:
    """With 256 colours, which takes half the bytes."""
    image.quantize(256).save(path, optimize=True)
    print(f"wrote {path.name}, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(Path(*(sys.argv[1:2] or ["docs/images/pooling"])))
