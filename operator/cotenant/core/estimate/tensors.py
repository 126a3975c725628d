"""The tensors one rank allocates, fused as vLLM fuses them, and what PyTorch's allocator takes for each.

"Model loading took" counts blocks of the allocator, not bytes of tensors (`DeviceMemoryProfiler`, vLLM 0.26 to 0.33).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cotenant.core.estimate.modelconfig import Attention, AttentionKind, Mlp, ModelConfig
from cotenant.core.share import MIB

_ROUNDED = 10 * MIB
"""From this size on a block is a multiple of 2 MiB (PyTorch `CUDACachingAllocator`: kMinLargeAlloc, kRoundLarge)."""
_NEVER_SPLIT = 20 * MIB
"""vLLM loads a model with `max_split_size_mb:20`: a larger block keeps what its tensor leaves (`Worker.load_model`)."""
VOCAB_PADDING = 64
"""vLLM pads the embedding to a multiple of it (`DEFAULT_VOCAB_PADDING_SIZE`)."""


@dataclass(frozen=True, slots=True)
class Bits:
    """Bits of one number, by what it belongs to."""

    plain: float
    """Embedding, output layer, norms, routers."""
    linear: float
    experts: float


def allocated(size: int) -> int:
    """Bytes the allocator takes for a tensor of so many, while a model is loaded."""
    if size < _ROUNDED:
        return size
    whole = -(-size // (2 * MIB)) * 2 * MIB
    return size if size < _NEVER_SPLIT and whole - size > MIB else whole


def rounding(config: ModelConfig, ranks: int, bits: Bits) -> int:
    """Bytes of all blocks beyond those of the tensors in them."""
    return sum(count * (allocated(size) - size) for count, size in tensors(config, ranks, bits))


def tensors(config: ModelConfig, ranks: int, bits: Bits) -> Iterator[tuple[int, int]]:
    """How many of which size, in bytes: matrices and their scales, the rest is small."""
    for block in config.blocks:
        dense, experts = _mlp(block.mlp, config.hidden, ranks)
        for each, numbers in (
            (bits.linear, [*_attention(block.attention, config.hidden, ranks), *dense]),
            (bits.experts, experts),
        ):
            for count in numbers:
                yield block.count, count * int(each) // 8
                yield block.count, int(count * (each % 1) / 8)
    yield 1 if config.tied else 2, int(vocabulary_rows(config, ranks) * config.hidden * bits.plain / 8)


def vocabulary_rows(config: ModelConfig, ranks: int) -> int:
    """Rows of the embedding on one rank."""
    return split(-(-config.vocab // VOCAB_PADDING) * VOCAB_PADDING, ranks)


def split(count: int, ranks: int) -> int:
    """A rank's part."""
    return -(-count // ranks)


def _attention(attention: Attention, hidden: int, ranks: int) -> list[int]:
    """Numbers in each matrix of a layer: queries, keys and values together, then the output."""
    heads = split(attention.heads, ranks)
    if attention.kind is AttentionKind.STATE:
        state = attention.state
        return [hidden * split(state.projected, ranks), split(state.inner, ranks) * hidden] if state else []
    if latent := attention.latent:
        query, down = heads * (latent.nope + latent.rope), latent.kv_rank + latent.rope
        first = (
            [hidden * (latent.query_rank + down), latent.query_rank * query]
            if latent.query_rank
            else [hidden * query, hidden * down]
        )
        return [*first, latent.kv_rank * heads * (latent.nope + latent.value), heads * latent.value * hidden]
    wide, narrow = heads * attention.head_dim, split(attention.kv_heads, ranks) * attention.head_dim
    return [hidden * (wide * (2 if attention.gated else 1) + 2 * narrow), wide * hidden]


def _mlp(mlp: Mlp, hidden: int, ranks: int) -> tuple[list[int], list[int]]:
    """Numbers in each dense matrix of a layer, and in those of all its experts: gate and up together, then down."""
    halves = 2 if mlp.gated else 1
    wide, width = split(mlp.intermediate, ranks), split(mlp.expert_intermediate, ranks)
    dense = [halves * wide * hidden, wide * hidden] if wide else []
    experts = [mlp.experts * halves * width * hidden, mlp.experts * width * hidden] if mlp.experts else []
    return dense, experts


# ---------------------------------------------------------------------------------------------------------------- MXFP4
def mxfp4_experts(config: ModelConfig, ranks: int) -> tuple[int, int]:
    """Bytes of MXFP4 experts as vLLM keeps them on one rank: on Hopper, and the most on any card.

    gpt-oss runs on Triton's kernels on Hopper (`_get_priority_backends_for_gpt_oss`): rows of scales padded to 256 by 4
    (`HopperMXScaleLayout`, `_swizzle_mxfp4`), biases in 32 bits. Others, and gpt-oss on cards without these kernels, run on
    Marlin's: hidden padded to 256, widths to 128 (`mxfp4_round_up_hidden_size_and_intermediate_size`).
    """
    hopper = marlin = 0
    for block in config.blocks:
        mlp = block.mlp
        if not mlp.experts:
            continue
        halves, width = 2 if mlp.gated else 1, split(mlp.expert_intermediate, ranks)
        hidden, padded = _to(config.hidden, 256), _to(width, 128)
        marlin += block.count * mlp.experts * (halves + 1) * hidden * padded * 17 // 32
        inner = _to(width, 64)
        up = halves * inner * config.hidden // 2, _to(halves * inner, 256) * _to(config.hidden // 32, 4)
        down = config.hidden * inner // 2, _to(config.hidden, 256) * _to(inner // 32, 4)
        biases = 2 * (halves * inner + config.hidden) if mlp.bias else 0  # the other half of 32 bits
        whole = sum(allocated(mlp.experts * size) for size in (*up, *down))
        hopper += block.count * (whole + mlp.experts * biases)
    triton = config.architecture.startswith("GptOss")
    return (hopper if triton else marlin), max(hopper, marlin)


def _to(size: int, step: int) -> int:
    return -(-size // step) * step
