"""A benchmark's part of a page."""

from __future__ import annotations

from benchmarks.sections import write_section


def test_a_section_is_replaced_and_the_rest_stays(tmp_path):
    page = tmp_path / "page.md"
    write_section(page, "one", "first\n")
    write_section(page, "two", r"second \1")
    page.write_text(page.read_text() + "\nby hand\n")
    write_section(page, "one", "third\n\nparagraph")
    assert page.read_text() == (
        "<!-- one -->\nthird\n\nparagraph\n<!-- end of one -->\n\n"
        "<!-- two -->\nsecond \\1\n<!-- end of two -->\n\nby hand\n"
    )


def test_an_unfinished_section_is_no_section(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- one -->\nby hand\n")
    write_section(page, "one", "text")
    assert page.read_text() == (
        "<!-- one -->\nby hand\n\n<!-- one -->\ntext\n<!-- end of one -->\n"
    )
