"""What goes wrong with nodes and GPUs: strangers, ill health, lost nodes, reboots."""

from __future__ import annotations

from tests.sim import containers
from tests.sim.engine import Exit
from tests.sim.pod import Stage
from tests.sim.world import World


def stranger(world: World, node: str, index: int, amount: int, command: str = "python", pod: str = "") -> int:
    """A foreign process takes memory (as much as there is); its pid."""
    pid = world.occupy(world.nodes[node].cards[index], amount, command, pod)
    world.dirty.add(node)
    return pid


def end_process(world: World, node: str, pid: int) -> None:
    """A foreign process ends."""
    for card in world.nodes[node].cards:
        card.end(pid)
    world.dirty.add(node)


def health(world: World, node: str, index: int, health: str) -> None:
    """`Healthy`, or what is wrong: `XID79` is reported as `Unhealthy/XID79`."""
    card = world.nodes[node].cards[index]
    card.health = health if health == "Healthy" or health.startswith("Unhealthy") else f"Unhealthy/{health}"
    world.dirty.add(node)


def islands(world: World, node: str, joined: list[int | None]) -> None:
    """NVLink as it is now, by index of the GPU; those not named are joined to none."""
    for card in world.nodes[node].cards:
        card.island = joined[card.index] if card.index < len(joined) else None
    world.dirty.add(node)


def lose_gpu(world: World, node: str, index: int, now: float) -> None:
    """A GPU falls off the bus: its engines die, nobody sees it any more."""
    card = world.nodes[node].cards[index]
    for pod in world.on(node):
        if pod.engine and card in pod.engine.cards:
            world.fault(pod.key, "die", now)
    world.advance(now)
    card.lost = True
    world.nodes[node].devices.pop(card.uuid, None)
    world.nodes[node].holders.pop(card.uuid, None)
    world.dirty.add(node)


def lose(world: World, node: str, now: float) -> None:  # noqa: ARG001 - as `back`
    """The node is cut off; what runs there runs on."""
    world.nodes[node].lost = True


def back(world: World, node: str, now: float) -> None:
    """The node is reached again: the kubelet reports what happened meanwhile and does what it was asked to."""
    world.nodes[node].lost = False
    world.dirty.add(node)
    for pod in world.on(node):
        if pod.orphan:
            world.forget(pod, now)
            continue
        if pod.manifest["metadata"].get("deletionTimestamp") and pod.role:
            world.asked_to_leave(pod, now)
        world.settle(pod, now)


def reboot(world: World, node: str, now: float) -> None:
    """Power off: every process is gone at once and all memory free. Call `back` when the node is up again."""
    lose(world, node, now)
    machine = world.nodes[node]
    for pod in world.on(node):
        if pod.stage is not Stage.RUNNING or not pod.role:
            continue
        if pod.role == "holder" and pod.spec.get("restartPolicy", "Always") == "Always":
            pod.restarts += 1
            pod.began = world.unix(now)
            continue
        if pod.engine:
            pod.engine.kill(reason="Unknown")
            pod.engine.exit = Exit(255, "Unknown")
            pod.engine.leaked.clear()
            containers.ended(world, pod, now)
        else:
            containers.finish(world, pod, Exit(255, "Unknown"), now)
    for card in machine.cards:
        card.processes.clear()
    machine.strangers.clear()
