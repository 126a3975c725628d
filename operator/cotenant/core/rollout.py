"""Which Changes may go now: one start per GPU, none while a tenant leaves, no more of a model down than its budget allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cotenant.core.demand import Wanted
from cotenant.core.drift import Changes, Leave, Pace, Start
from cotenant.core.knots import Crowded, is_crowded, kept_out_by, needed_on
from cotenant.core.ledger import Account
from cotenant.core.names import named_for
from cotenant.core.replica import Assigned, NoPlace, Replica
from cotenant.core.share import gib
from cotenant.core.snapshot import Allocation, Pod
from cotenant.core.status import rfc3339

MEMORY_NOT_FREE = "MemoryNotFree"
_Name = tuple[str, str]
"""Namespace and name of a pod."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """What goes now, and why the rest waits."""

    leaves: tuple[Leave, ...]
    starts: tuple[Start, ...]
    waits: dict[str, NoPlace]
    """By replica key."""
    wake_at: float | None = None


class _Turns:
    """Who starts and who leaves on each GPU."""

    def __init__(self, pods: tuple[Pod, ...]) -> None:
        self.starting: dict[str, _Name] = {}
        self.leaving: dict[str, _Name] = {}
        for pod in pods:
            if pod.ready and not pod.deleting:
                continue
            for uuid in pod.allocation.gpus if pod.allocation else ():
                if pod.deleting and pod.ended is None:
                    self.leaving.setdefault(uuid, (pod.namespace, pod.name))
                elif pod.is_starting:
                    self.starting.setdefault(uuid, (pod.namespace, pod.name))

    def starter(self, allocation: Allocation | None, reader: str, beside: str = "") -> str:
        """The pod that starts on any of these GPUs, other than `beside`, for who reads in a namespace."""
        gpus, own = allocation.gpus if allocation else (), (reader, beside)
        return next((named_for(reader, *self.starting[u]) for u in gpus if self.starting.get(u, own) != own), "")

    def leaver(self, allocation: Allocation, reader: str) -> str:
        """The pod that leaves any of these GPUs, for who reads in a namespace."""
        return next((named_for(reader, *self.leaving[uuid]) for uuid in allocation.gpus if uuid in self.leaving), "")

    def leave(self, pod: Pod) -> None:
        if pod.allocation and pod.is_alive:
            for uuid in pod.allocation.gpus:
                self.leaving.setdefault(uuid, (pod.namespace, pod.name))
                if self.starting.get(uuid) == (pod.namespace, pod.name):
                    del self.starting[uuid]

    def has_any(self, allocation: Allocation | None) -> bool:
        """Whether somebody starts on, or leaves, any of these GPUs."""
        return any(uuid in self.starting or uuid in self.leaving for uuid in (allocation.gpus if allocation else ()))

    def start(self, start: Start) -> None:
        for uuid in start.allocation.gpus:
            self.starting[uuid] = (start.replica.wanted.placement.namespace, start.name)


def admit(
    changes: Changes,
    replicas: list[Replica],
    places: dict[str, Assigned | NoPlace],
    pods: tuple[Pod, ...],
    ledger: dict[str, Account],
    pending: Callable[[Allocation], str],
    retry_at: dict[str, float],
    given_up: dict[str, str],
    reading: frozenset[str],
    now: float,
) -> Admitted:
    """Leaves first, then starts in order of priority and age. `pending` says why GPUs are not ours yet, `retry_at` when a
    fault's back-off ends, `given_up` why the new spec of a replica was given up (both by replica)."""
    turns = _Turns(pods)
    leaving = {leave.replica.wanted.key for leave in changes.leaves if leave.replica}
    budget = _Budget([replica for replica in replicas if replica.wanted.key in leaving] if leaving else [], places)
    waits: dict[str, NoPlace] = {}
    leaves, held_up = [], []
    for leave in sorted(changes.leaves, key=_leave_order):
        if not _may_leave(leave, turns, given_up, waits):
            continue
        if leave.pace is Pace.BUDGET and not budget.take(leave):
            held_up.append(leave)
            _wait_for_budget(leave, budget, waits)
            continue
        turns.leave(leave.pod)
        leaves.append(leave)
    starts: list[Start] = []
    wake: list[float] = []
    crowded: dict[str, list[tuple[Start, str]]] = {}
    names = {(pod.namespace, pod.name): pod for pod in pods} if changes.starts else {}
    for start in sorted(changes.starts, key=_start_order):
        until = retry_at.get(start.replica.origin, 0.0)
        if until > now:
            wake.append(until)
            waits[start.replica.key] = NoPlace("BackOff", f"starts again at {rfc3339(until)}", waiting=True)
            # its place in the queue is not given away; the GPU is
            continue
        if start.replica.wanted.model.uri in reading:
            waits[start.replica.key] = NoPlace("ReadingConfig", "its model's config is being read", waiting=True)
            continue
        why = _name_in_use(start, names) or _why_wait(start, turns, ledger, pending)
        if why is not None:
            waits[start.replica.key] = why
            if held_up and why.reason == MEMORY_NOT_FREE:
                full = [(start, uuid) for uuid in start.allocation.gpus if is_crowded(start, ledger[uuid])]
                crowded.setdefault(start.replica.wanted.key, []).extend(full)
            continue
        turns.start(start)
        starts.append(start)
    leaves += _untied(held_up, crowded, turns, budget, waits)
    return Admitted(tuple(leaves), tuple(starts), waits, min(wake, default=None))


def _untied(
    held_up: list[Leave],
    crowded: Crowded,
    turns: _Turns,
    budget: _Budget,
    waits: dict[str, NoPlace],
) -> list[Leave]:
    """Pods that hold the very room the replicas they wait for would start in: they go all the same, one for each ring."""
    untied: list[Leave] = []
    for leave in sorted(held_up, key=_untied_order) if crowded else ():
        if turns.has_any(leave.pod.allocation):
            continue
        out = kept_out_by(leave, held_up, crowded)
        if not (out and budget.take(leave, without=out)):
            continue
        turns.leave(leave.pod)
        untied.append(leave)
        if leave.replica:
            del waits[leave.replica.key]
        # whoever waits for this room has only to wait for its turn now
        crowded = {key: [(s, gpu) for s, gpu in them if gpu not in turns.leaving] for key, them in crowded.items()}
    return untied


def _name_in_use(start: Start, names: dict[tuple[str, str], Pod]) -> NoPlace | None:
    """A pod of that name that is not this replica's: of a placement that was deleted, and made anew under its name."""
    other = names.get((start.replica.wanted.placement.namespace, start.name))
    if other is None:
        return None
    where = f" on {other.node}" if other.node else ""
    return NoPlace("NameInUse", f"waits until the pod {other.name} of its predecessor{where} is gone", waiting=True)


def _untied_order(leave: Leave) -> tuple[int, str, str]:
    return (leave.replica.wanted.model.priority if leave.replica else 0, leave.pod.namespace, leave.pod.name)


def _leave_order(leave: Leave) -> tuple[int, str, str]:
    return (list(Pace).index(leave.pace), leave.pod.namespace, leave.pod.name)


def _start_order(start: Start) -> tuple[int, float, str, int, str, int]:
    wanted = start.replica.wanted
    placement = wanted.placement
    owner = f"{placement.namespace}/{placement.name}"
    return (-wanted.model.priority, placement.created, owner, wanted.position, wanted.key, start.replica.index)


class _Budget:
    """How many replicas of a model may be down for a change, given those that are down anyway.

    A rollout counts all that are wanted: where one failed by the new spec, or has no place, the rest keeps serving. Who cannot
    stay (its GPU is sick, or full) waits only for those that can come: the last that serves may have to move.
    """

    def __init__(self, replicas: list[Replica], places: dict[str, Assigned | NoPlace]) -> None:
        self._ready: dict[str, int] = {}
        self._coming: dict[str, int] = {}
        self._wanted: dict[str, Wanted] = {}
        self.lacking: dict[str, Replica] = {}
        """By model: a replica that comes no more by itself."""
        for replica in replicas:
            if replica.successor:
                continue
            key = replica.wanted.key
            self._wanted[key] = replica.wanted
            serves = replica.pod is not None and replica.pod.ready and not replica.pod.deleting
            self._ready[key] = self._ready.get(key, 0) + serves
            comes = replica.pod is not None or isinstance(places.get(replica.key), Assigned)
            self._coming[key] = self._coming.get(key, 0) + comes
            if not comes:
                self.lacking.setdefault(key, replica)

    def take(self, leave: Leave, *, without: int = 0) -> bool:
        """One more down, if the budget has it; not counting so many that cannot come before it has gone."""
        if leave.replica is None:
            return True
        key = leave.replica.wanted.key
        wanted = self._wanted[key]
        count = (wanted.model.replicas if leave.by_spec else self._coming[key]) - without
        allowed = min(wanted.placement.max_unavailable, count - 1) if count > 1 else 1
        if allowed - (count - self._ready[key]) <= 0:
            return False
        self._ready[key] -= 1
        return True


def _may_leave(leave: Leave, turns: _Turns, given_up: dict[str, str], waits: dict[str, NoPlace]) -> bool:
    """Whether nothing but its model's budget keeps this pod."""
    if leave.pace is Pace.AT_ONCE:
        return True
    failed = given_up.get(leave.replica.origin, "") if leave.by_spec and leave.replica else ""
    if failed:
        _wait(leave, waits, f"it serves on as it is: its successor failed: {failed}", stuck=True)
        return False
    starter = turns.starter(leave.pod.allocation, leave.pod.namespace, beside=leave.pod.name)
    if starter:
        _wait(leave, waits, f"is replaced once {starter} has started: memory given back beside a start would kill it")
        return False
    return True


def _wait_for_budget(leave: Leave, budget: _Budget, waits: dict[str, NoPlace]) -> None:
    lacking = budget.lacking.get(leave.replica.wanted.key) if leave.by_spec and leave.replica else None
    if lacking is None:
        _wait(leave, waits, "is replaced once enough other replicas of its model are ready")
    else:
        name = f"{lacking.wanted.model.name}-{lacking.index}"
        _wait(leave, waits, f"it serves on as it is: {name} has to be ready first, see why it is not", stuck=True)


def _wait(leave: Leave, waits: dict[str, NoPlace], message: str, *, stuck: bool = False) -> None:
    if leave.replica:
        waits[leave.replica.key] = NoPlace(leave.reason, f"{leave.message}; {message}", waiting=True, stuck=stuck)


def _why_wait(
    start: Start, turns: _Turns, ledger: dict[str, Account], pending: Callable[[Allocation], str]
) -> NoPlace | None:
    allocation, reader = start.allocation, start.replica.wanted.placement.namespace
    if why := pending(allocation):
        reason = "InjectionUnverified" if why.startswith("InjectionUnverified") else "GPUNotHeld"
        return NoPlace(reason, why.removeprefix("InjectionUnverified: "), waiting=True)
    if starter := turns.starter(allocation, reader):
        return NoPlace("TurnAtGPU", f"waits for its turn: {starter} is starting on the same GPU", waiting=True)
    if leaver := turns.leaver(allocation, reader):
        return NoPlace("TurnAtGPU", f"waits for its turn: {leaver} is leaving the same GPU", waiting=True)
    for uuid in allocation.gpus:
        account = ledger[uuid]
        free, needed = account.free_now(), needed_on(start, account)
        if free < needed:
            return NoPlace(MEMORY_NOT_FREE, _not_free(account, free, needed, reader), waiting=True)
    return None


def _not_free(account: Account, free: int, needed: int, reader: str) -> str:
    device = account.device
    known = {(tenant.pod.namespace, tenant.pod.name) for tenant in account.tenants}
    lingering = [
        f"{named_for(reader, r.namespace, r.pod)} {gib(r.used)}"
        for r in device.tenants
        if (r.namespace, r.pod) not in known
    ]
    over = [f"{named_for(reader, t.pod.namespace, t.pod.name)} by {gib(excess)}" for t, excess in account.over()]
    text = f"the start needs {gib(needed)} free on GPU {device.index} of {device.node}, {gib(free)} are"
    if lingering:
        text += f"; not given back yet by {', '.join(lingering)}"
    if over:
        text += f"; over their share: {', '.join(over)}"
    if account.strangers:
        text += f"; strangers use {gib(account.strangers)}"
    return text
