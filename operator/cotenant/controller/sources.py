"""The kinds a pass is told of: how each is selected on the API server and read into a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cotenant.api import gpunode, placement
from cotenant.controller import records
from cotenant.core import preflight
from cotenant.core.names import API_VERSION, MANAGED_BY, MANAGED_BY_LABEL
from cotenant.core.snapshot import Policy

Body = dict[str, Any]

PLACEMENTS, GPU_NODES, NODES, PODS, SERVICES = "placements", "gpunodes", "nodes", "pods", "services"


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of object we follow."""

    name: str
    api_version: str
    kind: str
    plural: str
    namespaced: bool
    read: Callable[[Body], object | None]
    """The record of an object, None for one that no decision needs."""
    selector: str = ""
    """Label selector, applied by the API server."""

    @property
    def group(self) -> str:
        """The API group; '' for core."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """The version within its group."""
        return self.api_version.rpartition("/")[2]


def sources(policy: Policy) -> tuple[Source, ...]:
    """All of them, in the order they are listed at the start: wishes last, so that nothing is decided on too little."""
    ours = f"{MANAGED_BY_LABEL}={MANAGED_BY}"
    key, value = policy.managed_label
    return (
        Source(NODES, "v1", "Node", "nodes", False, records.node, f"{key}={value}" if key else ""),
        Source(GPU_NODES, API_VERSION, "GPUNode", "gpunodes", False, gpunode.parse),
        Source(PODS, "v1", "Pod", "pods", True, _pod, ours),
        Source(SERVICES, "v1", "Service", "services", True, records.service, ours),
        Source(PLACEMENTS, API_VERSION, "ModelPlacement", "modelplacements", True, placement.parse),
    )


def _pod(body: Body) -> object | None:
    match records.role(body):
        case "engine":
            return records.pod(body)
        case "holder":
            return records.holder(body)
        case preflight.ROLE:
            return preflight.read(body)
    return None
