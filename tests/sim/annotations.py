"""Faults by annotations of a Node, so that kubectl can make them: acted on when they change."""

from __future__ import annotations

from collections.abc import Mapping

from cotenant.core.share import parse_quantity
from tests.sim import mishaps
from tests.sim.node import SimNode
from tests.sim.settings import ANNOTATION
from tests.sim.world import World


def changed(world: World, name: str, before: Mapping[str, str], after: Mapping[str, str], now: float) -> str | None:
    """Act on what changed in a node's annotations; the power state now wanted (`lost`, `back`, `reboot`), None = as it is."""
    machine, power = world.nodes[name], None
    for kind in ("stranger", "health", "gpu-lost", "islands", "node", "unsupported"):
        old, new = before.get(ANNOTATION + kind, ""), after.get(ANNOTATION + kind, "")
        if old == new:
            continue
        if kind == "stranger":
            _strangers(world, name, _entries(old), _entries(new))
        elif kind == "health":
            for entry in _entries(old) - _entries(new):
                mishaps.health(world, name, _index(entry, machine), "Healthy")
            for entry in _entries(new):
                mishaps.health(world, name, _index(entry, machine), entry.split("@")[0])
        elif kind == "gpu-lost":
            for part in _entries(new):
                mishaps.lose_gpu(world, name, _index(f"@{part}", machine), now)
        elif kind == "islands":
            mishaps.islands(world, name, parse_islands(new))
        elif kind == "unsupported":
            machine.unsupported = new
            world.dirty.add(name)
        else:
            power = new or "back"
    return power


def parse_islands(text: str) -> list[int | None]:
    """`0,0,1,-`: the first two GPUs joined by NVLink, the last to none."""
    return [None if part == "-" else int(part) for part in text.split(",") if part]


def _entries(text: str) -> set[str]:
    return {entry for entry in text.split(",") if entry}


def _strangers(world: World, name: str, before: set[str], after: set[str]) -> None:
    machine = world.nodes[name]
    for entry in before - after:
        for pid in machine.strangers.pop(entry, []):
            mishaps.end_process(world, name, pid)
    for entry in sorted(after - before):
        amount, _, where = entry.partition("@")
        _, _, command = where.partition(":")
        pid = mishaps.stranger(world, name, _index(entry, machine), parse_quantity(amount), command or "python")
        machine.strangers.setdefault(entry, []).append(pid)


def _index(entry: str, node: SimNode) -> int:
    """The GPU's index in `20Gi@0:python`."""
    where = entry.partition("@")[2].partition(":")[0] or "0"
    if not where.isdigit() or int(where) >= len(node.cards):
        raise ValueError(f'"{entry}": node {node.name} has GPUs 0 to {len(node.cards) - 1}')
    return int(where)
