"""Snapshot -> Decision: the whole of what Cotenant decides, step by step."""

from __future__ import annotations

from cotenant.core.binding import Binding, Pinned
from cotenant.core.decision import Apply, Create, Decision, Delete, GPUFigures
from cotenant.core.demand import Demands, demand
from cotenant.core.drift import drift
from cotenant.core.faults import Faults, faults
from cotenant.core.inventory import Machine, inventory
from cotenant.core.issues import impossible
from cotenant.core.ledger import Account, accounts
from cotenant.core.memo import Memo
from cotenant.core.names import ENGINE_CONTAINER
from cotenant.core.planning import Assigned, NoPlace, Replica, assign, per_node_share
from cotenant.core.pod import engine_pod, service, service_hash
from cotenant.core.report import states, statuses
from cotenant.core.rollout import Admitted, admit
from cotenant.core.share import Auto, Share
from cotenant.core.snapshot import Pod, Snapshot
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
    replicas = _replicas(snapshot, demands, troubles)
    hopeful = [replica for replica in replicas if not _given_up(replica, troubles)]
    orphans = _orphans(snapshot, demands)
    places = assign(hopeful, machines, ledger, binding.unusable, binding.cost, policy, share_of, orphans).places
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
