"""One vLLM engine as a state machine over its cards: what a start takes, when, and how it ends. Time is an argument."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random

from tests.sim import texts
from tests.sim.argv import Command
from tests.sim.card import Card, OutOfDeviceMemoryError, Process
from tests.sim.models import Footprint, ModelSpec, footprint


class Phase(StrEnum):
    """Where a start is. Everything before SERVING may allocate at any moment."""

    IMPORTING = "importing"
    LOADING = "loading"
    PROFILING = "profiling"
    CAPTURING = "capturing"
    SERVING = "serving"
    DYING = "dying"
    """Its engine core is gone and its memory free; the API server has not noticed yet."""
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Exit:
    """How the container ended."""

    code: int
    reason: str
    """As the kubelet says it: Completed, Error, OOMKilled."""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one start."""

    load: float
    """From container start to Ready."""
    creep: float = 120.0
    """From Ready until all of the overrun under load is taken."""
    noticing: float = 5.0
    """From the engine core's death to the API server's end (5 to 6 s measured)."""


_SERIALS = 4
_WORDS = {"hang", "unready", "die", "kill-worker", "cuda-oom", "oom-killed", "never-ready", "slow", "exit", "says"}


@dataclass(slots=True)
class Engine:
    """One container of one replica."""

    name: str
    """`namespace/pod`."""
    command: Command
    model: ModelSpec
    cards: tuple[Card, ...]
    """One per rank, in order of ranks."""
    pids: tuple[int, ...]
    timing: Timing
    chance: Random
    unix: Callable[[float], float]
    """Simulated seconds to Unix seconds, for the log's stamps."""
    version: str = "0.33.0"
    over_used: Callable[[Card, Engine], None] = lambda _card, _engine: None
    """Told when an allocation failed: the memory of this card is over."""
    phase: Phase = Phase.IMPORTING
    hang: bool = False
    ready: bool = False
    exit: Exit | None = None
    log: list[str] = field(default_factory=list)
    kv_bytes: int = 0
    initial_free: tuple[int, ...] = ()
    leak: int = 0
    """Bytes that stay on the card after its end."""
    leaked: list[tuple[Card, int]] = field(default_factory=list)
    _plan: deque[tuple[float, Callable[[float], None]]] = field(default_factory=deque)
    _print: Footprint | None = None

    # ------------------------------------------------------------------------------------------------------- the clock
    @property
    def next_at(self) -> float:
        """When it does something next; infinity when nothing is due."""
        return self._plan[0][0] if self._plan else math.inf

    def advance(self, now: float) -> None:
        """Do all that is due by now."""
        while self._plan and self._plan[0][0] <= now:
            at, step = self._plan.popleft()
            step(at)

    @property
    def starting(self) -> bool:
        """It may allocate at any moment."""
        return self.phase in (Phase.IMPORTING, Phase.LOADING, Phase.PROFILING, Phase.CAPTURING)

    def share_on(self, card: Card) -> int:
        """Bytes of this card it was told it may use."""
        return math.ceil(card.usable * self.command.utilization)

    # ----------------------------------------------------------------------------------------------------------- start
    def start(self, now: float) -> None:
        """The container's process begins."""
        self.log += texts.banner(self.unix(now), self.command, self.version)
        command = self.command
        if not 0 < command.utilization <= 1:
            self._fail_at_once(now, "(APIServer pid=1) pydantic_core._pydantic_core.ValidationError: 1 validation error for CacheConfig\n"
                               "(APIServer pid=1) gpu_memory_utilization\n(APIServer pid=1)   Input should be "
                               f"{'less than or equal to 1' if command.utilization > 1 else 'greater than 0'} "
                               f"[type=less_than_equal, input_value={command.utilization}, input_type=float]")  # fmt: skip
            return
        if command.tensor_parallel > len(self.cards):
            if not self.cards:
                self._fail_at_once(now, "(APIServer pid=1) RuntimeError: Failed to infer device type, please set the environment variable "
                                   "`VLLM_LOGGING_LEVEL=DEBUG` to turn on verbose logging to help debug the issue.")  # fmt: skip
                return
            self._fail_at_once(now, f"(APIServer pid=1) ValueError: World size ({command.tensor_parallel}) is larger than the number of "
                               f"available GPUs ({len(self.cards)}) in this node. If this is intentional and you are using: ray, set "
                               "'--distributed-executor-backend ray'")  # fmt: skip
            return
        self.cards = self.cards[: command.tensor_parallel]
        batched = command.max_num_batched_tokens or self.cards[0].product.batched_tokens
        self._print = footprint(
            self.model, ranks=command.tensor_parallel, batched_tokens=batched, quantization=command.quantization,
            kv_dtype=command.kv_cache_dtype, eager=command.eager, capture_size=command.capture_size, chance=self.chance,
        )  # fmt: skip
        load = self.timing.load

        def at(part: float, step: Callable[[float], None]) -> None:
            self._plan.append((now + part * load, step))

        at(0.15, self._init_device)
        for i in range(_SERIALS):
            at(0.20 + 0.35 * i / (_SERIALS - 1), self._load_weights)
        at(0.58, self._profile_begins)
        at(0.66, self._profile_ends)
        at(0.92, self._capture)
        at(1.0, self._serve)

    def _init_device(self, now: float) -> None:
        """The context, then the check against free memory (the own context is already gone from free then)."""
        assert self._print
        self.phase = Phase.LOADING
        self.log += texts.core_started(self.unix(now), self.command, self.version)
        if not self._take(now, [self._print.context] * len(self.cards)):
            return
        self.initial_free = tuple(card.free for card in self.cards)
        for rank, card in enumerate(self.cards):
            wanted = math.ceil(card.usable * self.command.utilization)
            if card.free < wanted:
                self._fail(now, texts.not_enough_free(rank, card.free, card.usable, self.command.utilization, wanted))
                return
        self.log.append(
            texts.core(self.unix(now), "gpu_model_runner.py:4621", f"Starting to load model {self.command.model}...")
        )

    def _load_weights(self, now: float) -> None:
        assert self._print
        self._take(now, [self._print.weights // _SERIALS] * len(self.cards))

    def _profile_begins(self, now: float) -> None:
        assert self._print
        self.log.append(texts.model_loaded(self.unix(now), self._print.weights, 0.4 * self.timing.load))
        self.phase = Phase.PROFILING
        self._take(now, [self._print.activation] * len(self.cards))

    def _profile_ends(self, now: float) -> None:
        """What is left for KV, by whole-device free memory: a neighbour's bytes count as ours, in both directions."""
        assert self._print
        command, foot = self.command, self._print
        if command.kv_cache_memory_bytes is not None:
            kv = command.kv_cache_memory_bytes
            self.log.append(texts.kv_pinned(self.unix(now), self.initial_free[0], kv))
        else:
            left = []
            for card, initial in zip(self.cards, self.initial_free, strict=True):
                # The activations' bytes are the allocator's own: they are given back before the second look.
                free = card.free + foot.activation
                if initial < free:
                    self._fail(now, texts.profiling_disturbed(initial, free))
                    return
                requested = math.ceil(card.usable * command.utilization)
                left.append(requested - (initial - free) - foot.activation - foot.graphs)
            kv = min(left)
            self.log.append(texts.kv_available(self.unix(now), kv))
        if (fault := self._too_small(kv)) is not None:
            self._fail(now, fault)
            return
        self.kv_bytes = kv
        tokens = kv // foot.kv_per_token // 16 * 16
        length = self._length(kv)
        if command.auto_max_model_len and length < self.model.max_len:
            self.log.append(texts.auto_fit(self.unix(now), self.model.max_len, length, kv))
        self.log.append(texts.kv_size(self.unix(now), tokens, length))
        self.phase = Phase.CAPTURING
        self._take(now, [kv] * len(self.cards))

    def _length(self, kv: int) -> int:
        assert self._print
        if self.command.auto_max_model_len:
            return min(self.model.max_len, max(1, kv // self._print.kv_per_token // 16 * 16))
        return self.command.max_model_len or self.model.max_len

    def _too_small(self, kv: int) -> str | None:
        assert self._print
        per_token = self._print.kv_per_token
        if kv <= 0:
            return texts.no_cache_blocks()
        if self.command.auto_max_model_len:
            return texts.cannot_auto_fit(kv) if kv < 16 * per_token else None
        length = self.command.max_model_len or self.model.max_len
        needed = math.ceil(length / 16) * 16 * per_token
        if needed <= kv:
            return None
        return texts.cache_too_small(length, needed, kv, kv // per_token // 16 * 16, self.version)

    def _capture(self, now: float) -> None:
        """Graphs inside the share, kernels and buffers outside of it."""
        assert self._print
        foot = self._print
        if not self._take(now, [foot.graphs + foot.late] * len(self.cards)):
            return
        card, initial = self.cards[0], self.initial_free[0]
        requested = math.ceil(card.usable * self.command.utilization)
        consumed = foot.weights + (130 << 20) * (1 if len(self.cards) == 1 else 4)
        unix = self.unix(now)
        if not self.command.eager:
            self.log.append(texts.graphs_captured(unix, 0.1 * self.timing.load, foot.graphs))
        report = texts.free_memory_report(
            initial,
            card.usable,
            self.command.utilization,
            requested,
            consumed,
            foot.activation,
            foot.graphs,
            self.kv_bytes,
        )
        self.log.append(texts.core(unix, "gpu_worker.py:1044", report))
        self.log.append(texts.core_ready(unix, 0.4 * self.timing.load))

    def _serve(self, now: float) -> None:
        assert self._print
        if self.hang:
            return
        self.log += texts.startup_complete(self.unix(now))
        self.phase, self.ready = Phase.SERVING, True
        if self._print.creep:
            for i in range(1, _SERIALS + 1):
                self._plan.append((now + self.timing.creep * i / _SERIALS, self._creep))

    def _creep(self, now: float) -> None:
        assert self._print
        self._take(now, [self._print.creep // _SERIALS] * len(self.cards))

    def _take(self, now: float, wanted: list[int]) -> bool:
        """Allocate on every rank; where it is not there, torch's error and its consequence."""
        for rank, (card, pid, amount) in enumerate(zip(self.cards, self.pids, wanted, strict=False)):
            process = card.open(Process(pid, "VLLM::EngineCore", pod=self.name, tenant=True))
            try:
                card.take(pid, amount)
            except OutOfDeviceMemoryError:
                self.over_used(card, self)
                others = tuple((p.pid, p.used) for p in card.processes.values() if p.pid != pid)
                cause = texts.out_of_memory(rank, amount, card.usable, card.free, process.used, others)
                self._die(now, cause) if self.phase is Phase.SERVING else self._fail(now, cause)
                return False
        return True

    # ------------------------------------------------------------------------------------------------------------- end
    def _release(self) -> None:
        for card, pid in zip(self.cards, self.pids, strict=False):
            had = card.end(pid)
            if self.leak and had:
                self.leaked.append((card, min(had, self.leak)))

    def _end(self, code: int, reason: str, message: str = "") -> None:
        self._plan.clear()
        self._release()
        self.phase, self.ready = Phase.ENDED, False
        self.exit = Exit(code, reason, message)

    def _fail_at_once(self, now: float, text: str) -> None:
        self.log += text.split("\n")
        self._plan.append((now + 0.1 * self.timing.load, lambda _: self._end(1, "Error")))

    def _fail(self, now: float, cause: str) -> None:
        """A start that fails: exit 1 whatever the cause; the memory is back at once, the process a moment later."""
        self.log += texts.start_failed(self.unix(now), cause)
        self._plan.clear()
        self._release()
        self.phase = Phase.DYING
        self._plan.append((now + min(2.0, 0.02 * self.timing.load), lambda _: self._end(1, "Error")))

    def _die(self, now: float, cause: str = "") -> None:
        """A run-time death: memory back at once, exit 0 when the API server notices."""
        self.log += texts.engine_died(self.unix(now), cause)
        self._plan.clear()
        self._release()
        self.phase = Phase.DYING
        self._plan.append((now + min(self.timing.noticing, self.timing.load), self._completed))

    def _completed(self, _: float) -> None:
        self._end(0, "Completed")

    def terminate(self, now: float, *, twice: bool = False) -> None:
        """SIGTERM. While serving it ends at once; during a start it is swallowed, unless a preStop hook sent one before."""
        if self.hang:
            return
        if self.phase is Phase.SERVING:
            self.log += texts.shut_down(self.unix(now))
            self._plan.clear()
            self._plan.append((now + 0.5, self._completed))
        elif self.starting and self.phase is not Phase.IMPORTING and twice:
            self.log.append("(APIServer pid=1) KeyboardInterrupt: terminated")
            self._plan.clear()
            self._plan.append((now + 4.0, lambda _: self._end(130, "Error")))

    def kill(self, *, reason: str = "Error") -> None:
        """SIGKILL; reason OOMKilled when the host's memory was over."""
        if self.phase is not Phase.ENDED:
            self._end(137, reason)

    def inject(self, fault: str, now: float) -> None:
        """Make something go wrong: see FAULTS in faults.py. ValueError for an unknown word."""
        word, _, value = fault.partition("=")
        if word not in _WORDS:
            raise ValueError(f'unknown fault "{fault}"; known: {", ".join(sorted(_WORDS))}')
        if self.phase in (Phase.ENDED, Phase.DYING):
            return
        serving = self.phase is Phase.SERVING
        if word == "oom-killed":
            self.kill(reason="OOMKilled")
        elif word in ("never-ready", "hang"):
            self.hang, self.ready = True, False
        elif word == "unready":
            self.ready = False
        elif word == "slow":
            factor = float(value or 5)
            self._plan = deque((now + (at - now) * factor, step) for at, step in self._plan)
        elif word == "exit":
            self._end(int(value or 1), "Completed" if value == "0" else "Error")
        elif word == "says":
            # ends with a text of the corpus of deaths, the way an engine in this state ends
            code, _, text = value.partition(" ")
            self.log = text.split("\n")
            self._end(int(code), "Completed" if code == "0" else "Error", text[-2048:] if code != "0" else "")
        elif word == "cuda-oom":
            card = self.cards[0] if self.cards else None
            mine = card.processes[self.pids[0]].used if card and self.pids[0] in card.processes else 0
            cause = texts.out_of_memory(
                0, 1 << 30, card.usable if card else 0, min(card.free, 300 << 20) if card else 0, mine, ()
            )
            self._die(now, cause) if serving else self._fail(now, cause)
        elif serving:
            worker = "RuntimeError: Executor failed." if word == "kill-worker" else ""
            self._die(now, worker)
        else:
            self._fail(now, "RuntimeError: Worker proc VllmWorker-0 died unexpectedly (exit code: -9)")
