"""A program with a bug, for the tests of what happens then."""

from __future__ import annotations


def main(argv: list[str]) -> int:
    """Fails in a way that nobody foresaw."""
    return 1 // len(argv[:0])
