"""Simulated GPU nodes: what KWOK is told, and what such a Node looks like."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

STAGES = Path(__file__).parent / "stages"

SIMULATED = "tests.cotenant.dev/simulated"
"""The label of the nodes that KWOK keeps. Without it a Node's lease is renewed no longer, as if its machine had died."""


def command(binary: Path, kubeconfig: Path, lease_seconds: int) -> list[str]:
    """KWOK's command line: it renews leases every quarter of `lease_seconds`."""
    return [
        str(binary),
        f"--kubeconfig={kubeconfig}",
        f"--manage-nodes-with-label-selector={SIMULATED}=true",
        f"--node-lease-duration-seconds={lease_seconds}",
        # Stages given here replace KWOK's own.
        *(f"--config={stage}" for stage in sorted(STAGES.glob("*.yaml"))),
    ]


def gpu_node(
    name: str, product: str, gpus: int, memory_mib: int, labels: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """A Node with the labels that GPU feature discovery sets; `memory_mib` is the total of one GPU as NVML says it."""
    capacity = {"cpu": "192", "memory": "2Ti", "pods": "250", "nvidia.com/gpu": str(gpus)}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},  # KWOK's own sign; tests/sim looks for it
            "labels": {
                SIMULATED: "true",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "nvidia.com/gpu.present": "true",
                "nvidia.com/gpu.product": product,
                "nvidia.com/gpu.count": str(gpus),
                "nvidia.com/gpu.memory": str(memory_mib),
                "nvidia.com/gpu.sharing-strategy": "none",
                **(labels or {}),
            },
        },
        "status": {
            "allocatable": capacity,
            "capacity": capacity,
            "addresses": [
                {"type": "Hostname", "address": name},
                # Of a network kept for documentation (RFC 5737): nothing is reached there.
                {"type": "InternalIP", "address": "192.0.2.1"},
            ],
        },
    }
