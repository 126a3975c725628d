"""What each remedy changes, and how a Fault keeps the changes so that they survive a restart of the controller."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from cotenant.core.oom.deaths import Kind
from cotenant.core.oom.facts import Facts
from cotenant.core.oom.judge import Verdict
from cotenant.core.share import GIB, MIB, SCALE, Auto, Bytes, Percent
from cotenant.core.snapshot import Fault, Model, Remedy
from cotenant.core.vllm import Engine, Sizing, settle

MIN_CONTEXT = 512
"""Tokens: a shorter context serves nobody."""
MIN_BATCH = 512
MIN_SEQUENCES = 8
MIN_CAPTURE = 8
MARGIN = 300 * MIB
"""What capture and allocation need beyond the shortfall they report (vLLM keeps 150 MiB itself)."""
MAX_SHM = 16 * GIB


class Rung(StrEnum):
    """The remedies."""

    RESTART = "Restart"
    """Start again, alone; where memory was short, once enough is free."""
    PIN_KV_CACHE = "PinKVCache"
    LOWER_KV_CACHE = "LowerKVCache"
    REDUCE_CONTEXT = "ReduceContext"
    REDUCE_BATCH = "ReduceBatch"
    REDUCE_GRAPHS = "ReduceGraphs"
    EAGER = "Eager"
    GROW_SHARE = "GrowShare"
    MOVE = "Move"
    YIELD = "Yield"
    MORE_HOST_MEMORY = "MoreHostMemory"
    MORE_SHARED_MEMORY = "MoreSharedMemory"
    MORE_TIME = "MoreTime"


PERMISSION: dict[Rung, Remedy] = {
    Rung.LOWER_KV_CACHE: Remedy.REDUCE_BATCH,
    Rung.REDUCE_CONTEXT: Remedy.REDUCE_CONTEXT,
    Rung.REDUCE_BATCH: Remedy.REDUCE_BATCH,
    Rung.REDUCE_GRAPHS: Remedy.REDUCE_BATCH,
    Rung.EAGER: Remedy.REDUCE_BATCH,
    Rung.GROW_SHARE: Remedy.GROW_SHARE,
    Rung.MOVE: Remedy.MOVE,
    Rung.YIELD: Remedy.MOVE,
}
"""What `onOutOfMemory.allow` must name for a rung. The others change nothing the user wrote."""


class Setting(StrEnum):
    """Names of what a Fault keeps."""

    MAX_MODEL_LEN = "maxModelLen"
    MAX_NUM_SEQS = "maxNumSeqs"
    MAX_NUM_BATCHED_TOKENS = "maxNumBatchedTokens"
    MAX_CAPTURE_SIZE = "maxCaptureSize"
    EAGER = "eager"
    KV_CACHE_BYTES = "kvCacheBytes"
    SHARE = "share"
    """Bytes per GPU: what was missing is as much on a larger one. Up to 10,000 it is ten-thousandths, as it once was."""
    AVOID = "avoidGPUs"
    """UUIDs, comma-separated."""
    YIELD = "yield"
    """Bytes per GPU that tenants of lower priority are to give up."""
    RESERVE = "reserve"
    """Bytes per GPU that the plan keeps free beside its share and overrun, so that they do."""
    WAIT_FOR_FREE = "waitForFree"
    """Bytes that must be free on each GPU before the next start."""
    HOST_MEMORY = "hostMemory"
    SHARED_MEMORY = "sharedMemory"
    START_TIMEOUT = "startTimeout"
    """Seconds."""


PASSING = frozenset({Setting.AVOID, Setting.YIELD, Setting.RESERVE, Setting.WAIT_FOR_FREE})
"""Settings about one start on one GPU: gone once it serves. The others make up the engine and stay."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """What the remedies changed, for whoever plans and renders the next start; None and empty = as the spec says."""

    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_capture_size: int | None = None
    eager: bool = False
    kv_cache_bytes: int | None = None
    share: Bytes | Percent | None = None
    avoid: tuple[str, ...] = ()
    yielding: int | None = None
    reserve: int | None = None
    wait_for_free: int | None = None
    host_memory: int | None = None
    shared_memory: int | None = None
    start_timeout: int | None = None


def overrides(fault: Fault | None) -> Overrides:
    """A Fault's settings, typed. What cannot be read (a status edited by hand) counts as not set."""
    if fault is None:
        return Overrides()
    kept = dict(fault.settings)

    def whole(name: Setting) -> int | None:
        text = kept.get(name, "")
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None

    grown = whole(Setting.SHARE)
    return Overrides(
        max_model_len=whole(Setting.MAX_MODEL_LEN),
        max_num_seqs=whole(Setting.MAX_NUM_SEQS),
        max_num_batched_tokens=whole(Setting.MAX_NUM_BATCHED_TOKENS),
        max_capture_size=whole(Setting.MAX_CAPTURE_SIZE),
        eager=kept.get(Setting.EAGER) == "true",
        kv_cache_bytes=whole(Setting.KV_CACHE_BYTES),
        share=None if not grown else Bytes(grown) if grown > SCALE else Percent(grown),
        avoid=tuple(uuid for uuid in kept.get(Setting.AVOID, "").split(",") if uuid),
        yielding=whole(Setting.YIELD),
        reserve=whole(Setting.RESERVE),
        wait_for_free=whole(Setting.WAIT_FOR_FREE),
        host_memory=whole(Setting.HOST_MEMORY),
        shared_memory=whole(Setting.SHARED_MEMORY),
        start_timeout=whole(Setting.START_TIMEOUT),
    )


def apply(engine: Engine, changes: Overrides) -> Engine:
    """The engine block with the remedies in it. `kv_cache_bytes` goes into vllm.Sizing, the rest into plan and pod."""
    return replace(
        engine,
        max_model_len=changes.max_model_len or engine.max_model_len,
        auto_max_model_len=engine.auto_max_model_len and not changes.max_model_len,
        max_num_seqs=changes.max_num_seqs or engine.max_num_seqs,
        max_num_batched_tokens=changes.max_num_batched_tokens or engine.max_num_batched_tokens,
        max_capture_size=changes.max_capture_size or engine.max_capture_size,
        cuda_graphs=engine.cuda_graphs and not changes.eager,
    )


Settings = dict[Setting, str]


@dataclass(frozen=True, slots=True)
class Case:
    """One fault as a rung sees it."""

    verdict: Verdict
    model: Model
    facts: Facts
    now: Overrides
    """What earlier rungs changed already."""

    @property
    def engine(self) -> Engine:
        """As the dead one ran, silent settings written out."""
        return settle(apply(self.model.engine, self.now), Sizing(self.facts.share))

    def allows(self, rung: Rung) -> bool:
        """Whether the spec lets the operator do this by itself."""
        return rung not in PERMISSION or PERMISSION[rung] in self.model.on_out_of_memory.allow


def change(rung: Rung, case: Case) -> Settings | None:
    """What a rung changes here; None where it cannot help or may not be taken."""
    return _CHANGES[rung](case) if case.allows(rung) and rung in _CHANGES else None


def _pin_kv_cache(case: Case) -> Settings | None:
    known = case.facts.kv_bytes
    return {Setting.KV_CACHE_BYTES: str(known)} if known and case.now.kv_cache_bytes is None else None


def _lower_kv_cache(case: Case) -> Settings | None:
    current = case.now.kv_cache_bytes or case.facts.kv_bytes
    if not current:
        return None
    said = case.verdict.numbers
    cut = current * 3 // 40  # 7.5 %: what creeps at run time is a part of the activations, not of the cache
    if case.verdict.kind is not Kind.RUNTIME_OUT_OF_MEMORY and said.allocation is not None:
        cut = max(cut, said.allocation - (said.free or 0) + MARGIN)
    lowered = (current - cut) // (2 * MIB) * (2 * MIB)
    return {Setting.KV_CACHE_BYTES: str(lowered)} if lowered >= current // 2 else None


def _reduce_context(case: Case) -> Settings | None:
    said, asked = case.verdict.numbers, case.engine.max_model_len
    length = said.max_model_len or asked
    fits = said.estimated_max_model_len
    if fits is None and length and said.kv_needed and (said.kv_available or 0) > 0:
        fits = length * (said.kv_available or 0) // said.kv_needed
    if fits is None:
        return None
    # a little less than vLLM's estimate: the next profile may find some MiB less
    reduced = fits * 98 // 100 // 16 * 16
    useful = reduced >= MIN_CONTEXT and (length is None or reduced < length)
    return {Setting.MAX_MODEL_LEN: str(reduced)} if useful else None


def _reduce_batch(case: Case) -> Settings | None:
    engine = case.engine
    seqs = case.verdict.numbers.sequences or engine.max_num_seqs or 0
    tokens = engine.max_num_batched_tokens or 0
    fewer, smaller = max(MIN_SEQUENCES, seqs // 2), max(MIN_BATCH, tokens // 2)
    if fewer >= seqs and smaller >= tokens:
        return None
    fewer = min(fewer, seqs)
    return {
        Setting.MAX_NUM_SEQS: str(fewer),
        # vLLM refuses fewer tokens a step than sequences
        Setting.MAX_NUM_BATCHED_TOKENS: str(max(min(smaller, tokens), fewer)),
    }


def _reduce_graphs(case: Case) -> Settings | None:
    engine = case.engine
    captured = engine.max_capture_size or 0
    reduced = max(MIN_CAPTURE, captured // 4)
    return {Setting.MAX_CAPTURE_SIZE: str(reduced)} if engine.cuda_graphs and reduced < captured else None


def _eager(case: Case) -> Settings | None:
    return {Setting.EAGER: "true"} if case.engine.cuda_graphs else None


def _grow_share(case: Case) -> Settings | None:
    facts, limit = case.facts, case.model.on_out_of_memory.max_share
    if limit is None or isinstance(limit, Auto) or facts.usable < GIB:
        return None
    most = min(SCALE, limit.utilization(facts.usable).ten_thousandths)
    missing = _missing(case.verdict)
    asked = facts.usable // 20 if missing is None else missing
    target = -(-(facts.share + asked) * SCALE // facts.usable)
    if missing is None:
        target = min(target, most)
    if not facts.utilization < target <= most:
        return None
    share = facts.usable * target // SCALE
    grown: Settings = {Setting.SHARE: str(share), Setting.KV_CACHE_BYTES: ""}
    if share - facts.share <= facts.room:
        return grown
    if case.allows(Rung.MOVE) and facts.elsewhere >= share and facts.gpus:
        return grown | _away(case)
    if case.allows(Rung.YIELD) and facts.room + facts.yielding >= share - facts.share:
        return grown | {Setting.YIELD: str(share - facts.share - facts.room)}
    return None


def _missing(verdict: Verdict) -> int | None:
    """Bytes by which the share was too small, where the text says so."""
    said = verdict.numbers
    if said.kv_needed is not None and said.kv_available is not None:
        return max(0, said.kv_needed - said.kv_available) + MARGIN
    if verdict.kind is Kind.NO_KV_CACHE_MEMORY and said.kv_available is not None:
        return max(0, -said.kv_available) + GIB
    return None


def _move(case: Case) -> Settings | None:
    fits = case.facts.gpus and case.facts.elsewhere >= max(1, case.facts.share)
    return _away(case) if fits else None


def _away(case: Case) -> Settings:
    """Elsewhere nobody has to yield."""
    avoided = ",".join(sorted({*case.now.avoid, *case.facts.gpus}))
    return {Setting.AVOID: avoided, Setting.YIELD: "", Setting.RESERVE: ""}


def _yield(case: Case) -> Settings | None:
    said = case.verdict.numbers
    short = said.wanted - said.free if said.wanted is not None and said.free is not None else GIB
    short = max(short, MIB)
    if case.facts.yielding < short:
        return None
    # by the ledger it had room enough: only who asks for more than there is makes others yield
    return {Setting.YIELD: str(short), Setting.RESERVE: str(case.facts.spare + short)}


def _more_host_memory(case: Case) -> Settings | None:
    """Only of what the operator chose itself: what the user wrote is the user's to change."""
    current = case.now.host_memory or case.facts.host_memory
    if case.model.memory is not None or not current:
        return None
    return {Setting.HOST_MEMORY: str(current * 3 // 2)}


def _more_shared_memory(case: Case) -> Settings | None:
    current = case.now.shared_memory or 0
    wanted = max(2 * (case.verdict.numbers.required or 0), 4 * GIB, 2 * current)
    return {Setting.SHARED_MEMORY: str(min(wanted, MAX_SHM))} if current < min(wanted, MAX_SHM) else None


def _more_time(case: Case) -> Settings | None:
    return {Setting.START_TIMEOUT: str(round(case.now.start_timeout or case.facts.start_timeout) * 2)}


_CHANGES = {
    Rung.PIN_KV_CACHE: _pin_kv_cache,
    Rung.LOWER_KV_CACHE: _lower_kv_cache,
    Rung.REDUCE_CONTEXT: _reduce_context,
    Rung.REDUCE_BATCH: _reduce_batch,
    Rung.REDUCE_GRAPHS: _reduce_graphs,
    Rung.EAGER: _eager,
    Rung.GROW_SHARE: _grow_share,
    Rung.MOVE: _move,
    Rung.YIELD: _yield,
    Rung.MORE_HOST_MEMORY: _more_host_memory,
    Rung.MORE_SHARED_MEMORY: _more_shared_memory,
    Rung.MORE_TIME: _more_time,
}
