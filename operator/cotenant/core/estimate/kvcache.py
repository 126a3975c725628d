"""The KV cache as vLLM lays it out: blocks of tokens, layers of one kind in groups, every group drawing on one pool.

After vLLM 0.33 (`v1/core/kv_cache_planning.py`, `v1/kv_cache_interface.py`). Bytes are those of one GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.core.estimate.modelconfig import Attention, AttentionKind, ModelConfig

BLOCK = 16
"""Tokens of a block (`CacheConfig.DEFAULT_BLOCK_SIZE`)."""
_LATENT_BLOCK = 64
"""FlashMLA, the backend of MLA models on Hopper, takes no other."""
_STEPS_IN_FLIGHT = 2
"""Batches that may be scheduled at once with asynchronous scheduling, vLLM's default."""
_STATES_PER_SEQUENCE = 1
"""State pages one sequence holds in each layer: vLLM 0.26 turns prefix caching off for models with states (`mamba_cache_mode` none);
with it there are two."""

KV_BITS = {
    "fp8": 8.0, "fp8_e4m3": 8.0, "fp8_e5m2": 8.0, "fp8_inc": 8.0, "fp8_ds_mla": 8.0, "bfloat16": 16.0, "float16": 16.0,
    "nvfp4": 4.5, "int8_per_token_head": 8.25, "fp8_per_token_head": 8.25, "int4_per_token_head": 4.25, "float32": 32.0,
}  # fmt: skip
"""Bits of one number in the cache, by `--kv-cache-dtype`."""


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that share a block table; the same number of layers in each group of a cache."""

    kind: AttentionKind
    window: int
    block: int
    """Tokens of one block."""
    count: int
    """Groups of this kind."""

    def blocks(self, tokens: int, in_flight: int) -> int:
        """Blocks one sequence may hold in one group, at most."""
        if self.kind is AttentionKind.STATE:
            return _STATES_PER_SEQUENCE
        if self.kind is AttentionKind.SLIDING:
            return -(-min(self.window - 1 + in_flight, tokens) // self.block) + 1
        if self.kind is AttentionKind.CHUNKED:
            return -(-min(self.window + in_flight, tokens) // self.block)
        return -(-tokens // self.block)

    def shared_blocks(self, tokens: int, sequences: int, in_flight: int) -> int:
        """Blocks so many sequences hold together: what is in flight is shared between them."""
        alone = self.blocks(tokens, in_flight)
        if self.kind in (AttentionKind.SLIDING, AttentionKind.CHUNKED):
            resting = min(-(-self.window // self.block) + 1, alone)
            return min(sequences * alone, sequences * resting + -(-in_flight // self.block))
        return sequences * alone


@dataclass(frozen=True, slots=True)
class Cache:
    """How a model's KV cache is cut up on one GPU."""

    block_bytes: int
    """Bytes of one block over all layers of a group; 0 = the model keeps no cache."""
    groups: tuple[Group, ...]
    token_bytes: int
    """Bytes one more token takes as it is written, in all layers."""
    kept_bytes: int
    """Bytes of these that are kept beyond every window."""
    in_flight: int
    """Tokens that may be scheduled at once."""

    def sequence_blocks(self, tokens: int) -> int:
        """Blocks one sequence of so many tokens may hold."""
        return sum(group.count * group.blocks(tokens, self.in_flight) for group in self.groups)

    def need(self, tokens: int, sequences: int) -> int:
        """Bytes for so many sequences of so many tokens each, the null block included."""
        blocks = sum(group.count * group.shared_blocks(tokens, sequences, self.in_flight) for group in self.groups)
        return self.block_bytes * (max(blocks, self.sequence_blocks(tokens)) + 1)

    def capacity(self, memory: int, max_model_len: int) -> int:
        """Tokens vLLM says it holds ("GPU KV cache size") in so many bytes."""
        wanted = self.sequence_blocks(max_model_len)
        blocks = memory // self.block_bytes if self.block_bytes else 0
        return blocks * max_model_len // wanted if wanted and blocks > 0 else 0

    def longest(self, memory: int, limit: int) -> int:
        """The longest sequence up to `limit` that fits; 0 = not one token."""
        shortest, longest = 0, limit
        while shortest < longest:
            middle = (shortest + longest + 1) // 2
            if self.need(middle, 1) <= memory:
                shortest = middle
            else:
                longest = middle - 1
        return shortest


def cache(config: ModelConfig, tensor_parallel: int, kv_bits: float, batched_tokens: int) -> Cache:
    """The cache of a model whose numbers take `kv_bits` each."""
    layers: dict[tuple[AttentionKind, int, int], int] = {}
    state_page = 0
    for block in config.blocks:
        attention = block.attention
        if attention.shared:
            continue
        if attention.kind is AttentionKind.STATE:
            state_page = max(state_page, _state_bytes(attention, tensor_parallel))
        kind = (attention.kind, attention.window, _token_bytes(attention, tensor_parallel, kv_bits))
        layers[kind] = layers.get(kind, 0) + block.count
    widest = max((token for _, _, token in layers), default=0)
    tokens = _LATENT_BLOCK if any(kind is AttentionKind.LATENT for kind, _, _ in layers) else BLOCK
    if state_page and widest:
        # the block of attention grows until its page holds a state; the state's page is padded to it
        tokens *= -(-state_page // (tokens * widest))
    page = max(widest * tokens, state_page)
    size = _group_size(tuple(layers.values()))
    groups = tuple(
        Group(kind, window, _block_tokens(tokens, page, token), -(-count // size))
        for (kind, window, token), count in sorted(layers.items())
    )
    return Cache(
        block_bytes=page * size,
        groups=groups,
        token_bytes=sum(token * count for (_, _, token), count in layers.items()),
        kept_bytes=sum(token * count for (_, window, token), count in layers.items() if not window),
        in_flight=_STEPS_IN_FLIGHT * batched_tokens,
    )


def _group_size(counts: tuple[int, ...]) -> int:
    """Layers of a group: the rarest kind's number, or the commonest's where they are close (vLLM's rule)."""
    if not counts:
        return 0
    return max(counts) if max(counts) < 1.5 * min(counts) else min(counts)


def _block_tokens(tokens: int, page: int, token_bytes: int) -> int:
    """Tokens of a block of a layer with smaller entries: vLLM lengthens its blocks where the pages divide."""
    if token_bytes and page % (tokens * token_bytes) == 0:
        return page // token_bytes
    return tokens


def _token_bytes(attention: Attention, ranks: int, bits: float) -> int:
    """Bytes of one token in one layer."""
    if attention.kind is AttentionKind.STATE:
        return 0
    if attention.kind is AttentionKind.LATENT and attention.latent is not None:
        return int((attention.latent.kv_rank + attention.latent.rope) * bits / 8)
    return int(2 * -(-attention.kv_heads // ranks) * attention.head_dim * bits / 8)


def _state_bytes(attention: Attention, ranks: int) -> int:
    """Bytes of one sequence's state in one layer: the convolution's in 16 bits, the recurrent one."""
    state = attention.state
    assert state is not None
    convolution = -(-state.channels // ranks) * (state.kernel - 1) * 2
    return convolution + -(-state.elements // ranks) * state.state_bytes
