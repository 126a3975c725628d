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
    patient: bool = False
    """Waits while pods are being made or ended: nobody misses it in those seconds."""


class Outbox:
    """Sends letters in order, so many at a time; only one at a time, and no patient one, while pods are being made or ended."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._waiting: dict[Hashable, Letter] = {}
        self._patient: dict[Hashable, Letter] = {}
        """Those that wait for the others too."""
        self._under_way: dict[Hashable, Letter] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._urgent = 0
        self._stopped = False
        self._empty = asyncio.Event()
        self._empty.set()

    def replace(self, letters: Iterable[Letter]) -> None:
        """What a pass wants sent, in order: all that waits and is not lasting is taken back."""
        lasting = [letter for letter in (*self._waiting.values(), *self._patient.values()) if letter.lasting]
        self._waiting, self._patient = {}, {}
        for letter in letters:
            under_way = self._under_way.get(letter.key)
            if under_way is None or under_way.content != letter.content:
                self._keep(letter)
        for letter in lasting:
            self._keep(letter)
        self._go_on()

    def add(self, letter: Letter) -> None:
        """One more, behind all others."""
        self._keep(letter)
        self._go_on()

    def urgent(self, begins: bool) -> None:
        """Something more urgent begins or ends: most letters wait meanwhile."""
        self._urgent += 1 if begins else -1
        self._go_on()

    async def drained(self) -> None:
        """Return once nothing waits and nothing is under way."""
        await self._empty.wait()

    async def stop(self) -> None:
        """End at once; what waits is decided anew by whoever comes next."""
        self._stopped = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def size(self) -> int:
        """Letters waiting or under way."""
        return len(self._waiting) + len(self._patient) + len(self._under_way)

    def _keep(self, letter: Letter) -> None:
        (self._patient if letter.patient else self._waiting)[letter.key] = letter

    def _go_on(self) -> None:
        """Send as many as may be under way now."""
        most = 1 if self._urgent else self._at_once
        while len(self._under_way) < most and not self._stopped and (letter := self._next()) is not None:
            del (self._patient if letter.patient else self._waiting)[letter.key]
            self._under_way[letter.key] = letter
            task = asyncio.create_task(self._send(letter))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self.size:
            self._empty.clear()
        else:
            self._empty.set()

    def _next(self) -> Letter | None:
        for waiting in (self._waiting,) if self._urgent else (self._waiting, self._patient):
            for key, letter in waiting.items():
                if key not in self._under_way:
                    return letter
        return None

    async def _send(self, letter: Letter) -> None:
        try:
            await letter.send(letter.content)
        finally:
            del self._under_way[letter.key]
            self._go_on()
