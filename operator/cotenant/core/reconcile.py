"""Snapshot -> Decision: the whole of what Cotenant decides, step by step."""

from __future__ import annotations

from dataclasses import replace

from cotenant.core.binding import Binding, Pinned
from cotenant.core.decision import Apply, Create, Decision, Delete, GPUFigures
from cotenant.core.demand import Demands, demand
from cotenant.core.drift import drift, outdated
from cotenant.core.faults import Faults, faults
from cotenant.core.inventory import Inventory, Machine, inventory
from cotenant.core.issues import impossible
from cotenant.core.ledger import Account, accounts
from cotenant.core.memo import Memo
from cotenant.core.names import ENGINE_CONTAINER
from cotenant.core.planning import Assigned, NoPlace, Replica, assign, per_node_share
from cotenant.core.pod import engine_pod, service, service_hash
from cotenant.core.report import states, statuses
from cotenant.core.rollout import Admitted, admit
from cotenant.core.share import Auto, Share
from cotenant.core.snapshot import Pod, Policy, RolloutStrategy, Snapshot
from cotenant.core.status import ModelState


def reconcile(snapshot: Snapshot, memo: Memo | None = None) -> Decision:
    """Everything to be done now. Same snapshot, same decision; `memo`, kept between passes, only saves work."""
    memo = memo or Memo()
    policy, pods = snapshot.policy, snapshot.pods
    demands = demand(snapshot.placements, policy)
    machines = inventory(snapshot.nodes, snapshot.gpu_nodes, policy, snapshot.now)
    ledger = accounts(machines.devices, pods)
    binding = Pinned(snapshot, machines)
    troubles = faults(snapshot, demands)
    replicas = _replicas(snapshot, demands, machines, troubles)
    hopeful = [replica for replica in replicas if not _given_up(replica, troubles)]
    orphans = _orphans(snapshot, demands)
    places = assign(hopeful, machines, ledger, binding.unusable, binding.cost, policy, share_of, orphans)
    changes = drift(replicas, places, pods, demands, machines, policy, troubles.recorded, memo)
    retry_at = {key: fault.retry_at for key, fault in troubles.of.items()}
    admitted = admit(changes, replicas, pods, ledger, binding.pending, retry_at, snapshot.now)
    planned = [place.allocation for place in places.values() if isinstance(place, Assigned)]
    reservations = binding.reservations(planned, ledger, snapshot.now)
    issues = impossible(demands, machines, replicas, places)
    models = states(snapshot, demands, replicas, places, admitted, troubles, issues)
    written, events = statuses(snapshot, models, issues, ledger, binding, memo)
    creates, deletes = _changes(snapshot, admitted, binding, troubles)
    wakes = [at for at in (machines.wake_at, admitted.wake_at, reservations.wake_at) if at is not None]
    memo.turn()
    return Decision(
        creates=(*reservations.creates, *creates),
        deletes=(*deletes, *reservations.deletes),
        applies=_services(snapshot, demands),
        statuses=written,
        events=(*troubles.events, *events),
        wake_at=min(wakes, default=None),
        idle=reservations.idle,
        judged=troubles.judged,
        gpus=tuple(_figures(account) for account in ledger.values()),
        replicas=_phases(models),
        waiting=sum(wait.reason == "TurnAtGPU" for wait in admitted.waits.values()),
    )


def _phases(models: dict[str, list[ModelState]]) -> tuple[tuple[str, int], ...]:
    phases: dict[str, int] = {}
    for states_of in models.values():
        for model in states_of:
            for state in model.replicas:
                phases[state.phase] = phases.get(state.phase, 0) + 1
    return tuple(sorted(phases.items()))


def _replicas(snapshot: Snapshot, demands: Demands, machines: Inventory, troubles: Faults) -> list[Replica]:
    """Every replica that is wanted with its pod, and the successors of those that are to be replaced without a gap."""
    pods = {(pod.namespace, pod.name, pod.owner_uid): pod for pod in snapshot.pods}
    out = []
    for wanted in demands.wanted:
        placement = wanted.placement
        surging = 0
        for index in range(wanted.model.replicas):
            names = ((placement.namespace, name, placement.uid) for name in wanted.pod_names(index))
            found = sorted((pods[name] for name in names if name in pods), key=_seniority)
            replica = troubles.applied(Replica(wanted, index, found[0] if found else None))
            out.append(replica)
            if placement.strategy is not RolloutStrategy.SURGE_IF_ROOM or surging >= placement.max_unavailable:
                continue
            if len(found) > 1 or _to_be_replaced(replica, machines, troubles, snapshot.policy):
                surging += 1
                out.append(replace(replica, pod=found[1] if len(found) > 1 else None, successor=True))
    return out


def _seniority(pod: Pod) -> tuple[bool, bool, float, str]:
    return (not pod.is_alive, not pod.ready, pod.created, pod.name)


def _to_be_replaced(replica: Replica, machines: Inventory, troubles: Faults, policy: Policy) -> bool:
    """It serves by an older spec, and the new one has not failed yet."""
    pod = replica.pod
    if pod is None or pod.allocation is None or not pod.ready or pod.deleting:
        return False
    fault = troubles.of.get(replica.key)
    machine = machines.machines.get(pod.allocation.node)
    if machine is None or (fault is not None and fault.failed):
        return False
    share = share_of(replica, machine)
    if isinstance(share, NoPlace | Auto):
        return False
    smallest = min((device.usable for device in machine.devices), default=0)
    return outdated(replica, str(share.utilization(smallest)), policy)


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
            start.name,
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
