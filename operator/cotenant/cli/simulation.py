"""What the controller would do from here on, pass by pass, if everything it wants went well. Nothing outside is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from cotenant.api.placement import read_status
from cotenant.cli.replicaname import ReplicaKey, key_of
from cotenant.controller import records
from cotenant.core import preflight
from cotenant.core.decision import Create, Decision, Delete
from cotenant.core.memo import Memo
from cotenant.core.names import ROLE_LABEL
from cotenant.core.reconcile import reconcile
from cotenant.core.snapshot import Device, GPUNode, Manifest, Pod, Snapshot

Key = tuple[str, str]
SHORTEST = 40
"""Passes a simulation may take at least before it counts as restless."""


@dataclass(frozen=True, slots=True)
class Action:
    """One thing the controller would do."""

    turn: int
    """Actions of one turn may go at the same time."""
    verb: str
    """`start`, `stop`, `hold` or `prove`."""
    pod: str
    """`namespace/name`."""
    reason: str
    message: str
    replica: ReplicaKey | None = None
    """Whose engine the pod is."""


@dataclass(frozen=True, slots=True)
class Course:
    """All of it."""

    before: Snapshot
    after: Snapshot
    """Once nothing is left to do."""
    actions: tuple[Action, ...]
    pods: tuple[Manifest, ...]
    """Engine pods that would be created and are there in the end."""
    helpers: tuple[Manifest, ...]
    """Holders and preflight pods that would be created."""
    services: tuple[Manifest, ...]
    notes: tuple[str, ...] = ()


def run(before: Snapshot) -> Course:
    """The course from this snapshot to rest."""
    world = _World(before)
    most = SHORTEST + 6 * sum(model.replicas for placement in before.placements for model in placement.models)
    for _ in range(most):
        if not world.step():
            break
    else:
        world.notes.append(f"no rest after {most} passes: what is shown is how far it came")
    return world.course(before)


@dataclass
class _World:
    """A cluster in which every wish comes true at once; what was started in a pass serves in the next."""

    seen: Snapshot
    memo: Memo = field(default_factory=Memo)
    turn: int = 1
    actions: list[Action] = field(default_factory=list)
    started: list[Pod] = field(default_factory=list)
    """In the pass under way."""
    manifests: dict[Key, Manifest] = field(default_factory=dict)
    helpers: dict[Key, Manifest] = field(default_factory=dict)
    services: dict[Key, Manifest] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        ended = [pod for pod in self.seen.pods if not pod.is_alive]
        if ended:
            # Why an engine died is in its log, which a plan does not read: it is planned as if it only had to start again.
            names = ", ".join(pod.name for pod in ended[:3]) + (", ..." if len(ended) > 3 else "")
            self.notes.append(f"{len(ended)} engines have ended or are leaving ({names}): they count as gone")
            for pod in ended:
                self._leave((pod.namespace, pod.name))

    def step(self) -> bool:
        """One pass and all it wants; False at rest."""
        starting = [pod for pod in self.seen.pods if pod.is_starting]
        decision = reconcile(self.seen, self.memo)
        acted = self._act(decision)
        self._write(decision)
        self._serve(starting)
        if acted or starting:
            return True
        return bool(decision.statuses) or self._wait()

    def _act(self, decision: Decision) -> bool:
        if not (decision.creates or decision.deletes or decision.applies):
            return False
        said = len(self.actions)
        for delete in decision.deletes:
            self._delete(delete)
        for create in decision.creates:
            self._create(create, decision)
        self.seen = replace(self.seen, pods=(*self.seen.pods, *self.started))
        self.started.clear()
        for apply in decision.applies:
            body = {**apply.manifest, "metadata": {**apply.manifest["metadata"], "uid": "planned"}}
            key = (body["metadata"]["namespace"], body["metadata"]["name"])
            self.services[key] = apply.manifest
            kept = [known for known in self.seen.services if (known.namespace, known.name) != key]
            self.seen = replace(self.seen, services=(*kept, records.service(body)))
        self.seen = replace(self.seen, idle=decision.idle)
        self.turn += len(self.actions) > said
        return True

    # -------------------------------------------------------------------------------------------------------- leaving
    def _delete(self, delete: Delete) -> None:
        key = (delete.namespace, delete.name)
        if delete.kind == "Service":
            kept = tuple(known for known in self.seen.services if (known.namespace, known.name) != key)
            self.seen = replace(self.seen, services=kept)
            return
        leaving = next((pod for pod in self.seen.pods if (pod.namespace, pod.name) == key), None)
        if leaving is not None:
            self._say("stop", key, delete.reason, delete.message, leaving)
            self._leave(key)
            return
        self.seen = replace(
            self.seen,
            holders=tuple(h for h in self.seen.holders if h.name != delete.name),
            preflights=tuple(p for p in self.seen.preflights if p.name != delete.name),
        )
        self._each_device(lambda device: replace(device, holder=None) if device.holder == delete.name else device)

    def _leave(self, key: Key) -> None:
        """A pod is gone, and what its processes used with it."""
        self.manifests.pop(key, None)
        self.seen = replace(self.seen, pods=tuple(p for p in self.seen.pods if (p.namespace, p.name) != key))

        def freed(device: Device) -> Device:
            given = sum(t.used for t in device.tenants if (t.namespace, t.pod) == key)
            left = tuple(t for t in device.tenants if (t.namespace, t.pod) != key)
            return replace(device, tenants=left, used=max(0, device.used - given)) if left != device.tenants else device

        self._each_device(freed)

    # ------------------------------------------------------------------------------------------------------- arriving
    def _create(self, create: Create, decision: Decision) -> None:
        body = {**create.manifest, "metadata": {**create.manifest["metadata"], "uid": f"planned-{len(self.actions)}"}}
        key = (body["metadata"].get("namespace", ""), body["metadata"]["name"])
        role = body["metadata"]["labels"][ROLE_LABEL]
        if role == "engine":
            self.manifests[key] = create.manifest
            self.started.append(replace(records.pod(body), created=self.seen.now))
            self._say("start", key, create.reason, create.message, self.started[-1])
            return
        self.helpers[key] = create.manifest
        self._say("prove" if role == preflight.ROLE else "hold", key, create.reason, create.message)
        if role == preflight.ROLE:
            proof = preflight.read(body)
            passed = preflight.Passed(body["metadata"]["annotations"][preflight.GPU_ANNOTATION])
            self.seen = replace(self.seen, preflights=(*self.seen.preflights, replace(proof, verdict=passed)))
            return
        holder = replace(records.holder(body), running=True)
        self.seen = replace(self.seen, holders=(*self.seen.holders, holder))
        self._hold(holder.name, holder.node, decision)

    def _hold(self, holder: str, node: str, decision: Decision) -> None:
        """The device plugin gives a GPU: here, one the plan wants where it can."""
        planned = {
            uuid
            for status in decision.statuses
            for model in status.status.get("models") or ()
            for replica in model["replicas"]
            for uuid in replica.get("gpus") or ()
        }
        free = [
            device
            for report in self.seen.gpu_nodes
            if report.name == node
            for device in report.devices
            if device.holder is None and device.owner is None and device.health == "Healthy"
        ]
        if free:
            given = min(free, key=lambda device: (device.uuid not in planned, device.index)).uuid
            self._each_device(lambda device: replace(device, holder=holder) if device.uuid == given else device)

    # ----------------------------------------------------------------------------------------------- status and time
    def _write(self, decision: Decision) -> None:
        said = {(status.namespace, status.name): status.status for status in decision.statuses}
        placements = tuple(
            replace(placement, status=read_status(said[placement.key])) if placement.key in said else placement
            for placement in self.seen.placements
        )
        self.seen = replace(self.seen, placements=placements)

    def _serve(self, starting: list[Pod]) -> None:
        """What was starting before this pass serves."""
        uids = {pod.uid for pod in starting}
        pods = tuple(_served(pod, self.seen.now) if pod.uid in uids else pod for pod in self.seen.pods)
        self.seen = replace(self.seen, pods=pods)

    def _wait(self) -> bool:
        """Nothing is left to do but to let a back-off end."""
        ends = [f.retry_at for p in self.seen.placements for f in p.status.faults if f.retry_at > self.seen.now]
        if not ends:
            return False
        later = min(ends) - self.seen.now
        nodes = tuple(  # a node's grace does not run out meanwhile: nobody knows whether it comes back
            replace(node, not_ready_since=node.not_ready_since + later) if node.not_ready_since is not None else node
            for node in self.seen.nodes
        )
        self.seen = replace(self.seen, now=min(ends), nodes=nodes)
        return True

    def _each_device(self, change: Callable[[Device], Device]) -> None:
        reports: list[GPUNode] = []
        for report in self.seen.gpu_nodes:
            devices = tuple(change(device) for device in report.devices)
            reports.append(report if devices == report.devices else replace(report, devices=devices))
        self.seen = replace(self.seen, gpu_nodes=tuple(reports))

    def _say(self, verb: str, key: Key, reason: str, message: str, pod: Pod | None = None) -> None:
        whose = key_of(pod) if pod and pod.placement else None
        self.actions.append(Action(self.turn, verb, "/".join(part for part in key if part), reason, message, whose))

    def course(self, before: Snapshot) -> Course:
        """What came of it."""
        return Course(
            before=before,
            after=self.seen,
            actions=tuple(self.actions),
            pods=tuple(manifest for _, manifest in sorted(self.manifests.items())),
            helpers=tuple(manifest for _, manifest in sorted(self.helpers.items())),
            services=tuple(manifest for _, manifest in sorted(self.services.items())),
            notes=tuple(self.notes),
        )


def _served(pod: Pod, now: float) -> Pod:
    node = pod.allocation.node if pod.allocation else pod.node
    return replace(
        pod, phase="Running", ready=True, was_ready=True, ready_since=now, node=node, blocked="", blocked_reason=""
    )
