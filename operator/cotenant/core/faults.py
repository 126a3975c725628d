"""What died and why, the next rung for it, and what healed: the memory of a placement's status, brought up to date."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

from cotenant.core.cases import Case, pods_of
from cotenant.core.decision import Emit, Judged
from cotenant.core.demand import Wanted
from cotenant.core.drift import due_at, overdue
from cotenant.core.memo import Memo
from cotenant.core.oom import ladder
from cotenant.core.oom.evidence import evidence_of
from cotenant.core.oom.facts import Ground, facts_of
from cotenant.core.oom.judge import judge
from cotenant.core.oom.remedies import apply, overrides
from cotenant.core.pod import Tuning, lesson
from cotenant.core.replica import Replica
from cotenant.core.share import GIB
from cotenant.core.snapshot import Fault, Pod, Snapshot

PATIENCE = ladder.LONGEST_DELAY * 1.1
"""Seconds for which a place is kept, the longest back-off of all but those that wait for somebody else's doing."""


@dataclass(frozen=True)
class Faults:
    """Every replica's ladder as it stands after this pass."""

    of: dict[str, Fault] = field(default_factory=dict)
    """By replica key."""
    by_model: dict[str, tuple[Fault, ...]] = field(default_factory=dict)
    recorded: frozenset[str] = frozenset()
    """uids of pods whose end the status, as it stands in the cluster, has taken down: they may go."""
    events: tuple[Emit, ...] = ()
    judged: tuple[Judged, ...] = ()
    wake_at: float | None = None
    """When the next start has had its time (Unix seconds)."""
    resting: dict[str, float] = field(default_factory=dict)
    """By replica key: when those without a pod start again (Unix seconds) that wait so long that no place is kept for them."""

    def applied(self, replica: Replica) -> Replica:
        """The replica with what its remedies changed for planning."""
        fault = self.of.get(replica.origin)
        if fault is None:
            return replica
        changes, written = overrides(fault), replica.wanted.model.engine
        engine = apply(written, changes)
        return replace(
            replica,
            share=changes.share,
            avoid=changes.avoid,
            wait_for_free=changes.wait_for_free or 0,
            yielded_to=changes.yielding is not None,
            reserve=changes.reserve or 0,
            engine=None if engine == written else engine,
        )

    def tuning(self, replica: Replica) -> Tuning:
        """What its next start runs with beside the spec."""
        changes = overrides(self.of.get(replica.origin))
        bare = Tuning(
            apply(replica.wanted.model.engine, changes),
            kv_cache_bytes=changes.kv_cache_bytes,
            memory=changes.host_memory,
        )
        if changes.shared_memory:
            bare = replace(bare, shm_gib=max(bare.shm_gib, -(-changes.shared_memory // GIB)))
        return replace(bare, start_timeout=changes.start_timeout) if changes.start_timeout else bare


def faults(snapshot: Snapshot, cases: tuple[Case, ...], memo: Memo) -> Faults:
    """Judges pods that ended or cannot start, steps their ladders, forgets what healed."""
    of: dict[str, Fault] = {}
    by_model: dict[str, list[Fault]] = {}
    recorded: set[str] = set()
    events: list[Emit] = []
    judged: list[Judged] = []
    dues: list[float] = []
    resting: dict[str, float] = {}
    ground = cache(lambda: Ground(snapshot, memo))
    upset = [(case, wanted) for case in cases if not case.calm for wanted in case.wanted]
    for case, wanted in upset:
        before = {fault.index: fault for fault in wanted.placement.status.faults if fault.model == wanted.model.name}
        for index in range(wanted.model.replicas):
            mine = pods_of(wanted, index, case.by_name)
            after = before.get(index)
            if after is None and all(pod.ready and pod.is_alive for pod in mine):
                continue
            recorded.update(pod.uid for pod in mine if after is not None and after.uid == pod.uid)
            candidates: list[Pod | None] = [*mine] or [None]
            for pod in candidates:
                due = due_at(pod, _timeout(snapshot, after)) if pod else None
                after = _after(snapshot, wanted, pod, after, recorded, events, judged, ground)
                if due is not None and due > snapshot.now:
                    dues.append(due)
            if after is not None and not after.failed and not mine:
                until = ladder.held_until(after, snapshot.now)
                if until - snapshot.now > PATIENCE:
                    resting[f"{wanted.key}/{index}"] = until
                    dues.append(until - PATIENCE)
            if after is not None:
                of[f"{wanted.key}/{index}"] = after
                by_model.setdefault(wanted.key, []).append(after)
    return Faults(
        of,
        {key: tuple(found) for key, found in by_model.items()},
        frozenset(recorded),
        tuple(events),
        tuple(judged),
        min(dues, default=None),
        resting,
    )


def _timeout(snapshot: Snapshot, fault: Fault | None) -> float:
    """Seconds a start may take."""
    return overrides(fault).start_timeout or snapshot.policy.start_timeout


def _after(
    snapshot: Snapshot,
    wanted: Wanted,
    pod: Pod | None,
    fault: Fault | None,
    recorded: set[str],
    events: list[Emit],
    judged: list[Judged],
    ground: Callable[[], Ground],
) -> Fault | None:
    placement = wanted.placement
    if pod is None or pod.uid in recorded:
        return ladder.heal(fault, placement.generation, None, snapshot.now)
    late = overdue(pod, _timeout(snapshot, fault), snapshot.now)
    dead = pod.ended is not None and pod.ended.log is not None
    if not dead and not late:
        return ladder.heal(fault, placement.generation, _serves_since(pod, fault, snapshot.now), snapshot.now)
    verdict = judge(evidence_of(snapshot, pod, timed_out=bool(late) and not pod.blocked))
    known = _known_kv(snapshot, wanted, pod)
    facts = facts_of(snapshot, placement, wanted.model, pod, kv_bytes=known, ground=ground())
    step = ladder.next_step(fault, verdict, wanted.model, facts, snapshot.now)
    if step.fault is None or step.fault == fault:
        recorded.add(pod.uid)  # nothing to take down: it was stopped on purpose
        return fault
    about = (placement.namespace, placement.name, placement.uid)
    events.append(Emit(*about, "Warning", step.fault.reason, f"{pod.name}: {step.message}"))
    rungs = tuple(str(rung) for rung in step.rungs)
    judged.append(Judged(placement.namespace, pod.name, str(verdict.kind), rungs, pod.uid))
    return replace(step.fault, uid=pod.uid)


def _serves_since(pod: Pod, fault: Fault | None, now: float) -> float | None:
    """Since when it serves, if that says anything of the fault: a pod that is older than the last death is the predecessor, which
    serves on beside a successor that dies again and again. An hour without a death counts whatever the clocks say."""
    last = max(fault.times, default=0.0) if fault is not None else 0.0
    is_older = pod.created <= last and (now - last < ladder.HOUR or (fault is not None and fault.failed))
    return None if is_older or not pod.ready else pod.ready_since


def _known_kv(snapshot: Snapshot, wanted: Wanted, pod: Pod) -> int | None:
    """The KV cache that a start like this one came up with."""
    given = pod.allocation
    products = {device.uuid: device.product for node in snapshot.gpu_nodes for device in node.devices}
    product = products.get(given.gpus[0]) if given and given.gpus else None
    if given is None or product is None:
        return None
    key = lesson(wanted.model, product, given.utilization, snapshot.policy)
    taught = (known for known in wanted.placement.status.learned if known.model == wanted.model.name)
    return next((known.kv_cache_bytes for known in taught if known.key == key), None)
