"""The next remedy for a replica that died: a rung at a time, within what the spec allows, slower each time, and an end.

All that was tried is in the Fault, which lives in the placement's status: a restarted controller goes on where the
dead one stood. A change of what was asked for the model starts afresh.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace

from cotenant.core.ledger import context
from cotenant.core.oom.deaths import Kind
from cotenant.core.oom.facts import Facts
from cotenant.core.oom.judge import NOISE, Blame, Verdict, is_about_memory
from cotenant.core.oom.remedies import (
    PASSING,
    PERMISSION,
    Case,
    Overrides,
    Rung,
    Setting,
    Settings,
    change,
    overrides,
)
from cotenant.core.oom.wish import is_named, is_of
from cotenant.core.snapshot import Fault, Model

HOUR = 3600.0
FIRST_DELAY = 10.0
LONGEST_DELAY = 300.0
HEALED_AFTER = 600.0
"""Seconds of serving after which the next death is a new fault."""
KEPT_TIMES = 32


@dataclass(frozen=True, slots=True)
class Ladder:
    """What may be tried against one verdict, in order."""

    rungs: tuple[Rung, ...] = ()
    repeat: bool = False
    """Starting again may be tried again: the cause may be gone."""
    outside: bool = False
    """Somebody else may put it right at any time: never given up, only tried `maxAttempts` times an hour."""
    advice: str = ""
    """What a person can do."""


_START = Rung.RESTART
_KV_RUNGS = (_START, Rung.REDUCE_CONTEXT, Rung.GROW_SHARE, Rung.REDUCE_BATCH, Rung.EAGER)
_PLACE = "free the GPU, lower another model's share, or select more nodes"

LADDERS: dict[Kind, Ladder] = {
    Kind.HOST_OUT_OF_MEMORY: Ladder(
        (Rung.MORE_HOST_MEMORY, _START), advice="raise resources.memory, or lower mmProcessorCacheGB and kvOffloadingGB"
    ),
    Kind.NO_ROOM_AT_START: Ladder((_START, Rung.MOVE, Rung.YIELD), outside=True, advice=_PLACE),
    Kind.PROFILE_DISTURBED: Ladder(
        (_START, Rung.PIN_KV_CACHE, Rung.MOVE), repeat=True, advice="stop what else allocates on this GPU"
    ),
    Kind.NO_KV_CACHE_MEMORY: Ladder(
        (_START, Rung.REDUCE_BATCH, Rung.GROW_SHARE, Rung.EAGER), advice="raise share, quantize, or use more GPUs"
    ),
    Kind.KV_CACHE_TOO_SMALL: Ladder(
        _KV_RUNGS, advice="raise share, or lower maxModelLen to what the message says fits"
    ),
    Kind.WEIGHTS_DO_NOT_FIT: Ladder(
        (_START, Rung.GROW_SHARE, Rung.MOVE, Rung.YIELD), advice="raise share, quantize, or raise tensorParallelSize"
    ),
    Kind.PROFILE_OUT_OF_MEMORY: Ladder(
        (_START, Rung.REDUCE_BATCH, Rung.GROW_SHARE, Rung.MOVE, Rung.YIELD),
        advice="lower maxNumBatchedTokens, maxNumSeqs or limitMMPerPrompt, or raise share",
    ),
    Kind.KV_CACHE_OUT_OF_MEMORY: Ladder(
        (_START, Rung.LOWER_KV_CACHE, Rung.MOVE, Rung.YIELD), advice="raise headroom, or lower share"
    ),
    Kind.GRAPH_CAPTURE_OUT_OF_MEMORY: Ladder(
        (_START, Rung.REDUCE_GRAPHS, Rung.LOWER_KV_CACHE, Rung.EAGER, Rung.MOVE),
        advice="lower cudaGraphs.maxCaptureSize, disable cudaGraphs, or raise headroom",
    ),
    Kind.RUNTIME_OUT_OF_MEMORY: Ladder(
        (_START, Rung.LOWER_KV_CACHE, Rung.REDUCE_BATCH, Rung.MOVE),
        repeat=True,
        advice="raise headroom: memory outside the KV cache ran out, so a larger share makes it worse",
    ),
    Kind.SLEEP_MODE_OUT_OF_MEMORY: Ladder((_START, Rung.MOVE), repeat=True, advice="leave more headroom for waking up"),
    Kind.SLEEP_DISTURBED: Ladder((_START,), repeat=True, advice="stop what else allocates on this GPU"),
    Kind.SHARED_MEMORY: Ladder(
        (Rung.MORE_SHARED_MEMORY, _START), advice="raise resources.memory: /dev/shm counts in it"
    ),
    Kind.DEVICE_BUSY: Ladder(
        (_START, Rung.MOVE), outside=True, advice="check the GPU's compute mode and whether an MPS server holds it"
    ),
    Kind.NO_DEVICE: Ladder(
        (_START, Rung.MOVE), outside=True, advice="check the node's driver, container toolkit and runtime class"
    ),
    Kind.DEVICE_ERROR: Ladder(
        (_START, Rung.MOVE), repeat=True, advice="read the Xid in the node's kernel log; drain a bad GPU"
    ),
    Kind.NCCL: Ladder(
        (_START, Rung.MORE_SHARED_MEMORY, Rung.MOVE), repeat=True, advice="set NCCL_DEBUG=INFO, check P2P and IPC"
    ),
    Kind.PORT_IN_USE: Ladder((_START,), repeat=True, advice="remove the port from extraArgs, or what listens on it"),
    Kind.ENGINE_HUNG: Ladder((_START, Rung.MOVE), repeat=True, advice="read the log; a GPU of the group may be bad"),
    Kind.SLOW_START: Ladder(
        (Rung.MORE_TIME, _START), advice="put the model on faster storage, or raise the operator's start timeout"
    ),
    Kind.SOURCE_UNREACHABLE: Ladder(
        (_START,), outside=True, advice="let the node reach the model hub, or use pvc:// or oci://"
    ),
    Kind.SOURCE_MISSING: Ladder(
        (_START,),
        outside=True,
        advice="correct uri, accept the model's licence, or set tokenSecret to one that may read it",
    ),
    Kind.DISK_FULL: Ladder((_START,), outside=True, advice="free the node's disk, or use pvc://"),
    Kind.BAD_FLAG: Ladder(advice="correct extraArgs or the engine setting that vLLM names"),
    Kind.WORKER_LOST: Ladder(
        (_START, Rung.MORE_HOST_MEMORY, Rung.MORE_SHARED_MEMORY, Rung.MOVE),
        repeat=True,
        advice="exit code -9: raise resources.memory; -11: report it to vLLM; -7: /dev/shm",
    ),
    Kind.ENGINE_DIED: Ladder(
        (_START, Rung.MOVE), repeat=True, advice="read the root cause; it is a fault of the engine or its GPU"
    ),
    Kind.KILLED: Ladder((_START,), repeat=True, advice="find who killed it: a probe, the node, or a person"),
    Kind.EVICTED: Ladder((_START,), outside=True, advice="see the node's conditions; raise resources or priority"),
    Kind.IMAGE_MISSING: Ladder((_START,), outside=True, advice="correct the engine's image, or the pull secret"),
    Kind.SECRET_MISSING: Ladder(
        (_START,), outside=True, advice="create the Secret that tokenSecret names, in this namespace"
    ),
    Kind.VOLUME_MISSING: Ladder(
        (_START,), outside=True, advice="create or bind the claim that uri or cache.claim names"
    ),
    Kind.UNSCHEDULABLE: Ladder(
        (_START, Rung.MOVE), outside=True, advice="free CPU or memory on the node, or lower resources"
    ),
    Kind.UNKNOWN: Ladder((_START,), repeat=True, advice="read the log; tell the Cotenant project this text"),
}


@dataclass(frozen=True, slots=True)
class Step:
    """What to do about one death."""

    fault: Fault | None
    """To be kept in the status; None = nothing to remember."""
    rungs: tuple[Rung, ...] = ()
    """Taken in this step, for metrics; empty where it is given up."""
    changes: Overrides = field(default_factory=Overrides)
    """All overrides of the next start, earlier ones included."""
    message: str = ""


def next_step(fault: Fault | None, verdict: Verdict, model: Model, facts: Facts, now: float) -> Step:
    """The next rung for this verdict, after what was tried already."""
    if verdict.kind is Kind.STOPPED:
        return Step(fault, changes=overrides(fault))
    ladder = LADDERS[verdict.kind]
    past = fault if fault is not None and is_of(fault, facts.wish, facts.generation) else None
    remedies, attempt = (past.remedies, past.attempt + 1) if past else ((), 1)
    earlier = tuple(min(time, now) for time in past.times if now - time < HOUR) if past else ()
    times = (*earlier, now)[-KEPT_TIMES:]
    case = Case(verdict, model, facts, overrides(past))
    limit = max(1, model.on_out_of_memory.max_attempts)
    rungs, changes = _climb(ladder, case, remedies)
    spent = len(times) >= limit and not ladder.outside
    failed = spent or not rungs
    if failed:
        rungs, changes = (), {}
    kept: dict[str, str] = {
        name: text for name, text in (past.settings if past else ()) if name != Setting.WAIT_FOR_FREE
    }
    kept.update({str(name): text for name, text in changes.items()})
    retry_at = now + delay(facts.key, attempt)
    if ladder.outside and len(times) >= limit:
        retry_at = max(retry_at, times[-limit] + HOUR)
    new = Fault(
        model=model.name,
        index=facts.index,
        generation=facts.generation,
        reason=verdict.kind,
        message=_tell(verdict, ladder, case, rungs, changes, len(times) if spent else 0),
        attempt=attempt,
        remedies=(*remedies, *(str(rung) for rung in rungs if rung not in remedies)),
        settings=tuple(sorted((name, text) for name, text in kept.items() if text)),
        times=times,
        retry_at=retry_at,
        failed=failed,
        wish=facts.wish,
    )
    return Step(new, rungs, overrides(new), new.message)


def delay(key: str, attempt: int) -> float:
    """Seconds until the next start: 10, 20, 40 .. 300, and up to a tenth more so that replicas do not move in step."""
    base = min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(max(attempt, 1) - 1, 16))
    return base * (1 + (zlib.crc32(key.encode("utf-8", "replace")) % 1000) / 10_000)


def held_until(fault: Fault, now: float) -> float:
    """When its back-off ends; 0.0 where a clock that jumped back would make it wait for ever."""
    return fault.retry_at if fault.retry_at <= now + HOUR + LONGEST_DELAY else 0.0


def heal(fault: Fault | None, wish: str, generation: int, ready_since: float | None, now: float) -> Fault | None:
    """What is left of a fault once its replica serves: after 10 minutes the ladder is forgotten.

    What the remedies made of the engine stays as long as the wish does: without it the next start would die again.
    """
    if fault is None or not is_of(fault, wish, generation):
        return None
    if not is_named(fault):
        fault = replace(fault, wish=wish)
    if ready_since is None or now - ready_since < HEALED_AFTER or (fault.attempt == 0 and not fault.failed):
        return fault
    kept = tuple((name, text) for name, text in fault.settings if name not in PASSING)
    return replace(fault, attempt=0, remedies=(), settings=kept, times=(), retry_at=0.0, failed=False) if kept else None


def _climb(ladder: Ladder, case: Case, taken: tuple[str, ...]) -> tuple[tuple[Rung, ...], Settings]:
    """The next rung that helps, and what it changes. Starting again is the ground, not a rung: it may come again."""
    rungs = ladder.rungs
    if case.verdict.blame in _OTHERS and Rung.MOVE in rungs:
        # away from who took the memory, before anything of its own is made smaller
        rungs = (
            *(rung for rung in rungs if rung is _START),
            Rung.MOVE,
            *(rung for rung in rungs if rung is not _START),
        )
    for rung in rungs:
        if rung in taken:
            continue
        if rung is Rung.RESTART:
            if _may_help(case):
                return (Rung.RESTART,), _wait(case, {})
            continue
        changes = change(rung, case)
        if changes and _changes_something(changes, case):
            also = tuple(other for name, other in _BESIDE if changes.get(name) and other is not rung)
            if not any(other in taken for other in also):
                return (rung, *also), _wait(case, changes) | changes if changes.get(Setting.YIELD) else changes
    if ladder.outside or ladder.repeat:
        return (Rung.RESTART,), _wait(case, {})
    return (), {}


_BESIDE = ((Setting.AVOID, Rung.MOVE), (Setting.YIELD, Rung.YIELD))
_OTHERS = (Blame.STRANGER, Blame.NEIGHBOUR)
_RACE = (Blame.LEAVING, Blame.STARTING)
_BOOKED = (Kind.NO_KV_CACHE_MEMORY, Kind.KV_CACHE_TOO_SMALL)
"""What vLLM books by how much free memory changed while it started: only who came or went meanwhile can be to blame."""


def _may_help(case: Case) -> bool:
    """Whether the same start may go better: not where it was alone and the engine itself asks for too much."""
    verdict = case.verdict
    if verdict.kind is Kind.PROFILE_DISTURBED or not is_about_memory(verdict):
        return True
    if verdict.kind in _BOOKED:
        return verdict.blame in _RACE
    if verdict.kind is Kind.NO_ROOM_AT_START:
        return verdict.blame in (*_RACE, Blame.UNKNOWN)
    return verdict.blame not in (Blame.NOBODY, Blame.LEDGER)


def _wait(case: Case, changes: Settings) -> Settings:
    """The same start must not meet the same full GPU: it waits until its share and overrun are free."""
    if not is_about_memory(case.verdict):
        return {}
    beside = max(case.facts.overrun, context(case.model.tensor_parallel))
    share = int(changes.get(Setting.SHARE) or case.facts.share)
    wanted = max(case.verdict.numbers.wanted or 0, share) + beside
    # an empty GPU never reads quite empty
    most = case.facts.usable - NOISE
    return {Setting.WAIT_FOR_FREE: str(min(wanted, most) if most > 0 else wanted)}


def _changes_something(changes: Settings, case: Case) -> bool:
    kept = {str(name): text for name, text in changes.items() if text}
    probe = Fault("", 0, 0, "", "", 0, settings=tuple(kept.items()))
    new, old = overrides(probe), case.now
    names = Overrides.__dataclass_fields__
    return any(
        getattr(new, name) != getattr(old, name) for name in names if getattr(new, name) not in (None, (), False)
    )


def _tell(verdict: Verdict, ladder: Ladder, case: Case, rungs: tuple[Rung, ...], changes: Settings, tries: int) -> str:
    """One sentence for the event and the status: what happened, and what is done about it or what to do."""
    said = verdict.message[:700]
    if rungs:
        what = ", ".join(f"{name}={text}" for name, text in sorted(changes.items()) if text)
        return f"{said} -> {'+'.join(rungs)}" + (f" ({what})" if what else "")
    end = (
        f"given up after {tries} failures within an hour"
        if tries
        else "given up: starting again would end the same way"
    )
    barred = sorted({PERMISSION[rung] for rung in ladder.rungs if not case.allows(rung)})
    also = f"; or allow {', '.join(barred)} in onOutOfMemory" if barred else ""
    if (
        Rung.GROW_SHARE in ladder.rungs
        and case.allows(Rung.GROW_SHARE)
        and case.model.on_out_of_memory.max_share is None
    ):
        also += "; GrowShare needs onOutOfMemory.maxShare"
    return f"{said} -> {end}. To do: {ladder.advice}{also}"
