"""Whether the agents still speak: each renews a Lease, and one that ran out makes what its GPUNode says old news."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime

from cotenant.core.names import MANAGED_BY, MANAGED_BY_LABEL
from cotenant.errors import ClusterError
from cotenant.kube import Kube

log = logging.getLogger(__name__)

EVERY = 15.0
"""Seconds between two looks: one LIST, however many nodes; watching them would be an event per node and heartbeat."""


class Heartbeats:
    """Nodes whose agent's Lease has run out. A node without a Lease is not judged."""

    def __init__(self, kube: Kube, namespace: str, ring: Callable[[], None]) -> None:
        self._kube = kube
        self._namespace = namespace
        self._ring = ring
        self.silent: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Look now and then until cancelled."""
        while True:
            try:
                await self.look(time.time())
            except ClusterError as e:
                log.warning("asking for the agents' heartbeats: %s", e)
            await asyncio.sleep(EVERY)

    async def look(self, now: float) -> None:
        """Read every Lease of an agent once; rings when somebody fell silent or spoke again."""
        selector = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
        leases = await self._kube.list("coordination.k8s.io/v1", "Lease", self._namespace, label_selector=selector)
        silent = frozenset(lease["metadata"]["name"] for lease in leases if has_run_out(lease.get("spec") or {}, now))
        if silent == self.silent:
            return
        for node in sorted(silent - self.silent):
            log.warning("the agent of %s has fallen silent", node)
        self.silent = silent
        self._ring()


def has_run_out(spec: dict[str, object], now: float) -> bool:
    """Whether a Lease was not renewed in time; one that cannot be read has not."""
    renewed, seconds = spec.get("renewTime"), spec.get("leaseDurationSeconds")
    if not isinstance(renewed, str) or not isinstance(seconds, int):
        return False
    try:
        return datetime.fromisoformat(renewed).timestamp() + seconds < now
    except ValueError:
        return False
