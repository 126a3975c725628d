"""What every placement is told: the state of its replicas, its conditions, and events for what is new."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from cotenant.core.binding import Binding
from cotenant.core.cases import Case
from cotenant.core.decision import Emit, Recovered, WriteStatus
from cotenant.core.demand import Demands, Issue
from cotenant.core.drift import Leave, Start
from cotenant.core.faults import Faults
from cotenant.core.ledger import Account
from cotenant.core.lessons import Lessons
from cotenant.core.memo import Memo
from cotenant.core.names import named_for
from cotenant.core.planning import Places
from cotenant.core.replica import Assigned, Crew, NoPlace
from cotenant.core.rollout import Admitted
from cotenant.core.share import gib
from cotenant.core.snapshot import Learned, Manifest, Placement, Snapshot
from cotenant.core.status import (
    LEAVING,
    READY,
    SERVICE_REFUSED,
    UNPLACED,
    ModelState,
    Notice,
    ReplicaState,
    canonical,
    estimate_status,
    placement_status,
    replica_state,
)

_NOTHING: list[ModelState] = []


def states(
    snapshot: Snapshot,
    demands: Demands,
    cases: tuple[Case, ...],
    crews: tuple[Crew, ...],
    places: dict[str, Assigned | NoPlace],
    admitted: Admitted,
    troubles: Faults,
    lessons: Lessons,
    issues: dict[str, tuple[Issue, ...]],
    memo: Memo,
) -> dict[str, list[ModelState]]:
    """What is said of every model, by `namespace/placement`."""
    refusals = {(namespace, name): message for namespace, name, message in snapshot.refusals}
    unreachable = {(namespace, name): message for namespace, name, message in snapshot.refused_services}
    started = {start.replica.key: start for start in admitted.starts}
    leaving = {leave.replica.key: leave for leave in admitted.leaves if leave.replica}
    special = {key.removesuffix("+") for key in (*admitted.waits, *troubles.of, *started, *leaving)}
    out: dict[str, list[ModelState]] = {}
    for case, crew in zip(cases, crews, strict=True):
        placement = case.wanted[0].placement
        taught = tuple(lessons.get(wanted.key, ()) for wanted in case.wanted)
        told = partial(
            _of_case,
            case,
            crew,
            taught,
            demands,
            places,
            admitted,
            troubles,
            issues,
            refusals,
            unreachable,
            started,
            leaving,
            memo,
        )
        plain = not (
            (special and any(replica.key in special for replica in crew))
            or (demands.blocked and any(wanted.key in demands.blocked for wanted in case.wanted))
            or any(namespace == placement.namespace for namespace, _ in (*refusals, *unreachable))
        )
        known = (case, crew, *taught, *[places.get(replica.key) for replica in crew])
        out[f"{placement.namespace}/{placement.name}"] = memo.of("states", known, (), told) if plain else told()
    return out


def _of_case(
    case: Case,
    replicas: Crew,
    lessons: tuple[tuple[Learned, ...], ...],
    demands: Demands,
    places: dict[str, Assigned | NoPlace],
    admitted: Admitted,
    troubles: Faults,
    issues: dict[str, tuple[Issue, ...]],
    refusals: dict[tuple[str, str], str],
    unreachable: dict[tuple[str, str], str],
    started: dict[str, Start],
    leaving: dict[str, Leave],
    memo: Memo,
) -> list[ModelState]:
    estimates = _estimates(replicas, places, memo)
    by_model: dict[str, list[ReplicaState]] = {}
    for replica in replicas:
        if replica.successor:
            continue
        wanted = replica.wanted
        fault = troubles.of.get(replica.key)
        subjects = ((wanted.placement.namespace, name) for name in wanted.names[replica.index])
        refusal = next(filter(None, map(refusals.get, subjects)), "") if refusals and replica.pod is None else ""
        place, wait = places.get(replica.key), admitted.waits.get(replica.key)
        tell = partial(replica_state, replica, place, wait, fault, refusal)
        state = memo.of("state", (replica, place, wait, fault), (refusal,), tell)
        leave = leaving.get(replica.key)
        if leave is not None and state.phase == READY and leave.reason != "Replaced":  # there its successor serves
            state = replace(state, phase=LEAVING, reason=leave.reason, message=leave.message, settles=True)
        elif replica.key in started and not refusal:
            state = replace(
                state,
                phase="Starting",
                pod=started[replica.key].name,
                reason="Starting",
                message="its pod is being created",
            )
        elif wanted.key in demands.blocked and replica.pod is None:
            owner = f"{wanted.placement.namespace}/{wanted.placement.name}"
            blame = next((issue for issue in issues.get(owner, ()) if issue.path.startswith(wanted.path)), None)
            if blame:
                state = ReplicaState(replica.index, UNPLACED, reason=blame.reason, message=blame.message, settles=False)
        by_model.setdefault(wanted.key, []).append(state)
    return [
        ModelState(
            wanted,
            tuple(by_model.get(wanted.key, ())),
            troubles.by_model.get(wanted.key, ()),
            taught,
            estimates.get(wanted.key),
            unreachable.get(wanted.service, ""),
        )
        for wanted, taught in zip(case.wanted, lessons, strict=True)
    ]


def _estimates(replicas: Crew, places: Places, memo: Memo) -> dict[str, Manifest]:
    """What each model whose config is known is expected to need at the share it has or would have."""
    out: dict[str, Manifest] = {}
    for replica in replicas:
        config, place = replica.config, places.get(replica.key)
        if config is None or replica.wanted.key in out or not isinstance(place, Assigned):
            continue
        told = (place.allocation.bytes, place.max_model_len)
        tell = partial(estimate_status, config, replica.wanted.model, *told)
        out[replica.wanted.key] = memo.of("estimate", (config, replica.wanted.model), told, tell)
    return out


@dataclass(frozen=True, slots=True)
class Told:
    """What is new."""

    written: tuple[WriteStatus, ...]
    events: tuple[Emit, ...]
    recovered: tuple[Recovered, ...]


def statuses(
    snapshot: Snapshot,
    models: dict[str, list[ModelState]],
    issues: dict[str, tuple[Issue, ...]],
    ledger: dict[str, Account],
    binding: Binding,
    memo: Memo,
) -> Told:
    """The statuses that differ from what stands, and events for what is new in them."""
    written: list[WriteStatus] = []
    events: list[Emit] = []
    recovered: list[Recovered] = []
    for placement in snapshot.placements:
        if placement.deleting:
            continue
        owner, reader = f"{placement.namespace}/{placement.name}", placement.namespace
        mine, told = models.get(owner, _NOTHING), issues.get(owner, ())
        gpus = memo.of("gpus", (mine,), (), partial(_gpus, mine))
        there = [ledger.get(uuid) for uuid in gpus]
        notices = memo.of(
            "notices", (gpus, snapshot.policy, *there), (reader,), partial(_notices, reader, gpus, ledger, binding)
        )
        if memo.has("status says so", (placement, mine, notices), (told,)):
            continue
        said = (tuple(_content(model) for model in mine), told, tuple(notices))
        if memo.has("status stands", (placement,), (said,)):
            memo.of("status says so", (placement, mine, notices), (told,), lambda: True)
            continue
        status = placement_status(placement, mine, told, notices, snapshot.now)
        if canonical(status) == placement.status.raw:
            memo.of("status stands", (placement,), (said,), lambda: True)
            memo.of("status says so", (placement, mine, notices), (told,), lambda: True)
            continue
        written.append(WriteStatus(placement.namespace, placement.name, status))
        events.extend(_told(placement, mine, told))
        recovered.extend(_recovered(placement, mine, snapshot.now))
    return Told(tuple(written), tuple(events), tuple(recovered))


def _content(model: ModelState) -> tuple[object, ...]:
    """All that a model's status is made of, to be compared."""
    estimate = tuple(model.estimate.items()) if model.estimate else ()
    return (model.wanted.key, model.replicas, model.faults, model.learned, model.unreachable, estimate)


def _recovered(placement: Placement, models: list[ModelState], now: float) -> list[Recovered]:
    """Replicas whose status says Ready for the first time since their last death."""
    before = {(m.model, m.index): m.phase for m in placement.status.replicas}
    found = []
    for model in models:
        faults = {fault.index: fault for fault in model.faults if fault.times}
        for state in model.replicas:
            fault, was = faults.get(state.index), before.get((model.wanted.model.name, state.index))
            if fault is not None and state.phase == READY and was is not None and was != READY:
                found.append(Recovered(fault.reason, max(0.0, now - max(fault.times)), fault.uid))
    return found


def _gpus(models: list[ModelState]) -> tuple[str, ...]:
    """What the pods of a placement are on."""
    return tuple(
        sorted(
            {
                uuid
                for model in models
                for state in model.replicas
                if state.pod and state.allocation
                for uuid in state.allocation.gpus
            }
        )
    )


def _notices(reader: str, uuids: tuple[str, ...], ledger: dict[str, Account], binding: Binding) -> list[Notice]:
    """Trouble on the GPUs of a placement that is not its own doing, for who reads in its namespace."""
    over: list[str] = []
    conflicts: list[str] = []
    for uuid in uuids:
        account = ledger.get(uuid)
        if account is None:
            continue
        device = account.device
        where = f"GPU {device.index} of {device.node}"
        over.extend(
            f"{named_for(reader, t.pod.namespace, t.pod.name)} uses {gib(excess)} more than share + overrun on {where}"
            for t, excess in account.over()
        )
        conflicts.extend(
            f"{where}: pid {s.pid} ({s.command or '?'}{', pod ' + s.pod if s.pod else ''}) uses {gib(s.used)}"
            for s in device.strangers
        )
        if taker := binding.conflict(uuid):
            conflicts.append(f"{where} was given to pod {taker}")
    notices = []
    if over:
        notices.append(Notice("MemoryPressure", "OverShare", "; ".join(over)))
    if conflicts:
        notices.append(
            Notice(
                "GPUConflict",
                "Stranger",
                "; ".join(conflicts) + "; Cotenant kills nobody: end them, or move the placement",
            )
        )
    return notices


def _told(placement: Placement, models: list[ModelState], issues: tuple[Issue, ...]) -> list[Emit]:
    """Events for what is new: a replica that became ready or lost its place, a spec that cannot be acted on."""
    before = {(m.model, m.index): m.phase for m in placement.status.replicas}
    about = (placement.namespace, placement.name, placement.uid)
    events = []
    refused_before = any(condition.type == SERVICE_REFUSED for condition in placement.status.conditions)
    for model in models:
        if model.unreachable and not refused_before:
            events.append(Emit(*about, "Warning", SERVICE_REFUSED, f"{model.wanted.model.name}: {model.unreachable}"))
        for state in model.replicas:
            name = model.wanted.model.name
            if before.get((name, state.index)) == state.phase:
                continue
            if state.phase == READY and state.allocation:
                where = f"{state.allocation.node} {', '.join(state.allocation.gpus)}"
                events.append(Emit(*about, "Normal", "Ready", f"{name}-{state.index} serves on {where}"))
            elif state.phase == UNPLACED:
                events.append(
                    Emit(*about, "Warning", state.reason or UNPLACED, f"{name}-{state.index}: {state.message}")
                )
    if issues and placement.status.observed_generation != placement.generation:
        events.extend(Emit(*about, "Warning", "InvalidSpec", f"{issue.path}: {issue.message}") for issue in issues)
    return events
