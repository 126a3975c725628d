"""What a course means, as data: where every replica ends, what happens on the way, and how good the packing is."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from cotenant.cli.replicaname import ReplicaKey, key_of, named
from cotenant.cli.simulation import Action, Course, Key
from cotenant.cli.why import Ground
from cotenant.core.memo import Memo
from cotenant.core.packing.packer import Fragmentation, pack
from cotenant.core.packing.problem import Plan, Problem
from cotenant.core.planning import assign, first_question
from cotenant.core.reconcile import consider
from cotenant.core.snapshot import Allocation, Device, Placement, Pod, Snapshot

KEEPS = "keeps old spec"
"""What it runs by is not what it is to run by, and stays so."""
STEPS = 4000
"""Improvement steps spent on the proven minimum: a second or less."""
LARGEST = 2000
"""GPUs up to which the minimum is asked for without being told to."""


@dataclass(frozen=True, slots=True)
class Where:
    """A replica's place."""

    allocation: Allocation
    gpus: tuple[int, ...]
    """Indices on its node."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of one replica."""

    namespace: str
    placement: str
    model: str
    index: int
    share: str
    """As written."""
    verb: str
    """`stays`, `keeps old spec`, `starts`, `restarts`, `moves`, `stops`, or `none` where it has no place."""
    turn: int = 0
    """When it starts or, for one that only stops, when it goes; 0 = nothing happens."""
    before: Where | None = None
    after: Where | None = None
    reason: str = ""
    message: str = ""

    @property
    def replica(self) -> ReplicaKey:
        """Which one."""
        return (self.namespace, self.placement, self.model, self.index)

    @property
    def name(self) -> str:
        """`namespace/placement/model/index`."""
        return named(self.replica)

    @property
    def key(self) -> Key:
        """Of its placement."""
        return (self.namespace, self.placement)

    @property
    def lacks(self) -> bool:
        """It is wanted and goes nowhere."""
        return self.after is None and self.verb != "stops"

    @property
    def falls_short(self) -> bool:
        """It does not come to what its spec asks for."""
        return self.lacks or self.verb == KEEPS


@dataclass(frozen=True, slots=True)
class Quality:
    """How well GPUs are used in the end."""

    gpus: int
    in_use: int
    in_use_before: int
    minimum: int | None = None
    """GPUs that any plan needs for the same replicas, where proven."""
    method: str = ""
    fragmentation: Fragmentation | None = None


@dataclass(frozen=True, slots=True)
class Outlook:
    """Everything that is told of a course."""

    fates: tuple[Fate, ...]
    actions: tuple[Action, ...]
    quality: Quality
    estimates: dict[str, dict[str, Any]]
    """By `namespace/placement/model`."""
    issues: dict[Key, str]
    """By placement: what only a change of the spec puts right."""
    why: Ground
    """Of every place and of those without one, in the end."""


def outlook(course: Course, *, bound: bool = True) -> Outlook:
    """What this course means."""
    why = Ground(course.after)
    return Outlook(
        fates=tuple(_fates(course, why)),
        actions=course.actions,
        quality=quality(course, bound=bound),
        estimates=_estimates(course.after),
        issues=_issues(course.after),
        why=why,
    )


# --------------------------------------------------------------------------------------------------------------- fates
def _fates(course: Course, ground: Ground) -> list[Fate]:
    devices = {d.uuid: d for seen in (course.before, course.after) for n in seen.gpu_nodes for d in n.devices}
    before, after = _by_replica(course.before), _by_replica(course.after)
    actions = {(action.verb, action.pod): action for action in course.actions}
    fates = []
    wanted = set()
    for placement in course.after.placements:
        said = _said(placement)
        for model in placement.models:
            for index in range(model.replicas):
                key = (*placement.key, model.name, index)
                wanted.add(key)
                fate = _fate(
                    key, str(model.share), before.get(key), after.get(key), said.get((model.name, index), {}), actions, devices,
                )  # fmt: skip
                if fate.verb == "stays" and ground.is_outdated(fate.name):
                    fate = replace(fate, verb=KEEPS)
                place = fate.after or fate.before
                fates.append(replace(fate, share=ground.share(model, place.allocation.node)) if place else fate)
    for key in sorted(before.keys() - wanted):
        stop = _action(actions, "stop", before[key])
        if stop:
            there = _where(before[key], devices)
            fates.append(
                Fate(
                    *key,
                    "",
                    "stops",
                    stop.turn,
                    there,
                    None,
                    stop.reason,
                    stop.message.removeprefix(f"{before[key].name}: "),
                )
            )
    return fates


Actions = dict[tuple[str, str], Action]
"""The last one by verb and pod."""


def _by_replica(seen: Snapshot) -> dict[ReplicaKey, Pod]:
    found: dict[ReplicaKey, Pod] = {}
    for pod in sorted(seen.pods, key=lambda p: (p.ready, p.name)):
        if pod.is_alive:
            found[key_of(pod)] = pod
    return found


def _said(placement: Placement) -> dict[tuple[str, int], dict[str, Any]]:
    status = json.loads(placement.status.raw) if placement.status.raw else {}
    return {(m["name"], r["index"]): r for m in status.get("models") or () for r in m.get("replicas") or ()}


def _fate(
    key: ReplicaKey,
    share: str,
    before: Pod | None,
    after: Pod | None,
    said: dict[str, Any],
    actions: Actions,
    devices: dict[str, Device],
) -> Fate:
    old, new = _where(before, devices), _where(after, devices)
    if before is not None and after is not None and before.uid == after.uid:
        # where it stays although its spec asks otherwise, the status says why
        return Fate(*key, share, "stays", 0, old, new, said.get("reason", ""), said.get("message", ""))
    stop, start = _action(actions, "stop", before), _action(actions, "start", after)
    if new is None:
        reason, message = said.get("reason", ""), said.get("message", "")
        if stop and before:
            reason, message = stop.reason, stop.message.removeprefix(f"{before.name}: ")
        return Fate(*key, share, "none", stop.turn if stop else 0, old, None, reason, message)
    turn = start.turn if start else 0
    if old is None:
        return Fate(*key, share, "starts", turn, None, new)
    same = (old.allocation.node, sorted(old.gpus)) == (new.allocation.node, sorted(new.gpus))
    reason, message = (stop.reason, stop.message.removeprefix(f"{before.name}: ")) if stop and before else ("", "")
    return Fate(*key, share, "restarts" if same else "moves", turn, old, new, reason, message)


def _where(pod: Pod | None, devices: dict[str, Device]) -> Where | None:
    if pod is None or pod.allocation is None:
        return None
    return Where(pod.allocation, tuple(devices[u].index for u in pod.allocation.gpus if u in devices))


def _action(actions: Actions, verb: str, pod: Pod | None) -> Action | None:
    """The last of this kind that names this pod."""
    if pod is None:
        return None
    return actions.get((verb, f"{pod.namespace}/{pod.name}"))


def _estimates(seen: Snapshot) -> dict[str, dict[str, Any]]:
    found = {}
    for placement in seen.placements:
        status = json.loads(placement.status.raw) if placement.status.raw else {}
        for model in status.get("models") or ():
            if model.get("estimate"):
                found[f"{placement.namespace}/{placement.name}/{model['name']}"] = model["estimate"]
    return found


def _issues(seen: Snapshot) -> dict[Key, str]:
    """What a placement's `Stalled` condition says, where its spec is to blame."""
    found = {}
    for placement in seen.placements:
        for condition in placement.status.conditions:
            if (condition.type, condition.status, condition.reason) == ("Stalled", "True", "InvalidSpec"):
                found[placement.key] = condition.message
    return found


# ------------------------------------------------------------------------------------------------------------- quality
def question(seen: Snapshot, iterations: int = 0) -> Problem:
    """What the packer would be asked about this snapshot first."""
    memo = Memo()
    known = consider(seen, memo)
    return first_question(known.hopeful, known.site, memo, iterations).problem


def quality(course: Course, *, bound: bool) -> Quality:
    """GPUs in use and what is left on them; with `bound` beside the least that any plan could do with."""
    devices = [device for report in course.after.gpu_nodes for device in report.devices]
    after = pack(question(course.after))
    used, used_before = _in_use(course.after), _in_use(course.before)
    memo = Memo()
    known = consider(course.after, memo)
    _, left = assign(known.hopeful, known.site, memo)
    found = Quality(len(devices), len(used), len(used_before), fragmentation=left)
    if not bound or len(devices) > LARGEST:
        return found
    minimum = _minimum(course, after, len(used))
    return replace(found, minimum=minimum[0], method=minimum[1]) if minimum else found


def _in_use(seen: Snapshot) -> set[str]:
    return {uuid for pod in seen.pods if pod.is_alive and pod.allocation for uuid in pod.allocation.gpus}


def _minimum(course: Course, after: Plan, used: int) -> tuple[int, str] | None:
    """GPUs every plan needs, with what runs in place: proven only where all GPUs count alike and nothing had to move."""
    asked = question(course.before, STEPS)
    if not asked.hosts:
        return None
    # each GPU counts one, held or not: how many are used is asked, not what taking them costs
    hosts = tuple(replace(host, cost=1, bins=tuple(replace(b, cost=None) for b in host.bins)) for host in asked.hosts)
    best = pack(replace(asked, hosts=hosts))
    if best.bound is None or len(best.unplaced) != len(after.unplaced) or not best.placements:
        return None
    # GPUs that carry a stranger, or an engine this plan does not place, cost nothing above: those in use count on top
    shared = {b.uuid for host in hosts for b in host.bins if b.used}
    least = best.bound + len(_in_use(course.before) & shared)
    return (least, best.bound_method) if least <= used else None
