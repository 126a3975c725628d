"""Writes what the agent says: the GPUNode by server-side apply, and the Lease that says it is alive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Protocol

from cotenant.agent.report import Report, Verdict
from cotenant.core.names import AGENT_MANAGER, API_VERSION, GROUP, MANAGED_BY, MANAGED_BY_LABEL, PRODUCT_LABEL
from cotenant.core.snapshot import Device, Manifest
from cotenant.errors import NotFound

BOOT_ANNOTATION = f"{GROUP}/boot-id"
"""On a GPUNode: the boot of the machine it was said of; what Xids said holds until the next one."""


class Cluster(Protocol):
    """The part of cotenant.kube.Kube that the agent uses."""

    async def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Manifest: ...
    async def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> list[Manifest]: ...
    async def apply(self, manifest: Manifest, field_manager: str = ..., force: bool = True) -> Manifest: ...
    async def apply_status(self, manifest: Manifest, field_manager: str, force: bool = True) -> Manifest: ...


class Publisher:
    """Writes one node's GPUNode; remembers when each condition last changed."""

    def __init__(self, cluster: Cluster, node: str, boot: str) -> None:
        self._cluster = cluster
        self._node = node
        self._boot = boot
        self._conditions: dict[str, Manifest] = {}
        self._gpus: list[Manifest] = []
        self._metadata_applied: Manifest | None = None
        self._generation = 1

    async def before(self) -> Manifest | None:
        """The GPUNode as an earlier agent left it; None when there is none."""
        try:
            found = await self._cluster.get(API_VERSION, "GPUNode", self._node)
        except NotFound:
            return None
        status = found.get("status") or {}
        self._conditions = {condition["type"]: condition for condition in status.get("conditions") or []}
        self._gpus = status.get("gpus") or []
        return found

    async def publish(self, said: Report, node: Manifest | None, now: float) -> None:
        """Apply the status; the object itself first where it is new or its labels changed."""
        identity = {"apiVersion": API_VERSION, "kind": "GPUNode", "metadata": {"name": self._node}}
        metadata = self._metadata(node)
        if metadata != self._metadata_applied:
            applied = await self._cluster.apply({**identity, "metadata": metadata}, AGENT_MANAGER)
            self._metadata_applied, self._generation = metadata, applied["metadata"].get("generation", 1)
        status = self._status(said, self._generation, now)
        try:
            await self._cluster.apply_status({**identity, "status": status}, AGENT_MANAGER)
        except NotFound:
            if self._metadata_applied is None:
                raise
            self._metadata_applied = None  # deleted meanwhile: made again, once
            await self.publish(said, node, now)
            return
        self._conditions = {condition["type"]: condition for condition in status["conditions"]}
        self._gpus = status["gpus"]

    def _metadata(self, node: Manifest | None) -> Manifest:
        meta = (node or {}).get("metadata") or {}
        product = (meta.get("labels") or {}).get(PRODUCT_LABEL)
        out: Manifest = {
            "name": self._node,
            "labels": {MANAGED_BY_LABEL: MANAGED_BY} | ({PRODUCT_LABEL: product} if product else {}),
            "annotations": {BOOT_ANNOTATION: self._boot},
        }
        if meta.get("uid"):
            # It goes with its Node.
            out["ownerReferences"] = [{"apiVersion": "v1", "kind": "Node", "name": self._node, "uid": meta["uid"]}]
        return out

    def _status(self, said: Report, generation: int, now: float) -> Manifest:
        conditions = [
            self._condition(kind, verdict, generation, now)
            for kind, verdict in (("Ready", said.ready), ("Supported", said.supported))
        ]
        gpus = [gpu(device) for device in said.devices] or self._gpus
        return {
            "observedGeneration": generation,
            "agentVersion": version("cotenant"),
            **({"driverVersion": said.driver} if said.driver else {}),
            "conditions": conditions,
            # An agent that has read nothing yet leaves what an earlier one said: Ready=False says that it is old.
            "gpus": gpus,
            **({"summary": summary(gpus)} if gpus else {}),
        }

    def _condition(self, kind: str, verdict: Verdict, generation: int, now: float) -> Manifest:
        status = "True" if verdict.holds else "False"
        before = self._conditions.get(kind, {})
        since = before["lastTransitionTime"] if before.get("status") == status else _time(now)
        return {
            "type": kind,
            "status": status,
            "reason": verdict.reason,
            "message": verdict.message,
            "observedGeneration": generation,
            "lastTransitionTime": since,
        }


def summary(gpus: Sequence[Manifest]) -> str:
    """`8 x NVIDIA H100 80GB HBM3`; unlike GPUs in the order of their names."""
    counted = Counter(str(entry.get("product") or "unknown GPU") for entry in gpus)
    return ", ".join(f"{count} x {product}" for product, count in sorted(counted.items()))


def gpu(device: Device) -> Manifest:
    """An entry of `status.gpus`; what is not known is not said."""
    entry: Manifest = {
        "uuid": device.uuid,
        "index": device.index,
        "product": device.product,
        "memory": {"total": device.total, "reserved": device.reserved, "used": device.used},
        "island": device.island,
        "numa": device.numa,
        "health": device.health,
        "holder": device.holder,
        "owner": device.owner,
        "tenants": [{"namespace": t.namespace, "pod": t.pod, "used": t.used} for t in device.tenants],
        "strangers": [
            {"pid": s.pid, "command": s.command, "used": s.used} | ({"pod": s.pod} if s.pod else {})
            for s in device.strangers
        ],
    }
    return {key: value for key, value in entry.items() if value is not None}


def fatal_xids(found: Manifest | None, boot: str) -> tuple[tuple[str, int], ...]:
    """The Xids an earlier agent marked GPUs with, if the machine was not started again since."""
    annotations: Mapping[str, Any] = ((found or {}).get("metadata") or {}).get("annotations") or {}
    if not found or annotations.get(BOOT_ANNOTATION) != boot:
        return ()
    marks = [(entry["uuid"], entry.get("health", "")) for entry in (found.get("status") or {}).get("gpus") or []]
    prefix = "Unhealthy/XID"
    return tuple(sorted((uuid, int(mark[len(prefix) :])) for uuid, mark in marks if mark.startswith(prefix)))


def lease(node: str, namespace: str, holder: str, seconds: int, now: float) -> Manifest:
    """The heartbeat: alive as of now, to be believed for so many seconds."""
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": node, "namespace": namespace, "labels": {MANAGED_BY_LABEL: MANAGED_BY}},
        "spec": {
            "holderIdentity": holder,
            "leaseDurationSeconds": seconds,
            "renewTime": datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        },
    }


def _time(now: float) -> str:
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
