"""The pods that keep GPUs of managed nodes from others (binding Pinned)."""

from __future__ import annotations

from cotenant.core import preflight
from cotenant.core.names import DO_NOT_DISRUPT_ANNOTATION, MANAGED_BY, MANAGED_BY_LABEL, NODE_LABEL, ROLE_LABEL
from cotenant.core.snapshot import Manifest, Node, Policy


def holder_name(node: str, index: int) -> str:
    """Deterministic, so that a repeated create takes no second GPU."""
    return f"{node}-hold-{index}"


def holder_pod(node: Node, index: int, policy: Policy) -> Manifest:
    """The pod that keeps one GPU of a node from others: it asks the device plugin for one and sleeps."""
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node.name]}]}
    spec: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 0,
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [
            {
                "name": "hold",
                "image": policy.holder_image,
                "resources": {
                    "requests": {"cpu": "1m", "memory": "8Mi", "nvidia.com/gpu": 1},
                    "limits": {"nvidia.com/gpu": 1},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
            }
        ],
    }
    if policy.service_account:
        spec["serviceAccountName"] = policy.service_account
    if policy.holder_priority_class:
        spec["priorityClassName"] = policy.holder_priority_class
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": holder_name(node.name, index),
            "namespace": policy.namespace,
            "labels": {
                MANAGED_BY_LABEL: MANAGED_BY,
                ROLE_LABEL: "holder",
                NODE_LABEL: preflight.label_value(node.name),
            },
            "annotations": {DO_NOT_DISRUPT_ANNOTATION: "true"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.uid}],
        },
        "spec": spec,
    }
