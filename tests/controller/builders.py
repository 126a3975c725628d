"""Kubernetes objects as the API server gives them, for the controller's tests."""

from __future__ import annotations

import json
from typing import Any

Body = dict[str, Any]


def stamp(seconds: float) -> str:
    """Seconds after the start of 2026 as RFC 3339."""
    minutes, rest = divmod(int(seconds), 60)
    return f"2026-01-01T{minutes // 60:02d}:{minutes % 60:02d}:{rest:02d}Z"


def engine_pod(
    name: str = "sparrow-mistral-0",
    namespace: str = "default",
    uid: str = "u1",
    version: int = 1,
    phase: str = "Pending",
    ready: bool = False,
    **more: Any,
) -> Body:
    """An engine pod; `more` goes into status."""
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(0)},
        {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": stamp(100 if ready else 0)},
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid,
            "resourceVersion": str(version),
            "creationTimestamp": stamp(0),
            "labels": {
                "app.kubernetes.io/managed-by": "cotenant",
                "cotenant.dev/role": "engine",
                "cotenant.dev/placement": "sparrow",
                "cotenant.dev/model": "mistral",
                "cotenant.dev/replica": "0",
            },
            "annotations": {
                "cotenant.dev/hash": "v1-abc",
                "cotenant.dev/allocation": json.dumps(
                    {"node": "gpu-1", "gpus": ["GPU-a"], "bytes": 70, "utilization": "0.70", "headroom": 1000}
                ),
            },
            "ownerReferences": [{"kind": "ModelPlacement", "name": "sparrow", "uid": "owner", "controller": True}],
        },
        "spec": {"nodeName": "gpu-1", "containers": [{"name": "engine", "args": ["serve", "m"], "command": ["vllm"]}]},
        "status": {"phase": phase, "conditions": conditions, **more},
    }


def ended(code: int, reason: str = "Error", message: str = "", at: float = 50, started: float = 10) -> Body:
    """Container statuses of an engine that ended."""
    state = {
        "exitCode": code,
        "reason": reason,
        "message": message,
        "startedAt": stamp(started),
        "finishedAt": stamp(at),
    }
    return {"containerStatuses": [{"name": "engine", "ready": False, "state": {"terminated": state}}]}


def placement(name: str = "sparrow", uid: str = "p1", version: int = 1, share: str = "70%", **more: Any) -> Body:
    """A ModelPlacement with one model."""
    return {
        "apiVersion": "cotenant.dev/v1alpha1",
        "kind": "ModelPlacement",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid,
            "resourceVersion": str(version),
            "generation": 1,
            "creationTimestamp": stamp(0),
        },
        "spec": {"models": [{"name": "mistral", "uri": "hf://mistralai/m", "share": share}]},
        **more,
    }


def node(name: str = "gpu-1", version: int = 1, ready: bool = True, **more: Any) -> Body:
    """A Node given to Cotenant."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            "labels": {"cotenant.dev/managed": "true"},
            "creationTimestamp": stamp(0),
        },
        "spec": more,
        "status": {
            "allocatable": {"cpu": "4", "memory": "8Gi"},
            "conditions": [
                {"type": "Ready", "status": "True" if ready else "Unknown", "lastTransitionTime": stamp(60)},
            ],
        },
    }
