"""What one engine needs of each GPU of its group, before anything starts: weights, activations, graphs, KV cache, peak.

Pure: the config was read by somebody else. Every number says where it comes from and how far off it may be.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from cotenant.core.estimate import calibration as fitted
from cotenant.core.estimate.activation import activation, is_plain, kept, old_runner
from cotenant.core.estimate.figure import Figure, exact, within
from cotenant.core.estimate.kvcache import KV_BITS, Cache, cache
from cotenant.core.estimate.modelconfig import ModelConfig
from cotenant.core.estimate.quantization import ONLINE
from cotenant.core.estimate.weights import checkpoint_bytes, weight_bytes
from cotenant.core.share import GIB
from cotenant.core.vllm import LARGE, Engine


@dataclass(frozen=True, slots=True)
class Taught:
    """What an earlier start of the same engine and settings measured; None = not yet."""

    weights: int | None = None
    overrun: int | None = None


@dataclass(frozen=True, slots=True)
class Estimate:
    """What each GPU of the group must hold. Bytes."""

    weights: Figure
    activation: Figure
    """The largest step's buffers: vLLM sets them aside."""
    graphs_booked: Figure
    """What vLLM sets aside for CUDA graphs."""
    cuda_graphs: Figure
    """What they really take."""
    non_torch: Figure
    context: Figure
    """CUDA context and communication buffers: outside the share."""
    overrun: Figure
    """What the engine uses beyond its share under load, context included."""
    token_bytes: Figure
    """KV cache of one token."""
    cache: Cache
    max_model_len: int
    """The longest sequence it will be asked to serve."""

    @property
    def fixed(self) -> Figure:
        """Everything in the share that is not KV cache."""
        return self.weights.plus(self.activation).plus(self.graphs_booked).plus(self.non_torch)

    def kv_cache(self, share: int) -> Figure:
        """Bytes that a share leaves for the KV cache; below 0 = it does not even hold the rest."""
        fixed = self.fixed
        return Figure(share - fixed.value, share - fixed.high, share - fixed.low, "share - all the rest")

    def kv_tokens(self, share: int) -> Figure:
        """Tokens vLLM would say its cache holds ("GPU KV cache size")."""
        room = self.kv_cache(share)
        value, low, high = (
            self.cache.capacity(max(0, each), self.max_model_len) for each in (room.value, room.low, room.high)
        )
        return Figure(
            value, low, high, f"vLLM's blocks of {self.cache.block_bytes} bytes, {self.max_model_len} tokens a sequence"
        )

    def context_that_fits(self, share: int, limit: int) -> int:
        """The longest sequence up to `limit` that a share holds; 0 = none."""
        return self.cache.longest(max(0, self.kv_cache(share).value), limit)

    def need(self, context: int, sequences: int) -> Figure:
        """The share that serves so many sequences of so many tokens at once."""
        kept = self.cache.need(context, sequences)
        return self.fixed.plus(exact(kept, ""))

    def peak(self, share: int) -> Figure:
        """What the engine's processes hold on one GPU under load."""
        over = self.overrun
        return Figure(share + over.value, share + over.low, share + over.high, f"share + overrun, {over.source}")


@lru_cache(maxsize=4096)
def estimate(config: ModelConfig, engine: Engine, tensor_parallel: int = 1, taught: Taught | None = None) -> Estimate:
    """The need of one GPU. Settings the engine block leaves out count as rendered for a large share; see `settle`."""
    dtype = 4 if engine.dtype in ("float32", "float") else 2
    tokens = engine.max_num_batched_tokens or LARGE.max_num_batched_tokens
    sequences = engine.max_num_seqs or LARGE.max_num_seqs
    blocks = cache(config, tensor_parallel, _kv_bits(config, engine, dtype), tokens)
    step = activation(config, engine, tensor_parallel, tokens, sequences, dtype)
    booked, real = _graphs(config, engine, sequences)
    context = _context(tensor_parallel)
    overrun = _overrun(context, kept(config, tensor_parallel, tokens, sequences, dtype), step, booked, real)
    return Estimate(
        weights=_weights(config, engine, tensor_parallel, dtype) if taught is None or taught.weights is None
        else exact(taught.weights, "measured at an earlier start"),
        activation=step,
        graphs_booked=booked,
        cuda_graphs=real,
        non_torch=within(fitted.NON_TORCH if tensor_parallel == 1 else fitted.NON_TORCH_GROUP, 0.35, fitted.SOURCE),
        context=context,
        overrun=overrun if taught is None or taught.overrun is None
        else exact(taught.overrun, "measured at earlier starts"),
        token_bytes=Figure(
            blocks.token_bytes, blocks.kept_bytes or blocks.token_bytes, blocks.token_bytes, _kv_source(config, blocks)
        ),
        cache=blocks,
        max_model_len=min(engine.max_model_len or config.max_position, config.max_position),
    )  # fmt: skip


def _weights(config: ModelConfig, engine: Engine, ranks: int, dtype: int) -> Figure:
    """Counted tensor by tensor; a checkpoint's own size is believed where the architecture is not known."""
    online = None if config.quantization else ONLINE.get(engine.quantization or "")
    counted = weight_bytes(config, ranks, online, dtype)
    offloaded = (engine.cpu_offload_gb or 0) * GIB
    part, source = 0.005, f"{config.source}: every tensor of {config.architecture} counted"
    if config.tower and not config.tower.known:
        part, source = 0.03, f"{source}, its vision tower by common rules"
    if config.quantization or online:
        part, source = (
            max(part, 0.02),
            f"{source}, {(config.quantization.method if config.quantization else engine.quantization)}",
        )
    if config.quantization and not config.quantization.exact:
        part = 0.15
    if not config.known and config.checkpoint_bytes:
        counted = counted * config.checkpoint_bytes // max(1, checkpoint_bytes(config))
        part, source = (
            0.08,
            f"{config.source}: bytes of the checkpoint's files, architecture {config.architecture} not known",
        )
    elif not config.known:
        part, source = (
            0.25,
            f"{config.source}: architecture {config.architecture} not known, counted as a generic decoder",
        )
    value = max(counted - offloaded, 0)
    found = within(value, part, source)
    most = weight_bytes(config, ranks, online, dtype, most=True) - offloaded
    return replace(found, high=max(found.high, most)) if config.known else found


def _kv_bits(config: ModelConfig, engine: Engine, dtype: int) -> float:
    name = engine.kv_cache_dtype or "auto"
    if name == "auto":
        return 8.0 if config.quantization and config.quantization.kv_cache_fp8 else 8.0 * dtype
    return KV_BITS.get(name, 8.0)


def _kv_source(config: ModelConfig, kept: Cache) -> str:
    if kept.kept_bytes != kept.token_bytes:
        return f"{config.source}: all layers; low: those that see everything"
    return f"{config.source}: heads, widths and layers"


def captured_sizes(largest: int) -> int:
    """How many batch sizes vLLM captures up to the largest: 1, 2, 4, each 8 to 256, each 16 beyond."""
    small = sum(1 for size in (1, 2, 4) if size <= largest)
    return small + min(largest, 256) // 8 + max(0, largest - 256) // 16


def _graphs(config: ModelConfig, engine: Engine, sequences: int) -> tuple[Figure, Figure]:
    """What vLLM sets aside for graphs, and what they take.

    The first runner captures the largest two of each kind to see; the second sets nothing aside in vLLM 0.26, and does the same
    in later versions.
    """
    if not engine.cuda_graphs:
        none = exact(0, "no CUDA graphs")
        return none, none
    sizes = captured_sizes(engine.max_capture_size or min(2 * sequences, 512))
    source = f"{sizes} captured sizes, {fitted.SOURCE}"
    value = fitted.GRAPH_BASE + sizes * config.layers * fitted.GRAPH_LAYER
    # 1.63 times as much for phi-4 on an H100; where kernels take more in a graph, 2.4 (DeepSeek-V2-Lite) to 3.84 (GLM-4.5-Air)
    real = replace(within(value, 0.4, source), high=int((1.7 if is_plain(config) else 4) * value))
    if not old_runner(config):
        return Figure(0, 0, real.high, "vLLM 0.26 sets nothing aside with this runner; later versions do"), real
    booked = fitted.GRAPH_BOOKED_BASE + sizes * fitted.GRAPH_BOOKED
    return within(booked, 0.6, source), real


def _context(ranks: int) -> Figure:
    value = fitted.CONTEXT + (fitted.GROUP_CONTEXT if ranks > 1 else 0)
    return within(value, 0.2 if ranks <= 2 else 0.6, f"{ranks} rank{'s' if ranks > 1 else ''}, {fitted.SOURCE}")


def _overrun(context: Figure, held: Figure, step: Figure, booked: Figure, real: Figure) -> Figure:
    """Context, what torch holds and graphs, less what vLLM set aside for them. Below 0: it set aside more than it needs."""
    return Figure(
        context.value + held.value + real.value - step.value - booked.value,
        context.low + held.low + real.low - step.high - booked.high,
        context.high + held.high + real.high - step.low - booked.low,
        fitted.SOURCE,
    )
