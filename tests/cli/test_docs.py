"""What docs/cli.md shows is what is printed."""

from __future__ import annotations

from tests.cli.docsamples import DOC, SAMPLE, written


def test_every_sample_is_what_is_printed() -> None:
    page = DOC.read_text()

    assert len(SAMPLE.findall(page)) >= 3
    assert written() == page, "python -m tests.cli.docsamples writes them anew"
