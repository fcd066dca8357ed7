"""docs/benchmarks.md: each benchmark writes its own part of the page and leaves the rest alone."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["write_section"]


def write_section(page: Path, name: str, text: str) -> None:
    """Put `text` between the lines `<!-- name -->` and `<!-- end of name -->` of a page.

    A page without them, or that does not exist yet, gets them at its end.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    section = f"{begin}\n{text.strip()}\n{end}"
    before = page.read_text("utf-8") if page.exists() else ""
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    after, found = pattern.subn(lambda _: section, before, count=1)
    if not found:
        after = f"{before.rstrip()}\n\n{section}\n".lstrip()
    page.write_text(after, "utf-8")
