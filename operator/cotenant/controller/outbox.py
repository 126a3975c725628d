"""Writes that may wait: Services, statuses, events. They run beside the next pass, which may take back what waits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Letter:
    """One write. Two letters of one key are never under way at once, and the newer one replaces the one that waits."""

    key: Hashable
    content: Any
    send: Callable[[Any], Awaitable[None]]
    lasting: bool = False
    """Stays when the next pass says nothing of it (an event); else the next pass's silence takes it back."""


class Outbox:
    """Sends letters in order, so many at a time; only one at a time while pods are being made or ended."""

    def __init__(self, workers: int) -> None:
        self._waiting: dict[Hashable, Letter] = {}
        self._under_way: dict[Hashable, Letter] = {}
        self._changed = asyncio.Condition()
        self._urgent = 0
        self._workers = [asyncio.create_task(self._work(index)) for index in range(workers)]

    async def replace(self, letters: Iterable[Letter]) -> None:
        """What a pass wants sent, in order: all that waits and is not lasting is taken back."""
        async with self._changed:
            lasting = {key: letter for key, letter in self._waiting.items() if letter.lasting}
            self._waiting = {}
            for letter in letters:
                under_way = self._under_way.get(letter.key)
                if under_way is None or under_way.content != letter.content:
                    self._waiting[letter.key] = letter
            self._waiting.update(lasting)
            self._changed.notify_all()

    async def add(self, letter: Letter) -> None:
        """One more, behind all others."""
        async with self._changed:
            self._waiting[letter.key] = letter
            self._changed.notify()

    async def urgent(self, begins: bool) -> None:
        """Something more urgent begins or ends: most workers wait meanwhile."""
        async with self._changed:
            self._urgent += 1 if begins else -1
            self._changed.notify_all()

    async def drained(self) -> None:
        """Return once nothing waits and nothing is under way."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._waiting and not self._under_way)

    async def stop(self) -> None:
        """End at once; what waits is decided anew by whoever comes next."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    @property
    def size(self) -> int:
        """Letters waiting or under way."""
        return len(self._waiting) + len(self._under_way)

    def _next(self) -> Letter | None:
        return next((letter for key, letter in self._waiting.items() if key not in self._under_way), None)

    async def _work(self, index: int) -> None:
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: (index == 0 or not self._urgent) and self._next() is not None)
                letter = self._next()
                if letter is None:
                    continue
                del self._waiting[letter.key]
                self._under_way[letter.key] = letter
            try:
                await letter.send(letter.content)
            finally:
                async with self._changed:
                    del self._under_way[letter.key]
                    self._changed.notify_all()
