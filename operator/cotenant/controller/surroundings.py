"""What the cluster says of how containers get their GPUs: the RuntimeClass and the GPU Operator's ClusterPolicy."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from cotenant.core.injection import detect
from cotenant.core.snapshot import Policy
from cotenant.errors import NotFound, Refused
from cotenant.kube import Kube

log = logging.getLogger(__name__)

AUTO = "auto"
FALLBACK = "cdi-device-plugin"
"""What GPU Operator >= 25.10 wants; nodes where it does not work fail their preflight and say so."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What was found."""

    policy: Policy
    """The settings, with the injection style found where they leave it to us."""
    version: str
    """Changes when anything does that a proof depends on."""


async def survey(kube: Kube, policy: Policy) -> Surroundings:
    """Look once. ClusterError where the API server does not answer; what is absent or not ours to read is absent."""
    runtime_class = await _one(kube, "node.k8s.io/v1", "RuntimeClass", policy.runtime_class)
    cluster_policy = await _first(kube, "nvidia.com/v1", "ClusterPolicy")
    version = "|".join(_version(found) for found in (runtime_class, cluster_policy))
    if policy.injection != AUTO:
        return Surroundings(policy, version)
    classes = [policy.runtime_class] if runtime_class else []
    found = detect(classes, cluster_policy, runtime_class=policy.runtime_class)
    log.info("injection style: %s (%s)", found.style or f"none found, trying {FALLBACK}", found.reason)
    return Surroundings(replace(policy, injection=found.style.value if found.style else FALLBACK), version)


def _version(found: dict[str, Any] | None) -> str:
    return f"{found['metadata']['uid']}/{found['metadata'].get('generation', 1)}" if found else ""


async def _one(kube: Kube, api_version: str, kind: str, name: str) -> dict[str, Any] | None:
    try:
        return await kube.get(api_version, kind, name)
    except (NotFound, Refused):
        return None


async def _first(kube: Kube, api_version: str, kind: str) -> dict[str, Any] | None:
    try:
        found = await kube.list(api_version, kind)
    except (NotFound, Refused):
        return None
    return min(found, key=lambda o: str(o["metadata"]["name"]), default=None)
