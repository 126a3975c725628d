"""What the API server refused (a quota, Pod Security, a missing right) is asked again ever more rarely, unless it changed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds until the same is asked again: first, and at most. What changed is tried at once."""

Subject = tuple[str, str, str, str]
"""(what is done, namespace, name, kind)."""


@dataclass(slots=True)
class Refusal:
    """One write that may not be."""

    content: Any
    message: str
    pause: float
    until: float
    """time.monotonic() before which the same is not asked again."""


class Refusals:
    """All of them, by subject."""

    def __init__(self) -> None:
        self._known: dict[Subject, Refusal] = {}

    def must_wait(self, subject: Subject, content: Any) -> bool:
        """Whether the very same was refused a moment ago."""
        known = self._known.get(subject)
        return known is not None and time.monotonic() < known.until and known.content == content

    def refused(self, subject: Subject, content: Any, message: str) -> bool:
        """Remember it; whether it is news."""
        before = self._known.get(subject)
        pause = min(LONGEST_PAUSE, before.pause * 2) if before and before.content == content else FIRST_PAUSE
        self._known[subject] = Refusal(content, message, pause, time.monotonic() + pause)
        return before is None or before.message != message

    def accepted(self, subject: Subject) -> None:
        """It was done after all."""
        self._known.pop(subject, None)

    def due(self, asked: Iterable[Subject], wanted: Iterable[tuple[str, str]]) -> list[tuple[Subject, Any]]:
        """Creates, with their manifests, of pods (namespace, name) that are wanted and were not asked for, whose pause is over."""
        now, keys, names = time.monotonic(), set(asked), set(wanted)
        found = ((s, r) for s, r in self._known.items() if s[0] == "Create" and s[1:3] in names and s not in keys)
        return [(subject, refusal.content) for subject, refusal in found if refusal.until <= now]

    def settle(self, wanted: Iterable[Subject]) -> float | None:
        """Forget what is wanted no longer and whose pause is long over; seconds until something may be asked again."""
        keys, now = set(wanted), time.monotonic()
        self._known = {s: r for s, r in self._known.items() if s in keys or r.until + LONGEST_PAUSE > now}
        waits = [r.until - now for s, r in self._known.items() if s in keys]
        return max(0.05, min(waits)) if waits else None

    def messages(self) -> dict[Subject, str]:
        """Why each is not done, in the API server's words. One that was not asked for again stays while it is remembered."""
        return {subject: refusal.message for subject, refusal in self._known.items()}
