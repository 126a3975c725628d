"""Who decides, when several controllers run: whoever holds a Lease and renews it in time.

As client-go does it: another's Lease has run out when it did not change for its duration by *our* clock, so clocks need
not agree. Whoever cannot renew in time stops at once, before another may begin.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cotenant import metrics
from cotenant.errors import AlreadyExists, ClusterError, Conflict, NotFound
from cotenant.kube import Kube

log = logging.getLogger(__name__)

API, KIND = "coordination.k8s.io/v1", "Lease"


@dataclass(frozen=True, slots=True)
class Terms:
    """The Lease and its times, in seconds (client-go's: 15, 10, 2)."""

    namespace: str
    name: str
    identity: str
    duration: float = 15.0

    @property
    def deadline(self) -> float:
        """Without a renewal for this long the holder gives up by itself."""
        return self.duration * 2 / 3

    @property
    def period(self) -> float:
        """Between attempts to renew or to acquire."""
        return self.duration * 2 / 15


class Election:
    """One candidate."""

    def __init__(self, kube: Kube, terms: Terms, on_lost: Callable[[], None]) -> None:
        self._kube = kube
        self._terms = terms
        self._on_lost = on_lost
        self._seen: tuple[str, float] = ("", 0.0)
        """resourceVersion of another's Lease, and when we saw it first."""
        self._renewals: asyncio.Task[None] | None = None
        self.is_leader = False

    async def acquire(self) -> None:
        """Return once we lead; from then on the Lease is renewed until `release`, and `on_lost` is called if it cannot be."""
        told = False
        while True:
            try:
                if await self._attempt():
                    break
                if not told:
                    log.info("another controller leads; waiting for the Lease %s", self._terms.name)
                    told = True
            except ClusterError as e:
                log.warning("asking for the Lease: %s", e)
            await asyncio.sleep(self._terms.period)
        log.info("leading as %s", self._terms.identity)
        self.is_leader = True
        metrics.LEADER.set(1)
        self._renewals = asyncio.create_task(self._renew())

    async def release(self) -> None:
        """Give the Lease back, so that another need not wait for it to run out."""
        if self._renewals is None:
            return
        self._renewals.cancel()
        self.is_leader = False
        metrics.LEADER.set(0)
        try:
            lease = await self._kube.get(API, KIND, self._terms.name, self._terms.namespace)
            if lease.get("spec", {}).get("holderIdentity") == self._terms.identity:
                lease["spec"].update(holderIdentity="", leaseDurationSeconds=1, renewTime=_now())
                await self._kube.replace(lease)
        except ClusterError as e:
            log.info("the Lease was not given back, it will run out: %s", e)

    async def _renew(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(self._terms.period)
            try:
                left = last + self._terms.deadline - time.monotonic()
                async with asyncio.timeout(max(0.1, left)):
                    # an answer lost on the way makes our own repeated write a conflict: look again before giving up
                    if not await self._attempt() and not await self._attempt():
                        log.error("another controller has taken the Lease")
                        break
                last = time.monotonic()
            except (ClusterError, TimeoutError) as e:
                log.warning("renewing the Lease: %s", e or "no answer in time")
            except Exception:  # whatever it is, who does not renew must stop in time
                log.exception("renewing the Lease")
            if time.monotonic() - last > self._terms.deadline:
                log.error("the Lease could not be renewed for %.0f s", self._terms.deadline)
                break
        self.is_leader = False
        metrics.LEADER.set(0)
        self._on_lost()

    async def _attempt(self) -> bool:
        """Take or renew the Lease; whether we hold it now."""
        try:
            lease = await self._kube.get(API, KIND, self._terms.name, self._terms.namespace)
        except NotFound:
            return await self._write(self._kube.create, self._fresh())
        spec = lease.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        if holder not in ("", self._terms.identity) and not self._has_run_out(lease, spec):
            return False
        if holder != self._terms.identity:
            spec = {**spec, "acquireTime": _now(), "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1}
        mine = {"holderIdentity": self._terms.identity, "leaseDurationSeconds": max(1, round(self._terms.duration))}
        lease["spec"] = {**spec, **mine, "renewTime": _now()}
        return await self._write(self._kube.replace, lease)

    async def _write(self, write: Any, lease: dict[str, Any]) -> bool:
        try:
            await write(lease)
        except (Conflict, AlreadyExists, NotFound):
            return False  # somebody was faster
        return True

    def _has_run_out(self, lease: dict[str, Any], spec: dict[str, Any]) -> bool:
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, time.monotonic())
        return time.monotonic() - self._seen[1] > float(spec.get("leaseDurationSeconds") or self._terms.duration)

    def _fresh(self) -> dict[str, Any]:
        return {
            "apiVersion": API,
            "kind": KIND,
            "metadata": {"name": self._terms.name, "namespace": self._terms.namespace},
            "spec": {
                "holderIdentity": self._terms.identity,
                "leaseDurationSeconds": max(1, round(self._terms.duration)),
                "acquireTime": _now(),
                "renewTime": _now(),
                "leaseTransitions": 0,
            },
        }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
