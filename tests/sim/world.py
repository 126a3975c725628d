"""The simulated nodes with all their pods: what a kubelet, a device plugin and the engines do. Time is an argument.

Events of the API server go in (`pod_seen`, `pod_gone`), what to write comes out (`outbox`, `dirty`); no I/O.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cotenant.core.share import parse_quantity
from tests.sim import containers
from tests.sim.audit import Audit
from tests.sim.card import Card, OutOfDeviceMemoryError, Process
from tests.sim.engine import Engine, Exit
from tests.sim.node import SimNode
from tests.sim.pod import ROLE, Key, SimPod, Stage
from tests.sim.settings import ANNOTATION, Settings, image_problem


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
        self.starts: dict[Key, int] = {}
        self.pid = 4000

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
        shown = pod.shown_ready
        if pod.shown_as_ready() is False and shown and pod.ready:
            # Kubernetes marks the pods of a silent node not Ready; their kubelet corrects that.
            pod.sent = None
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
            self.give_back(pod)
            return
        if status.get("phase") != "Running" or pod.stage is Stage.RUNNING:
            return
        pod.stage = Stage.RUNNING
        devices = node.allocate(pod.name, containers.gpus_requested(pod.spec)) or ()
        uses = (pod.manifest["metadata"].get("annotations") or {}).get(f"{ANNOTATION}uses")
        for uuid in devices if uses else ():
            card = node.card(uuid)
            if card and uses:
                self.occupy(card, parse_quantity(uses), "python", pod.name)
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
            containers.ended(self, pod, now)
        self.give_back(pod)
        pod.removed = True
        self._unlist(pod)

    def give_back(self, pod: SimPod) -> None:
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
            containers.make(self, pod, now)
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
                containers.ended(self, pod, now)

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
            self.give_back(pod)

    def over_used(self, card: Card, engine: Engine) -> None:
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
                containers.finish(self, pod, Exit(int(value or 1), "Error" if value != "0" else "Completed"), now)
            return
        if word == "leak":
            pod.engine.leak = parse_quantity(value or "2Gi")
        else:
            pod.engine.inject(fault, now)
            if word == "hang":
                pod.deadline = min(
                    pod.deadline, now + containers.probe_seconds(pod.spec["containers"][0], "livenessProbe")
                )

    def fault(self, key: Key, fault: str, now: float) -> None:
        """Something goes wrong with one pod, now. KeyError when there is no such pod."""
        pod = self.pods[key]
        pod.faults = sorted([*pod.faults, (now, fault)])
        self.settle(pod, now)

    def occupy(self, card: Card, amount: int, command: str, pod: str) -> int:
        self.pid += 1
        card.open(Process(self.pid, command, pod=pod))
        try:
            card.take(self.pid, amount)
        except OutOfDeviceMemoryError:
            card.take(self.pid, max(0, card.free))
        return self.pid


def _sends_term_first(spec: Any) -> bool:
    hook = (spec["containers"][0].get("lifecycle") or {}).get("preStop", {}).get("exec", {}).get("command") or ()
    return "TERM" in " ".join(hook)
