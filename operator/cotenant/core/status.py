"""What each ModelPlacement's status should say: phases, conditions as kstatus reads them, and what the next decision builds on."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from cotenant.core.demand import Issue, Wanted
from cotenant.core.estimate.advice import at_share
from cotenant.core.estimate.modelconfig import ModelConfig
from cotenant.core.pod import url
from cotenant.core.replica import Assigned, NoPlace, Replica
from cotenant.core.share import gib
from cotenant.core.snapshot import Allocation, Condition, Fault, Learned, Manifest, Model, Placement, ReplicaMemory

NOT_READY = "it served and is not ready now: its readiness probe fails, or its node is silent"
SERVICE_REFUSED = "ServiceRefused"
UNPLACED, WAITING, STARTING, READY, LEAVING, FAILED = "Unplaced", "Waiting", "Starting", "Ready", "Leaving", "Failed"


@dataclass(frozen=True, slots=True)
class ReplicaState:
    """What is said of one replica."""

    index: int
    phase: str
    pod: str = ""
    allocation: Allocation | None = None
    reason: str = ""
    message: str = ""
    settles: bool = True
    """It changes by itself; False = only a change by somebody brings it on."""
    outdated: bool = False
    """It serves, but not as the spec now says."""

    @property
    def is_done(self) -> bool:
        """It serves as the spec says."""
        return self.phase == READY and not self.outdated


@dataclass(frozen=True, slots=True)
class ModelState:
    """What is said of one model."""

    wanted: Wanted
    replicas: tuple[ReplicaState, ...]
    faults: tuple[Fault, ...] = ()
    learned: tuple[Learned, ...] = ()
    estimate: Manifest | None = None
    unreachable: str = ""
    """Why it may not have its Service; '' where it has, or will have, one."""


@dataclass(frozen=True, slots=True)
class Notice:
    """A condition that is only there while it holds."""

    type: str
    reason: str
    message: str


def replica_state(
    replica: Replica, place: Assigned | NoPlace | None, wait: NoPlace | None, fault: Fault | None, refusal: str
) -> ReplicaState:
    """One replica's phase, from its pod first and its plan second."""
    pod = replica.pod
    if pod is not None:
        note = wait or (place if isinstance(place, NoPlace) else None)
        reason, message = (note.reason, note.message) if note else ("", "")
        if pod.ended is not None or not (pod.is_alive or pod.deleting):
            reason = fault.reason if fault else "EngineEnded"
            message = fault.message if fault else "its engine ended; its log is being read"
            return ReplicaState(replica.index, WAITING, pod.name, pod.allocation, reason, message)
        if pod.deleting:
            return ReplicaState(
                replica.index, LEAVING, pod.name, pod.allocation, reason or "Leaving", message or "its pod is leaving"
            )
        if pod.ready:
            kept = isinstance(place, NoPlace) or (wait is not None and wait.stuck)
            return ReplicaState(
                replica.index,
                READY,
                pod.name,
                pod.allocation,
                reason,
                message,
                settles=not kept,
                outdated=note is not None,
            )
        if pod.was_ready:
            return ReplicaState(replica.index, WAITING, pod.name, pod.allocation, "NotReady", message or NOT_READY)
        blocked = pod.blocked_reason or "Starting", pod.blocked or "its engine is starting"
        return ReplicaState(replica.index, STARTING, pod.name, pod.allocation, *blocked)
    if fault is not None and fault.failed:
        return ReplicaState(replica.index, FAILED, reason=fault.reason, message=fault.message, settles=False)
    if isinstance(place, Assigned):
        reason, message = (wait.reason, wait.message) if wait else ("Placed", "its pod is being created")
        if refusal:
            return ReplicaState(replica.index, WAITING, "", place.allocation, "CreateRefused", refusal, settles=False)
        if fault is not None and reason == "BackOff":
            message = f"{fault.reason}: {fault.message}; {message}"
        return ReplicaState(replica.index, WAITING, "", place.allocation, reason, message)
    if place is not None and place.waiting:
        return ReplicaState(replica.index, WAITING, reason=place.reason, message=place.message)
    reason, message = (place.reason, place.message) if place else ("Unplaced", "no place was found")
    if refusal:
        reason, message = "CreateRefused", f"{refusal}; besides: {message}"
    return ReplicaState(replica.index, UNPLACED, reason=reason, message=message, settles=False)


def placement_status(
    placement: Placement, models: list[ModelState], issues: tuple[Issue, ...], notices: list[Notice], now: float
) -> Manifest:
    """The whole status, as server-side apply wants it: what is absent is taken back."""
    if placement.invalid is not None:
        return _invalid_status(placement, issues, now)
    before = {(m.model, m.index): m for m in placement.status.replicas}
    states = [state for model in models for state in model.replicas]
    ready = sum(state.phase == READY for state in states)
    nodes = sorted({state.allocation.node for state in states if state.allocation and state.pod})
    status: Manifest = {
        "observedGeneration": placement.generation,
        "summary": f"{ready}/{len(states)}",
        "conditions": _conditions(placement, models, issues, notices, now),
        "models": [_model_status(model, before, now) for model in models],
    }
    if nodes:
        status["nodes"] = ",".join(nodes[:8]) + (f",+{len(nodes) - 8}" if len(nodes) > 8 else "")
    return status


def _invalid_status(placement: Placement, issues: tuple[Issue, ...], now: float) -> Manifest:
    """Only the conditions change: what was said of the last good spec still holds."""
    status: Manifest = json.loads(placement.status.raw) if placement.status.raw else {}
    message = "; ".join(f"{issue.path}: {issue.reason and issue.message}" for issue in issues)
    wanted = [("Ready", "False", "InvalidSpec", message), ("Stalled", "True", "InvalidSpec", message)]
    status["observedGeneration"] = placement.generation
    status["conditions"] = [_condition(placement, *said, now) for said in wanted]
    return status


def _conditions(
    placement: Placement, models: list[ModelState], issues: tuple[Issue, ...], notices: list[Notice], now: float
) -> list[Manifest]:
    unreachable = "; ".join(f"{m.wanted.model.name}: {m.unreachable}" for m in models if m.unreachable)
    named = [(model.wanted.model.name, state) for model in models for state in model.replicas]
    undone = [(name, state) for name, state in named if not state.is_done]
    unplaced = [(name, state) for name, state in named if state.phase == UNPLACED]
    # what does not serve at all before what serves on by an older spec
    stuck = sorted((each for each in undone if not each[1].settles), key=lambda each: each[1].phase == READY)
    moving = [(name, state) for name, state in undone if state.settles]
    out: list[tuple[str, str, str, str]] = []
    worst = stuck or moving
    if issues:
        out.append(("Ready", "False", issues[0].reason, _issue_text(issues)))
    elif worst:
        out.append(("Ready", "False", _reason(worst[0][1]), _said(worst)))
    elif unreachable:
        out.append(("Ready", "False", SERVICE_REFUSED, unreachable))
    else:
        out.append(
            (
                "Ready",
                "True",
                "AllReady" if named else "NothingWanted",
                f"{len(named)} of {len(named)} replicas are ready",
            )
        )
    if unplaced:
        out.append(("Placed", "False", unplaced[0][1].reason or UNPLACED, _said(unplaced)))
    else:
        out.append(("Placed", "True", "AllPlaced", f"{len(named)} of {len(named)} replicas have their GPUs"))
    if issues:
        out.append(("Stalled", "True", "InvalidSpec", _issue_text(issues)))
    elif stuck and not moving:
        out.append(("Stalled", "True", _reason(stuck[0][1]), _said(stuck)))
    elif unreachable and not moving:
        out.append(("Stalled", "True", SERVICE_REFUSED, unreachable))
    if moving:
        out.append(("Reconciling", "True", _reason(moving[0][1]), _said(moving)))
    if unreachable:
        out.append((SERVICE_REFUSED, "True", SERVICE_REFUSED, unreachable))
    out += [(notice.type, "True", notice.reason, notice.message) for notice in notices]
    return [_condition(placement, *said, now) for said in out]


def _issue_text(issues: tuple[Issue, ...]) -> str:
    return "; ".join(f"{issue.path}: {issue.message}" for issue in issues)


def _reason(state: ReplicaState) -> str:
    return state.reason or state.phase


def _said(states: list[tuple[str, ReplicaState]]) -> str:
    """The first three replicas in words; the list of all is in status.models."""
    parts = [f"{name}-{state.index} {state.phase}: {state.message}" for name, state in states[:3]]
    more = f"; and {len(states) - 3} more" if len(states) > 3 else ""
    return "; ".join(parts) + more


def _condition(placement: Placement, kind: str, value: str, reason: str, message: str, now: float) -> Manifest:
    before: Condition | None = next((c for c in placement.status.conditions if c.type == kind), None)
    since = before.since if before and before.status == value and before.since else now
    return {
        "type": kind,
        "status": value,
        "reason": reason or "Unknown",
        "message": message[:32768],
        "observedGeneration": placement.generation,
        "lastTransitionTime": rfc3339(since),
    }


def _model_status(model: ModelState, before: dict[tuple[str, int], ReplicaMemory], now: float) -> Manifest:
    name = model.wanted.model.name
    out: Manifest = {
        "name": name,
        "desired": len(model.replicas),
        "ready": sum(state.phase == READY for state in model.replicas),
        "replicas": [_replica_status(name, state, before, now) for state in model.replicas],
    }
    if not model.unreachable:  # else somebody else may answer there
        out["url"] = url(model.wanted)
    if model.faults:
        out["faults"] = [_fault_status(fault) for fault in model.faults]
    if fresh := [fault for fault in model.faults if fault.times]:  # one that healed has none
        last = max(fresh, key=lambda fault: (max(fault.times), fault.index))
        out["lastFault"] = {
            "reason": last.reason,
            "message": last.message,
            "attempt": last.attempt,
            "time": rfc3339(max(last.times)),
        } | ({"remedy": last.remedies[-1]} if last.remedies else {})
    if model.learned:
        out["learned"] = [_learned_status(known) for known in model.learned]
    if model.estimate:
        out["estimate"] = model.estimate
    return out


def _replica_status(
    model: str, state: ReplicaState, before: dict[tuple[str, int], ReplicaMemory], now: float
) -> Manifest:
    memory = before.get((model, state.index))
    since = memory.since if memory and memory.phase == state.phase else 0.0
    out: Manifest = {"index": state.index, "phase": state.phase, "since": rfc3339(since or now)}
    if state.pod:
        out["pod"] = state.pod
    if state.allocation:
        out |= {
            "node": state.allocation.node,
            "gpus": list(state.allocation.gpus),
            "memory": gib(state.allocation.bytes),
            "utilization": state.allocation.utilization,
        }
    if state.reason and (state.phase != READY or state.message):
        out |= {"reason": state.reason, "message": state.message}
    return out


def _fault_status(fault: Fault) -> Manifest:
    out: Manifest = {
        "index": fault.index,
        "generation": fault.generation,
        "wish": fault.wish,
        "reason": fault.reason,
        "message": fault.message[:4096],
        "attempt": fault.attempt,
        "uid": fault.uid,
        "remedies": list(fault.remedies),
        "settings": dict(fault.settings),
        "times": [rfc3339(time) for time in fault.times],
        "failed": fault.failed,
    }
    return out | ({"retryAt": rfc3339(fault.retry_at)} if fault.retry_at else {})


def _learned_status(known: Learned) -> Manifest:
    sizes = {
        "weights": known.weights,
        "kvCacheMemory": known.kv_cache_bytes,
        "cudaGraphs": known.cuda_graphs,
        "overrun": known.overrun,
    }
    out: Manifest = {"key": known.key} | {name: str(size) for name, size in sizes.items() if size is not None}
    if known.kv_cache_tokens is not None:
        out["kvCacheTokens"] = known.kv_cache_tokens
    if known.ready_seconds is not None:
        out["readySeconds"] = known.ready_seconds
    return out


def estimate_status(config: ModelConfig, model: Model, share: int, length: int | None) -> Manifest:
    """The estimate at a share with its parts, so that a person can put a number in the place of `auto`."""
    engine = replace(model.engine, max_model_len=length) if length else model.engine
    found = at_share(config, engine, model.tensor_parallel, share)
    return {
        "share": gib(share),
        "weights": gib(found.weights.value),
        "activation": gib(found.activation.value),
        "cudaGraphs": gib(found.cuda_graphs.value),
        "kvCache": gib(max(0, found.kv_cache(share).value)),
        "context": length or found.context_that_fits(share, config.max_position),
        "source": config.source,
    }


def canonical(status: Manifest) -> str:
    """A status as text, to tell whether it differs from what stands."""
    return json.dumps(status, sort_keys=True, separators=(",", ":"))


def rfc3339(seconds: float) -> str:
    """A moment as Kubernetes writes it, to the second."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
