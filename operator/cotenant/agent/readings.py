"""What NVML said of one node at one moment, and what follows from it alone: islands and health. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Memory:
    """NVML memory v2, bytes. CUDA calls `total - reserved` the total (equal to the byte on an H200, driver
    580.159.04)."""

    total: int
    reserved: int
    used: int
    """By processes; without the reserved part (v1's `used` has it in)."""


@dataclass(frozen=True, slots=True)
class ProcessReading:
    """A process that has a context on a GPU."""

    pid: int
    """As the host counts: the agent must run with hostPID, else NVML's list is silently empty."""
    used: int
    """Bytes."""
    estimated: bool = False
    """NVML gave no bytes (it does not in some virtual machines); `used` is its part of what nobody else accounts
    for."""


class Remote(StrEnum):
    """What is at the other end of an NVLink."""

    GPU = "gpu"
    SWITCH = "switch"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Link:
    """One active NVLink of a GPU."""

    number: int
    remote: Remote
    bus: str
    """PCI address of the other end; '' where the driver does not say (a switch seen from inside a virtual machine)."""


@dataclass(frozen=True, slots=True)
class Wiring:
    """What changes only with the machine or the driver: where the GPU sits and to whom it is linked."""

    bus: str
    numa: int | None = None
    links: tuple[Link, ...] = ()
    nvlink_refused: frozenset[str] = frozenset()
    """UUIDs to which the driver refuses peer access over NVLink (P2P status)."""


@dataclass(frozen=True, slots=True)
class Ailments:
    """What makes a GPU suspect, as counted by NVML since the driver was loaded."""

    uncorrected_ecc: int | None = None
    remap_pending: bool = False
    """A row waits to be remapped: done at the next reset of the GPU; it can be used until then."""
    remap_failed: bool = False
    """A broken row could not be replaced: the GPU should be swapped."""


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One GPU."""

    uuid: str
    index: int
    product: str
    memory: Memory
    processes: tuple[ProcessReading, ...] = ()
    wiring: Wiring = Wiring(bus="")
    mig: bool = False
    ailments: Ailments = Ailments()
    error: str = ""
    """Why the figures are older than the reading: `GPULost` or what NVML said; '' = they are fresh."""
    hidden: int = 0
    """Bytes in use that no listed process accounts for."""


@dataclass(frozen=True, slots=True)
class Xid:
    """An error the driver reported of a GPU."""

    uuid: str
    number: int


@dataclass(frozen=True, slots=True)
class NodeReading:
    """All GPUs of a node at one moment."""

    devices: tuple[DeviceReading, ...] = ()
    driver: str = ""
    xids: tuple[Xid, ...] = ()
    """Those that came since the last reading."""
    reloaded: bool = False
    """The driver was loaded anew since the last reading: what Xids said of the GPUs before no longer holds."""


# ----------------------------------------------------------------------------------------------------------- islands
def islands(devices: tuple[DeviceReading, ...]) -> dict[str, int]:
    """The island of each GPU that NVLink joins to another one; numbered by the lowest index in it, from 0.

    Asked of the links: the common ancestor says "one host bridge" for a pair with 18 links between them (H200,
    driver 580.159.04).
    """
    parent = {device.uuid: device.uuid for device in devices}

    def root(uuid: str) -> str:
        while parent[uuid] != uuid:
            uuid = parent[uuid]
        return uuid

    for i, one in enumerate(devices):
        for other in devices[i + 1 :]:
            if are_joined(one, other):
                parent[root(other.uuid)] = root(one.uuid)
    members: dict[str, list[DeviceReading]] = {}
    for device in devices:
        members.setdefault(root(device.uuid), []).append(device)
    joined = sorted(
        (group for group in members.values() if len(group) > 1), key=lambda group: min(d.index for d in group)
    )
    return {device.uuid: number for number, group in enumerate(joined) for device in group}


def are_joined(one: DeviceReading, other: DeviceReading) -> bool:
    """Whether NVLink carries from one GPU to the other, by a link between them or through switches both are linked
    to."""
    if other.uuid in one.wiring.nvlink_refused or one.uuid in other.wiring.nvlink_refused:
        return False
    if any(link.remote is Remote.GPU and link.bus == other.wiring.bus for link in one.wiring.links):
        return True
    if any(link.remote is Remote.GPU and link.bus == one.wiring.bus for link in other.wiring.links):
        return True
    mine, theirs = _switches(one), _switches(other)
    return bool(mine and theirs) and (bool(mine & theirs) or "" in mine or "" in theirs)


def _switches(device: DeviceReading) -> set[str]:
    return {link.bus for link in device.wiring.links if link.remote is Remote.SWITCH}


# ------------------------------------------------------------------------------------------------------------- health
APPLICATION_XIDS = frozenset({13, 31, 43, 45, 68, 94, 109})
"""A process did it or bears it (bad access, its channel torn down, its ECC error contained), the GPU is fine. The
list that NVIDIA's device plugin and DRA driver ignore (k8s-device-plugin internal/rm/health.go, 2026), and 94, a
contained ECC error, for which NVIDIA's Xid catalog wants the application restarted and nothing else
(https://docs.nvidia.com/deploy/xid-errors/)."""

NOTICE_XIDS = frozenset({63, 92, 154})
"""Kept in the metrics only: a row will be remapped, many corrected errors, the advised recovery changed (same
catalog)."""


def is_fatal(xid: int) -> bool:
    """Whether no engine may be placed on the GPU any more: 48, 62, 64, 74, 79, 95, 119, 120 and whatever is not
    known to be harmless.

    The device plugin takes such a GPU out of `nvidia.com/gpu` too.
    """
    return xid not in APPLICATION_XIDS and xid not in NOTICE_XIDS


HEALTHY = "Healthy"
LOST = "GPULost"
"""The error of a GPU that the driver cannot reach any more."""


def health(device: DeviceReading, fatal_xid: int | None) -> str:
    """`Healthy`, or `Unhealthy/<why>`."""
    if fatal_xid is not None:
        return f"Unhealthy/XID{fatal_xid}"
    if device.error:
        return f"Unhealthy/{device.error}"
    if device.ailments.remap_failed:
        return "Unhealthy/RowRemapFailed"
    return HEALTHY
