"""Kubernetes Events on placements: an equal one is counted up, and that not more often than every few minutes."""

from __future__ import annotations

import hashlib
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cotenant.core.decision import Emit
from cotenant.core.names import API_VERSION
from cotenant.errors import NotFound
from cotenant.kube import Kube

QUIET_SECONDS = 300.0
"""An equal event within this is counted and not written."""
REMEMBERED = 4096
CONTROLLER = "cotenant.dev/controller"


@dataclass(slots=True)
class Written:
    """An event that stands in the cluster."""

    name: str
    count: int
    at: float


class Events:
    """Writes events.k8s.io/v1 Events."""

    def __init__(self, kube: Kube, identity: str) -> None:
        self._kube = kube
        self._identity = identity[:128]
        self._written: OrderedDict[tuple[str, str, str, str], Written] = OrderedDict()

    def is_news(self, event: Emit) -> bool:
        """Whether it must be written; counts it otherwise."""
        before = self._written.get(_key(event))
        if before is None:
            return True
        before.count += 1
        return time.monotonic() - before.at >= QUIET_SECONDS

    async def write(self, event: Emit) -> None:
        """Make it known, or count up the one that stands there."""
        key = _key(event)
        before = self._written.get(key)
        if before is not None:
            try:
                await self._kube.merge("events.k8s.io/v1", "Event", before.name, _series(before.count), event.namespace)
                before.at = time.monotonic()
                return
            except NotFound:
                pass  # an event lives an hour
        name = f"{event.name[:40]}.{_digest(key, datetime.now(UTC).isoformat())}"
        await self._kube.create(_manifest(event, name, self._identity))
        self._written[key] = Written(name, 1, time.monotonic())
        while len(self._written) > REMEMBERED:
            self._written.popitem(last=False)


def _key(event: Emit) -> tuple[str, str, str, str]:
    return event.uid, event.type, event.reason, event.message


def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _micro() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _series(count: int) -> dict[str, Any]:
    return {"series": {"count": max(2, count), "lastObservedTime": _micro()}}


def _manifest(event: Emit, name: str, identity: str) -> dict[str, Any]:
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": event.namespace},
        "eventTime": _micro(),
        "reportingController": CONTROLLER,
        "reportingInstance": identity or os.uname().nodename,
        "action": event.reason,
        "type": event.type,
        "reason": event.reason[:128],
        "note": event.message[:1024],  # the API server's bound
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": "ModelPlacement",
            "namespace": event.namespace,
            "name": event.name,
            "uid": event.uid,
        },
    }
