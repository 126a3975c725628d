"""Kubernetes objects (dicts) -> the core's slim records. Lenient: what cannot be read is absent, never an exception."""

from __future__ import annotations

import json
from datetime import datetime
from sys import intern
from typing import Any

from cotenant.core import names
from cotenant.core.names import (
    ALLOCATION_ANNOTATION,
    ENGINE_CONTAINER,
    HASH_ANNOTATION,
    MODEL_LABEL,
    NODE_LABEL,
    PLACEMENT_LABEL,
    REPLICA_LABEL,
)
from cotenant.core.share import parse_cpu, parse_quantity
from cotenant.core.snapshot import Allocation, Ended, Holder, Labels, Node, Pod, ServicePort, ServiceRecord

Body = dict[str, Any]

UNKNOWN_EXIT = -1
"""The exit code of a pod that ended without a container saying so: evicted, or lost with its node."""

NOT_BLOCKED = frozenset({"", "ContainerCreating", "PodInitializing"})
"""Waiting reasons of a container that is on its way."""


def unix(text: str | None) -> float:
    """An RFC 3339 time as Unix seconds; 0.0 where there is none."""
    if not text:
        return 0.0
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0


def role(body: Body) -> str:
    """What a pod of ours is there for: `engine`, `holder`, `preflight`."""
    return names.role(_labels(body))


def owner_uid(body: Body) -> str:
    """Of the object that controls this one; '' where none does."""
    owners = body["metadata"].get("ownerReferences") or ()
    return next((str(o.get("uid", "")) for o in owners if o.get("controller")), "")


def _labels(body: Body) -> Body:
    return body["metadata"].get("labels") or {}


def _annotations(body: Body) -> Body:
    return body["metadata"].get("annotations") or {}


def _pairs(mapping: Body) -> Labels:
    """Labels repeat on every node: interned, they are kept once."""
    return tuple(sorted((intern(str(key)), intern(str(value))) for key, value in mapping.items()))


# ---------------------------------------------------------------------------------------------------------------- node
def node(body: Body) -> Node:
    """A Node."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    ready: Body = next((c for c in status.get("conditions") or () if c.get("type") == "Ready"), {})
    is_ready = ready.get("status") == "True"
    allocatable = status.get("allocatable") or {}
    return Node(
        name=metadata["name"],
        labels=_pairs(_labels(body)),
        ready=is_ready,
        not_ready_since=None
        if is_ready
        else unix(ready.get("lastTransitionTime") or metadata.get("creationTimestamp")),
        cordoned=bool(spec.get("unschedulable")),
        cpu=_quantity(allocatable.get("cpu"), parse_cpu),
        memory=_quantity(allocatable.get("memory"), parse_quantity),
        uid=metadata.get("uid", ""),
    )


def _quantity(text: Any, parse: Any) -> int:
    try:
        return int(parse(text)) if text is not None else 0
    except ValueError:
        return 0


# -------------------------------------------------------------------------------------------------------- engine pods
def pod(body: Body) -> Pod:
    """An engine pod of ours. Its logs are read apart (evidence): here they are not yet read."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    labels, annotations = _labels(body), _annotations(body)
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    container = _container(status)
    ready = conditions.get("Ready") or {}
    is_ready = ready.get("status") == "True"
    ended = _ended(status, container)
    reason, message = ("", "") if ended else _blocked(status, conditions)
    return Pod(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        placement=labels.get(PLACEMENT_LABEL, ""),
        owner_uid=owner_uid(body),
        model=labels.get(MODEL_LABEL, ""),
        replica=_int(labels.get(REPLICA_LABEL)),
        created=unix(metadata.get("creationTimestamp")),
        allocation=allocation(annotations.get(ALLOCATION_ANNOTATION)),
        hash=annotations.get(HASH_ANNOTATION, ""),
        phase=intern(status.get("phase") or "Pending"),
        ready=is_ready and ended is None,
        deleting="deletionTimestamp" in metadata,
        node=spec.get("nodeName"),
        ready_since=unix(ready.get("lastTransitionTime")) if is_ready else None,
        was_ready=is_ready or _was_ready(ready, container),
        blocked=message,
        blocked_reason=reason,
        ended=ended,
        args=_args(spec),
    )


def allocation(text: str | None) -> Allocation | None:
    """What the annotation says the replica was given; None where it is missing or not ours to read."""
    try:
        given = json.loads(text) if text else None
        if not isinstance(given, dict):
            return None
        return Allocation(
            node=intern(str(given["node"])),
            gpus=tuple(intern(str(gpu)) for gpu in given["gpus"]),
            bytes=int(given["bytes"]),
            utilization=intern(str(given["utilization"])),
            headroom=int(given.get("headroom", 0)),
            overrun=int(given.get("overrun", 0)),
        )
    except (ValueError, KeyError, TypeError):
        return None


def _container(status: Body) -> Body:
    """The engine container's status; {} until there is one."""
    found: Body = next((c for c in status.get("containerStatuses") or () if c.get("name") == ENGINE_CONTAINER), {})
    return found


def _args(spec: Body) -> tuple[str, ...]:
    for container in spec.get("containers") or ():
        if container.get("name") == ENGINE_CONTAINER:
            return tuple(
                intern(str(word)) for word in [*(container.get("command") or ()), *(container.get("args") or ())]
            )
    return ()


def _was_ready(ready: Body, container: Body) -> bool:
    """Whether a pod that is not ready was so before.

    The kubelet writes Ready=False when it first sees the pod and changes lastTransitionTime only with the status: a
    change after the container started means True came between.
    """
    state = {**(container.get("lastState") or {}), **(container.get("state") or {})}
    started = next(
        (unix(s.get("startedAt")) for s in state.values() if isinstance(s, dict) and s.get("startedAt")), 0.0
    )
    return started > 0 and unix(ready.get("lastTransitionTime")) > started and ready.get("status") == "False"


def _ended(status: Body, container: Body) -> Ended | None:
    """How the engine ended; with restartPolicy Never nothing starts it again but us, `Succeeded` included."""
    done = (container.get("state") or {}).get("terminated") or _failed_before(status)
    if done:
        return Ended(
            exit_code=_int(done.get("exitCode"), UNKNOWN_EXIT),
            reason=done.get("reason") or status.get("reason") or "Error",
            message=done.get("message") or status.get("message") or "",
            at=unix(done.get("finishedAt")),
        )
    if status.get("phase") not in ("Succeeded", "Failed"):
        return None
    changed = [unix(c.get("lastTransitionTime")) for c in status.get("conditions") or ()]
    return Ended(
        exit_code=UNKNOWN_EXIT,
        reason=status.get("reason") or str(status["phase"]),
        message=status.get("message") or "",
        at=max(changed, default=0.0),
    )


def _failed_before(status: Body) -> Body:
    """How an init container ended that failed, once that failed the pod."""
    if status.get("phase") != "Failed":
        return {}
    for container in status.get("initContainerStatuses") or ():
        done: Body = (container.get("state") or {}).get("terminated") or {}
        if done.get("exitCode"):
            return done
    return {}


def _blocked(status: Body, conditions: dict[Any, Body]) -> tuple[str, str]:
    """(reason, message): why the pod cannot start yet, in the scheduler's or the kubelet's words."""
    scheduled = conditions.get("PodScheduled") or {}
    if scheduled.get("status") == "False":
        return scheduled.get("reason") or "Unschedulable", scheduled.get("message") or ""
    for container in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason") or ""
        if reason not in NOT_BLOCKED:
            return reason, waiting.get("message") or reason
    return "", ""


def _int(text: Any, otherwise: int = 0) -> int:
    try:
        return int(text)
    except (TypeError, ValueError):
        return otherwise


# ------------------------------------------------------------------------------------------------- holders, services
def holder(body: Body) -> Holder:
    """A pod that keeps a GPU from others; its index ends its name, its node is in its label and its affinity."""
    metadata, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or ()}
    phase = status.get("phase")
    why = f"{phase}: {status.get('message') or ''}".rstrip(": ") if phase in ("Succeeded", "Failed") else ""
    return Holder(
        name=metadata["name"],
        node=_wanted_node(spec) or spec.get("nodeName") or _labels(body).get(NODE_LABEL, ""),
        index=_int(metadata["name"].rpartition("-")[2]),
        running=phase == "Running",
        deleting="deletionTimestamp" in metadata,
        blocked=why or _blocked(status, conditions)[1],
        uid=metadata.get("uid", ""),
        ended=phase in ("Succeeded", "Failed"),
        created=unix(metadata.get("creationTimestamp")),
    )


def _wanted_node(spec: Body) -> str:
    """The node a pod's affinity names; a label value may be a shortened one."""
    affinity = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    for term in affinity.get("nodeSelectorTerms") or ():
        for field in term.get("matchFields") or ():
            if field.get("key") == "metadata.name" and field.get("values"):
                return str(field["values"][0])
    return ""


def service(body: Body) -> ServiceRecord:
    """A Service that carries our label."""
    metadata, spec, labels = body["metadata"], body.get("spec") or {}, _labels(body)
    return ServiceRecord(
        metadata["namespace"],
        metadata["name"],
        _annotations(body).get(HASH_ANNOTATION, ""),
        labels.get(PLACEMENT_LABEL, ""),
        labels.get(MODEL_LABEL, ""),
        metadata.get("uid", ""),
        owner_uid(body),
        _pairs(spec.get("selector") or {}),
        tuple(_port(port) for port in spec.get("ports") or ()),
    )


def _port(port: Body) -> ServicePort:
    number = _int(port.get("port"))
    return ServicePort(
        port.get("name") or "", number, str(port.get("targetPort", number)), port.get("protocol") or "TCP"
    )
