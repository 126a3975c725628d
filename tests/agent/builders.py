"""Makes what reports are made of."""

from __future__ import annotations

import json
from typing import Any

from cotenant.agent.podresources import Holding, Holdings
from cotenant.agent.pods import NO_PODS, Pods
from cotenant.agent.processes import Membership, Process
from cotenant.agent.readings import DeviceReading, Memory, NodeReading, ProcessReading
from cotenant.agent.report import Known, Report, Surroundings, report

GIB = 1 << 30
A, B = "GPU-a", "GPU-b"


def gpu(uuid: str = A, *processes: tuple[int, int], index: int = 0, **fields: Any) -> DeviceReading:
    """A GPU with processes (pid, bytes)."""
    used = sum(used for _, used in processes)
    listed = tuple(ProcessReading(pid, bytes_) for pid, bytes_ in processes)
    return DeviceReading(uuid, index, "NVIDIA H200", Memory(140 * GIB, GIB, used), listed, **fields)


def pod(
    name: str, role: str = "", *, namespace: str = "models", uid: str = "", gpus: tuple[str, ...] = (), **status: Any
) -> dict[str, Any]:
    """A pod as the API server says it; its UID is made of its name."""
    labels = {"cotenant.dev/role": role, "cotenant.dev/model": "m"} if role else {}
    annotations = {}
    if gpus:
        annotations["cotenant.dev/allocation"] = json.dumps({"node": "n1", "gpus": list(gpus), "bytes": 60 * GIB})
    meta = {
        "name": name,
        "namespace": namespace,
        "uid": uid or f"uid-{name}",
        "labels": labels,
        "annotations": annotations,
    }
    return {"metadata": meta, "status": {"phase": "Running", **status}}


def in_pod(pid: int, name: str = "", command: str = "python") -> Process:
    """A process of the pod of that name; '' = of the host."""
    return Process(pid, command, Membership(f"uid-{name}") if name else None)


def held(name: str, *devices: str, namespace: str = "models") -> Holdings:
    """One pod holds devices."""
    return Holdings(at=1.0, held=tuple(Holding(namespace, name, "c", "nvidia.com/gpu", device) for device in devices))


def surroundings(*bodies: dict[str, Any], processes: tuple[Process, ...] = (), **fields: Any) -> Surroundings:
    """Pods and processes."""
    pods: Pods = NO_PODS.after(bodies, frozenset())
    return Surroundings(processes={process.pid: process for process in processes}, pods=pods, **fields)


def known(*devices: DeviceReading, **fields: Any) -> Known:
    """After one reading."""
    return Known().after(NodeReading(devices, "580", **fields))


def said(*devices: DeviceReading, around: Surroundings | None = None) -> Report:
    """What is said of a node with these GPUs."""
    return report("n1", known(*devices), around or surroundings())
