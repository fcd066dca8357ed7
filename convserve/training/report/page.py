"""A report on disk: PNG files, and one HTML page that has them within itself and runs no script.

check_ready(Path("report"))                      before hours of work
write(Path("report"), Page("lenet.npz", "2,000 test images", tiles, sections, details))
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from convserve.errors import ReportError

__all__ = ["Page", "Picture", "Section", "check_ready", "write"]

INDEX = "index.html"
GENERATOR = '<meta name="generator" content="convserve">'
Facts = Sequence[tuple[str, str]]  # a name and its value, as they are shown

STYLE = """
:root { --ink: #212529; --soft: #5c636a; --line: #e4e7eb; --violet: #4c3a8f; --orange: #d9541e }
* { box-sizing: border-box }
body { margin: 0; background: #f6f7f9; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
.page { max-width: 1136px; margin: 0 auto; padding: 2.25rem 1rem 3rem }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; letter-spacing: -.02em;
  overflow-wrap: anywhere }
h2 { margin: 0 0 .15rem; font-size: 1.05rem; letter-spacing: -.005em }
p { margin: 0 }
header p { margin-top: .25rem; color: var(--soft) }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.2rem, 1fr)); gap: 1rem;
  margin: 1.5rem 0 1rem }
.tiles div { display: flex; flex-direction: column-reverse; justify-content: flex-end;
  padding: .7rem 1rem .6rem }
.tiles div, section { background: #fff; border: 1px solid var(--line); border-radius: 10px }
.tiles dt { color: var(--soft); font-size: .82rem }
.tiles dd { margin: 0; font-size: 1.3rem; white-space: nowrap; font-weight: 650;
  letter-spacing: -.02em; font-variant-numeric: tabular-nums }
.tiles div:first-child dd { color: var(--violet) }
main { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; align-items: stretch }
section { padding: 1.1rem 1.25rem 1.1rem; min-width: 0 }
section.wide { grid-column: 1 / -1 }
section > p { color: var(--soft); font-size: .88rem; max-width: 58rem }
figure { margin: .8rem 0 0 }
.row { display: flex; flex-wrap: wrap; gap: 0 1rem }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto }
section.wide figure img { margin: 0 }
figcaption { font-weight: 600; font-size: .88rem; margin-bottom: .2rem }
.details { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.5rem;
  margin: .6rem 0 0; font-size: .88rem }
.details dt { color: var(--soft) }
.details dd { margin: 0; overflow-wrap: anywhere }
footer { margin-top: 1.25rem; color: var(--soft); font-size: .8rem }
@media (max-width: 820px) { main { grid-template-columns: 1fr } }
@media (max-width: 600px) { section.wide > figure { overflow-x: auto }
  section.wide > figure img { max-width: none } }
@media print { body { background: #fff } section { break-inside: avoid } }
"""


class Picture(NamedTuple):
    """A PNG, the words that stand for it where it can't be seen, and what is written over it.

    scale: its pixels for each of the page's, 2 where lines stay sharp on fine screens.
    """

    name: str
    png: bytes
    alt: str
    caption: str = ""
    scale: int = 2

    @property
    def file(self) -> str:
        """The PNG's name beside the page."""
        return f"{self.name}.png"

    @property
    def size(self) -> tuple[int, int]:
        """Width and height on the page, in its pixels."""
        width, height = (int.from_bytes(self.png[at : at + 4], "big") for at in (16, 20))
        return round(width / self.scale), round(height / self.scale)


class Section(NamedTuple):
    """Pictures under a title, and a sentence that says how to read them.

    row: they stand beside each other as far as there is room.
    """

    title: str
    text: str
    pictures: Sequence[Picture] = ()
    wide: bool = False
    row: bool = False


class Page(NamedTuple):
    """All that a report says. tiles: the few figures that count; details: how it was made."""

    title: str
    subtitle: str
    tiles: Facts
    sections: Sequence[Section]
    details: Facts


def check_ready(folder: Path) -> None:
    """ReportError if matplotlib is not installed, or where no report can be put at `folder`."""
    if find_spec("matplotlib") is None:
        raise ReportError("--report needs matplotlib: pip install 'convserve[plots]'")
    _check_folder(folder.resolve())


def write(folder: Path, page: Page) -> list[Path]:
    """The pictures as PNG files and `index.html` in `folder`, which takes an older report's place.

    The folder appears whole or not at all. Returns its files, the page last. Raises ReportError
    where it can't be written, or would replace something else than a report.
    """
    target = folder.resolve()
    _check_folder(target)
    pictures = [picture for section in page.sections for picture in section.pictures]
    files = {picture.file: picture.png for picture in pictures}
    files[INDEX] = html(page).encode()
    new, old = _beside(target, "new"), _beside(target, "old")
    try:
        new.mkdir()
        for name, content in files.items():
            (new / name).write_bytes(content)
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    except OSError as error:
        raise ReportError(f"{folder}: the report can't be written: {error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
    return [folder / name for name in files]


def html(page: Page) -> str:
    """The page as one document."""
    tiles = _facts("tiles", page.tiles, grouped=True)
    sections = "\n".join(map(_section, page.sections))
    details = _facts("details", page.details)
    # An icon of its own, so that browsers ask for none.
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{GENERATOR}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(page.title)}: {escape(page.subtitle)}</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style>
</head>
<body>
<div class="page">
<header>
<h1>{escape(page.title)}</h1>
<p>{escape(page.subtitle)}</p>
</header>
{tiles}
<main>
{sections}
<section class="wide">
<h2>How it was made</h2>
{details}
</section>
</main>
<footer>Made by convserve. The pictures lie beside this page as PNG files.</footer>
</div>
</body>
</html>
"""


def _section(section: Section) -> str:
    kind = ' class="wide"' if section.wide else ""
    figures = "".join(map(_figure, section.pictures))
    if section.row:
        figures = f'<div class="row">\n{figures}</div>\n'
    text = f"<p>{escape(section.text)}</p>"
    return f"<section{kind}>\n<h2>{escape(section.title)}</h2>\n{text}\n{figures}</section>"


def _figure(picture: Picture) -> str:
    width, height = picture.size
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    return (
        f'<figure>{caption}<img data-file="{escape(picture.file)}" alt="{escape(picture.alt)}" '
        f'width="{width}" height="{height}" '
        f'src="data:image/png;base64,{b64encode(picture.png).decode()}"></figure>\n'
    )


def _facts(name: str, facts: Facts, grouped: bool = False) -> str:
    def row(fact: tuple[str, str]) -> str:
        pair = f"<dt>{escape(fact[0])}</dt><dd>{escape(fact[1])}</dd>"
        return f"<div>{pair}</div>" if grouped else pair

    return f'<dl class="{name}">\n' + "\n".join(map(row, facts)) + "\n</dl>"


def _check_folder(folder: Path) -> None:
    """`folder` is absolute."""
    if not folder.parent.is_dir():
        raise ReportError(f"{folder}: there is no folder {folder.parent}")
    if not os.access(folder.parent, os.W_OK | os.X_OK):
        raise ReportError(f"{folder}: the folder {folder.parent} is not writable")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ReportError(f"{folder}: it exists and is not a folder")
    found = {path.name for path in folder.iterdir()}
    if found and not found <= _files_of(folder / INDEX):
        raise ReportError(f"{folder}: it holds something else than a report; choose a new folder")


def _files_of(index: Path) -> set[str]:
    """What a report consists of, as its page says; nothing if this is no page of ours."""
    text = index.read_text(encoding="utf-8", errors="replace") if index.is_file() else ""
    if GENERATOR not in text:
        return set()
    return {INDEX, *re.findall(r'<img data-file="([a-z0-9-]+\.png)"', text)}


def _beside(folder: Path, kind: str) -> Path:
    """Within the longest name that a file may have."""
    return folder.parent / f".{folder.name[:50]}.{secrets.token_hex(8)}.{kind}"
