"""The results as Markdown: `python -m benchmarks.report RESULTS.jsonl docs/benchmarks.md`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks import results
from benchmarks.contestants import OURS, OURS_1_THREAD, OURS_BY_BATCH, PEERS
from benchmarks.ratios import (
    REFERENCE,
    Expected,
    Ratio,
    Row,
    best_peer,
    geometric_mean,
    percent_of_peak,
    rate,
    ratio,
    ratio_to_best,
    read_expected,
    suspects,
)
from benchmarks.results import Run
from benchmarks.sections import write_section

EXPECTED = Path(__file__).with_name("expected.txt")
TITLES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch": "PyTorch",
    "ncnn": "ncnn",
    "mnn": "MNN",
    OURS: "convserve",
    OURS_BY_BATCH: "convserve, batch_invariant=False",
    OURS_1_THREAD: "convserve, 1 thread",
}
NONE = "–"


def write(path: Path, run: Run, rows: Sequence[Row], expected: Expected) -> None:
    """The report, and beside it the plot of the model rows."""
    from benchmarks.plot import draw

    plot = path.with_suffix(".png")
    models = [row for row in rows if row.kind == "model" and ratio_to_best(row, PEERS)]
    if models:
        draw(plot, models)
    text = markdown(run, rows, expected, plot.name if models else None)
    write_section(path, "inference", text)


def markdown(run: Run, rows: Sequence[Row], expected: Expected, plot: str | None) -> str:
    parts = [
        "## Inference beside five engines",
        "Written by `make bench`, which measures everything here side by side.",
        _machine(run, rows),
    ]
    models = [row for row in rows if row.kind == "model"]
    if models:
        parts += ["### Models", _summary(models, expected)]
        if plot:
            parts.append(f"![Images/s relative to the best peer]({plot})")
        for threads in sorted({row.threads for row in models}, reverse=True):
            parts += [
                f"#### {_threads(threads)}",
                _models(r for r in models if r.threads == threads),
            ]
    layers = [row for row in rows if row.kind == "layer"]
    for threads in sorted({row.threads for row in layers}, reverse=True):
        parts += [f"### Layers, {_threads(threads)}", LAYER_NOTE]
        parts.append(_layers(r for r in layers if r.threads == threads))
    parts += ["### Settings", _settings(rows)]
    if missing := _missing(rows):
        parts += ["### Missing", missing]
    return "\n\n".join(parts) + "\n"


LAYER_NOTE = """\
GFLOP/s of a convolution with bias and ReLU that is called on its own, arrays in NCHW in and out;
where its output has the shape of its input, four of them in a row."""


def _machine(run: Run, rows: Sequence[Row]) -> str:
    versions: dict[str, str] = {}
    for row in rows:
        versions.update(row.versions)
    named = [f"{TITLES[name]} {versions[name]}" for name in (*PEERS, OURS) if name in versions]
    peaks = [peak for row in rows if row.threads == 1 for peak in row.peak]
    measured = f", {max(peaks):.0f} GFLOP/s a core measured" if peaks else ""
    without = "" if run.slow_settings else ", without those that are slow to prepare"
    return f"""\
{run.cpu}, {run.cores} cores{measured}; {run.date}. {"; ".join(named)}. float32 throughout.

Every contestant runs in a process of its own, which stands still while another is timed. In each
of {run.rounds} rounds each is timed for {run.seconds} s, in a new order, with inputs that differ
at every call. Figures are medians; a ratio is the median (least–greatest) of the ratios within the
rounds. Every contestant takes the fastest of its documented settings{without}; its output was
compared with ONNX Runtime's first. Losses stay in the tables. The peak is that of
multiply-adds, measured in each round; Winograd's convolutions need fewer of them."""


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _summary(models: Sequence[Row], expected: Expected) -> str:
    threads = max(row.threads for row in models)
    lines = []
    for name in (OURS, OURS_BY_BATCH):
        found = [
            r for row in models if row.threads == threads if (r := ratio_to_best(row, PEERS, name))
        ]
        mean = geometric_mean(r.median for r in found)
        if mean is not None:
            ahead = sum(r.median >= 1 for r in found)
            lines.append(
                f"- {TITLES[name]}, {_threads(threads)}: geometric mean **{mean:.2f}×** the best "
                f"peer of each row; ahead in {ahead} of {len(found)} rows."
            )
    odd = [text for row in models for text in suspects(row, expected)]
    if odd:
        lines.append(
            "- **Suspect**: a peer is slower than it is known to be. " + "; ".join(odd) + "."
        )
    return "\n".join(lines) or "convserve did not run."


def _models(rows: Iterable[Row]) -> str:
    rows = list(rows)
    peers = [peer for peer in PEERS if any(row.rates.get(peer) for row in rows)]
    by_batch = any(row.rates.get(OURS_BY_BATCH) for row in rows)
    scaling = any(row.rates.get(OURS_1_THREAD) for row in rows)
    header = [
        "images/s",
        "batch",
        *(TITLES[peer] for peer in peers),
        "convserve",
        "to the best peer",
    ]
    header += ["batch_invariant=False"] * by_batch + ["to 1 thread"] * scaling
    header += ["of peak", "difference"]
    lines = []
    for row in rows:
        best = best_peer(row, peers)
        rates = [_bold(_number(rate(row, peer)), peer == best) for peer in peers]
        line = [row.name, str(row.batch), *rates, _number(rate(row, OURS))]
        line.append(_ratio(ratio_to_best(row, peers), bold=True))
        if by_batch:
            line.append(_ratio(ratio_to_best(row, peers, OURS_BY_BATCH)))
        if scaling:
            line.append(_between(row, OURS, OURS_1_THREAD))
        lines.append([*line, _percent(row), _difference(row)])
    return _table(header, lines, left=1)


def _layers(rows: Iterable[Row]) -> str:
    rows = list(rows)
    peers = [peer for peer in PEERS if any(row.rates.get(peer) for row in rows)]
    header = ["layer", "batch", *(TITLES[peer] for peer in peers), "convserve"]
    header += [f"to {TITLES[peer]}" for peer in peers] + ["of peak", "difference"]
    lines = []
    for row in rows:
        gflops = [_gflops(row, name) for name in (*peers, OURS)]
        ratios = [_between(row, OURS, peer) for peer in peers]
        lines.append([row.name, str(row.batch), *gflops, *ratios, _percent(row), _difference(row)])
    return _table(header, lines, left=1)


def _settings(rows: Sequence[Row]) -> str:
    lines = []
    for name, title in TITLES.items():
        chosen = Counter(row.settings[name] for row in rows if name in row.settings)
        if chosen:
            words = "; ".join(f"{setting} ({n})" for setting, n in chosen.most_common())
            lines.append([title, words])
    return _table(["contestant", "setting (rows in which it was the fastest)"], lines, left=2)


def _missing(rows: Sequence[Row]) -> str:
    """Who could not run, and the settings that could not be tried."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        where = f"{row.name} ({row.batch}, {_threads(row.threads)})"
        for name, reason in row.errors.items():
            reasons.setdefault(f"{TITLES[name]}: {reason}", []).append(where)
        for setting, reason in row.failed_settings.items():
            reasons.setdefault(f"setting {setting}: {reason}", []).append(where)
    return "\n".join(f"- {_line(reason)}: {', '.join(where)}" for reason, where in reasons.items())


def _table(header: Sequence[str], lines: Iterable[Sequence[str]], left: int) -> str:
    """The first `left` columns are flush left, the others flush right."""
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join(f"| {' | '.join(map(_line, cells))} |" for cells in (header, rule, *lines))


def _line(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _number(value: float | None) -> str:
    """Three digits or more, as far as noise lets them mean something."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bold(text: str, yes: bool) -> str:
    return f"**{text}**" if yes else text


def _ratio(value: Ratio | None, bold: bool = False) -> str:
    if value is None:
        return NONE
    return f"{_bold(f'{value.median:.2f}×', bold)} ({value.low:.2f}–{value.high:.2f})"


def _between(row: Row, ours: str, theirs: str) -> str:
    if not row.rates.get(ours) or not row.rates.get(theirs):
        return NONE
    return _ratio(ratio(row.rates[ours], row.rates[theirs]))


def _gflops(row: Row, name: str) -> str:
    value = rate(row, name)
    return NONE if value is None else f"{2e-9 * row.macs * value:.1f}"


def _percent(row: Row) -> str:
    value = percent_of_peak(row)
    return NONE if value is None else f"{value:.0f} %"


def _difference(row: Row) -> str:
    """Ours; it means something only where ONNX Runtime ran."""
    if OURS not in row.difference or REFERENCE not in row.difference:
        return NONE
    return f"{row.difference[OURS]:.0e}"


def main(source: str, target: str) -> None:
    run, rows = results.read(Path(source))
    write(Path(target), run, rows, read_expected(EXPECTED))


if __name__ == "__main__":
    main(*sys.argv[1:])
