"""What did not change is not worked out again: records are immutable, so the same objects give the same answer."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")


class Memo:
    """Answers by the identity of the records they were worked out from.

    The caller keeps one between passes; a pass without one comes to the same decision, only slower. Each entry holds on to its
    records, so that an identity is never another object's.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Hashable, ...], tuple[tuple[Any, ...], Any]] = {}
        self._used: dict[tuple[Hashable, ...], tuple[tuple[Any, ...], Any]] = {}

    def of(self, name: str, records: tuple[Any, ...], plain: tuple[Hashable, ...], work: Callable[[], T]) -> T:
        """`work()`, unless it was done for these very records and equal plain values. `work` must depend on nothing else."""
        key = (name, plain, *map(id, records))
        found = self._used.get(key) or self._kept.get(key)
        if found is None:
            found = (records, work())
        self._used[key] = found
        result: T = found[1]
        return result

    def has(self, name: str, records: tuple[Any, ...], plain: tuple[Hashable, ...]) -> bool:
        """Whether this was worked out before; asking keeps it."""
        key = (name, plain, *map(id, records))
        found = self._used.get(key) or self._kept.get(key)
        if found is not None:
            self._used[key] = found
        return found is not None

    def turn(self) -> None:
        """The pass is over: what it did not ask for is forgotten."""
        self._kept, self._used = self._used, {}
