"""What is wanted and what there is, in the packer's terms: hosts of a few kinds with bins, workloads with a demand per kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cotenant.core.ask import Ask, ask
from cotenant.core.inventory import Inventory, Machine
from cotenant.core.ledger import Account
from cotenant.core.memo import Memo
from cotenant.core.packing.packer import Bin, Demand, Host, Running, Workload
from cotenant.core.replica import Crew, NoPlace, Replica
from cotenant.core.snapshot import Labels, Model, Pod, Policy, ReplicaMemory, matches

LAST = -(10**9)
"""Priority of those that take nobody's place: a successor, since what it replaces still serves, and one that is refused."""


def grouped(replicas: Crew) -> dict[str, list[Replica]]:
    """Replicas that ask for the same, by workload key; one whose remedies changed its ask stands alone."""
    groups: dict[str, list[Replica]] = {}
    for replica in replicas:
        groups.setdefault(replica.key if replica.asks_alone else replica.wanted.key, []).append(replica)
    return groups


@dataclass(frozen=True, slots=True)
class Outside:
    """An engine this plan does not place, and what it asks of its host."""

    pod: Pod
    cpu: int
    """Thousandths of a core."""
    memory: int
    """Bytes."""
    origin: str = ""
    """The replica it is, by key; '' = of no model that is planned."""


class Kinds:
    """Machines told apart only by what some replica could tell apart: product, memory, and which selectors hold."""

    def __init__(self, machines: tuple[Machine, ...], selectors: frozenset[Labels], named: frozenset[str]) -> None:
        numbers: dict[tuple[object, ...], int] = {}
        order = sorted(selector for selector in selectors if selector)
        self.of: dict[str, int] = {}
        self.examples: list[Machine] = []
        for machine in machines:
            name, labels = machine.node.name, machine.node.labels
            selected = tuple(matches(selector, labels) for selector in order)
            own = name if name in named else ""
            signature = (machine.product, machine.smallest, machine.largest, selected, own)
            if signature not in numbers:
                numbers[signature] = len(self.examples)
                self.examples.append(machine)
            self.of[name] = numbers[signature]


def kinds(crews: list[Crew], inventory: Inventory, memo: Memo) -> Kinds:
    """The kinds of machines for these replicas."""
    selectors: set[Labels] = set()
    named: set[str] = set()
    for crew in crews:
        selected, names, avoided = memo.of("told apart", (crew,), (), partial(_told_apart, crew))
        selectors |= selected
        named |= names
        named.update(inventory.devices[uuid].node for uuid in avoided if uuid in inventory.devices)
    machines = tuple(inventory.machines.values())
    told = (frozenset(selectors), frozenset(named))
    return memo.of("kinds", machines, told, partial(Kinds, machines, *told))


def _told_apart(crew: Crew) -> tuple[set[Labels], set[str], set[str]]:
    """The selectors, the nodes by name and the GPUs to avoid that replicas speak of."""
    selectors = {replica.wanted.placement.selector for replica in crew}
    selectors |= {other.selector for replica in crew for other in replica.wanted.model.per_node}
    names = {name for replica in crew for name in replica.wanted.placement.names}
    return selectors, names, {uuid for replica in crew for uuid in replica.avoid}


def hosts(
    inventory: Inventory,
    ledger: dict[str, Account],
    usable: Callable[[str], str],
    cost: Callable[[str], int | None],
    kinds: Kinds,
    outside: tuple[Outside, ...],
    memo: Memo,
) -> tuple[Host, ...]:
    """Every machine; those that are closed with the reason. `outside` are engines this plan does not place."""
    outside_use: dict[str, int] = {}
    there_too: dict[str, tuple[str, ...]] = {}
    asked: dict[str, tuple[int, int]] = {}
    for engine in outside:
        pod = engine.pod
        if pod.allocation is None:
            continue
        cpu, memory = asked.get(pod.allocation.node, (0, 0))
        asked[pod.allocation.node] = (cpu + engine.cpu, memory + engine.memory)
        for uuid in pod.allocation.gpus:
            there_too[uuid] = (*there_too.get(uuid, ()), engine.origin)
            outside_use[uuid] = outside_use.get(uuid, 0) + pod.allocation.bytes + pod.allocation.overrun
    out = []
    for name, machine in inventory.machines.items():
        gpus = tuple(device.uuid for device in machine.devices)
        there = tuple(ledger[uuid] for uuid in gpus)
        told = (
            kinds.of[name],
            tuple(map(usable, gpus)),
            tuple(map(cost, gpus)),
            tuple(outside_use.get(uuid, 0) for uuid in gpus) if outside_use else (),
            asked.get(name, (0, 0)),
            tuple(there_too.get(uuid, ()) for uuid in gpus) if there_too else (),
        )
        out.append(memo.of("host", (machine, *there), told, partial(_host, machine, there, *told)))
    return tuple(out)


def _host(
    machine: Machine,
    accounts: tuple[Account, ...],
    kind: int,
    unusable: tuple[str, ...],
    costs: tuple[int | None, ...],
    outside: tuple[int, ...],
    taken: tuple[int, int],
    engines: tuple[tuple[str, ...], ...],
) -> Host:
    bins = []
    note = machine.lost or machine.closed
    nobody: tuple[tuple[str, ...], ...] = ((),) * len(accounts)
    beside_each = outside or (0,) * len(accounts)
    for account, why, cost, beside, others in zip(
        accounts, unusable, costs, beside_each, engines or nobody, strict=True
    ):
        device = account.device
        if why:
            note = note or why
            continue
        used = beside + _foreign(account)
        bins.append(Bin(device.uuid, device.usable, min(used, device.usable), device.island, others, cost))
    return Host(
        name=machine.node.name,
        kind=kind,
        bins=tuple(bins),
        cpu=max(0, machine.node.cpu - taken[0]),
        memory=max(0, machine.node.memory - taken[1]),
        product=machine.product,
        cost=machine.largest >> 30 or 1,
        ready=bool(bins) and not (machine.closed or machine.lost),
        note=note or ("" if machine.devices else "it reports no GPU"),
    )


def _foreign(account: Account) -> int:
    """Bytes of others that count against this plan.

    Where tenants and strangers really fit beside each other, a stranger that eats into the headroom moves nobody: it only
    leaves no room for another promise.
    """
    device = account.device
    if not account.tenants or account.expected + account.strangers > device.usable:
        return account.strangers
    return min(account.strangers, max(0, device.usable - account.reserved - account.promised))


def workload(key: str, members: list[Replica], kinds: Kinds, policy: Policy) -> Workload | NoPlace:
    """One model's replicas; NoPlace where no kind of machine could ever take them."""
    first = members[0]
    wanted, model = first.wanted, first.wanted.model
    demands: list[Demand | None] = []
    refused: list[str] = []
    unfit: list[str] = []
    failures: list[NoPlace] = []
    for machine in kinds.examples:
        why = _not_selected(first, machine) or _avoided(first, machine)
        asked = None if why or not machine.largest else ask(first, machine, policy)
        if isinstance(asked, NoPlace):
            failures.append(asked)
        unfit.append(asked.message if isinstance(asked, NoPlace) else "")
        demands.append(Demand(asked.bytes, asked.overrun + asked.reserve) if isinstance(asked, Ask) else None)
        refused.append(why or unfit[-1])
    if failures and not any(demands):
        return min(failures, key=lambda failure: failure.percent or 101)  # the kind that comes nearest
    headroom = wanted.placement.headroom
    return Workload(
        key=key,
        replicas=len(members),
        gpus=model.tensor_parallel,
        demands=tuple(demands),
        spread=model.spread,
        priority=LAST if first.takes_what_is_left else model.priority,
        headroom=policy.headroom if headroom is None else headroom,
        cpu=host_cpu(model, policy),
        memory=host_memory(model, policy),
        namespace=wanted.placement.namespace,
        refused=tuple(refused),
        unfit=tuple(unfit),
        avoid=first.avoid,
        family=wanted.key,
    )


def host_cpu(model: Model, policy: Policy) -> int:
    """Thousandths of a core a replica asks of its node."""
    return model.cpu if model.cpu is not None else policy.default_cpu


def host_memory(model: Model, policy: Policy) -> int:
    """Bytes of host memory a replica asks of its node."""
    return model.memory if model.memory is not None else policy.default_memory


def running(key: str, members: list[Replica]) -> list[Running]:
    """Those that have their GPUs now; one that does not serve yet, or no longer, is not worth a move but keeps its place.

    So does one without a pod that the status gives a place: its pod was deleted, or ended, or waits for its turn.
    """
    found = []
    given = _given(members) if any(member.pod is None for member in members) else {}
    for position, member in enumerate(members):
        if member.pod is None:
            place = None if member.successor or member.refused else given.get(member.index)
            if place is not None and not set(member.avoid) & set(place.gpus):
                found.append(Running(key, position, place.node, place.gpus, between=True))
            continue
        allocation = member.pod.allocation
        if allocation is None or len(allocation.gpus) != member.wanted.model.tensor_parallel:
            continue
        if not member.avoid or not set(member.avoid) & set(allocation.gpus):
            found.append(
                Running(
                    key, position, allocation.node, allocation.gpus, fixed=member.pod.is_alive and not member.pod.ready
                )
            )
    return found


def _given(members: list[Replica]) -> dict[int, ReplicaMemory]:
    """The places that the status gives replicas of this model, by index."""
    wanted = members[0].wanted
    memories = (m for m in wanted.placement.status.replicas if m.model == wanted.model.name and m.gpus)
    return {memory.index: memory for memory in memories}


def _not_selected(replica: Replica, machine: Machine) -> str:
    placement = replica.wanted.placement
    if placement.names and machine.node.name not in placement.names:
        return "not among spec.nodes.names"
    if not matches(placement.selector, machine.node.labels):
        missing = sorted(set(placement.selector) - set(machine.node.labels))
        return "not selected: lacks " + ", ".join(f"{key}={value}" for key, value in missing)
    return ""


def _avoided(replica: Replica, machine: Machine) -> str:
    if not replica.avoid:
        return ""
    left = sum(device.uuid not in replica.avoid for device in machine.devices)
    return "its engine failed there" if left < replica.wanted.model.tensor_parallel else ""
