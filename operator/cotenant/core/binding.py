"""How a GPU becomes ours and gets into a pod: the seam between the plan and the cluster's way of giving out GPUs.

`Pinned` is for clusters with NVIDIA's device plugin: a holder pod takes each GPU from the device plugin, the agent learns its UUID,
and engines are given it by name. A second member for DRA would answer the same questions with ResourceClaims.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from cotenant.core import preflight
from cotenant.core.decision import Create, Delete
from cotenant.core.holders import holder_name, holder_pod
from cotenant.core.injection import Injection, Style, inject
from cotenant.core.inventory import Inventory
from cotenant.core.ledger import Account
from cotenant.core.snapshot import Allocation, Device, Holder, Node, Snapshot

UNVERIFIED = "InjectionUnverified"


@dataclass(frozen=True, slots=True)
class Reservations:
    """What the binding wants done so that the plan's GPUs are ours."""

    creates: tuple[Create, ...] = ()
    deletes: tuple[Delete, ...] = ()
    idle: tuple[tuple[str, float], ...] = ()
    wake_at: float | None = None


class Binding(Protocol):
    """A way of giving out GPUs."""

    def unusable(self, uuid: str) -> str:
        """Why a GPU may not be planned on; '' = it may."""

    def cost(self, uuid: str) -> int | None:
        """What taking it costs: 0 when it is ours already, None = as its product says."""

    def pending(self, allocation: Allocation) -> str:
        """Why an engine may not start on these GPUs yet; '' = they are proven to be ours."""

    def closed(self, node: str) -> str:
        """Why nothing new may come to a node; '' = it may."""

    def conflict(self, uuid: str) -> str:
        """Who else has a GPU that our tenants are on; '' = nobody."""

    def injection(self, allocation: Allocation, container: str) -> Injection:
        """The pod fields by which one container sees exactly these GPUs."""

    def reservations(self, planned: Iterable[Allocation], ledger: dict[str, Account], now: float) -> Reservations:
        """What to create and delete so that what is planned becomes ours, and what is empty is given back."""


HOLDER_PAUSE = 5.0
"""Seconds from a holder's creation until one that was rejected is replaced."""


class Pinned:
    """Holder pods and injection by UUID."""

    def __init__(self, snapshot: Snapshot, inventory: Inventory) -> None:
        self._policy = snapshot.policy
        self._inventory = inventory
        self._nodes = {node.name: node for node in snapshot.nodes}
        self._holders: dict[str, list[Holder]] = {}
        for holder in snapshot.holders:
            self._holders.setdefault(holder.node, []).append(holder)
        self._alive = {holder.name for holder in snapshot.holders if not holder.deleting and not holder.ended}
        self._idle = dict(snapshot.idle)
        self._proofs = {(proof.node, proof.key): proof for proof in snapshot.preflights if not proof.deleting}
        self._agents = {report.name: report.agent_version for report in snapshot.gpu_nodes}
        self._version = snapshot.injection_version
        self._keys: dict[str, str] = {}
        """Of grounds, by node: asked several times a pass."""

    def unusable(self, uuid: str) -> str:
        """Gone, unhealthy, or given to somebody else by the device plugin."""
        device = self._inventory.devices.get(uuid)
        if device is None:
            return f"GPU {uuid} is not reported any more"
        if device.health != "Healthy":
            return f"GPU {device.index} of {device.node} is {device.health}"
        if self._policy.reserve and device.owner:
            return f"GPU {device.index} of {device.node} is taken by pod {device.owner}"
        return ""

    def cost(self, uuid: str) -> int | None:
        """A held GPU is taken already."""
        return 0 if self._policy.reserve and self._held(self._inventory.devices[uuid]) else None

    def pending(self, allocation: Allocation) -> str:
        """Not held yet, or the node not proven."""
        for uuid in allocation.gpus:
            device = self._inventory.devices.get(uuid)
            if device is None:
                return f"GPU {uuid} is not reported any more"
            if self._policy.reserve and not self._held(device):
                return self._why_not_held(device)
        return self._unproven(allocation.node)

    def closed(self, node: str) -> str:
        """A node whose proof has failed: unproven means unplaced."""
        why = self._unproven(node)
        return why if why.startswith(UNVERIFIED) else ""

    def conflict(self, uuid: str) -> str:
        """A GPU whose holder is gone and that another pod got."""
        device = self._inventory.devices.get(uuid)
        return device.owner or "" if device and self._policy.reserve else ""

    def injection(self, allocation: Allocation, container: str) -> Injection:
        """By the cluster's style."""
        return inject(self._policy.injection, allocation.gpus, container, self._policy.runtime_class)

    def reservations(self, planned: Iterable[Allocation], ledger: dict[str, Account], now: float) -> Reservations:
        """Holders for planned GPUs nobody holds, a proof per node in use, and empty GPUs given back after a while."""
        wanted: dict[str, set[str]] = {}
        for allocation in planned:
            wanted.setdefault(allocation.node, set()).update(allocation.gpus)
        creates: list[Create] = []
        for node, uuids in sorted(wanted.items()):
            if node not in self._nodes:
                continue
            if self._policy.reserve:
                creates.extend(self._new_holders(self._nodes[node], uuids))
            creates.extend(self._new_proof(self._nodes[node], uuids))
        idle, deletes, wake_at = self._shrink(wanted, ledger, now) if self._policy.reserve else ((), [], None)
        ended, again_at = self._ended_holders(now)
        wakes = [at for at in (wake_at, again_at, self._retry_at(now)) if at is not None]
        gone = (*deletes, *ended, *self._stale_proofs(now))
        return Reservations(tuple(creates), gone, idle, min(wakes, default=None))

    def _held(self, device: Device) -> bool:
        return device.holder is not None and device.holder in self._alive

    def _why_not_held(self, device: Device) -> str:
        for holder in self._holders.get(device.node, ()):
            if holder.blocked and not holder.running:
                return f"no further GPU of {device.node} could be taken: {holder.blocked}"
        return f"a GPU of {device.node} is being taken from the device plugin"

    def _new_holders(self, node: Node, uuids: set[str]) -> list[Create]:
        known = {d.holder for d in self._inventory.machines[node.name].devices if d.holder}
        mine = self._holders.get(node.name, [])
        missing = sum(
            not self._held(self._inventory.devices[uuid]) for uuid in uuids if uuid in self._inventory.devices
        )
        pending = sum(holder.name in self._alive and holder.name not in known for holder in mine)
        names = {holder.name for holder in mine}
        creates: list[Create] = []
        index = 0
        while len(creates) < missing - pending and index < 64:
            name = holder_name(node.name, index)
            if name not in names:
                message = f"takes a GPU of {node.name} from the device plugin"
                creates.append(Create(holder_pod(node, index, self._policy), "HoldGPU", message))
            index += 1
        return creates

    def _shrink(
        self, wanted: dict[str, set[str]], ledger: dict[str, Account], now: float
    ) -> tuple[tuple[tuple[str, float], ...], list[Delete], float | None]:
        idle: list[tuple[str, float]] = []
        deletes: list[Delete] = []
        ends: list[float] = []
        planned = {uuid for uuids in wanted.values() for uuid in uuids}
        for uuid, device in sorted(self._inventory.devices.items()):
            empty = uuid not in planned and not ledger[uuid].tenants and not device.tenants
            if not empty or not self._held(device):
                continue
            since = self._idle.get(uuid, now)
            if now - since < self._policy.holder_idle:
                idle.append((uuid, since))
                ends.append(since + self._policy.holder_idle)
                continue
            holder = next(h for h in self._holders[device.node] if h.name == device.holder)
            message = f"GPU {device.index} of {device.node} has been empty for {self._policy.holder_idle:.0f} s"
            deletes.append(Delete(self._policy.namespace, holder.name, holder.uid, "GiveBackGPU", message))
        return tuple(idle), deletes, min(ends, default=None)

    def _ended_holders(self, now: float) -> tuple[list[Delete], float | None]:
        """Holders that hold nothing any more make room for new ones, not faster than every few seconds."""
        ended = [h for holders in self._holders.values() for h in holders if h.ended and not h.deleting]
        deletes = [
            Delete(self._policy.namespace, holder.name, holder.uid, "HolderEnded", holder.blocked)
            for holder in sorted(ended, key=lambda h: h.name)
            if holder.created + HOLDER_PAUSE <= now
        ]
        later = [holder.created + HOLDER_PAUSE for holder in ended if holder.created + HOLDER_PAUSE > now]
        return deletes, min(later, default=None)

    # ------------------------------------------------------------------------------------------------- the proof
    def _ground(self, node: Node) -> preflight.Ground:
        return preflight.Ground(
            node=node.name,
            node_uid=node.uid,
            style=Style(self._policy.injection),
            runtime_class=self._policy.runtime_class,
            runtime_class_version=self._version,
            agent_version=self._agents.get(node.name, ""),
        )

    def _key(self, node: Node) -> str:
        found = self._keys.get(node.name)
        if found is None:
            found = self._keys[node.name] = self._ground(node).key
        return found

    def _unproven(self, name: str) -> str:
        node = self._nodes.get(name)
        if not self._policy.preflight or node is None:
            return ""
        proof = self._proofs.get((name, self._key(node)))
        if proof is None or isinstance(proof.verdict, preflight.Running):
            return f"a preflight pod is proving that pods on {name} see exactly the GPU they are given"
        if isinstance(proof.verdict, preflight.Failed):
            return f"{UNVERIFIED}: on {name} style {Style(self._policy.injection).value} does not give a pod exactly its GPU: {proof.verdict.reason}"
        return ""

    def _new_proof(self, node: Node, uuids: set[str]) -> list[Create]:
        if not self._policy.preflight:
            return []
        if (node.name, self._key(node)) in self._proofs:
            return []
        held = sorted(
            u
            for u in uuids
            if u in self._inventory.devices and (not self._policy.reserve or self._held(self._inventory.devices[u]))
        )
        if not held:
            return []
        pod = preflight.manifest(
            self._ground(node),
            held[0],
            image=self._policy.preflight_image or self._policy.holder_image,
            namespace=self._policy.namespace,
            service_account=self._policy.service_account,
        )
        return [Create(pod, "Preflight", f"proves that a pod on {node.name} sees exactly the GPU it is given")]

    def _stale_proofs(self, now: float) -> list[Delete]:
        if not self._proofs:
            return []
        current = {(name, self._key(node)) for name, node in self._nodes.items() if name in self._inventory.machines}
        deletes: list[Delete] = []
        for key, proof in sorted(self._proofs.items()):
            if key not in current:
                message = "what it proved has changed"
                deletes.append(Delete(self._policy.namespace, proof.name, proof.uid, "PreflightRenewed", message))
            elif proof.retry_at is not None and proof.retry_at <= now:
                message = "it failed a while ago; the node is tried again"
                deletes.append(Delete(self._policy.namespace, proof.name, proof.uid, "PreflightRetried", message))
        return deletes

    def _retry_at(self, now: float) -> float | None:
        later = [proof.retry_at for proof in self._proofs.values() if proof.retry_at and proof.retry_at > now]
        return min(later, default=None)
