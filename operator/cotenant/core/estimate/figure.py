"""A number of bytes or tokens that knows how far off it may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Figure:
    """A number with its error bar, and where it comes from."""

    value: int
    low: int
    high: int
    source: str

    def plus(self, other: Figure) -> Figure:
        """Both together; the bars add up, for they may err the same way."""
        return Figure(self.value + other.value, self.low + other.low, self.high + other.high, self.source)


def within(value: int, part: float, source: str) -> Figure:
    """A number that may be off by a part of itself."""
    return Figure(value, int(value * (1 - part)), int(value * (1 + part)) + 1, source)


def exact(value: int, source: str) -> Figure:
    """A number that was measured or cannot be otherwise."""
    return Figure(value, value, value, source)
