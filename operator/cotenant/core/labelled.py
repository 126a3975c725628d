"""What GPU Feature Discovery's labels say of a node: enough to plan by where no agent reports, too little to start by."""

from __future__ import annotations

from cotenant.core.share import MIB
from cotenant.core.snapshot import Device, GPUNode, Node

PRODUCT, COUNT, MEMORY = "nvidia.com/gpu.product", "nvidia.com/gpu.count", "nvidia.com/gpu.memory"
SHARING, REPLICAS, MIG = "nvidia.com/gpu.sharing-strategy", "nvidia.com/gpu.replicas", "nvidia.com/mig.strategy"
MOST = 64
"""GPUs of one node; a label that says more is not believed."""


def by_labels(node: Node) -> GPUNode | None:
    """Its GPUs as the labels tell; None where they do not.

    The label's memory (MiB) is NVML's total and so over-estimates: an H200 has 615 MiB less that can be used (driver 580.159.04).
    Labels know no UUIDs, no NVLink, and nothing of what is in use.
    """
    labels = dict(node.labels)
    product, count, memory = labels.get(PRODUCT, ""), _number(labels.get(COUNT)), _number(labels.get(MEMORY))
    if not product or not memory or not 0 < count <= MOST:
        return None
    divided = _divided(labels)
    devices = tuple(Device(f"{node.name}/{index}", node.name, index, product, memory * MIB) for index in range(count))
    if divided:
        return GPUNode(node.name, supported=False, reason="Divided", message=divided)
    return GPUNode(node.name, devices)


def _divided(labels: dict[str, str]) -> str:
    """How the labels say that GPUs are given out in parts; '' = whole."""
    if labels.get(SHARING, "none") not in ("", "none") or _number(labels.get(REPLICAS, "1")) > 1:
        return "its labels say that the device plugin shares GPUs; set its sharing strategy to none"
    if labels.get(MIG, "none") not in ("", "none") and (
        "-MIG-" in labels[PRODUCT] or any(key.startswith("nvidia.com/mig-") for key in labels)
    ):
        return "its labels say that MIG is on; turn it off or leave the node to others"
    return ""


def _number(text: str | None) -> int:
    """A label's number; 0 where it is none."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) <= 9 else 0
