"""Models' configs: read in the background, once per URI, so that a pass never waits for a hub."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cotenant.core.estimate.modelconfig import ModelConfig
from cotenant.core.snapshot import Placement
from cotenant.errors import CotenantError

log = logging.getLogger(__name__)

Found = ModelConfig | str
"""The config, or why it could not be had."""

AGAIN = 600.0
"""Seconds after which a config that could not be had is asked for again."""
AT_ONCE = 4


@dataclass(slots=True)
class _Entry:
    found: Found | None = None
    at: float = 0.0


class Configs:
    """What is known of every model of every placement; `ring` is called when that grows."""

    def __init__(self, read: Callable[[str], ModelConfig], ring: Callable[[], None]) -> None:
        self._read = read
        self._ring = ring
        self._entries: dict[str, _Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._told: tuple[tuple[str, Found], ...] = ()

    def of(self, placements: Iterable[Placement]) -> tuple[tuple[str, Found], ...]:
        """What is known now; the rest is asked for. The same tuple as before while nothing changed."""
        wanted = {model.uri for placement in placements for model in placement.models}
        for gone in self._entries.keys() - wanted:
            del self._entries[gone]
        now = time.monotonic()
        for uri in sorted(wanted):
            entry = self._entries.get(uri)
            if entry is None or (isinstance(entry.found, str) and now - entry.at > AGAIN):
                self._entries[uri] = _Entry(entry.found if entry else None, now)
                task = asyncio.create_task(self._ask(uri))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        told = tuple((uri, entry.found) for uri, entry in sorted(self._entries.items()) if entry.found is not None)
        if told != self._told:
            self._told = told
        return self._told

    def reading(self) -> frozenset[str]:
        """URIs nothing is known of yet, not even why not."""
        return frozenset(uri for uri, entry in self._entries.items() if entry.found is None)

    async def stop(self) -> None:
        """Wait for nobody."""
        for task in self._tasks:
            task.cancel()

    async def _ask(self, uri: str) -> None:
        async with self._gate:
            found: Found
            try:
                found = await asyncio.to_thread(self._read, uri)
            except CotenantError as error:
                found = str(error)
            except Exception:  # a config in a form nobody expected must not cost us the pass
                log.exception("reading the config of %s", uri)
                found = "its config could not be understood; see the operator's log"
        entry = self._entries.get(uri)
        if entry is None or entry.found == found:
            return
        entry.found = found
        if isinstance(found, str):
            log.info("no estimate for %s: %s", uri, found)
        self._ring()
