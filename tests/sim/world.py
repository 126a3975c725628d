"""The simulated nodes with all their pods: what a kubelet, a device plugin and the engines do. Time is an argument.

Events of the API server go in (`pod_seen`, `pod_gone`), what to write comes out (`outbox`, `dirty`); no I/O.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from tests.sim import argv, injection
from tests.sim.audit import Audit, End
from tests.sim.card import Card, OutOfDeviceMemoryError, Process
from tests.sim.engine import Engine, Exit, Timing
from tests.sim.models import lookup
from tests.sim.node import SimNode
from tests.sim.pod import ROLE, Key, SimPod, Stage, message_of
from tests.sim.rules import check_start
from tests.sim.settings import ANNOTATION, Settings, image_problem

_VERSION = re.compile(r":v?(\d+\.\d+\.\d+)")


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """Patch a pod's status."""

    key: Key
    uid: str
    status: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Remove:
    """Delete a pod for good (grace period 0)."""

    key: Key
    uid: str


Write = WriteStatus | Remove


class World:
    """All simulated nodes, one clock."""

    def __init__(self, settings: Settings, unix: Callable[[float], float] = lambda now: now) -> None:
        self.settings = settings
        self.unix = unix
        self.audit = Audit()
        self.nodes: dict[str, SimNode] = {}
        self.pods: dict[Key, SimPod] = {}
        self.outbox: list[Write] = []
        self.dirty: set[str] = set()
        """Nodes whose agent has something to look at."""
        self.now = 0.0
        self._by_node: dict[str, dict[Key, SimPod]] = {}
        self._replicas: dict[tuple[str, ...], set[Key]] = {}
        self._due: list[tuple[float, int, Key, str]] = []
        self._count = 0
        self._starts: dict[Key, int] = {}
        self._pid = 4000

    # ----------------------------------------------------------------------------------------------------------- nodes
    def add_node(self, node: SimNode) -> None:
        """A node joins."""
        self.nodes[node.name] = node
        self.dirty.add(node.name)

    def remove_node(self, name: str, now: float) -> None:
        """A node is gone, with everything on it."""
        for pod in self.on(name):
            self.forget(pod, now)
        self.nodes.pop(name, None)

    def on(self, node: str) -> list[SimPod]:
        return list(self._by_node.get(node, {}).values())

    # ------------------------------------------------------------------------------------------------------------ pods
    def pod_seen(self, manifest: dict[str, Any], now: float, missing: str = "") -> None:
        """ADDED or MODIFIED. `missing` says which secret it lacks, in the kubelet's words."""
        node = manifest["spec"].get("nodeName")
        if node not in self.nodes:
            return
        self.now = max(self.now, now)
        metadata = manifest["metadata"]
        key = (metadata["namespace"], metadata["name"])
        pod = self.pods.get(key)
        if pod and pod.uid != metadata["uid"]:
            self.forget(pod, now)
            pod = None
        if pod is None:
            pod = self._admit(manifest, node, now)
            if pod is None:
                return
        pod.manifest = manifest
        if not pod.role:
            self._foreign(pod)
            return
        self._unblock(pod, missing, now)
        annotations = metadata.get("annotations") or {}
        fault = annotations.get(f"{ANNOTATION}fault", "")
        if fault and fault != pod.applied:
            pod.applied = fault
            pod.faults = sorted([*pod.faults, (now, fault)])
        if metadata.get("deletionTimestamp"):
            self.asked_to_leave(pod, now)
        self.settle(pod, now)

    def _admit(self, manifest: dict[str, Any], node: str, now: float) -> SimPod | None:
        phase = (manifest.get("status") or {}).get("phase")
        role = (manifest["metadata"].get("labels") or {}).get(ROLE, "")
        if role and phase in ("Succeeded", "Failed"):
            return None  # of an earlier life of the simulator
        pod = SimPod(manifest, node, role, at=now + self.settings.create_seconds, created_at=self.unix(now))
        if role == "engine":
            others = self._replicas.setdefault(pod.identity, set())
            for other in (self.pods[key] for key in others if key in self.pods):
                if other.alive and not other.deleting:
                    self.audit.broken(
                        now, "Twin", pod.name, f"{other.name} of the same replica is alive on {other.node}"
                    )
            others.add(pod.key)
        self.pods[pod.key] = pod
        self._by_node.setdefault(node, {})[pod.key] = pod
        return pod

    def _foreign(self, pod: SimPod) -> None:
        """Somebody else's pod, played by KWOK: it has devices while it lives, and memory where an annotation says so."""
        node = self.nodes[pod.node]
        status = pod.manifest.get("status") or {}
        if status.get("phase") in ("Succeeded", "Failed"):
            self._give_back(pod)
            return
        if status.get("phase") != "Running" or pod.stage is Stage.RUNNING:
            return
        pod.stage = Stage.RUNNING
        devices = node.allocate(pod.name, _gpus_requested(pod.spec)) or ()
        uses = (pod.manifest["metadata"].get("annotations") or {}).get(f"{ANNOTATION}uses")
        for uuid in devices if uses else ():
            card = node.card(uuid)
            if card and uses:
                self.occupy(card, parse_bytes(uses), "python", pod.name)
        if devices:
            self.dirty.add(node.name)

    def pod_gone(self, key: Key, uid: str, now: float) -> None:
        """DELETED: whatever it had is free."""
        pod = self.pods.get(key)
        if pod is None or pod.uid != uid:
            return
        if pod.role and pod.node in self.nodes and self.nodes[pod.node].lost:
            self._orphan(pod)
        else:
            self.forget(pod, now)

    def _orphan(self, pod: SimPod) -> None:
        """Deleted by force while its node is cut off: its processes run on there until the node is back."""
        self._unlist(pod)
        metadata = {**pod.manifest["metadata"], "name": f"{pod.key[1]}#{pod.uid[:8]}"}
        pod.manifest = {**pod.manifest, "metadata": metadata}
        pod.orphan = True
        self.pods[pod.key] = self._by_node.setdefault(pod.node, {})[pod.key] = pod

    def _unlist(self, pod: SimPod) -> None:
        self.pods.pop(pod.key, None)
        self._by_node.get(pod.node, {}).pop(pod.key, None)
        if pod.role == "engine":
            self._replicas.get(pod.identity, set()).discard(pod.key)

    def forget(self, pod: SimPod, now: float) -> None:
        if pod.engine and pod.engine.exit is None:
            # Deleted with grace 0 by somebody: the kubelet kills what still runs.
            pod.engine.kill()
            self.container_ended(pod, now)
        self._give_back(pod)
        pod.removed = True
        self._unlist(pod)

    def _give_back(self, pod: SimPod) -> None:
        node = self.nodes.get(pod.node)
        if node is None:
            return
        changed = node.release(pod.name)
        for card in node.cards:
            for process in [p for p in card.processes.values() if p.pod == pod.name and not p.tenant]:
                card.end(process.pid)
                changed = True
        if changed:
            self.dirty.add(node.name)

    def asked_to_leave(self, pod: SimPod, now: float) -> None:
        if self.nodes[pod.node].lost:
            return
        grace = float(pod.manifest["metadata"].get("deletionGracePeriodSeconds") or 0)
        if not pod.deleting:
            pod.deleting = True
            if pod.engine and pod.stage is Stage.RUNNING:
                pod.engine.terminate(now, twice=_sends_term_first(pod.spec))
        if pod.stage is Stage.RUNNING and pod.engine:
            pod.kill_at = min(pod.kill_at, now + grace)
        elif pod.stage is not Stage.ENDED:
            pod.at = now  # nothing runs, or it ends at once

    def _unblock(self, pod: SimPod, missing: str, now: float) -> None:
        problem = ("CreateContainerConfigError", missing) if missing else None
        problem = problem or image_problem(pod.spec["containers"][0].get("image", ""), self.settings.bad_images)
        if pod.stage is Stage.CREATING and problem:
            pod.stage, pod.blocked, pod.at = Stage.BLOCKED, problem, math.inf
        elif pod.stage is Stage.BLOCKED:
            if problem:
                pod.blocked = problem
            else:
                pod.stage, pod.at = Stage.CREATING, now + self.settings.create_seconds

    # ------------------------------------------------------------------------------------------------------- the clock
    @property
    def next_at(self) -> float:
        """When something happens next by itself."""
        return self._due[0][0] if self._due else math.inf

    def advance(self, now: float) -> None:
        """Everything that is due by now, in its order."""
        while self._due and self._due[0][0] <= now:
            at, _, key, uid = heapq.heappop(self._due)
            pod = self.pods.get(key)
            if pod is None or pod.uid != uid or pod.next_at > at:
                continue
            self.now = max(self.now, at)
            self._step(pod, at)
            self.settle(pod, at)
        self.now = max(self.now, now)

    def _step(self, pod: SimPod, now: float) -> None:
        while pod.faults and pod.faults[0][0] <= now:
            self._inject(pod, pod.faults.pop(0)[1], now)
        if pod.at <= now:
            pod.at = math.inf
            self._container(pod, now)
        if pod.engine:
            pod.engine.advance(now)
            if pod.deadline <= now:
                pod.deadline = math.inf
                if not pod.engine.ready:
                    grace = pod.spec.get("terminationGracePeriodSeconds", 30)
                    pod.engine.terminate(now, twice=_sends_term_first(pod.spec))
                    pod.kill_at = min(pod.kill_at, now + grace)
            if pod.kill_at <= now:
                pod.engine.kill()
            self.dirty.add(pod.node)
            pod.set_ready(pod.engine.ready, self.unix(now))
            if pod.ready:
                pod.deadline = math.inf
            for card in pod.engine.cards:
                self.audit.saw(card.uuid, card.used)
            if pod.engine.exit and pod.stage is not Stage.ENDED:
                self.container_ended(pod, now)

    def settle(self, pod: SimPod, now: float) -> None:
        """Say what changed, and come back when something is due."""
        self._publish(pod)
        at = pod.next_at
        if at < math.inf and not pod.removed:
            self._count += 1
            heapq.heappush(self._due, (max(at, now), self._count, pod.key, pod.uid))

    def _publish(self, pod: SimPod) -> None:
        node = self.nodes.get(pod.node)
        if node is None or node.lost or pod.removed or pod.orphan or not pod.role:
            return
        gone = pod.deleting and pod.stage is not Stage.RUNNING
        quiet = self.settings.fast and (gone or pod.stage is Stage.CREATING)
        if not quiet and (face := pod.face) != pod.sent:
            pod.sent = face
            self.outbox.append(WriteStatus(pod.key, pod.uid, pod.status()))
        if gone:
            self.outbox.append(Remove(pod.key, pod.uid))
            pod.removed = True
            self._give_back(pod)

    # ------------------------------------------------------------------------------------------------------ containers
    def _container(self, pod: SimPod, now: float) -> None:
        """The runtime makes the container, or the pod leaves before."""
        node = self.nodes[pod.node]
        if pod.deleting:
            self.finish(pod, Exit(0, "Completed"), now)
            return
        if node.lost:
            pod.at = now + 1.0
            return
        if pod.stage is Stage.RUNNING:  # a preflight is through
            self.finish(pod, Exit(0, "Completed", pod.output), now)
            return
        if (wanted := _gpus_requested(pod.spec)) and node.allocate(pod.name, wanted) is None:
            free = len(node.uuids) - len(node.devices)
            self.finish(pod, Exit(1, "UnexpectedAdmissionError", "Allocate failed due to requested number of devices unavailable "
                                   f"for nvidia.com/gpu. Requested: {wanted}, Available: {free}, which is unexpected"), now)  # fmt: skip
            return
        pod.began = self.unix(now)
        self.dirty.add(node.name)
        if pod.role == "holder":
            for uuid in [uuid for uuid, owner in node.devices.items() if owner == pod.name]:
                node.holders[uuid] = pod.key[1]
            pod.stage = Stage.RUNNING
            pod.set_ready(True, self.unix(now))
            return
        try:
            uuids = injection.visible(pod.manifest, node.style, node.uuids)
        except injection.StartError as error:
            self.finish(pod, Exit(128, "StartError", str(error)), now)
            return
        pod.stage = Stage.RUNNING
        if pod.role == "preflight":
            pod.output = "".join(f"{uuid}\n" for uuid in uuids)
            pod.at = now + min(1.0, self.settings.create_seconds)
            return
        self._start(pod, node, tuple(card for uuid in uuids if (card := node.card(uuid))), now)

    def _start(self, pod: SimPod, node: SimNode, cards: tuple[Card, ...], now: float) -> None:
        settings, container = self.settings, pod.spec["containers"][0]
        nth = self._starts[pod.key] = self._starts.get(pod.key, 0) + 1
        self.audit.starts[pod.name] += 1
        chance = Random(f"{settings.seed}/{pod.name}/{nth}")
        words = (*(container.get("command") or ()), *(container.get("args") or ()))
        try:
            command = argv.parse(tuple(str(word) for word in words))
        except argv.BadArgumentsError as error:
            pod.output = str(error) + "\n"
            self.finish(
                pod, Exit(2, "Error", message_of(pod.output, container.get("terminationMessagePolicy", ""), 2)), now
            )
            return
        spec = lookup((command.model, command.served_name), settings.models)
        if settings.overrun and spec.overrun is None:
            spec = replace(spec, overrun=settings.overrun)
        load = spec.load_seconds if spec.load_seconds is not None else chance.uniform(*settings.load_seconds)
        image = _VERSION.search(container.get("image", ""))
        self._pid += 10
        pod.engine = Engine(
            pod.name, command, spec, cards, tuple(range(self._pid, self._pid + max(1, command.tensor_parallel))),
            Timing(max(load, 1e-6), settings.creep_seconds), chance, self.unix, image[1] if image else settings.version,
            over_used=self._over_used,
        )  # fmt: skip
        self._pid += command.tensor_parallel
        check_start(self.audit, node, pod, self.on(node.name), now, need_holders=settings.need_holders)
        pod.engine.start(now)
        pod.deadline = now + _startup_deadline(container)
        for rule in settings.rules:
            if rule.times > 0 and _like(pod.name, rule.pattern):
                rule.times -= 1
                pod.faults = sorted([*pod.faults, (now + rule.after, rule.fault)])

    def finish(self, pod: SimPod, how: Exit, now: float) -> None:
        pod.stage, pod.ended, pod.finished = Stage.ENDED, how, self.unix(now)
        pod.at = pod.kill_at = pod.deadline = math.inf
        pod.set_ready(False, self.unix(now))
        pod.faults.clear()
        self._give_back(pod)
        self.dirty.add(pod.node)
        if pod.role == "engine":
            self.audit.exits[f"{how.code} {how.reason}"] += 1
            cause = next((line for line in (pod.engine.log if pod.engine else ()) if "Error: " in line), "")
            self.audit.ends.append(End(now, pod.name, how.code, how.reason, cause, pod.deleting))

    def container_ended(self, pod: SimPod, now: float) -> None:
        """The engine's process is gone: what the kubelet keeps of it."""
        assert pod.engine is not None
        assert pod.engine.exit is not None
        how = pod.engine.exit
        policy = pod.spec["containers"][0].get("terminationMessagePolicy", "")
        self.finish(pod, Exit(how.code, how.reason, message_of(pod.log(), policy, how.code)), now)
        for card, amount in pod.engine.leaked:
            self.occupy(card, amount, "VLLM::EngineCore", "")

    def _over_used(self, card: Card, engine: Engine) -> None:
        strangers = any(not process.tenant for process in card.processes.values())
        self.audit.broken(
            self.now,
            "MemoryOver",
            card.uuid,
            f"{engine.name} found {card.free} bytes, {engine.phase}",
            injected=strangers,
        )

    # ---------------------------------------------------------------------------------------------------------- faults
    def _inject(self, pod: SimPod, fault: str, now: float) -> None:
        word, _, value = fault.partition("=")
        if pod.engine is None:
            if word == "exit" and pod.stage is Stage.RUNNING:
                self.finish(pod, Exit(int(value or 1), "Error" if value != "0" else "Completed"), now)
            return
        if word == "leak":
            pod.engine.leak = parse_bytes(value or "2Gi")
        else:
            pod.engine.inject(fault, now)

    def fault(self, key: Key, fault: str, now: float) -> None:
        """Something goes wrong with one pod, now. KeyError when there is no such pod."""
        pod = self.pods[key]
        pod.faults = sorted([*pod.faults, (now, fault)])
        self.settle(pod, now)

    def occupy(self, card: Card, amount: int, command: str, pod: str) -> int:
        self._pid += 1
        card.open(Process(self._pid, command, pod=pod))
        try:
            card.take(self._pid, amount)
        except OutOfDeviceMemoryError:
            card.take(self._pid, max(0, card.free))
        return self._pid


def _gpus_requested(spec: Any) -> int:
    return sum(int((c.get("resources") or {}).get("limits", {}).get("nvidia.com/gpu", 0)) for c in spec["containers"])


def _sends_term_first(spec: Any) -> bool:
    hook = (spec["containers"][0].get("lifecycle") or {}).get("preStop", {}).get("exec", {}).get("command") or ()
    return "TERM" in " ".join(hook)


def _startup_deadline(container: Any) -> float:
    probe = container.get("startupProbe")
    if not probe:
        return math.inf
    return float(
        probe.get("initialDelaySeconds", 0) + probe.get("failureThreshold", 3) * probe.get("periodSeconds", 10)
    )


def _like(name: str, pattern: str) -> bool:
    return re.fullmatch(pattern.replace("*", ".*"), name) is not None


def parse_bytes(text: str) -> int:
    """`20Gi`, `512Mi` or plain bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(Ki|Mi|Gi|Ti)?", text)
    if not found:
        raise ValueError(f'"{text}" is not a number of bytes such as 20Gi')
    return int(float(found[1]) * {None: 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}[found[2]])
