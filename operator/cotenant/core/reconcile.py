"""Snapshot -> Decision: the whole of what Cotenant decides, step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from cotenant.core.binding import Binding, Pinned
from cotenant.core.cases import Case, cases
from cotenant.core.crews import crews, hopeful
from cotenant.core.decision import Create, Decision, Delete, GPUFigures
from cotenant.core.demand import Demands, demand
from cotenant.core.drift import Start, drift
from cotenant.core.faults import Faults, faults
from cotenant.core.inventory import Inventory, inventory, shut
from cotenant.core.issues import impossible
from cotenant.core.kept import told_who_waits
from cotenant.core.ledger import Account, accounts
from cotenant.core.lessons import Lessons, due_at, kv_pin, learn
from cotenant.core.memo import Memo
from cotenant.core.names import ENGINE_CONTAINER
from cotenant.core.oom.ladder import held_until
from cotenant.core.packing.packer import Fragmentation
from cotenant.core.planning import Places, Site, assign
from cotenant.core.pod import Tuning, engine_pod
from cotenant.core.recovered import recovered
from cotenant.core.replica import Assigned, Crew, NoPlace, Replica
from cotenant.core.report import states, statuses
from cotenant.core.rollout import Admitted, Circumstances, admit
from cotenant.core.services import services, stale_services
from cotenant.core.snapshot import Fault, Pod, Policy, Snapshot
from cotenant.core.status import ModelState, rfc3339


@dataclass(frozen=True, slots=True)
class Considered:
    """What a pass knows before it plans."""

    snapshot: Snapshot
    """With what pods hold whose annotations do not say so."""
    demands: Demands
    machines: Inventory
    ledger: dict[str, Account]
    binding: Binding
    troubles: Faults
    lessons: Lessons
    cases: tuple[Case, ...]
    crews: tuple[Crew, ...]
    """By case."""
    site: Site

    @property
    def replicas(self) -> list[Replica]:
        """All of them."""
        return list(chain.from_iterable(self.crews))

    @property
    def hopeful(self) -> list[Crew]:
        """The replicas that are planned, by case."""
        without = {key for key, fault in self.troubles.of.items() if fault.failed} | self.troubles.resting.keys()
        if blocked := self.demands.blocked:
            without |= {replica.key for replica in self.replicas if replica.wanted.key in blocked}
        return [hopeful(crew, without) for crew in self.crews] if without else list(self.crews)


def consider(snapshot: Snapshot, memo: Memo) -> Considered:
    """Everything a plan depends on, worked out from the snapshot."""
    snapshot = recovered(snapshot, memo)
    demands = demand(snapshot.placements, snapshot.policy, memo)
    found = inventory(snapshot.nodes, snapshot.gpu_nodes, snapshot.policy, snapshot.now, memo, snapshot.silent)
    binding = Pinned(snapshot, found)
    machines = shut(found, binding.closed, memo)
    there = cases(demands, snapshot.pods, memo)
    troubles = faults(snapshot, there, memo)
    lessons = learn(snapshot, there, machines, memo)
    ledger = accounts(machines.devices, snapshot.pods, memo)
    orphans = _orphans(snapshot, demands)
    return Considered(
        snapshot,
        demands,
        machines,
        ledger,
        binding,
        troubles,
        lessons,
        there,
        crews(snapshot, there, machines, troubles, lessons, memo),
        Site(machines, ledger, binding.unusable, binding.cost, snapshot.policy, orphans),
    )


def reconcile(snapshot: Snapshot, memo: Memo | None = None) -> Decision:
    """Everything to be done now. Same snapshot, same decision; `memo`, kept between passes, only saves work."""
    memo = memo or Memo()
    known = consider(snapshot, memo)
    snapshot = known.snapshot
    demands, machines, ledger, binding = known.demands, known.machines, known.ledger, known.binding
    troubles, lessons, replicas = known.troubles, known.lessons, known.replicas
    places, left_free, admitted = decide(known, memo)
    planned = [place.allocation for place in places.values() if isinstance(place, Assigned)]
    reservations = binding.reservations(planned, ledger, snapshot.now)
    issues = impossible(demands, machines, replicas, places)
    said = told_who_waits(replicas, places, admitted.waits)
    models = states(snapshot, demands, known.cases, known.crews, said, admitted, troubles, lessons, issues, memo)
    told = statuses(snapshot, models, issues, ledger, binding, memo)
    creates, deletes = _changes(snapshot, admitted, binding, troubles, machines)
    wakes = [
        at
        for at in (
            machines.wake_at,
            admitted.wake_at,
            reservations.wake_at,
            troubles.wake_at,
            due_at(snapshot.pods, snapshot.now),
        )
        if at is not None
    ]
    decided = Decision(
        creates=(*reservations.creates, *creates),
        deletes=(*deletes, *reservations.deletes, *stale_services(snapshot, demands, memo)),
        applies=services(snapshot, demands, memo),
        statuses=told.written,
        events=(*troubles.events, *told.events),
        wake_at=min(wakes, default=None),
        idle=reservations.idle,
        judged=troubles.judged,
        recovered=told.recovered,
        gpus=_figures(machines, ledger, memo),
        left=left_free,
        replicas=_phases(models),
        waiting=sum(wait.reason == "TurnAtGPU" for wait in admitted.waits.values()),
        refused=_refused(snapshot, replicas),
    )
    memo.turn()
    return decided


def decide(known: Considered, memo: Memo) -> tuple[Places, Fragmentation | None, Admitted]:
    """Where everything goes, what the plan leaves free, and what of it goes now.

    Planned anew where somebody was to start in the room that an engine by an old spec keeps for good.
    """
    snapshot, troubles = known.snapshot, known.troubles
    there = Circumstances(
        pods=snapshot.pods,
        ledger=known.ledger,
        pending=known.binding.pending,
        retry_at={key: held_until(fault, snapshot.now) for key, fault in troubles.of.items()},
        given_up={key: f"{fault.reason}: {fault.message}" for key, fault in troubles.of.items() if fault.failed},
        reading=snapshot.reading,
        refused={(namespace, pod): why for namespace, pod, why in snapshot.refusals},
        now=snapshot.now,
    )
    serving_on: frozenset[str] = frozenset()
    while True:
        places, left_free = assign(known.hopeful, known.site, memo, serving_on)
        places |= {key: _rests(troubles.of[key], until) for key, until in troubles.resting.items()}
        changes = drift(
            known.cases, known.crews, places, known.demands, known.machines, snapshot.policy, troubles.recorded, memo
        )
        admitted = admit(changes, known.replicas, places, there)
        if admitted.in_the_way <= serving_on:
            return places, left_free, admitted
        serving_on |= admitted.in_the_way


def _refused(snapshot: Snapshot, replicas: list[Replica]) -> tuple[tuple[str, str], ...]:
    if not snapshot.refusals:
        return ()
    refused = {(namespace, pod) for namespace, pod, _ in snapshot.refusals}
    names = {(r.wanted.placement.namespace, name) for r in replicas if r.refused for name in r.wanted.names[r.index]}
    return tuple(sorted(refused & names))


def _rests(fault: Fault, until: float) -> NoPlace:
    said = f"{fault.reason}: {fault.message}; starts again at {rfc3339(until)}, and keeps no GPU from others until then"
    return NoPlace("BackOff", said, waiting=True)


def _phases(models: dict[str, list[ModelState]]) -> tuple[tuple[str, int], ...]:
    phases: dict[str, int] = {}
    for states_of in models.values():
        for model in states_of:
            for state in model.replicas:
                phases[state.phase] = phases.get(state.phase, 0) + 1
    return tuple(sorted(phases.items()))


def _orphans(snapshot: Snapshot, demands: Demands) -> tuple[Pod, ...]:
    """Engines that use memory and that no plan places: of a spec nobody can read, of a placement that is being deleted or is
    gone, or cut loose by hand."""
    planned = {row[0].placement.uid for row in demands.rows if row}
    return tuple(pod for pod in snapshot.pods if pod.owner_uid not in planned and pod.is_alive)


def _changes(
    snapshot: Snapshot, admitted: Admitted, binding: Binding, troubles: Faults, machines: Inventory
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
            _tuning(start, snapshot.policy, troubles, machines),
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


def _tuning(start: Start, policy: Policy, troubles: Faults, machines: Inventory) -> Tuning:
    """What this start runs with beside the spec: remedies, then what earlier starts with the same share taught."""
    replica, allocation = start.replica, start.allocation
    tuning = troubles.tuning(replica)
    if replica.config is not None:
        tuning = replace(tuning, multimodal=replica.config.multimodal)
    if start.max_model_len and tuning.engine.max_model_len is None:
        sized = replace(tuning.engine, max_model_len=start.max_model_len, auto_max_model_len=False)
        tuning = replace(tuning, engine=sized)
    pinned = (
        kv_pin(replica, allocation, machines.machines.get(allocation.node), policy)
        if tuning.kv_cache_bytes is None
        else None
    )
    return replace(tuning, kv_cache_bytes=pinned) if pinned else tuning


def _figures(machines: Inventory, ledger: dict[str, Account], memo: Memo) -> tuple[GPUFigures, ...]:
    out: list[GPUFigures] = []
    for machine in machines.machines.values():
        mine = tuple(ledger[device.uuid] for device in machine.devices)
        out.extend(memo.of("figures", mine, (), partial(_of_node, mine)))
    return tuple(out)


def _of_node(accounts: tuple[Account, ...]) -> list[GPUFigures]:
    return [
        GPUFigures(
            account.device.node,
            account.device.uuid,
            account.device.usable,
            account.promised,
            account.expected,
            account.strangers,
            account.device.used,
            len(account.tenants),
        )
        for account in accounts
    ]
