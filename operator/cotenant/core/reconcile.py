"""Snapshot -> Decision: the whole of what Cotenant decides, step by step."""

from __future__ import annotations

from dataclasses import replace

from cotenant.core.binding import Binding, Pinned
from cotenant.core.decision import Apply, Create, Decision, Delete, Emit, GPUFigures, WriteStatus
from cotenant.core.demand import Demands, Issue, Wanted, demand
from cotenant.core.drift import drift
from cotenant.core.faults import Faults, faults
from cotenant.core.inventory import Inventory, Machine, inventory
from cotenant.core.ledger import Account, accounts
from cotenant.core.names import ENGINE_CONTAINER
from cotenant.core.planning import Assigned, NoPlace, Replica, assign, per_node_share
from cotenant.core.pod import engine_pod, service, service_hash
from cotenant.core.rollout import Admitted, admit
from cotenant.core.share import Auto, Share
from cotenant.core.snapshot import Placement, Pod, Snapshot
from cotenant.core.status import (
    READY,
    UNPLACED,
    ModelState,
    Notice,
    ReplicaState,
    canonical,
    placement_status,
    replica_state,
)


def reconcile(snapshot: Snapshot) -> Decision:
    """Everything to be done now. Same snapshot, same decision."""
    demands = demand(snapshot.placements, snapshot.policy)
    machines = inventory(snapshot.nodes, snapshot.gpu_nodes, snapshot.policy, snapshot.now)
    ledger = accounts(machines.devices, snapshot.pods)
    binding = Pinned(snapshot, machines)
    troubles = faults(snapshot, demands)
    replicas = _replicas(snapshot, demands, troubles)
    orphans = _orphans(snapshot, demands)
    assignment = assign(
        [replica for replica in replicas if not _given_up(replica, troubles)],
        machines,
        ledger,
        binding.unusable,
        binding.cost,
        snapshot.policy,
        share_of,
        orphans,
    )
    places = assignment.places
    changes = drift(replicas, places, snapshot.pods, demands, machines, snapshot.policy, troubles.recorded)
    admitted = admit(
        changes,
        replicas,
        snapshot.pods,
        ledger,
        binding.pending,
        {key: fault.retry_at for key, fault in troubles.of.items()},
        snapshot.now,
    )
    planned = [place.allocation for place in places.values() if isinstance(place, Assigned)]
    reservations = binding.reservations(planned, ledger, snapshot.now)
    issues = _issues(demands, machines, replicas, places)
    states = _states(snapshot, demands, replicas, places, admitted, troubles, issues)
    statuses, events = _statuses(snapshot, states, issues, ledger, binding)
    creates, deletes = _changes(snapshot, admitted, binding, troubles)
    phases: dict[str, int] = {}
    for models in states.values():
        for model in models:
            for state in model.replicas:
                phases[state.phase] = phases.get(state.phase, 0) + 1
    wakes = [at for at in (machines.wake_at, admitted.wake_at, reservations.wake_at) if at is not None]
    return Decision(
        creates=(*reservations.creates, *creates),
        deletes=(*deletes, *reservations.deletes),
        applies=_services(snapshot, demands),
        statuses=tuple(statuses),
        events=(*troubles.events, *events),
        wake_at=min(wakes, default=None),
        idle=reservations.idle,
        judged=troubles.judged,
        gpus=tuple(_figures(account) for account in ledger.values()),
        replicas=tuple(sorted(phases.items())),
        waiting=sum(wait.reason == "TurnAtGPU" for wait in admitted.waits.values()),
    )


def _replicas(snapshot: Snapshot, demands: Demands, troubles: Faults) -> list[Replica]:
    pods = {(pod.namespace, pod.name, pod.owner_uid): pod for pod in snapshot.pods}
    out = []
    for wanted in demands.wanted:
        for index in range(wanted.model.replicas):
            pod = pods.get((wanted.placement.namespace, wanted.pod_name(index), wanted.placement.uid))
            out.append(troubles.applied(Replica(wanted, index, pod)))
    return out


def _orphans(snapshot: Snapshot, demands: Demands) -> tuple[Pod, ...]:
    """Engines that use memory and that no plan places: of a spec nobody can read, or cut loose by hand."""
    return tuple(
        pod
        for pod in snapshot.pods
        if pod.is_alive and (not pod.owner_uid or f"{pod.namespace}/{pod.placement}" in demands.frozen)
    )


def _given_up(replica: Replica, troubles: Faults) -> bool:
    """A replica left `Failed` keeps no GPU from others; one that runs after all is planned as ever."""
    fault = troubles.of.get(replica.key)
    return fault is not None and fault.failed and (replica.pod is None or not replica.pod.is_alive)


def share_of(replica: Replica, machine: Machine) -> Share | NoPlace:
    """What a replica asks for on one machine."""
    share = replica.share or per_node_share(replica.wanted.model, machine)
    if isinstance(share, Auto):
        return NoPlace(
            "EstimateUnavailable",
            "share: auto needs the model's config, which is not known; write a percentage or a quantity",
        )
    return share


def _issues(
    demands: Demands, machines: Inventory, replicas: list[Replica], places: dict[str, Assigned | NoPlace]
) -> dict[str, tuple[Issue, ...]]:
    """What only a change of the spec can put right: the spec's own issues, and asks no managed node could ever meet."""
    found = {owner: list(issues) for owner, issues in demands.issues.items()}
    lacking = {r.wanted.key for r in replicas if isinstance(places.get(r.key), NoPlace)}
    nodes_said: set[str] = set()
    for wanted in demands.wanted:
        if wanted.key not in lacking or not machines.machines:
            continue
        owner = f"{wanted.placement.namespace}/{wanted.placement.name}"
        selected = [machine for machine in machines.machines.values() if _selected(wanted, machine)]
        if not selected:
            if owner not in nodes_said:
                nodes_said.add(owner)
                found.setdefault(owner, []).append(_no_node(wanted, machines))
            continue
        most = max((machine for machine in selected), key=lambda machine: (len(machine.devices), machine.node.name))
        if most.devices and len(most.devices) < wanted.model.tensor_parallel:
            found.setdefault(owner, []).append(
                Issue(
                    f"{wanted.path}.tensorParallelSize",
                    "TooManyGPUs",
                    f"asks for {wanted.model.tensor_parallel} GPUs of one node; of the nodes it may use {most.node.name} "
                    f"has the most, {len(most.devices)}; ask for fewer or select larger nodes",
                )
            )
    return {owner: tuple(issues) for owner, issues in found.items()}


def _selected(wanted: Wanted, machine: Machine) -> bool:
    placement = wanted.placement
    if placement.names and machine.node.name not in placement.names:
        return False
    return set(placement.selector) <= set(machine.node.labels)


def _no_node(wanted: Wanted, machines: Inventory) -> Issue:
    placement = wanted.placement
    path = "spec.nodes.names" if placement.names else "spec.nodes.selector"
    asked = ", ".join(placement.names) or ", ".join(f"{key}={value}" for key, value in placement.selector)
    there = sorted({machine.product for machine in machines.machines.values() if machine.product})
    return Issue(
        path,
        "NoNodeSelected",
        f"selects none of the {len(machines.machines)} managed nodes ({asked}); their GPUs are {', '.join(there) or 'not reported'}",
    )


def _states(
    snapshot: Snapshot,
    demands: Demands,
    replicas: list[Replica],
    places: dict[str, Assigned | NoPlace],
    admitted: Admitted,
    troubles: Faults,
    issues: dict[str, tuple[Issue, ...]],
) -> dict[str, list[ModelState]]:
    """What is said of every model, by `namespace/placement`."""
    refusals = {(namespace, name): message for namespace, name, message in snapshot.refusals}
    started = {start.replica.key: start for start in admitted.starts}
    by_model: dict[str, list[ReplicaState]] = {}
    for replica in replicas:
        wanted = replica.wanted
        fault = troubles.of.get(replica.key)
        refusal = refusals.get((wanted.placement.namespace, wanted.pod_name(replica.index)), "")
        state = replica_state(replica, places.get(replica.key), admitted.waits.get(replica.key), fault, refusal)
        if replica.key in started:
            state = replace(
                state,
                phase="Starting",
                pod=wanted.pod_name(replica.index),
                reason="Starting",
                message="its pod is being created",
            )
        elif wanted.key in demands.blocked and replica.pod is None:
            owner = f"{wanted.placement.namespace}/{wanted.placement.name}"
            blame = next((issue for issue in issues.get(owner, ()) if issue.path.startswith(wanted.path)), None)
            if blame:
                state = ReplicaState(replica.index, UNPLACED, reason=blame.reason, message=blame.message, settles=False)
        by_model.setdefault(wanted.key, []).append(state)
    out: dict[str, list[ModelState]] = {}
    for wanted in demands.wanted:
        owner = f"{wanted.placement.namespace}/{wanted.placement.name}"
        out.setdefault(owner, []).append(
            ModelState(
                wanted,
                tuple(by_model.get(wanted.key, ())),
                troubles.by_model.get(wanted.key, ()),
            )
        )
    return out


def _statuses(
    snapshot: Snapshot,
    states: dict[str, list[ModelState]],
    issues: dict[str, tuple[Issue, ...]],
    ledger: dict[str, Account],
    binding: Binding,
) -> tuple[list[WriteStatus], list[Emit]]:
    statuses, events = [], []
    for placement in snapshot.placements:
        if placement.deleting:
            continue
        owner = f"{placement.namespace}/{placement.name}"
        models = states.get(owner, [])
        mine = issues.get(owner, ())
        status = placement_status(placement, models, mine, _notices(models, ledger, binding), snapshot.now)
        if canonical(status) != placement.status.raw:
            statuses.append(WriteStatus(placement.namespace, placement.name, status))
            events.extend(_told(placement, models, mine))
    return statuses, events


def _notices(models: list[ModelState], ledger: dict[str, Account], binding: Binding) -> list[Notice]:
    """Trouble on the GPUs of a placement that is not its own doing."""
    over: list[str] = []
    conflicts: list[str] = []
    uuids = sorted(
        {
            uuid
            for model in models
            for state in model.replicas
            if state.pod and state.allocation
            for uuid in state.allocation.gpus
        }
    )
    for uuid in uuids:
        account = ledger.get(uuid)
        if account is None:
            continue
        device = account.device
        where = f"GPU {device.index} of {device.node}"
        from_share = [
            f"{t.pod.name} uses {_gib(excess)} more than share + overrun on {where}" for t, excess in account.over()
        ]
        over.extend(from_share)
        conflicts.extend(
            f"{where}: pid {s.pid} ({s.command or '?'}{', pod ' + s.pod if s.pod else ''}) uses {_gib(s.used)}"
            for s in device.strangers
        )
        if taker := binding.conflict(uuid):
            conflicts.append(f"{where} was given to pod {taker}")
    notices = []
    if over:
        notices.append(Notice("MemoryPressure", "OverShare", "; ".join(over)))
    if conflicts:
        notices.append(
            Notice(
                "GPUConflict",
                "Stranger",
                "; ".join(conflicts) + "; Cotenant kills nobody: end them, or move the placement",
            )
        )
    return notices


def _gib(amount: int) -> str:
    return f"{amount / (1 << 30):.1f}Gi"


def _told(placement: Placement, models: list[ModelState], issues: tuple[Issue, ...]) -> list[Emit]:
    """Events for what is new: a replica that became ready or lost its place, a spec that cannot be acted on."""
    before = {(m.model, m.index): m.phase for m in placement.status.replicas}
    about = (placement.namespace, placement.name, placement.uid)
    events = []
    for model in models:
        for state in model.replicas:
            name = model.wanted.model.name
            if before.get((name, state.index)) == state.phase:
                continue
            if state.phase == READY and state.allocation:
                where = f"{state.allocation.node} {', '.join(state.allocation.gpus)}"
                events.append(Emit(*about, "Normal", "Ready", f"{name}-{state.index} serves on {where}"))
            elif state.phase == UNPLACED:
                events.append(
                    Emit(*about, "Warning", state.reason or UNPLACED, f"{name}-{state.index}: {state.message}")
                )
    if issues and placement.status.observed_generation != placement.generation:
        events.extend(Emit(*about, "Warning", "InvalidSpec", f"{issue.path}: {issue.message}") for issue in issues)
    return events


def _changes(
    snapshot: Snapshot, admitted: Admitted, binding: Binding, troubles: Faults
) -> tuple[list[Create], list[Delete]]:
    creates = []
    for start in admitted.starts:
        wanted, allocation = start.replica.wanted, start.allocation
        placement = wanted.placement
        pod = engine_pod(
            wanted,
            start.replica.index,
            allocation,
            snapshot.policy,
            binding.injection(allocation, ENGINE_CONTAINER),
            troubles.tuning(start.replica),
            start.suffix,
        )
        message = f"{wanted.model.name}-{start.replica.index} starts on {allocation.node} {', '.join(allocation.gpus)} with {allocation.utilization}"
        creates.append(Create(pod, "Starting", message, (placement.namespace, placement.name, placement.uid)))
    deletes = []
    for leave in admitted.leaves:
        owner = leave.pod
        about = (owner.namespace, owner.placement, owner.owner_uid)
        deletes.append(
            Delete(
                owner.namespace,
                owner.name,
                owner.uid,
                leave.reason,
                f"{owner.name}: {leave.message}",
                leave.grace_seconds,
                about,
            )
        )
    return creates, deletes


def _services(snapshot: Snapshot, demands: Demands) -> tuple[Apply, ...]:
    there = {(namespace, name): found for namespace, name, found in snapshot.services}
    return tuple(
        Apply(service(wanted), "Service")
        for wanted in demands.wanted
        if wanted.key not in demands.blocked
        and there.get((wanted.placement.namespace, wanted.base)) != service_hash(wanted)
    )


def _figures(account: Account) -> GPUFigures:
    device = account.device
    return GPUFigures(
        device.node,
        device.uuid,
        device.usable,
        account.promised,
        account.expected,
        account.strangers,
        device.used,
        len(account.tenants),
    )
