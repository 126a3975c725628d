"""One simulated node: its cards, its device plugin, and what its agent would report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.sim.card import Card, Process
from tests.sim.products import MIB, Product

NOTICEABLE = 256 * MIB
"""Memory that must have moved before the agent reports again."""


def uuid_of(seed: int, node: str, index: int) -> str:
    """A GPU's UUID: the same for the same seed, node and index."""
    digest = hashlib.sha256(f"{seed}/{node}/{index}".encode()).hexdigest()
    return f"GPU-{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}"


@dataclass(slots=True)
class SimNode:
    """A node with GPUs."""

    name: str
    product: Product
    cards: list[Card]
    style: str = "cdi"
    """How GPUs are injected: see injection.STYLES."""
    shuffle: Random | None = None
    """The device plugin hands out GPUs in a random order; None = the lowest free one."""
    lost: bool = False
    """Cut off: nothing it does reaches the API server, nothing reaches it."""
    unsupported: str = ""
    """Reason for condition Supported=False (MIG, TimeSliced); empty = supported."""
    devices: dict[str, str] = field(default_factory=dict)
    """Device plugin: UUID -> `namespace/pod` that has it."""
    holders: dict[str, str] = field(default_factory=dict)
    """UUID -> name of the running holder pod of ours."""
    strangers: dict[str, list[int]] = field(default_factory=dict)
    """Annotation's entry -> pids it stands for."""

    @classmethod
    def make(
        cls, name: str, product: Product, gpus: int, *, seed: int = 0, islands: list[int | None] | None = None,
        style: str = "cdi", shuffle: bool = False,
    ) -> SimNode:  # fmt: skip
        """A node with `gpus` equal cards; without `islands` none is joined to another by NVLink."""
        joined = islands or [None] * gpus
        cards = [
            Card(
                uuid_of(seed, name, i),
                i,
                product,
                island=joined[i] if i < len(joined) else None,
                numa=i * 2 // max(gpus, 2),
            )
            for i in range(gpus)
        ]
        return cls(name, product, cards, style, Random(f"{seed}/{name}") if shuffle else None)

    def card(self, uuid: str) -> Card | None:
        """The card of this UUID, if it is still seen."""
        return next((card for card in self.cards if card.uuid == uuid and not card.lost), None)

    @property
    def uuids(self) -> tuple[str, ...]:
        """Every GPU that is seen."""
        return tuple(card.uuid for card in self.cards if not card.lost)

    def allocate(self, pod: str, count: int) -> tuple[str, ...] | None:
        """What the device plugin gives a pod: the same to one that has something already; None where too few are free."""
        if had := tuple(uuid for uuid, owner in self.devices.items() if owner == pod):
            return had
        free = [
            card.uuid
            for card in self.cards
            if card.uuid not in self.devices and card.health == "Healthy" and not card.lost
        ]
        if len(free) < count:
            return None
        if self.shuffle:
            self.shuffle.shuffle(free)
        for uuid in free[:count]:
            self.devices[uuid] = pod
        return tuple(free[:count])

    def release(self, pod: str) -> bool:
        """The pod ended: its devices are free again. Whether it had any."""
        mine = [uuid for uuid, owner in self.devices.items() if owner == pod]
        for uuid in mine:
            del self.devices[uuid]
            self.holders.pop(uuid, None)
        return bool(mine)

    # -------------------------------------------------------------------------------------------------------- the agent
    def reading(self) -> list[dict[str, Any]]:
        """`status.gpus` of its GPUNode."""
        return [self._gpu(card) for card in self.cards if not card.lost]

    def _gpu(self, card: Card) -> dict[str, Any]:
        tenants: dict[str, int] = {}
        strangers: list[dict[str, Any]] = []
        for process in sorted(card.processes.values(), key=lambda process: process.pid):
            if process.tenant and process.pod:
                tenants[process.pod] = tenants.get(process.pod, 0) + process.used
            else:
                strangers.append(_stranger(process))
        gpu: dict[str, Any] = {
            "uuid": card.uuid,
            "index": card.index,
            "product": card.product.name,
            "memory": {"total": card.product.total, "reserved": card.product.reserved, "used": card.used},
            "numa": card.numa,
            "health": card.health,
            "tenants": [
                {"namespace": pod.split("/")[0], "pod": pod.split("/")[1], "used": used}
                for pod, used in sorted(tenants.items())
            ],
            "strangers": strangers,
        }
        if card.island is not None:
            gpu["island"] = card.island
        if holder := self.holders.get(card.uuid):
            gpu["holder"] = holder
        elif owner := self.devices.get(card.uuid):
            gpu["owner"] = owner
        return gpu


def _stranger(process: Process) -> dict[str, Any]:
    seen: dict[str, Any] = {"pid": process.pid, "command": process.command, "used": process.used}
    if process.pod:
        seen["pod"] = process.pod
    return seen


def differs(new: list[dict[str, Any]], old: list[dict[str, Any]] | None) -> bool:
    """Whether anything changed that the agent reports: who is there, health, or 256 MiB."""
    if old is None or len(new) != len(old):
        return True
    return any(_gpu_differs(a, b) for a, b in zip(new, old, strict=True))


def _gpu_differs(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    if any(a.get(key) != b.get(key) for key in ("uuid", "health", "holder", "owner", "island", "numa")):
        return True
    used = [(a["memory"]["used"], b["memory"]["used"])]
    for key, who in (("tenants", ("namespace", "pod")), ("strangers", ("pid", "command", "pod"))):
        mine, theirs = a[key], b[key]
        if [[entry.get(part) for part in who] for entry in mine] != [
            [entry.get(part) for part in who] for entry in theirs
        ]:
            return True
        used += [(x["used"], y["used"]) for x, y in zip(mine, theirs, strict=True)]
    return any(abs(x - y) >= NOTICEABLE for x, y in used)
