"""`convserve classify`: the best classes of image files, into CSV, JSON lines or Parquet.

    paths -> decode (threads) -> scores (this process or a server) -> rows, in the order of paths

Every stage is a stream with a bound, so that a million files take no more memory than a hundred.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path

import click

from convserve.cli._classifiers import Classifier, Pixels, open_classifier
from convserve.cli._common import threads_option
from convserve.cli._image_files import Decoder, ImageFiles
from convserve.cli._parquet_writer import ParquetWriter, parts_folder
from convserve.cli._progress import Progress
from convserve.cli._row_writers import CsvFormat, JsonLinesFormat, RowWriter, TextWriter
from convserve.cli._target import Target, server_options
from convserve.kernels._cores import usable_cores

FORMATS: dict[str, type[CsvFormat] | type[JsonLinesFormat]] = {
    ".csv": CsvFormat,
    ".jsonl": JsonLinesFormat,
    ".ndjson": JsonLinesFormat,
}


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="A model file (or a folder of its versions) to compute with in this process.",
)
@server_options("A running server to compute with.")
@click.option("--model-name", help="Which of the server's models.  [default: the only one]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="A .csv, .jsonl or .parquet file.  [default: CSV on standard output]",
)
@click.option("--resume", is_flag=True, help="Go on with an output: skip the paths in it.")
@click.option("--overwrite", is_flag=True, help="Replace an output that exists.")
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Classes in each row, best first.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 4096),
    default=32,
    show_default=True,
    help="Images computed together; the scores don't depend on it.",
)
@click.option(
    "--decode-threads",
    type=click.IntRange(1, 256),
    help="Threads that read and decode files.  [default: the cores this process may use]",
)
@threads_option
@click.option("--ignore-errors", is_flag=True, help="Exit with 0 even if files were unreadable.")
def command(
    paths: tuple[str, ...],
    model: Path | None,
    server: Target | None,
    model_name: str | None,
    output: Path | None,
    resume: bool,
    overwrite: bool,
    top_k: int,
    batch_size: int,
    decode_threads: int | None,
    threads: int | None,
    ignore_errors: bool,
) -> int:
    """Classify image files and folders.

    PATH is an image file, a folder (searched with its subfolders for image files) or a quoted
    pattern such as 'photos/**/*.jpg'. PNG, JPEG, WebP, GIF, BMP, TIFF and PPM files are made into
    the model's input as its preprocessing says. Each becomes a row: path, label_1, score_1, …
    Rows stand in the order of the files, whatever is decoded or computed first.

    Unreadable files are reported on standard error and passed over; the exit status is then 1,
    unless --ignore-errors is given. An interrupted run is continued with --resume.

    \b
    convserve classify digits/ --model lenet.npz --output digits.csv
    convserve classify 'photos/**/*.jpg' --server localhost:8001 -o photos.parquet
    """
    if (model is None) == (server is None):
        raise click.UsageError("give either --model FILE or --server HOST:PORT")
    if server is None and model_name is not None:
        raise click.UsageError("--model-name goes with --server")
    if server is not None and threads is not None:
        raise click.UsageError("--threads is for --model: the server has its own")
    output = None if output is None or str(output) == "-" else output
    _check_output(output, resume, overwrite)
    with open_classifier(model, server, model_name, batch_size, threads) as classifier:
        decoder = Decoder(classifier.preprocessing, batch_size, decode_threads or usable_cores())
        writer = _open_writer(output, min(top_k, classifier.classes), resume)
        with Progress("images") as progress:
            files = ImageFiles(paths, progress.fault)
            try:
                skipped = _run(files, decoder, classifier, writer, progress)
            except BaseException:
                writer.close(complete=False)
                if output is not None:
                    _say(f"stopped after {progress.done:,} images; --resume goes on from there")
                raise
            writer.close(complete=True)
    nothing = files.found == 0 and progress.faults == 0
    if nothing:
        _say("no image files were found")
    _say(_summary(progress, skipped, output))
    return 1 if (progress.faults or nothing) and not ignore_errors else 0


def _run(
    files: ImageFiles,
    decoder: Decoder,
    classifier: Classifier,
    writer: RowWriter,
    progress: Progress,
) -> int:
    """Classify all files; return how many were skipped, since an earlier run did them."""
    from convserve.engine.model import top_k as rank

    skipped = 0
    waiting: deque[list[str]] = deque()  # the paths of the batches whose scores are to come

    def to_do() -> Iterator[str]:
        nonlocal skipped
        for path in files:
            if writer.is_done(path):
                skipped += 1
            else:
                yield path

    def pixels(paths: Iterable[str]) -> Generator[Pixels, None, None]:
        with closing(decoder.batches(paths)) as batches:
            for batch in batches:
                for fault in batch.faults:
                    progress.fault(fault)
                if batch.paths:
                    waiting.append(batch.paths)
                    yield batch.pixels

    with closing(pixels(to_do())) as batches, closing(classifier.scores(batches)) as results:
        for scores in results:
            rankings = rank(scores, writer.top_k, classifier.labels)
            rows = list(zip(waiting.popleft(), rankings, strict=True))
            writer.write(rows)
            progress.advance(len(rows), files.found - skipped - progress.faults)
    return skipped


def _check_output(output: Path | None, resume: bool, overwrite: bool) -> None:
    """Refuse before anything is loaded what can't end well."""
    if resume and overwrite:
        raise click.UsageError("--resume and --overwrite exclude each other")
    if output is None:
        if resume:
            raise click.UsageError("--resume needs an --output file")
        return
    if output.suffix.lower() not in (*FORMATS, ".parquet"):
        known = ", ".join([*FORMATS, ".parquet"])
        raise click.UsageError(f"--output {output}: the suffix must be one of {known}")
    if not output.parent.is_dir():
        raise click.UsageError(f"--output {output}: there is no folder {output.parent}")
    exists = output.exists() or parts_folder(output).exists()
    if exists and not (resume or overwrite):
        raise click.UsageError(
            f"--output {output} exists, or an interrupted run of it: "
            "--resume goes on with it, --overwrite replaces it"
        )


def _open_writer(output: Path | None, top_k: int, resume: bool) -> RowWriter:
    if output is not None and output.suffix.lower() == ".parquet":
        return ParquetWriter(output, top_k, resume=resume)
    form = FORMATS[output.suffix.lower()] if output else CsvFormat
    return TextWriter(output, form(top_k), resume=resume)


def _summary(progress: Progress, skipped: int, output: Path | None) -> str:
    parts = [
        f"classified {progress.done:,} images in {progress.seconds:.2f} s "
        f"({progress.rate:,.0f} images/s)"
    ]
    if skipped:
        parts.append(f"{skipped:,} done before")
    if progress.faults:
        parts.append(f"{progress.faults:,} unreadable")
    return ", ".join(parts) + (f"; wrote {output}" if output else "")


def _say(message: str) -> None:
    click.echo(f"convserve: {message}", err=True)
