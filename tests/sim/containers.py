"""A container's life on a simulated node: made by the runtime, started, ended. What may go wrong before the engine's first word."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from tests.sim import argv, injection
from tests.sim.audit import End
from tests.sim.card import Card
from tests.sim.engine import Engine, Exit, Timing
from tests.sim.models import lookup
from tests.sim.node import SimNode
from tests.sim.pod import SimPod, Stage, message_of
from tests.sim.rules import check_start

if TYPE_CHECKING:
    from tests.sim.world import World

_VERSION = re.compile(r":v?(\d+\.\d+\.\d+)")


def make(world: World, pod: SimPod, now: float) -> None:
    """The runtime makes the container, or the pod leaves before."""
    node = world.nodes[pod.node]
    if pod.deleting:
        finish(world, pod, Exit(0, "Completed"), now)
        return
    if node.lost:
        pod.at = now + 1.0
        return
    if pod.stage is Stage.RUNNING:  # a preflight is through
        finish(world, pod, Exit(0, "Completed", pod.output), now)
        return
    if (wanted := gpus_requested(pod.spec)) and node.allocate(pod.name, wanted) is None:
        free = len(node.uuids) - len(node.devices)
        finish(world, pod, Exit(1, "UnexpectedAdmissionError", "Allocate failed due to requested number of devices unavailable "
                               f"for nvidia.com/gpu. Requested: {wanted}, Available: {free}, which is unexpected"), now)  # fmt: skip
        return
    pod.began = world.unix(now)
    world.dirty.add(node.name)
    if pod.role == "holder":
        for uuid in [uuid for uuid, owner in node.devices.items() if owner == pod.name]:
            node.holders[uuid] = pod.key[1]
        pod.stage = Stage.RUNNING
        pod.set_ready(True, world.unix(now))
        return
    try:
        uuids = injection.visible(pod.manifest, node.style, node.uuids)
    except injection.StartError as error:
        finish(world, pod, Exit(128, "StartError", str(error)), now)
        return
    pod.stage = Stage.RUNNING
    if pod.role == "preflight":
        pod.output = "".join(f"{uuid}\n" for uuid in uuids)
        pod.at = now + min(1.0, world.settings.create_seconds)
        return
    _start(world, pod, node, tuple(card for uuid in uuids if (card := node.card(uuid))), now)


def _start(world: World, pod: SimPod, node: SimNode, cards: tuple[Card, ...], now: float) -> None:
    settings, container = world.settings, pod.spec["containers"][0]
    nth = world.starts[pod.key] = world.starts.get(pod.key, 0) + 1
    world.audit.starts[pod.name] += 1
    chance = Random(f"{settings.seed}/{pod.name}/{nth}")
    words = (*(container.get("command") or ()), *(container.get("args") or ()))
    try:
        command = argv.parse(tuple(str(word) for word in words))
    except argv.BadArgumentsError as error:
        pod.output = str(error) + "\n"
        finish(
            world, pod, Exit(2, "Error", message_of(pod.output, container.get("terminationMessagePolicy", ""), 2)), now
        )
        return
    spec = lookup((command.model, command.served_name), settings.models)
    if settings.overrun and spec.overrun is None:
        spec = replace(spec, overrun=settings.overrun)
    load = spec.load_seconds if spec.load_seconds is not None else chance.uniform(*settings.load_seconds)
    image = _VERSION.search(container.get("image", ""))
    world.pid += 10
    pod.engine = Engine(
        pod.name, command, spec, cards, tuple(range(world.pid, world.pid + max(1, command.tensor_parallel))),
        Timing(max(load, 1e-6), settings.creep_seconds), chance, world.unix, image[1] if image else settings.version,
        over_used=world.over_used,
    )  # fmt: skip
    world.pid += command.tensor_parallel
    check_start(world.audit, node, pod, world.on(node.name), now, need_holders=settings.need_holders)
    pod.engine.start(now)
    pod.deadline = now + probe_seconds(container, "startupProbe")
    for rule in settings.rules:
        if rule.times > 0 and _like(pod.name, rule.pattern):
            rule.times -= 1
            pod.faults = sorted([*pod.faults, (now + rule.after, rule.fault)])


def finish(world: World, pod: SimPod, how: Exit, now: float) -> None:
    pod.stage, pod.ended, pod.finished = Stage.ENDED, how, world.unix(now)
    pod.at = pod.kill_at = pod.deadline = math.inf
    pod.set_ready(False, world.unix(now))
    pod.faults.clear()
    world.give_back(pod)
    world.dirty.add(pod.node)
    if pod.role == "engine":
        world.audit.exits[f"{how.code} {how.reason}"] += 1
        cause = next((line for line in (pod.engine.log if pod.engine else ()) if "Error: " in line), "")
        world.audit.ends.append(End(now, pod.name, how.code, how.reason, cause, pod.deleting))


def ended(world: World, pod: SimPod, now: float) -> None:
    """The engine's process is gone: what the kubelet keeps of it."""
    assert pod.engine is not None
    assert pod.engine.exit is not None
    how = pod.engine.exit
    policy = pod.spec["containers"][0].get("terminationMessagePolicy", "")
    finish(world, pod, Exit(how.code, how.reason, message_of(pod.log(), policy, how.code)), now)
    for card, amount in pod.engine.leaked:
        world.occupy(card, amount, "VLLM::EngineCore", "")


def gpus_requested(spec: Any) -> int:
    """Of the device plugin."""
    return sum(int((c.get("resources") or {}).get("limits", {}).get("nvidia.com/gpu", 0)) for c in spec["containers"])


def probe_seconds(container: Any, name: str) -> float:
    """How long a probe may fail until the kubelet kills the container; infinity where there is none."""
    probe = container.get(name)
    if not probe:
        return math.inf
    return float(probe.get("initialDelaySeconds", 0)) + float(
        probe.get("failureThreshold", 3) * probe.get("periodSeconds", 10)
    )


def _like(name: str, pattern: str) -> bool:
    return re.fullmatch(pattern.replace("*", ".*"), name) is not None
