"""Which Changes may go now: one start per GPU, none while a tenant leaves, no more of a model down than its budget allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from cotenant.core.budget import Budget
from cotenant.core.drift import Changes, Leave, Pace, Start
from cotenant.core.knots import Crowded, is_crowded, kept_out_by, needed_on
from cotenant.core.ledger import Account
from cotenant.core.names import named_for
from cotenant.core.replica import Assigned, NoPlace, Replica
from cotenant.core.share import gib
from cotenant.core.snapshot import Allocation, Pod
from cotenant.core.status import rfc3339
from cotenant.core.turns import Turns

MEMORY_NOT_FREE = "MemoryNotFree"


@dataclass(frozen=True, slots=True)
class Admitted:
    """What goes now, and why the rest waits."""

    leaves: tuple[Leave, ...]
    starts: tuple[Start, ...]
    waits: dict[str, NoPlace]
    """By replica key."""
    wake_at: float | None = None
    in_the_way: frozenset[str] = frozenset()
    """Replicas, by key, that a plan must count as they are: beside them somebody was to start who finds no room."""


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What decides beside the changes themselves whether they may go now."""

    pods: tuple[Pod, ...]
    ledger: dict[str, Account]
    pending: Callable[[Allocation], str]
    """Why GPUs are not ours yet; '' = they are."""
    retry_at: dict[str, float]
    """By replica: when a fault's back-off ends (Unix seconds)."""
    given_up: dict[str, str]
    """By replica: why its new spec was given up."""
    reading: frozenset[str]
    """URIs whose configs are being read."""
    refused: dict[tuple[str, str], str]
    """(namespace, pod) that the API server refused to create -> its words."""
    now: float

    def refusal(self, replica: Replica) -> NoPlace | None:
        """Why its pod may not be made, in the API server's words."""
        namespace = replica.wanted.placement.namespace
        found = (self.refused.get((namespace, name)) for name in replica.wanted.names[replica.index])
        why = next(filter(None, found), None) if replica.pod is None else None
        return NoPlace("CreateRefused", why, waiting=True, stuck=True) if why else None

    def stopped(self, leave: Leave) -> str:
        """Why nobody of its model is replaced any more for the present spec; '' = nothing stops it."""
        if not leave.by_spec or leave.replica is None:
            return ""
        mine, wanted = leave.replica.origin, leave.replica.wanted
        if failed := self.given_up.get(mine):
            return f"its successor failed: {failed}"
        for index in range(wanted.model.replicas):
            if failed := self.given_up.get(f"{wanted.key}/{index}"):
                return f"{wanted.model.name}-{index} has to be ready first, see why it is not: {failed}"
        return ""


def admit(
    changes: Changes, replicas: list[Replica], places: dict[str, Assigned | NoPlace], there: Circumstances
) -> Admitted:
    """Leaves first, then starts in order of priority and age."""
    turns = Turns(there.pods)
    leaving = {leave.replica.wanted.key for leave in changes.leaves if leave.replica}
    budget = Budget([replica for replica in replicas if replica.wanted.key in leaving] if leaving else [], places)
    waits: dict[str, NoPlace] = {}
    leaves: list[Leave] = []
    held_up: list[Leave] = []
    for leave in sorted(changes.leaves, key=_leave_order):
        if why := _why_stay(leave, turns, there):
            _wait(leave, waits, why)
        elif leave.pace is Pace.BUDGET and (leave.successor is not None or not budget.take(leave)):
            held_up.append(leave)
        else:
            turns.leave(leave.pod)
            leaves.append(leave)
            if leave.pace is not Pace.BUDGET:  # of these it is asked first
                budget.gone(leave)
    starts, crowded, wake_at = _starts(changes, turns, there, waits)
    untied = _untied(held_up, crowded, turns, budget)
    for leave in held_up:
        if leave not in untied:
            _wait(leave, waits, _why_held_up(leave, budget, waits, there))
    full = {uuid for rooms in crowded.values() for _, uuid in rooms if uuid not in turns.leaving}
    return Admitted(
        (*leaves, *untied),
        tuple(starts),
        waits,
        wake_at,
        _in_the_way(changes.leaves, waits, full) if full else frozenset(),
    )


def _starts(
    changes: Changes, turns: Turns, there: Circumstances, waits: dict[str, NoPlace]
) -> tuple[list[Start], Crowded, float | None]:
    """Who starts now, who finds no room before somebody leaves, and when a back-off ends."""
    starts: list[Start] = []
    crowded: dict[str, list[tuple[Start, str]]] = {}
    wake: list[float] = []
    names = {(pod.namespace, pod.name): pod for pod in there.pods} if changes.starts else {}
    # one that is refused keeps nobody else from starting
    for start in sorted(changes.starts, key=lambda start: (_subject(start) in there.refused, _start_order(start))):
        until = there.retry_at.get(start.replica.origin, 0.0)
        if until > there.now:
            wake.append(until)
            waits[start.replica.key] = NoPlace("BackOff", f"starts again at {rfc3339(until)}", waiting=True)
            # its place in the queue is not given away; the GPU is
            continue
        if start.replica.wanted.model.uri in there.reading:
            waits[start.replica.key] = NoPlace("ReadingConfig", "its model's config is being read", waiting=True)
            continue
        why = _name_in_use(start, names) or _why_wait(start, turns, there.ledger, there.pending)
        if why is not None:
            waits[start.replica.key] = why
            if why.reason == MEMORY_NOT_FREE:
                full = [(start, uuid) for uuid in start.allocation.gpus if is_crowded(start, there.ledger[uuid])]
                crowded.setdefault(start.replica.wanted.key, []).extend(full)
            continue
        turns.start(start)
        starts.append(start)
    return starts, crowded, min(wake, default=None)


def _subject(start: Start) -> tuple[str, str]:
    return (start.replica.wanted.placement.namespace, start.name)


def _untied(held_up: list[Leave], crowded: Crowded, turns: Turns, budget: Budget) -> list[Leave]:
    """Pods that hold the very room the replicas they wait for would start in: they go all the same, one for each ring."""
    untied: list[Leave] = []
    for leave in sorted(held_up, key=_untied_order) if crowded else ():
        if turns.has_any(leave.pod.allocation):
            continue
        out = kept_out_by(leave, held_up, crowded)
        if out and budget.take(leave, without=sum(not replica.successor for replica in out)):
            turns.leave(leave.pod)
            untied.append(leave)
            # whoever waits for this room has only to wait for its turn now
            crowded = {key: [(s, gpu) for s, gpu in them if gpu not in turns.leaving] for key, them in crowded.items()}
    return untied


def _in_the_way(leaves: tuple[Leave, ...], waits: dict[str, NoPlace], full: set[str]) -> frozenset[str]:
    """Replicas that serve on by an old spec for good as it looks, on GPUs where another finds no room beside that."""
    return frozenset(
        leave.replica.key
        for leave in leaves
        if leave.replica and leave.replica.key in waits and waits[leave.replica.key].stuck
        if leave.pod.allocation and full.intersection(leave.pod.allocation.gpus)
    )


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


def _why_stay(leave: Leave, turns: Turns, there: Circumstances) -> NoPlace | None:
    """What beside its model's budget keeps this pod."""
    if leave.pace is Pace.AT_ONCE:
        return None
    if stopped := leave.held or there.stopped(leave):
        return NoPlace(leave.reason, f"it serves on as it is: {stopped}", waiting=True, stuck=True)
    starter = turns.starter(leave.pod.allocation, leave.pod.namespace, beside=leave.pod.name)
    if starter and leave.successor is None:
        why = f"is replaced once {starter} has started: memory given back beside a start would kill it"
        return NoPlace(leave.reason, why, waiting=True)
    return None


def _why_held_up(leave: Leave, budget: Budget, waits: dict[str, NoPlace], there: Circumstances) -> NoPlace:
    if leave.successor is not None:
        wait = there.refusal(leave.successor) or waits.get(leave.successor.key)
        return _until_it_serves(leave.successor, leave, wait)
    lacking = budget.lacking.get(leave.replica.wanted.key) if leave.by_spec and leave.replica else None
    if lacking is None:
        text = "is replaced once enough other replicas of its model are ready"
        for other in budget.down.get(leave.replica.wanted.key, ()) if leave.replica else ():
            if wait := there.refusal(other) or waits.get(other.key):
                why = f"{text}; {other.wanted.model.name}-{other.index} waits: {wait.message}"
                return NoPlace(wait.reason, why, waiting=True, stuck=wait.stuck)
        return NoPlace(leave.reason, text, waiting=True)
    name = f"{lacking.wanted.model.name}-{lacking.index}"
    why = f"it serves on as it is: {name} has to be ready first, see why it is not"
    return NoPlace(leave.reason, why, waiting=True, stuck=True)


def _until_it_serves(successor: Replica, leave: Leave, wait: NoPlace | None) -> NoPlace:
    """Its own successor's, or that of another replica whose turn is before its own."""
    mine = leave.replica is not None and leave.replica.origin == successor.origin
    name = successor.pod.name if successor.pod else f"the successor of {successor.wanted.model.name}-{successor.index}"
    text = f"serves as it is until {name} does" if mine else f"its turn comes once {name} serves"
    if wait is None:
        return NoPlace(leave.reason, text, waiting=True)
    return NoPlace(wait.reason, f"{text}, which waits: {wait.message}", waiting=True, stuck=wait.stuck)


def _wait(leave: Leave, waits: dict[str, NoPlace], why: NoPlace) -> None:
    if leave.replica:
        waits[leave.replica.key] = replace(why, message=f"{leave.message}; {why.message}")


def _why_wait(
    start: Start, turns: Turns, ledger: dict[str, Account], pending: Callable[[Allocation], str]
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
