"""What is wanted + what there is -> a place or a reason for every replica, by way of the packer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from cotenant.core.ask import ask
from cotenant.core.inventory import Inventory, Machine
from cotenant.core.ledger import Account
from cotenant.core.memo import Memo
from cotenant.core.packing.packer import Host, Problem, Running, Workload, pack
from cotenant.core.replica import Assigned, NoPlace, Replica
from cotenant.core.share import gib
from cotenant.core.snapshot import Allocation, Pod, Policy
from cotenant.core.terms import Kinds, grouped, hosts, kinds, running, workload

REASONS = {
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

Places = dict[str, Assigned | NoPlace]
"""By replica key."""


def assign(
    replicas: list[Replica],
    inventory: Inventory,
    ledger: dict[str, Account],
    usable: Callable[[str], str],
    cost: Callable[[str], int | None],
    policy: Policy,
    orphans: tuple[Pod, ...],
    memo: Memo,
) -> Places:
    """A place or a reason for every replica. `usable` says why a GPU may not be planned on ('' = it may), `cost` what opening it costs.

    What runs and fits nowhere by its new spec runs on as it is, unless a higher priority has its place: it is planned around.
    Where a GPU was promised twice, who finds no other place leaves.
    """
    staying, packed = _split(replicas, inventory)
    kept: dict[str, NoPlace] = {}
    while True:
        told_apart = kinds(packed, inventory, memo)
        there = staying.keys() | kept.keys()
        outside = tuple(replica.pod for replica in replicas if replica.pod and replica.key in there) + orphans
        bins = hosts(inventory, ledger, usable, cost, told_apart, outside, policy)
        places = _packed(packed, bins, told_apart, inventory, policy, memo)
        shunning = {r.key for r in packed if r.avoid and isinstance(places[r.key], NoPlace)}
        if shunning:  # rather where it failed once than nowhere
            packed = [replace(r, avoid=()) if r.key in shunning else r for r in packed]
            continue
        homeless = {
            r.key: _told(r, place, usable)
            for r in packed
            if isinstance(place := places[r.key], NoPlace) and _runs_on(r, place)
        }
        twice = {r.key: why for r in packed if r.key in homeless and (why := _promised_twice(r, ledger))}
        for key, why in twice.items():
            place = homeless.pop(key)
            places[key] = replace(place, message=f"{why}; no other place: {place.message}", displaced=True)
        if not homeless:
            return {**staying, **kept, **places}
        kept |= homeless
        packed = [replica for replica in packed if replica.key not in homeless]


def first_question(
    replicas: list[Replica],
    inventory: Inventory,
    ledger: dict[str, Account],
    usable: Callable[[str], str],
    cost: Callable[[str], int | None],
    policy: Policy,
    orphans: tuple[Pod, ...],
    memo: Memo,
    iterations: int = 0,
) -> Asked:
    """What `assign` asks the packer first, for whoever wants to ask more of it: for bounds, or a problem file."""
    staying, packed = _split(replicas, inventory)
    told_apart = kinds(packed, inventory, memo)
    outside = tuple(replica.pod for replica in replicas if replica.pod and replica.key in staying) + orphans
    bins = hosts(inventory, ledger, usable, cost, told_apart, outside, policy)
    return asked(packed, bins, told_apart, policy, memo, iterations)


def _runs_on(replica: Replica, place: NoPlace) -> bool:
    return not place.displaced and replica.pod is not None and replica.pod.is_alive


def _told(replica: Replica, place: NoPlace, usable: Callable[[str], str]) -> NoPlace:
    """With what is wrong with the GPUs it has, where something is."""
    given = replica.pod.allocation.gpus if replica.pod and replica.pod.allocation else ()
    why = next((why for uuid in given if (why := usable(uuid))), "")
    return replace(place, message=f"{why}; no other place: {place.message}") if why else place


def _promised_twice(replica: Replica, ledger: dict[str, Account]) -> str:
    """Which of its GPUs has more promised to our own engines than it holds, as two controllers at once may have done; '' = none."""
    given = replica.pod.allocation.gpus if replica.pod and replica.pod.allocation else ()
    for account in (ledger[uuid] for uuid in given if uuid in ledger):
        device = account.device
        promised = sum(tenant.promised for tenant in account.tenants if tenant.pod.is_alive)
        if promised > device.usable:
            return f"GPU {device.index} of {device.node} has {gib(promised)} promised and holds {gib(device.usable)}"
    return ""


def _split(replicas: list[Replica], inventory: Inventory) -> tuple[dict[str, Assigned], list[Replica]]:
    """Replicas on machines closed to new tenants stay as they are and are no part of the packing; the rest is packed."""
    staying: dict[str, Assigned] = {}
    packed = []
    for replica in replicas:
        pod = replica.pod
        machine = inventory.machines.get(pod.allocation.node) if pod and pod.allocation else None
        if machine and machine.closed and not machine.lost and pod and pod.allocation and pod.is_alive:
            staying[replica.key] = Assigned(pod.allocation)
        else:
            packed.append(replica)
    return staying, packed


@dataclass(frozen=True, slots=True)
class Asked:
    """What the packer is asked about some replicas."""

    problem: Problem
    groups: dict[str, list[Replica]]
    """By workload: the replica that a number in the plan means."""
    refused: Places
    """Replicas that no kind of machine could ever take."""


def asked(
    replicas: list[Replica], bins: tuple[Host, ...], told_apart: Kinds, policy: Policy, memo: Memo, iterations: int = 0
) -> Asked:
    """These replicas and hosts in the packer's terms."""
    groups = grouped(replicas)
    refused: Places = {}
    asking: list[Workload] = []
    there: list[Running] = []
    for key, members in groups.items():
        ask_of = workload(key, members, told_apart, policy, memo)
        if isinstance(ask_of, NoPlace):
            refused.update((member.key, ask_of) for member in members)
            continue
        asking.append(ask_of)
        there.extend(running(key, members))
    problem = Problem(
        hosts=bins,
        workloads=tuple(asking),
        running=tuple(there),
        max_tenants=policy.max_tenants_per_gpu,
        # a replica whose remedy is that others yield may have one of them moved or displaced
        moves=policy.max_moves + sum(replica.yielded_to for replica in replicas),
        iterations=iterations,
    )
    return Asked(problem, groups, refused)


def _packed(
    replicas: list[Replica],
    bins: tuple[Host, ...],
    told_apart: Kinds,
    inventory: Inventory,
    policy: Policy,
    memo: Memo,
) -> Places:
    question = asked(replicas, bins, told_apart, policy, memo)
    groups, places = question.groups, dict(question.refused)
    plan = memo.of("plan", (), (question.problem,), partial(pack, question.problem))
    for placed in plan.placements:
        member, machine = groups[placed.workload][placed.replica], inventory.machines[placed.host]
        give = partial(_assigned, member, machine, placed.gpus, policy)
        places[member.key] = memo.of("assigned", (member, machine, policy), placed.gpus, give)
    for unplaced in plan.unplaced:
        member, why = groups[unplaced.workload][unplaced.replica], unplaced.reason
        places[member.key] = NoPlace(REASONS.get(why.code, why.code), why.text, displaced=bool(why.displaced_by))
    return places


def _assigned(replica: Replica, machine: Machine, gpus: tuple[str, ...], policy: Policy) -> Assigned | NoPlace:
    asked = ask(replica, machine, policy)
    if isinstance(asked, NoPlace):
        return asked
    memory = max(device.usable for device in machine.devices if device.uuid in gpus)
    headroom = replica.wanted.placement.headroom
    allocation = Allocation(
        node=machine.node.name,
        gpus=gpus,
        bytes=asked.utilization.of(memory),
        utilization=str(asked.utilization),
        headroom=policy.headroom if headroom is None else headroom,
        overrun=asked.overrun,
    )
    before = replica.pod.allocation if replica.pod else None
    if before and (before.node, sorted(before.gpus)) == (allocation.node, sorted(gpus)):
        same = replace(allocation, gpus=before.gpus)
        return Assigned(before if before == same else same, asked.max_model_len)
    return Assigned(allocation, asked.max_model_len)
