"""The pods of this node, remembered by UID: PodResources knows only names, and /proc only UIDs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from cotenant.core.names import ALLOCATION_ANNOTATION, MODEL_LABEL, PLACEMENT_LABEL, REPLICA_LABEL, role

STATIC_POD_ANNOTATION = "kubernetes.io/config.hash"
"""On the mirror of a static pod: the UID by which the kubelet names its cgroup."""


@dataclass(frozen=True, slots=True)
class Share:
    """What a tenant was given, by its allocation annotation."""

    gpus: frozenset[str]
    bytes: int
    """Per GPU."""


@dataclass(frozen=True, slots=True)
class PodInfo:
    """One pod, as far as a GPU's report needs it."""

    uid: str
    namespace: str
    name: str
    role: str = ""
    """`engine`, `holder` or `preflight`; '' for a pod that is not ours."""
    ended: bool = False
    placement: str = ""
    model: str = ""
    replica: str = ""
    share: Share | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return (self.namespace, self.name)


def pod_info(body: dict[str, Any]) -> PodInfo:
    """A pod object as the record."""
    meta = body["metadata"]
    labels = meta.get("labels") or {}
    annotations = meta.get("annotations") or {}
    return PodInfo(
        uid=annotations.get(STATIC_POD_ANNOTATION, meta["uid"]),
        namespace=meta["namespace"],
        name=meta["name"],
        role=role(labels),
        ended=(body.get("status") or {}).get("phase") in ("Succeeded", "Failed"),
        placement=labels.get(PLACEMENT_LABEL, ""),
        model=labels.get(MODEL_LABEL, ""),
        replica=labels.get(REPLICA_LABEL, ""),
        share=_share(annotations.get(ALLOCATION_ANNOTATION, "")),
    )


def _share(text: str) -> Share | None:
    """The allocation; None where there is none that can be read."""
    try:
        body = json.loads(text)
        return Share(gpus=frozenset(body["gpus"]), bytes=int(body["bytes"]))
    except (ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True, slots=True)
class Pods:
    """What is known of the node's pods. A pod that was deleted stays as long as something of it is still seen."""

    by_uid: dict[str, PodInfo]
    listed: bool = False
    """Whether the API server was ever asked with success."""

    def named(self, namespace: str, name: str) -> PodInfo | None:
        """The pod of that name; of two (one deleted, one made anew) the one that runs."""
        found = [pod for pod in self.by_uid.values() if pod.key == (namespace, name)]
        return min(found, key=lambda pod: (pod.ended, pod.uid)) if found else None

    def after(self, bodies: Iterable[dict[str, Any]], seen: frozenset[str]) -> Pods:
        """With a fresh list; `seen` are the UIDs that still have processes."""
        fresh = {pod.uid: pod for pod in map(pod_info, bodies)}
        left = {uid: replace(pod, ended=True) for uid, pod in self.by_uid.items() if uid in seen and uid not in fresh}
        return Pods({**left, **fresh}, listed=True)


NO_PODS = Pods({})
