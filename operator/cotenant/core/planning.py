"""What is wanted + what there is -> a place or a reason for every replica, by way of the packer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from cotenant.core.ask import ask, could_run_with
from cotenant.core.cases import home
from cotenant.core.inventory import Inventory, Machine
from cotenant.core.ledger import Account
from cotenant.core.memo import Memo
from cotenant.core.packing.packer import Fragmentation, Host, Problem, Reason, Running, Workload, pack
from cotenant.core.replica import Assigned, Crew, NoPlace, Replica
from cotenant.core.share import gib
from cotenant.core.snapshot import Allocation, Pod, Policy
from cotenant.core.terms import Kinds, Outside, grouped, host_cpu, host_memory, hosts, kinds, running, workload

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


@dataclass(frozen=True, slots=True)
class Site:
    """What is planned on."""

    inventory: Inventory
    ledger: dict[str, Account]
    usable: Callable[[str], str]
    """Why a GPU may not be planned on; '' = it may."""
    cost: Callable[[str], int | None]
    """What opening it costs; None = as its product says."""
    policy: Policy
    orphans: tuple[Pod, ...]
    """Engines that no plan places."""


def assign(
    crews: list[Crew], site: Site, memo: Memo, serving_on: frozenset[str] = frozenset()
) -> tuple[Places, Fragmentation | None]:
    """A place or a reason for every replica, and what the plan leaves.

    What stays as it is by its old spec - on a closed machine, until a successor serves, or for good (`serving_on`, by key) - is
    planned around. So is what runs and fits nowhere by its new spec, unless a higher priority has its place. A successor that
    finds no room beside it is none: the replica is planned as it is to be. Where a GPU was promised twice, who finds no other
    place leaves.
    """
    for_good = _staying(crews, site.inventory, serving_on, memo)
    staying = for_good | _succeeded(crews, site.inventory, memo)
    without: dict[str, Replica | None] = dict.fromkeys(staying)
    """What is left out of the packing (None), or asked for in another way."""
    kept: Places = {}
    while True:
        packed = [_changed(crew, without) for crew in crews] if without else crews
        question = _question(crews, packed, {key for key in without if key in staying or key in kept}, site, memo)
        places, left_free = _packed(question, site.inventory, site.policy, memo)
        nowhere = {key: place for key, place in places.items() if isinstance(place, NoPlace)}
        if not nowhere:
            return {**staying, **kept, **places}, left_free
        left = [replica for crew in packed for replica in crew if replica.key in nowhere]
        if alone := [r for r in left if r.successor and r.pod is None and r.origin in staying]:
            kept |= {r.key: nowhere[r.key] for r in alone}
            without |= dict.fromkeys(r.key for r in alone)
            for replica in alone:
                if replica.origin not in for_good:
                    del staying[replica.origin], without[replica.origin]
            continue
        # rather with nobody yielding, or where it failed once, than nowhere
        shunning = {r.key: replace(r, reserve=0) for r in left if r.reserve}
        shunning = shunning or {r.key: replace(r, avoid=()) for r in left if r.avoid}
        if shunning:
            without |= shunning
            continue
        homeless = {r.key: _told(r, nowhere[r.key], site.usable) for r in left if _runs_on(r, nowhere[r.key])}
        twice = {r.key: why for r in left if r.key in homeless and (why := _promised_twice(r, site.ledger))}
        for key, why in twice.items():
            place = homeless.pop(key)
            places[key] = replace(place, message=f"{why}; no other place: {place.message}", displaced=True)
        if not homeless:
            return {**staying, **kept, **places}, left_free
        kept |= homeless
        without |= dict.fromkeys(homeless)


def _changed(crew: Crew, changes: Mapping[str, Replica | None]) -> Crew:
    """With some replicas, by key, changed or (None) left out; the very same crew where that changes nothing."""
    if not any(replica.key in changes for replica in crew):
        return crew
    after = (changes.get(replica.key, replica) for replica in crew)
    return tuple(replica for replica in after if replica is not None)


def first_question(crews: list[Crew], site: Site, memo: Memo, iterations: int = 0) -> Asked:
    """What `assign` asks the packer first, for whoever wants to ask more of it: for bounds, or a problem file."""
    staying = _staying(crews, site.inventory, frozenset(), memo) | _succeeded(crews, site.inventory, memo)
    packed = [_changed(crew, dict.fromkeys(staying)) for crew in crews] if staying else crews
    return _question(crews, packed, set(staying), site, memo, iterations)


def _question(
    crews: list[Crew], packed: list[Crew], outside: set[str], site: Site, memo: Memo, iterations: int = 0
) -> Asked:
    """About the replicas `packed`, with those whose keys are in `outside` where they are."""
    told_apart = kinds(packed, site.inventory, memo)
    policy = site.policy
    orphans = tuple(Outside(pod, policy.default_cpu, policy.default_memory) for pod in site.orphans)
    fixed = (
        Outside(r.pod, host_cpu(r.wanted.model, policy), host_memory(r.wanted.model, policy), r.origin)
        for r in chain.from_iterable(crews if outside else ())
        if r.pod and r.key in outside
    )
    bins = hosts(site.inventory, site.ledger, site.usable, site.cost, told_apart, (*fixed, *orphans), memo)
    return asked(packed, bins, told_apart, site.policy, memo, iterations)


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


def _staying(
    crews: list[Crew], inventory: Inventory, serving_on: frozenset[str], memo: Memo
) -> dict[str, Assigned | NoPlace]:
    """Replicas that stay as they are and are no part of the packing, by key: on closed machines, or for good (see `assign`)."""
    closed = {name for name, machine in inventory.machines.items() if machine.closed}
    if not (closed or serving_on):
        return {}
    return _as_they_are(
        (r for crew in crews for r in crew if r.key in serving_on or (r.pod and home(r.pod) in closed)), inventory, memo
    )


def _succeeded(crews: list[Crew], inventory: Inventory, memo: Memo) -> dict[str, Assigned | NoPlace]:
    """Those that stay until a successor serves."""
    succeeded = {replica.origin for crew in crews for replica in crew if replica.successor}
    if not succeeded:
        return {}
    return _as_they_are((r for crew in crews for r in crew if r.key in succeeded), inventory, memo)


def _as_they_are(replicas: Iterable[Replica], inventory: Inventory, memo: Memo) -> dict[str, Assigned | NoPlace]:
    """Their own places, by key; of those that are dead, or whose machine is lost, nothing stays."""
    found: dict[str, Assigned | NoPlace] = {}
    for replica in replicas:
        pod = replica.pod
        if pod is None or pod.allocation is None or not pod.is_alive:
            continue
        machine = inventory.machines.get(pod.allocation.node)
        if machine is None or not machine.lost:
            found[replica.key] = memo.of(
                "staying", (pod.allocation,), (), partial(Assigned, pod.allocation, stays=True)
            )
    return found


@dataclass(frozen=True, slots=True)
class Asked:
    """What the packer is asked about some replicas."""

    problem: Problem
    groups: dict[str, list[Replica]]
    """By workload: the replica that a number in the plan means."""
    refused: Places
    """Replicas that no kind of machine could ever take."""


def asked(
    crews: list[Crew], bins: tuple[Host, ...], told_apart: Kinds, policy: Policy, memo: Memo, iterations: int = 0
) -> Asked:
    """These replicas and hosts in the packer's terms."""
    groups: dict[str, list[Replica]] = {}
    refused: Places = {}
    asking: list[Workload] = []
    there: list[Running] = []
    yielding = 0
    for crew in crews:
        part = memo.of("asked", (crew, policy, *told_apart.examples), (), partial(_part, crew, told_apart, policy))
        groups.update(part.groups)
        refused.update(part.refused)
        asking.extend(part.workloads)
        there.extend(part.running)
        yielding += part.yielding
    problem = Problem(
        hosts=bins,
        workloads=tuple(asking),
        running=tuple(there),
        max_tenants=policy.max_tenants_per_gpu,
        # a replica whose remedy is that others yield may have one of them moved or displaced
        moves=policy.max_moves + yielding,
        iterations=iterations,
    )
    return Asked(problem, groups, refused)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """What one placement adds to the question."""

    groups: dict[str, list[Replica]]
    refused: Places
    workloads: tuple[Workload, ...]
    running: tuple[Running, ...]
    yielding: int


def _part(crew: Crew, told_apart: Kinds, policy: Policy) -> _Part:
    groups = grouped(crew)
    refused: Places = {}
    asking: list[Workload] = []
    there: list[Running] = []
    for key, members in groups.items():
        ask_of = workload(key, members, told_apart, policy)
        if isinstance(ask_of, NoPlace):
            refused.update((member.key, ask_of) for member in members)
            continue
        asking.append(ask_of)
        there.extend(running(key, members))
    return _Part(groups, refused, tuple(asking), tuple(there), sum(replica.yielded_to for replica in crew))


def _packed(question: Asked, inventory: Inventory, policy: Policy, memo: Memo) -> tuple[Places, Fragmentation | None]:
    groups, machines, places = question.groups, inventory.machines, dict(question.refused)
    plan = memo.equal("plan", question.problem, partial(pack, question.problem))
    before, now = memo.slots("assigned", policy)
    for placed in plan.placements:
        member, machine = groups[placed.workload][placed.replica], machines[placed.host]
        known = before.get(member.key)
        if known is None or known[0] is not member or known[1] is not machine or known[2] != placed.gpus:
            known = (member, machine, placed.gpus, _assigned(member, machine, placed.gpus, policy))
        now[member.key] = known
        places[member.key] = known[3]
    for unplaced in plan.unplaced:
        member = groups[unplaced.workload][unplaced.replica]
        why = memo.of("advice", (member, unplaced.reason), (), partial(advised, member, unplaced.reason))
        said = (REASONS.get(why.code, why.code), why.text, bool(why.displaced_by))
        places[member.key] = memo.of("unplaced", (), said, partial(NoPlace, *said[:2], displaced=said[2]))
    return places, plan.fragmentation


def advised(replica: Replica, why: Reason) -> Reason:
    """Without the advice to make do with less than its engine could start with."""
    kept = tuple(c for c in why.changes if c.code != "LessShare" or could_run_with(replica, c.share))
    return why if kept == why.changes else replace(why, changes=kept)


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
