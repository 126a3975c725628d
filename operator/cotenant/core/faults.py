"""What died and why, the next rung for it, and what healed: the memory of a placement's status, brought up to date."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial

from cotenant.core.cases import Case, pods_of
from cotenant.core.decision import Emit, Judged
from cotenant.core.demand import Wanted
from cotenant.core.drift import due_at, overdue
from cotenant.core.memo import Memo
from cotenant.core.oom import ladder
from cotenant.core.oom.deaths import Kind
from cotenant.core.oom.evidence import evidence_of
from cotenant.core.oom.facts import Ground, facts_of
from cotenant.core.oom.judge import judge
from cotenant.core.oom.remedies import apply, overrides
from cotenant.core.oom.wish import is_by_wish, wish_of
from cotenant.core.pod import Tuning, lesson
from cotenant.core.replica import Replica
from cotenant.core.share import GIB
from cotenant.core.snapshot import Fault, Placement, Pod, Snapshot

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
    dues: list[float] = []
    resting: dict[str, float] = {}
    coroner = _Coroner(snapshot, cache(lambda: Ground(snapshot, memo)))
    upset = [(case, wanted) for case in cases if not case.calm for wanted in case.wanted]
    for case, wanted in upset:
        before = {fault.index: fault for fault in wanted.placement.status.faults if fault.model == wanted.model.name}
        name_wish = partial(wish_of, wanted.placement, wanted.model, snapshot.policy)
        wish = memo.of("wish of a fault", (wanted, snapshot.policy), (), name_wish)
        for index in range(wanted.model.replicas):
            mine = pods_of(wanted, index, case.by_name)
            after = before.get(index)
            if after is None and all(pod.ready and pod.is_alive for pod in mine):
                continue
            for pod in mine:
                due = due_at(pod, _timeout(snapshot, after))
                if due is not None and due > snapshot.now:
                    dues.append(due)
            after = coroner.after(wanted, index, wish, mine, after)
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
        frozenset(coroner.recorded),
        tuple(coroner.events),
        tuple(coroner.judged),
        min(dues, default=None),
        resting,
    )


def _timeout(snapshot: Snapshot, fault: Fault | None) -> float:
    """Seconds a start may take."""
    return overrides(fault).start_timeout or snapshot.policy.start_timeout


@dataclass
class _Coroner:
    """Judges the dead of one pass, and keeps what is to be told of them."""

    snapshot: Snapshot
    ground: Callable[[], Ground]
    recorded: set[str] = field(default_factory=set)
    events: list[Emit] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)

    def after(self, wanted: Wanted, index: int, wish: str, pods: list[Pod], fault: Fault | None) -> Fault | None:
        """A replica's fault after this pass.

        A fault names one pod whose end it took down. So the next end is judged once that pod is gone: were it judged before, a
        controller that starts anew would judge the first one again.
        """
        if fault is not None and any(pod.uid == fault.uid and _serves(pod) for pod in pods):
            fault = replace(fault, uid="", failed=False)  # its start was given up, and it came up all the same
        generation, now = wanted.placement.generation, self.snapshot.now
        taken = {pod.uid for pod in pods if fault is not None and pod.uid == fault.uid}
        self.recorded |= taken
        busy = any(pod.uid in taken and not pod.deleting for pod in pods)
        if not pods:
            return ladder.heal(fault, wish, generation, None, now)
        for pod in pods:
            late = "" if pod.uid in taken else overdue(pod, _timeout(self.snapshot, fault), now)
            dead = pod.uid not in taken and pod.ended is not None and pod.ended.log is not None
            since = None if dead or late or pod.uid in taken else _serves_since(pod, fault, now)
            fault = ladder.heal(fault, wish, generation, since, now)
            if (dead or late) and not busy:
                before, fault = fault, self._judge(wanted, index, wish, pod, fault, late=bool(late) and not pod.blocked)
                busy = fault is not before
        return fault

    def _judge(
        self, wanted: Wanted, index: int, wish: str, pod: Pod, fault: Fault | None, *, late: bool
    ) -> Fault | None:
        placement, model, policy = wanted.placement, wanted.model, self.snapshot.policy
        verdict = judge(evidence_of(self.snapshot, pod, timed_out=late))
        if verdict.kind is Kind.STOPPED:
            self.recorded.add(pod.uid)  # nothing to take down: it was stopped on purpose
            return fault
        machine = self.ground().bins.machines.get(pod.allocation.node) if pod.allocation else None
        if not is_by_wish(pod, model, policy, machine, overrides(fault).share):
            self.recorded.add(pod.uid)  # nor here: it says nothing of what is asked for now
            said = f"{verdict.message[:700]} -> started anew: it ran by an older spec"
            self._tell(placement, pod, verdict.kind, said, ())
            return fault
        known = _known_kv(self.snapshot, wanted, pod, fault)
        facts = facts_of(self.snapshot, wanted, index, pod, wish=wish, kv_bytes=known, ground=self.ground())
        step = ladder.next_step(fault, verdict, model, facts, self.snapshot.now)
        self._tell(placement, pod, verdict.kind, step.message, tuple(str(rung) for rung in step.rungs))
        return step.fault and replace(step.fault, uid=pod.uid)

    def _tell(self, placement: Placement, pod: Pod, kind: Kind, message: str, rungs: tuple[str, ...]) -> None:
        about = (placement.namespace, placement.name, placement.uid)
        self.events.append(Emit(*about, "Warning", str(kind), f"{pod.name}: {message}"))
        self.judged.append(Judged(placement.namespace, pod.name, str(kind), rungs, pod.uid))


def _serves(pod: Pod) -> bool:
    return pod.is_alive and not pod.is_starting


def _serves_since(pod: Pod, fault: Fault | None, now: float) -> float | None:
    """Since when it serves, if that says anything of the fault: a pod that is older than the last death is the predecessor, which
    serves on beside a successor that dies again and again. An hour without a death counts whatever the clocks say."""
    last = max(fault.times, default=0.0) if fault is not None else 0.0
    is_older = pod.created <= last and (now - last < ladder.HOUR or (fault is not None and fault.failed))
    return None if is_older or not pod.ready else pod.ready_since


def _known_kv(snapshot: Snapshot, wanted: Wanted, pod: Pod, fault: Fault | None) -> int | None:
    """The KV cache that a start like this one came up with."""
    given, engine = pod.allocation, apply(wanted.model.engine, overrides(fault))
    products = {device.uuid: device.product for node in snapshot.gpu_nodes for device in node.devices}
    product = products.get(given.gpus[0]) if given and given.gpus else None
    if given is None or product is None:
        return None
    key = lesson(wanted.model, engine, product, given.utilization, snapshot.policy)
    taught = (known for known in wanted.placement.status.learned if known.model == wanted.model.name)
    return next((known.kv_cache_bytes for known in taught if known.key == key), None)
