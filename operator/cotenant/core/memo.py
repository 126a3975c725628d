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
        self._asked: dict[str, list[tuple[Any, Any]]] = {}
        self._asking: dict[str, list[tuple[Any, Any]]] = {}
        self._left: dict[tuple[Hashable, ...], tuple[tuple[Any, ...], dict[Hashable, Any]]] = {}
        self._leaving: dict[tuple[Hashable, ...], tuple[tuple[Any, ...], dict[Hashable, Any]]] = {}

    def of(self, name: str, records: tuple[Any, ...], plain: tuple[Hashable, ...], work: Callable[[], T]) -> T:
        """`work()`, unless it was done for these very records and equal plain values. `work` must depend on nothing else."""
        key = (name, plain, *map(id, records))
        found = self._used.get(key) or self._kept.get(key)
        if found is None:
            found = (records, work())
        self._used[key] = found
        result: T = found[1]
        return result

    def until(self, name: str, records: tuple[Any, ...], now: float, work: Callable[[], tuple[T, float]]) -> T:
        """The same for what the clock changes: `work()` says as well up to which moment (Unix seconds) its answer holds."""
        key = (name, *map(id, records))
        found = self._used.get(key) or self._kept.get(key)
        if found is None or not found[1][0] <= now < found[1][2]:
            answer, until = work()
            found = (records, (now, answer, until))
        self._used[key] = found
        result: T = found[1][1]
        return result

    def equal(self, name: str, question: Any, work: Callable[[], T]) -> T:
        """`work()`, unless it was done for an equal question: for few and large ones, most of whose parts are the same objects."""
        asking = self._asking.setdefault(name, [])
        for known in (*asking, *self._asked.get(name, ())):
            if known[0] == question:
                found = known
                break
        else:
            found = (question, work())
        asking.append(found)
        result: T = found[1]
        return result

    def slots(self, name: str, *records: Any) -> tuple[dict[Hashable, Any], dict[Hashable, Any]]:
        """What the last pass left for these records and what this one leaves, for loops that compare the rest themselves."""
        key = (name, *map(id, records))
        before, now = self._left.get(key), self._leaving.setdefault(key, (records, {}))
        return before[1] if before else {}, now[1]

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
        self._asked, self._asking = self._asking, {}
        self._left, self._leaving = self._leaving, {}
