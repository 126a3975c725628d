"""What is wanted + what there is -> the packing problem; and the packer's answer -> an allocation or a reason per replica."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cotenant.core.demand import Wanted
from cotenant.core.inventory import Inventory, Machine
from cotenant.core.ledger import Account
from cotenant.core.packing import Bin, Demand, Host, Placed, Problem, Running, Workload, pack
from cotenant.core.share import SCALE, Auto, Bytes, Percent, Share, gib
from cotenant.core.snapshot import Allocation, Labels, Model, Pod, Policy, matches


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica that is wanted, with what its faults and its pod say of where it may be."""

    wanted: Wanted
    index: int
    pod: Pod | None = None
    share: Share | None = None
    """Another share than the spec's: what remedies have come to."""
    overrun: int | None = None
    """Learned; None = the default."""
    avoid: tuple[str, ...] = ()
    """GPUs it failed on."""
    wait_for_free: int = 0
    """Bytes that must be free on each GPU before its next start."""
    successor: bool = False
    """It is to take over from the pod that serves now, which leaves once this one is ready (SurgeIfRoom)."""

    @property
    def key(self) -> str:
        """`namespace/placement/model/index`, of a successor with a mark."""
        return f"{self.wanted.key}/{self.index}" + ("+" if self.successor else "")


@dataclass(frozen=True, slots=True)
class NoPlace:
    """Why a replica has no GPU."""

    reason: str
    message: str
    waiting: bool = False
    """It has a place, or will have one without anybody's doing."""
    displaced: bool = False
    """A replica of higher priority has its place: it must leave."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """A replica's place in the plan."""

    allocation: Allocation
    moved_from: Allocation | None = None


_REASONS = {
    "Memory": "InsufficientMemory",
    "Overrun": "InsufficientMemory",
    "HostCPU": "InsufficientCPU",
    "HostMemory": "InsufficientHostMemory",
    "Tenants": "TooManyTenants",
    "SpreadGPU": "SpreadTooFar",
    "SpreadNode": "SpreadTooFar",
    "Island": "NoIsland",
    "Refused": "NoNodeSelected",
    "NotReady": "NodesNotReady",
    "NoNodes": "NoManagedNodes",
}
"""The packer's codes in the words of conditions."""

_LAST = -(10**9)
"""A successor takes nobody's place: what it replaces still serves."""

ShareOf = Callable[[Replica, Machine], Share | NoPlace]
"""The share a replica asks for on a machine, `auto` resolved."""


def assign(
    replicas: list[Replica],
    inventory: Inventory,
    ledger: dict[str, Account],
    usable: Callable[[str], str],
    cost: Callable[[str], int | None],
    policy: Policy,
    share_of: ShareOf,
    orphans: tuple[Pod, ...] = (),
    *,
    iterations: int = 0,
) -> dict[str, Assigned | NoPlace]:
    """A place or a reason for every replica. `usable` says why a GPU may not be planned on ('' = it may), `cost` what opening it costs.

    What runs and fits nowhere by its new spec runs on as it is, unless a higher priority has its place: it is planned around.
    """
    staying, packed = _split(replicas, inventory)
    kept: dict[str, NoPlace] = {}
    while True:
        kinds = _Kinds(packed, inventory)
        there = staying.keys() | kept.keys()
        outside = tuple(replica.pod for replica in replicas if replica.key in there and replica.pod) + orphans
        hosts = _hosts(inventory, ledger, usable, cost, kinds, outside, policy)
        places = _packed(packed, hosts, kinds, inventory, policy, share_of, iterations)
        homeless = {r.key: place for r in packed if _runs_on(r, place := places[r.key]) and isinstance(place, NoPlace)}
        if not homeless:
            return {**staying, **kept, **places}
        kept |= homeless
        packed = [replica for replica in packed if replica.key not in homeless]


def _runs_on(replica: Replica, place: Assigned | NoPlace) -> bool:
    return isinstance(place, NoPlace) and not place.displaced and replica.pod is not None and replica.pod.is_alive


def _packed(
    replicas: list[Replica],
    hosts: tuple[Host, ...],
    kinds: _Kinds,
    inventory: Inventory,
    policy: Policy,
    share_of: ShareOf,
    iterations: int,
) -> dict[str, Assigned | NoPlace]:
    places: dict[str, Assigned | NoPlace] = {}
    groups = _groups(replicas)
    workloads: list[Workload] = []
    running: list[Running] = []
    for key, members in groups.items():
        workload = _workload(key, members, kinds, policy, share_of)
        if isinstance(workload, NoPlace):
            places.update((member.key, workload) for member in members)
            continue
        workloads.append(workload)
        running.extend(_running(key, members))
    problem = Problem(
        hosts=hosts,
        workloads=tuple(workloads),
        running=tuple(running),
        max_tenants=policy.max_tenants_per_gpu,
        iterations=iterations,
        moves=policy.max_moves,
    )
    plan = pack(problem)
    for placed in plan.placements:
        member = groups[placed.workload][placed.replica]
        places[member.key] = _assigned(member, placed, inventory, policy, share_of)
    for unplaced in plan.unplaced:
        member = groups[unplaced.workload][unplaced.replica]
        why = unplaced.reason
        places[member.key] = NoPlace(_REASONS.get(why.code, why.code), why.text, displaced=bool(why.displaced_by))
    return places


def _split(replicas: list[Replica], inventory: Inventory) -> tuple[dict[str, Assigned], list[Replica]]:
    """Replicas on machines closed to new tenants stay as they are and are no part of the packing; the rest is packed."""
    staying: dict[str, Assigned] = {}
    packed = []
    for replica in replicas:
        pod = replica.pod
        machine = inventory.machines.get(pod.allocation.node) if pod and pod.allocation else None
        if pod and pod.allocation and pod.is_alive and machine and machine.closed and not machine.lost:
            staying[replica.key] = Assigned(pod.allocation)
        else:
            packed.append(replica)
    return staying, packed


def _groups(replicas: list[Replica]) -> dict[str, list[Replica]]:
    """Replicas that ask for the same, by workload key; one whose remedies changed its ask stands alone."""
    groups: dict[str, list[Replica]] = {}
    for replica in replicas:
        alone = replica.share is not None or replica.avoid or replica.successor
        groups.setdefault(replica.key if alone else replica.wanted.key, []).append(replica)
    return groups


class _Kinds:
    """Machines told apart only by what some replica could tell apart: product, memory, and which selectors hold."""

    def __init__(self, replicas: list[Replica], inventory: Inventory) -> None:
        selectors: set[Labels] = set()
        named: set[str] = set()
        for wanted in {replica.wanted.key: replica.wanted for replica in replicas}.values():
            selectors.add(wanted.placement.selector)
            selectors.update(other.selector for other in wanted.model.per_node)
            named.update(wanted.placement.names)
        for replica in replicas:
            named.update(inventory.devices[uuid].node for uuid in replica.avoid if uuid in inventory.devices)
        order = sorted(selector for selector in selectors if selector)
        numbers: dict[tuple[object, ...], int] = {}
        self.of: dict[str, int] = {}
        self.examples: list[Machine] = []
        for name, machine in inventory.machines.items():
            memory = tuple(sorted({device.usable for device in machine.devices}))
            labels = machine.node.labels
            signature = (
                machine.product,
                memory,
                tuple(matches(s, labels) for s in order),
                name if name in named else "",
            )
            if signature not in numbers:
                numbers[signature] = len(self.examples)
                self.examples.append(machine)
            self.of[name] = numbers[signature]


def _hosts(
    inventory: Inventory,
    ledger: dict[str, Account],
    usable: Callable[[str], str],
    cost: Callable[[str], int | None],
    kinds: _Kinds,
    outside: tuple[Pod, ...],
    policy: Policy,
) -> tuple[Host, ...]:
    outside_use: dict[str, int] = {}
    asked: dict[str, list[int]] = {}
    for pod in outside:
        if pod.allocation is None:
            continue
        asked.setdefault(pod.allocation.node, []).append(1)
        for uuid in pod.allocation.gpus:
            outside_use[uuid] = outside_use.get(uuid, 0) + pod.allocation.bytes + pod.allocation.overrun
    hosts = []
    for name, machine in inventory.machines.items():
        bins = []
        note = machine.lost or machine.closed
        for device in machine.devices:
            if why := usable(device.uuid):
                note = note or why
                continue
            used = outside_use.get(device.uuid, 0) + ledger[device.uuid].foreign
            bins.append(Bin(device.uuid, device.usable, min(used, device.usable), device.island, cost(device.uuid)))
        taken = len(asked.get(name, ()))
        hosts.append(
            Host(
                name=name,
                kind=kinds.of[name],
                bins=tuple(bins),
                cpu=max(0, machine.node.cpu - taken * policy.default_cpu),
                memory=max(0, machine.node.memory - taken * policy.default_memory),
                product=machine.product,
                cost=max((device.usable for device in machine.devices), default=1) >> 30 or 1,
                ready=bool(bins) and not (machine.closed or machine.lost),
                note=note or ("" if machine.devices else "it reports no GPU"),
            )
        )
    return tuple(hosts)


def _workload(key: str, members: list[Replica], kinds: _Kinds, policy: Policy, share_of: ShareOf) -> Workload | NoPlace:
    first = members[0]
    wanted, model = first.wanted, first.wanted.model
    demands: list[Demand | None] = []
    refused: list[str] = []
    failure: NoPlace | None = None
    for machine in kinds.examples:
        why = _not_selected(wanted, machine) or _avoided(first, machine)
        share = None if why else share_of(first, machine)
        if isinstance(share, NoPlace):
            failure, why, share = share, share.message, None
        demands.append(None if share is None else _demand(share, machine, first.overrun, policy))
        refused.append(why)
    if failure is not None and not any(demands):
        return failure
    return Workload(
        key=key,
        replicas=len(members),
        gpus=model.tensor_parallel,
        demands=tuple(demands),
        spread=model.spread,
        priority=_LAST if first.successor else model.priority,
        headroom=headroom(wanted, policy),
        cpu=model.cpu if model.cpu is not None else policy.default_cpu,
        memory=model.memory if model.memory is not None else policy.default_memory,
        namespace=wanted.placement.namespace,
        refused=tuple(refused),
    )


def _running(key: str, members: list[Replica]) -> list[Running]:
    """Those that have their GPUs now; one that does not serve yet, or no longer, is not worth a move but keeps its place."""
    found = []
    for position, member in enumerate(members):
        allocation = member.pod.allocation if member.pod else None
        if allocation is None or member.pod is None or len(allocation.gpus) != member.wanted.model.tensor_parallel:
            continue
        if not set(member.avoid) & set(allocation.gpus):
            found.append(Running(key, position, allocation.node, allocation.gpus, fixed=member.pod.is_starting))
    return found


def headroom(wanted: Wanted, policy: Policy) -> int:
    """Ten-thousandths of its GPUs this placement wants promised to nobody."""
    asked = wanted.placement.headroom
    return policy.headroom if asked is None else asked


def _not_selected(wanted: Wanted, machine: Machine) -> str:
    placement = wanted.placement
    if placement.names and machine.node.name not in placement.names:
        return "not among spec.nodes.names"
    if not matches(placement.selector, machine.node.labels):
        missing = sorted(set(placement.selector) - set(machine.node.labels))
        return "not selected: lacks " + ", ".join(f"{key}={value}" for key, value in missing)
    return ""


def _avoided(replica: Replica, machine: Machine) -> str:
    # a GPU is avoided by avoiding its node when it is the node's only one; else the packer is told by the bin
    uuids = {device.uuid for device in machine.devices}
    return "its engine failed there" if replica.avoid and uuids and uuids <= set(replica.avoid) else ""


def per_node_share(model: Model, machine: Machine) -> Share:
    """The share as written for this node: the first perNode entry that selects it, else the model's."""
    for other in model.per_node:
        if matches(other.selector, machine.node.labels):
            return other.share
    return model.share


def _smallest(machine: Machine) -> int:
    return min((device.usable for device in machine.devices), default=0)


def _demand(share: Share, machine: Machine, overrun: int | None, policy: Policy) -> Demand | None:
    memory = max((device.usable for device in machine.devices), default=0)
    if isinstance(share, Auto) or memory == 0:
        return None
    utilization = share.utilization(_smallest(machine))
    return Demand(share=utilization.of(memory), overrun=policy.overrun if overrun is None else overrun)


def _assigned(
    replica: Replica, placed: Placed, inventory: Inventory, policy: Policy, share_of: ShareOf
) -> Assigned | NoPlace:
    machine = inventory.machines[placed.host]
    share = share_of(replica, machine)
    if isinstance(share, NoPlace):
        return share
    assert not isinstance(share, Auto)
    utilization = share.utilization(_smallest(machine))
    memory = max(inventory.devices[uuid].usable for uuid in placed.gpus)
    allocation = Allocation(
        node=placed.host,
        gpus=placed.gpus,
        bytes=utilization.of(memory),
        utilization=str(utilization),
        headroom=headroom(replica.wanted, policy),
        overrun=policy.overrun if replica.overrun is None else replica.overrun,
    )
    before = replica.pod.allocation if replica.pod else None
    if before and (before.node, sorted(before.gpus)) == (allocation.node, sorted(allocation.gpus)):
        kept = replace(allocation, gpus=before.gpus)
        return Assigned(before if before == kept else kept)
    return Assigned(allocation, before)


def share_text(share: Share, memory: int) -> str:
    """A share with what it comes to: `70% (98.6Gi)`."""
    if isinstance(share, Percent):
        return f"{share} ({gib(share.utilization(memory).of(memory))})"
    return gib(share.bytes) if isinstance(share, Bytes) else str(share)


__all__ = [
    "SCALE",
    "Assigned",
    "NoPlace",
    "Replica",
    "assign",
    "headroom",
    "per_node_share",
    "share_text",
]
