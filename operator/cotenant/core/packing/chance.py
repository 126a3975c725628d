"""Our own small chance: splitmix64 (Steele, Lea, Flood 2014), so that equal seeds give equal plans on any machine."""

from __future__ import annotations

from typing import TypeVar

_MASK = (1 << 64) - 1
T = TypeVar("T")


class Chance:
    """A stream of numbers that look random and are not."""

    __slots__ = ("state",)

    def __init__(self, seed: int) -> None:
        self.state = seed & _MASK

    def bits(self) -> int:
        """The next 64 bits."""
        self.state = z = (self.state + 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def below(self, limit: int) -> int:
        """A number from 0 to limit - 1."""
        return (self.bits() * limit) >> 64

    def one_of(self, things: list[T]) -> T:
        """One of these."""
        return things[self.below(len(things))]

    def shuffled(self, things: list[T]) -> list[T]:
        """These in another order (Fisher-Yates)."""
        mixed = list(things)
        for at in range(len(mixed) - 1, 0, -1):
            other = self.below(at + 1)
            mixed[at], mixed[other] = mixed[other], mixed[at]
        return mixed
