"""Whether the agents still speak: each renews a Lease, and one that ran out makes what its GPUNode says old news.

As with election: a Lease has run out when it did not change for its duration by *our* clock, so a node's clock need not agree.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from cotenant.core.names import MANAGED_BY, MANAGED_BY_LABEL
from cotenant.core.snapshot import Manifest
from cotenant.errors import ClusterError
from cotenant.kube import Kube

log = logging.getLogger(__name__)

EVERY = 15.0
"""Seconds between two looks: one LIST, however many nodes; watching them would be an event per node and heartbeat."""
BLIND = 2 * EVERY + 5.0
"""Seconds without a look after which nobody is called silent for what we did not see: the API server was away for all."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A renewal of a Lease, and when we saw it first by time.monotonic()."""

    renewed: str
    seen: float


class Heartbeats:
    """Nodes whose agent's Lease has run out. A node without a Lease is not judged, nor one that we do not know for long enough."""

    def __init__(self, kube: Kube, namespace: str, ring: Callable[[], None]) -> None:
        self._kube = kube
        self._namespace = namespace
        self._ring = ring
        self._beats: dict[str, Beat] = {}
        self._looked = float("-inf")
        self.silent: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Look now and then until cancelled."""
        while True:
            try:
                await self.look(time.monotonic)
            except ClusterError as e:
                log.warning("asking for the agents' heartbeats: %s", e)
            except Exception:
                log.exception("asking for the agents' heartbeats")
            await asyncio.sleep(EVERY)

    async def look(self, clock: Callable[[], float]) -> None:
        """Read every Lease of an agent once; rings when somebody fell silent or spoke again."""
        leases = await agents_leases(self._kube, self._namespace)
        silent = self._hear(leases, clock())
        if silent == self.silent:
            return
        for node in sorted(silent - self.silent):
            log.warning("the agent of %s has fallen silent", node)
        self.silent = silent
        self._ring()

    def _hear(self, leases: Iterable[Manifest], now: float) -> frozenset[str]:
        """Who is silent by what the Leases say now."""
        was_blind = now - self._looked > BLIND
        beats, silent = {}, set()
        for lease in leases:
            node, (renewed, seconds) = lease["metadata"]["name"], _renewal(lease)
            before = self._beats.get(node)
            if before is None or before.renewed != renewed or (was_blind and node not in self.silent):
                before = Beat(renewed, now)
            beats[node] = before
            if renewed and now - before.seen > seconds:
                silent.add(node)
        self._beats, self._looked = beats, now
        return frozenset(silent)


async def agents_leases(kube: Kube, namespace: str) -> list[Manifest]:
    """The Lease of every agent."""
    selector = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
    return await kube.list("coordination.k8s.io/v1", "Lease", namespace, label_selector=selector)


def silent_by_the_clock(leases: Iterable[Manifest], now: float) -> frozenset[str]:
    """Whose Lease has run out at this Unix time, for a view that looks only once and can but believe the clocks."""
    found = set()
    for lease in leases:
        renewed, seconds = _renewal(lease)
        try:
            if renewed and datetime.fromisoformat(renewed).timestamp() + seconds < now:
                found.add(lease["metadata"]["name"])
        except ValueError:
            continue
    return frozenset(found)


def _renewal(lease: Manifest) -> tuple[str, int]:
    """When it was renewed by its holder's clock, and for how many seconds; '' where that cannot be read."""
    spec = lease.get("spec") or {}
    renewed, seconds = spec.get("renewTime"), spec.get("leaseDurationSeconds")
    return (renewed, seconds) if isinstance(renewed, str) and isinstance(seconds, int) else ("", 0)
