"""The proof, per node and injection style, that a pod sees exactly the GPU it was given: the pod and its verdict.

No engine is placed on a node before a preflight pod there saw the one GPU asked for and no other. The pod itself is
the record: it stays after it ended, and its name holds a key of all that the proof depends on, so a changed
RuntimeClass, ClusterPolicy or agent asks for a new one. The key tells nothing of the GPU: one proves the node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from cotenant.core.injection import Style, inject
from cotenant.core.names import FIELD_MANAGER, GROUP, MANAGED_BY, MANAGED_BY_LABEL, NODE_LABEL, ROLE_LABEL

ROLE = "preflight"
KEY_LABEL = f"{GROUP}/preflight-key"
GPU_ANNOTATION = f"{GROUP}/preflight-gpu"
STYLE_ANNOTATION = f"{GROUP}/preflight-style"
CONTAINER = "preflight"
DEADLINE_SECONDS = 120
RETRY_SECONDS = 300.0
"""After this long a failed proof is tried again: the device plugin may have been late with its CDI specification."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where the proof is to hold and all that it depends on."""

    node: str
    node_uid: str
    style: Style
    runtime_class: str = "nvidia"
    runtime_class_version: str = ""
    """uid of the RuntimeClass object; '' where the style needs none."""
    cluster_policy_version: str = ""
    """What identifies the ClusterPolicy's injection settings, e.g. uid/generation; '' where there is none."""
    agent_version: str = ""

    @property
    def key(self) -> str:
        """Ten hexadecimal digits that change with anything the proof depends on."""
        parts: tuple[str, ...] = (
            self.node_uid,
            self.style.value,
            self.runtime_class,
            self.runtime_class_version,
            self.cluster_policy_version,
            self.agent_version,
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """The name of its pod: made twice it meets a 409, never a twin."""
        return f"preflight-{_short(self.node)}-{self.key}"


def _short(node: str) -> str:
    """A node's name cut to fit into a pod name of 63 characters that is a DNS label; the key tells nodes apart."""
    return node.replace(".", "-")[:40].strip("-")


def label_value(node: str) -> str:
    """A node's name as a label value (63 characters at most); a longer one ends in a hash of the whole."""
    if len(node) <= 63:
        return node
    return f"{node[:52]}-{hashlib.sha256(node.encode()).hexdigest()[:10]}"


def manifest(
    ground: Ground,
    gpu: str,
    *,
    image: str,
    namespace: str,
    command: Iterable[str] = ("cotenant", "preflight"),
    pull_policy: str = "IfNotPresent",
    pull_secrets: Iterable[str] = (),
    service_account: str = "",
) -> dict[str, Any]:
    """The pod that shows what a container on this node sees when it is given this one GPU.

    It goes through the scheduler like an engine, so taints hold; it satisfies Pod Security `restricted` in every style
    but volume-mounts. The Node owns it, so it goes with the node.
    """
    given = inject(ground.style, [gpu], CONTAINER, ground.runtime_class)
    owner = {"apiVersion": "v1", "kind": "Node", "name": ground.node, "uid": ground.node_uid}
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": pull_policy,
        "command": list(command),
        "env": given.env_list,
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": DEADLINE_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 5,
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    # by name, not by the hostname label: that one may differ
                    "nodeSelectorTerms": [
                        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [ground.node]}]}
                    ]
                }
            }
        },
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65534,
            "runAsGroup": 65534,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    if given.runtime_class:
        spec["runtimeClassName"] = given.runtime_class
    if given.volumes:
        spec["volumes"] = list(given.volumes)
        container["volumeMounts"] = list(given.mounts)
    if service_account:
        spec["serviceAccountName"] = service_account
    if secrets := [{"name": name} for name in pull_secrets]:
        spec["imagePullSecrets"] = secrets
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": ground.name,
            "namespace": namespace,
            "labels": {
                MANAGED_BY_LABEL: MANAGED_BY,
                ROLE_LABEL: ROLE,
                NODE_LABEL: label_value(ground.node),
                KEY_LABEL: ground.key,
                "app.kubernetes.io/name": FIELD_MANAGER,
            },
            "annotations": {
                **dict(given.annotations),
                GPU_ANNOTATION: gpu,
                STYLE_ANNOTATION: ground.style.value,
            },
            "ownerReferences": [owner],
        },
        "spec": spec,
    }


# --------------------------------------------------------------------------------------------------------- the verdict
@dataclass(frozen=True, slots=True)
class Passed:
    """The pod saw exactly the GPU asked for."""

    gpu: str


@dataclass(frozen=True, slots=True)
class Failed:
    """It did not; what it saw or why it never ran, in a sentence for the placement's status."""

    reason: str


@dataclass(frozen=True, slots=True)
class Running:
    """Not ended yet."""

    why: str = ""


Verdict = Passed | Failed | Running

HOPELESS = frozenset(
    {"CreateContainerError", "CreateContainerConfigError", "RunContainerError", "StartError", "InvalidImageName"}
)
"""Reasons by which a kubelet says that this container will not run as asked."""
NO_IMAGE = frozenset({"ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull"})


@dataclass(frozen=True, slots=True)
class Preflight:
    """A preflight pod as far as a pass needs it."""

    name: str
    uid: str
    node: str
    """The node it is for, from its affinity."""
    key: str
    verdict: Verdict
    ended_at: str = ""
    """RFC 3339, as the kubelet says it; '' while it runs."""
    deleting: bool = False
    at: float = 0.0
    """Unix seconds at which it ended, or was made where no end is told."""

    @property
    def retry_at(self) -> float | None:
        """When a failed one is worth another try; None for all others."""
        return self.at + RETRY_SECONDS if isinstance(self.verdict, Failed) else None


def read(pod: Mapping[str, Any]) -> Preflight:
    """What one preflight pod says; the GPU it was asked to see is in its annotation."""
    metadata = pod.get("metadata") or {}
    wanted = (metadata.get("annotations") or {}).get(GPU_ANNOTATION, "")
    owners = [owner["name"] for owner in metadata.get("ownerReferences") or () if owner.get("kind") == "Node"]
    ended = _terminated(pod) or {}
    return Preflight(
        name=metadata.get("name", ""),
        uid=metadata.get("uid", ""),
        node=owners[0] if owners else "",
        key=(metadata.get("labels") or {}).get(KEY_LABEL, ""),
        verdict=verdict(pod, wanted),
        ended_at=ended.get("finishedAt") or "",
        deleting=bool(metadata.get("deletionTimestamp")),
        at=_unix(ended.get("finishedAt") or metadata.get("creationTimestamp")),
    )


def _unix(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def verdict(pod: Mapping[str, Any], wanted: str) -> Verdict:
    """Whether the pod saw exactly `wanted`; its termination message lists what it saw, one UUID per line."""
    status = pod.get("status") or {}
    phase = status.get("phase", "Pending")
    ended = _terminated(pod)
    if phase == "Succeeded" and ended is not None:
        return _judge(ended.get("message") or "", wanted)
    if phase == "Failed":
        return Failed(_why_failed(status, ended))
    return _waiting(status)


def _judge(message: str, wanted: str) -> Verdict:
    seen = sorted({line.strip() for line in message.splitlines() if line.strip()})
    if seen == [wanted]:
        return Passed(wanted)
    if not seen:
        return Failed(f"the pod was given {wanted} and saw no GPU: this injection style does nothing on this node")
    beside = [gpu for gpu in seen if gpu != wanted]
    if wanted in seen:
        return Failed(f"the pod was given {wanted} and also saw {_some(beside)}: GPUs are not kept apart on this node")
    return Failed(f"the pod was given {wanted} and saw {_some(beside)} instead")


def _why_failed(status: Mapping[str, Any], ended: Mapping[str, Any] | None) -> str:
    if ended is None:
        reason = status.get("reason") or "no reason given"
        return f"the pod failed before its container ran: {reason} {status.get('message') or ''}".strip()
    text = _last_line(ended.get("message") or "")
    return f"the container ended with {ended.get('reason') or 'Error'} {ended.get('exitCode')}: {text or 'no message'}"


def _waiting(status: Mapping[str, Any]) -> Verdict:
    for container in status.get("containerStatuses") or ():
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason, text = waiting.get("reason") or "", _last_line(waiting.get("message") or "")
        if reason in HOPELESS:
            return Failed(f"the container cannot be made: {reason}: {text}")
        if reason in NO_IMAGE:
            return Failed(f"its image cannot be had: {reason}: {text}")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return Running(f"not scheduled: {condition.get('message') or condition.get('reason') or ''}")
    return Running()


def _terminated(pod: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated")
        if isinstance(ended, Mapping):
            return ended
    return None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:400] if lines else ""


def _some(gpus: list[str]) -> str:
    return ", ".join(gpus[:4]) + (f" and {len(gpus) - 4} more" if len(gpus) > 4 else "")
