"""Creates the API server refused (a quota, Pod Security, admission): told to the user, and asked again ever more rarely."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass

from cotenant.controller.cache import Key
from cotenant.core.snapshot import Manifest

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds until the same is asked again: first, and at most. A changed manifest is tried at once."""


@dataclass(slots=True)
class Refusal:
    """One pod that may not be."""

    manifest: str
    message: str
    pause: float
    until: float
    """time.monotonic() before which the same is not asked again."""


class Refusals:
    """All of them, by (namespace, pod)."""

    def __init__(self) -> None:
        self._known: dict[Key, Refusal] = {}
        self.messages: dict[Key, str] = {}
        """What the next pass should know, in the API server's words."""

    def must_wait(self, manifest: Manifest) -> bool:
        """Whether the very same was refused a moment ago."""
        known = self._known.get(_key(manifest))
        return known is not None and time.monotonic() < known.until and known.manifest == _text(manifest)

    def refused(self, manifest: Manifest, message: str) -> bool:
        """Remember it; whether it is news."""
        key, text = _key(manifest), _text(manifest)
        before = self._known.get(key)
        pause = min(LONGEST_PAUSE, before.pause * 2) if before and before.manifest == text else FIRST_PAUSE
        self._known[key] = Refusal(text, message, pause, time.monotonic() + pause)
        return before is None or before.message != message

    def accepted(self, key: Key) -> None:
        """It was made after all."""
        self._known.pop(key, None)

    def settle(self, wanted: Iterable[Manifest]) -> float | None:
        """Keep what is still wanted, and the rest until its pause is long over; seconds until one may be asked again."""
        keys, now = {_key(manifest) for manifest in wanted}, time.monotonic()
        self._known = {k: r for k, r in self._known.items() if k in keys or r.until + LONGEST_PAUSE > now}
        # a refused pod that this pass did not ask for stays told while it is remembered: else it would be forgotten,
        # asked for and refused again at every pass
        shown = {k: r.message for k, r in self._known.items() if k in keys or k in self.messages}
        self.messages = shown
        waits = [r.until - now for k, r in self._known.items() if k in keys]
        return max(0.05, min(waits)) if waits else None


def _key(manifest: Manifest) -> Key:
    metadata = manifest["metadata"]
    return metadata["namespace"], metadata["name"]


def _text(manifest: Manifest) -> str:
    return json.dumps(manifest, sort_keys=True)
