"""What must not be so when an engine starts; the audit writes it down."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tests.sim.audit import Audit
from tests.sim.node import SimNode
from tests.sim.pod import SimPod, Stage


def check_start(
    audit: Audit, node: SimNode, pod: SimPod, on_node: Iterable[SimPod], now: float, *, need_holders: bool
) -> None:
    """An engine starts: everything that must not be so at this moment."""
    assert pod.engine is not None
    cards = pod.engine.cards[: pod.engine.command.tensor_parallel]
    neighbours = [p for p in on_node if p is not pod and p.engine and p.stage is Stage.RUNNING]
    annotations = pod.manifest["metadata"].get("annotations") or {}
    allocation = json.loads(annotations.get("cotenant.dev/allocation") or "{}")
    mine = [card.uuid for card in cards]
    if allocation and sorted(allocation.get("gpus", ())) != sorted(mine):
        audit.broken(now, "WrongGPU", pod.name, f"promised {allocation.get('gpus')}, sees {mine}")
    if pod.spec.get("restartPolicy") != "Never":
        audit.broken(now, "RestartPolicy", pod.name, "the kubelet would restart it beside its neighbours")
    for card in cards:
        here = [p for p in neighbours if p.engine and card in p.engine.cards]
        for other in here:
            assert other.engine
            if other.engine.starting:
                audit.broken(now, "StartsTogether", card.uuid, f"{pod.name} beside {other.name}, {other.engine.phase}")
            elif other.deleting:
                audit.broken(now, "StartsBesideLeaver", card.uuid, f"{pod.name} beside {other.name}")
        promised = pod.engine.share_on(card) + sum(p.engine.share_on(card) for p in here if p.engine)
        strangers = any(not process.tenant for process in card.processes.values())
        if promised > card.usable + len(here) + 1:  # each share is rounded up to a byte
            audit.broken(
                now, "Promised", card.uuid, f"{promised} of {card.usable} bytes with {pod.name}", injected=strangers
            )
        if card.health != "Healthy":
            audit.broken(now, "Unhealthy", card.uuid, f"{pod.name} on a card that is {card.health}")
        if need_holders and card.uuid not in node.holders:
            owner = node.devices.get(card.uuid, "nobody")
            audit.broken(now, "NotHeld", card.uuid, f"{pod.name} on a card that {owner} has")
