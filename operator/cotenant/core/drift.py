"""What should be vs. what is -> Changes: create or delete one pod, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from cotenant.core.ask import Ask, ask
from cotenant.core.cases import Case, home
from cotenant.core.demand import Demands, Wanted
from cotenant.core.inventory import Inventory, Machine
from cotenant.core.memo import Memo
from cotenant.core.pod import HASH_VERSION, allocated_hash, model_wish
from cotenant.core.replica import Assigned, Crew, NoPlace, Replica
from cotenant.core.snapshot import Allocation, Pod, Policy
from cotenant.core.vllm import utilization_of

BLOCKED_GRACE = 60.0
"""Seconds a pod may hang before its container starts (image, Secret, volume) until it gives up its turn at the GPU."""


DRIFTS = ("Edited", "WrongNode", "FlagDiffers", "SpecChanged", "Moved", "Duplicate", "NodeLost")
"""Reasons of changes that bring back what should be, for metrics."""


class Pace(StrEnum):
    """How a change may go."""

    AT_ONCE = "AtOnce"
    """Nothing is lost by it: the engine is dead, its node is, or it never served."""
    QUIET = "Quiet"
    """As soon as nobody starts on the same GPU: memory given back in that window kills the start."""
    BUDGET = "Budget"
    """Quiet, and within the model's rollout budget: it serves and is to be replaced."""


@dataclass(frozen=True, slots=True)
class Leave:
    """Delete one pod."""

    pod: Pod
    reason: str
    message: str
    pace: Pace
    grace_seconds: int | None = None
    replica: Replica | None = None
    by_spec: bool = False
    """It could stay, were it not for the present spec: a part of a rollout."""
    successor: Replica | None = None
    """It serves until this one does: its own successor, or another's whose turn is before its own (SurgeIfRoom)."""
    held: str = ""
    """Why it must not go now: it could not come back."""


@dataclass(frozen=True, slots=True)
class Start:
    """Create one replica's pod."""

    replica: Replica
    allocation: Allocation
    name: str
    max_model_len: int | None = None
    """The context `share: auto` was sized for."""


@dataclass(frozen=True, slots=True)
class Changes:
    """Everything that differs."""

    leaves: tuple[Leave, ...]
    starts: tuple[Start, ...]


def drift(
    cases: tuple[Case, ...],
    crews: tuple[Crew, ...],
    places: dict[str, Assigned | NoPlace],
    demands: Demands,
    inventory: Inventory,
    policy: Policy,
    recorded: frozenset[str],
    memo: Memo,
) -> Changes:
    """Differences between the plan and the pods. `recorded` are uids of dead pods whose death the status has taken down."""
    leaves: list[Leave] = []
    starts: list[Start] = []
    for case, crew in zip(cases, crews, strict=True):
        work = partial(_of_case, case, crew, places, demands, inventory, policy, recorded, memo)
        if case.plain:
            there = tuple(inventory.machines.get(node) for node in case.nodes)
            blocked = demands.blocked and tuple(wanted.key in demands.blocked for wanted in case.wanted)
            taken = () if case.calm else tuple(pod.uid in recorded for pod in case.pods)
            known = (case, crew, policy, *there, *[places.get(replica.key) for replica in crew])
            changes = memo.of("drift", known, (blocked, taken), work)
        else:
            changes = work()
        leaves.extend(changes.leaves)
        starts.extend(changes.starts)
    return Changes(tuple(leaves), tuple(starts))


def _of_case(
    case: Case,
    replicas: Crew,
    places: dict[str, Assigned | NoPlace],
    demands: Demands,
    inventory: Inventory,
    policy: Policy,
    recorded: frozenset[str],
    memo: Memo,
) -> Changes:
    by_pod = {replica.pod.uid: replica for replica in replicas if replica.pod}
    successors = _successors(replicas, places)
    leaves: list[Leave] = []
    for pod in case.pods:
        replica = by_pod.get(pod.uid)
        if replica is None and not (case.plain or _is_known(pod, demands)):
            continue  # not to be touched, or Kubernetes collects it
        if pod.deleting:
            if why := _lost(pod, inventory):
                # asked to leave before its node was lost: nobody there hears it, and its name is wanted elsewhere
                leaves.append(Leave(pod, "NodeLost", why, Pace.AT_ONCE, grace_seconds=0, replica=replica))
            continue
        leave = (
            _unwanted(pod, case.wanted if case.plain else demands.wanted)
            if replica is None
            else _differs(pod, replica, places, demands, inventory, policy, recorded, memo, successors)
        )
        if leave is not None:
            leaves.append(leave)
    starts = []
    serving = {replica.key: replica.pod.name for replica in replicas if replica.pod}
    for replica in replicas:
        place = places.get(replica.key)
        if replica.pod is None and isinstance(place, Assigned) and replica.wanted.key not in demands.blocked:
            current = serving.get(replica.origin, "") if replica.successor else ""
            plain, other = replica.wanted.names[replica.index]
            name = other if current == plain else plain
            starts.append(Start(replica, place.allocation, name, place.max_model_len))
    return Changes(tuple(leaves), tuple(starts))


def _successors(replicas: Crew, places: dict[str, Assigned | NoPlace]) -> dict[str, Replica]:
    """Replicas that have a place to take over in, by the replica they succeed and, the first of them, by its model."""
    found: dict[str, Replica] = {}
    for replica in replicas:
        if replica.successor and (replica.pod or isinstance(places.get(replica.key), Assigned)):
            found[replica.origin] = replica
            found.setdefault(replica.wanted.key, replica)
    return found


def _is_known(pod: Pod, demands: Demands) -> bool:
    """Whether the placement its label names is one that wants something; the label may have been changed by hand."""
    return any(
        (row[0].placement.namespace, row[0].placement.name) == (pod.namespace, pod.placement)
        for row in demands.rows
        if row
    )


def _lost(pod: Pod, inventory: Inventory) -> str:
    machine = inventory.machines.get(home(pod))
    return machine.lost if machine else ""


def _unwanted(pod: Pod, models: tuple[Wanted, ...]) -> Leave:
    key = f"{pod.namespace}/{pod.placement}/{pod.model}"
    wanted = next((w for w in models if w.key == key), None)
    if wanted is None:
        return Leave(pod, "ModelRemoved", f"model {pod.model} is no longer in the placement", _pace(pod, Pace.QUIET))
    if pod.replica >= wanted.model.replicas:
        return Leave(
            pod, "ScaledDown", f"{wanted.model.replicas} replicas of {pod.model} are wanted", _pace(pod, Pace.QUIET)
        )
    return Leave(
        pod,
        "Duplicate",
        f"replica {pod.replica} of {pod.model} is pod {wanted.names[pod.replica][0]}; this one is not ours",
        Pace.QUIET,
    )


def _pace(pod: Pod, serving: Pace) -> Pace:
    if pod.is_starting:
        return Pace.AT_ONCE
    return serving if pod.ready else Pace.QUIET


def _differs(
    pod: Pod,
    replica: Replica,
    places: dict[str, Assigned | NoPlace],
    demands: Demands,
    inventory: Inventory,
    policy: Policy,
    recorded: frozenset[str],
    memo: Memo,
    successors: dict[str, Replica],
) -> Leave | None:
    machine = inventory.machines.get(home(pod))
    if machine is not None and machine.lost:
        return Leave(pod, "NodeLost", machine.lost, Pace.AT_ONCE, grace_seconds=0, replica=replica)
    if not pod.is_alive:
        if pod.uid in recorded:
            return Leave(pod, "EngineEnded", "its engine ended", Pace.AT_ONCE, replica=replica)
        return None  # evidence before cleanup
    if pod.is_starting and pod.uid in recorded:
        return Leave(
            pod, "StartGivenUp", pod.blocked or "its engine did not start in time", Pace.AT_ONCE, replica=replica
        )
    if replica.wanted.key in demands.blocked:
        return None
    place = places.get(replica.key)
    if isinstance(place, NoPlace) and place.displaced:
        return Leave(pod, "Displaced", place.message, _pace(pod, Pace.QUIET), replica=replica)
    if not isinstance(place, Assigned):
        return None
    changed = _changed(pod, replica, place.allocation, policy, memo)
    if changed is None and place.stays and machine is not None:
        is_old = memo.of("outdated", (replica, machine, policy), (), partial(outdated, replica, machine, policy))
        changed = _spec_changed(pod, replica) if is_old else None
    if changed is None or changed.pace is not Pace.BUDGET or replica.successor:
        return changed
    if changed.reason == "Moved" and machine is not None:
        changed = replace(changed, by_spec=outdated(replica, machine, policy))
    leave = _succeeded(changed, replica, successors, places)
    if leave.pace is Pace.BUDGET and leave.successor is None and machine is not None and machine.closed:
        return replace(leave, held=machine.closed)
    return leave


def _succeeded(
    leave: Leave, replica: Replica, successors: dict[str, Replica], places: dict[str, Assigned | NoPlace]
) -> Leave:
    """With a successor that has a place, the old one serves until the new one does; so it does until its turn to have one."""
    successor = successors.get(replica.origin)
    if successor is None:
        before = successors.get(replica.wanted.key) if leave.by_spec else None
        return replace(leave, successor=before)
    place = places.get(successor.key)
    is_leaving = isinstance(place, NoPlace) and place.displaced
    if successor.pod and successor.pod.ready and not is_leaving:
        return replace(leave, reason="Replaced", message=f"{successor.pod.name} serves in its place", pace=Pace.QUIET)
    return replace(leave, successor=successor)


def _changed(pod: Pod, replica: Replica, allocation: Allocation, policy: Policy, memo: Memo) -> Leave | None:
    before, wanted = pod.allocation, replica.wanted
    pace = _pace(pod, Pace.BUDGET)
    if before is None or not pod.hash:
        return Leave(pod, "Edited", "its annotations are missing or unreadable", pace, replica=replica)
    if (pod.placement, pod.model, pod.replica) != (wanted.placement.name, wanted.model.name, replica.index):
        return Leave(pod, "Edited", "its labels were changed by hand: its Service may miss it", pace, replica=replica)
    if (before.node, sorted(before.gpus)) != (allocation.node, sorted(allocation.gpus)):
        where = f"{allocation.node} {', '.join(allocation.gpus)}"
        return Leave(pod, "Moved", f"its place is now {where}", pace, replica=replica)
    if pod.node is not None and pod.node != before.node:
        return Leave(pod, "WrongNode", f"it runs on {pod.node}, not on {before.node}", pace, replica=replica)
    flag = utilization_of(pod.args)
    if pod.args and flag != before.utilization:
        message = f"it runs with --gpu-memory-utilization {flag}, promised were {before.utilization}"
        return Leave(pod, "FlagDiffers", message, pace, replica=replica)
    if pod.hash.split("-")[0] != HASH_VERSION and before.utilization == allocation.utilization:
        return None  # made by another version of the operator: left alone, or an upgrade would restart everybody
    model = replica.wanted.model
    wish = memo.of("wish", (model, policy), (), lambda: model_wish(model, policy))
    if pod.hash != memo.of("hash", (model, policy, allocation), (), lambda: allocated_hash(wish, allocation)):
        return _spec_changed(pod, replica)
    return None


def _spec_changed(pod: Pod, replica: Replica) -> Leave:
    return Leave(pod, "SpecChanged", "its spec has changed", _pace(pod, Pace.BUDGET), replica=replica, by_spec=True)


def overdue(pod: Pod, timeout: float, now: float) -> str:
    """Why a start counts as failed although its container has not ended; '' = it has time left."""
    due = due_at(pod, timeout)
    if due is None or now < due:
        return ""
    return pod.blocked or f"not ready after {now - pod.created:.0f} s"


def due_at(pod: Pod, timeout: float) -> float | None:
    """When a start counts as failed although its container has not ended (Unix seconds); None where nothing starts."""
    if not pod.is_starting:
        return None
    # the startup probe ends it first where a kubelet runs; this is for the rest
    return pod.created + (min(BLOCKED_GRACE, timeout + 60) if pod.blocked else timeout + 60)


def outdated(replica: Replica, machine: Machine, policy: Policy) -> bool:
    """Whether the pod of a replica would have to be replaced on its own machine, were it started by the present spec."""
    pod = replica.pod
    if pod is None or pod.allocation is None:
        return False
    asked = ask(replica, machine, policy)
    if not isinstance(asked, Ask):
        return True
    if pod.hash.split("-")[0] != HASH_VERSION:
        return pod.allocation.utilization != str(asked.utilization)
    given = replace(pod.allocation, utilization=str(asked.utilization))
    return pod.hash != allocated_hash(model_wish(replica.wanted.model, policy), given)
