"""Bytes of weights on one GPU of a tensor-parallel group: every tensor counted by its architecture's rules."""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.core.estimate.modelconfig import Attention, AttentionKind, Mlp, ModelConfig, QKNorm, Quantization
from cotenant.core.estimate.tensors import VOCAB_PADDING, Bits, mxfp4_experts, rounding, split, vocabulary_rows


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters one GPU holds, by how they may be stored."""

    linear: int = 0
    """Of attention and dense MLPs: quantized with the model."""
    experts: int = 0
    embedding: int = 0
    """Embedding and output layer: never quantized."""
    plain: int = 0
    """Norms, biases, routers, convolutions: kept as they are, mostly on every rank."""
    tower: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.linear + self.experts + self.embedding + self.plain + self.tower


def parameters(config: ModelConfig, tensor_parallel: int = 1) -> Parameters:
    """What one rank holds."""
    linear = experts = plain = 0
    for block in config.blocks:
        matrices, rest = _attention(block.attention, config.hidden, tensor_parallel)
        dense, sparse, small = _mlp(block.mlp, config.hidden, tensor_parallel)
        linear += block.count * (matrices + dense)
        experts += block.count * sparse
        plain += block.count * (rest + small)
    norms = (config.layers * config.norms_per_layer + 1) * config.hidden * (2 if config.norm_bias else 1)
    rows = vocabulary_rows(config, tensor_parallel)
    return Parameters(
        linear=linear,
        experts=experts,
        embedding=rows * config.hidden * (1 if config.tied else 2) + config.learned_positions * config.hidden,
        plain=plain + (norms if config.norm_parameters else 0) + (rows if config.head_bias else 0),
        tower=split(config.tower.parameters, tensor_parallel) if config.tower else 0,
    )


def weight_bytes(
    config: ModelConfig, tensor_parallel: int, online_bits: float | None, dtype_bytes: int, *, most: bool = False
) -> int:
    """Bytes of weights, and of what stands beside them, on one GPU, in the allocator's blocks.

    `online_bits` is what vLLM's own quantization leaves of each weight of a checkpoint that has none. `most`: with the
    kernels that pad the most.
    """
    held = parameters(config, tensor_parallel)
    stored = config.quantization or (Quantization("online", online_bits) if online_bits else None)
    plain = 8.0 * dtype_bytes
    bits = stored.bits if stored else plain
    linear = plain if stored and stored.experts_only else bits
    experts = held.experts * bits / 8
    if stored and "mxfp4" in stored.method:
        experts, bits = mxfp4_experts(config, tensor_parallel)[most], 0.0  # rounded by itself
    rest = (held.embedding + held.plain + held.tower) * dtype_bytes
    # cosines and sines of every position, in the model's dtype, once for all layers
    rotary = config.rotary_rows * config.rotary_dim * dtype_bytes
    beside = rotary + _absorbed(config, tensor_parallel, stored, dtype_bytes)
    return (
        int(held.linear * linear / 8 + experts)
        + rest
        + beside
        + rounding(config, tensor_parallel, Bits(plain, linear, bits))
    )


def checkpoint_bytes(config: ModelConfig) -> int:
    """What the checkpoint's files should hold: to compare with what they do."""
    held = parameters(config)
    padding = (-config.vocab % VOCAB_PADDING) * config.hidden * (1 if config.tied else 2)
    stored = config.quantization
    plain = 8.0 * config.dtype_bytes
    bits = stored.bits if stored else plain
    quantized = held.linear * (plain if stored and stored.experts_only else bits) + held.experts * bits
    return int(quantized / 8) + (held.embedding + held.plain + held.tower - padding) * config.dtype_bytes


def _attention(attention: Attention, hidden: int, ranks: int) -> tuple[int, int]:
    """Parameters of one layer's matrices, and of its norms, biases and the like, on one rank."""
    if attention.kind is AttentionKind.STATE:
        return _state(attention, hidden, ranks)
    if attention.latent is not None:
        return _latent(attention, hidden, ranks)
    heads = split(attention.heads, ranks)
    kv_heads = split(attention.kv_heads, ranks)  # replicated where there are more ranks than heads
    wide, narrow = heads * attention.head_dim, kv_heads * attention.head_dim
    query = wide * (2 if attention.gated else 1)
    matrices = hidden * (query + 2 * narrow) + wide * hidden
    small = (query + 2 * narrow if attention.bias else 0) + (hidden if attention.out_bias else 0)
    if attention.norm is QKNorm.HEAD:
        small += 2 * attention.head_dim
    elif attention.norm is QKNorm.FULL:
        small += wide + narrow
    return matrices, small + (heads if attention.sinks else 0)


def _latent(attention: Attention, hidden: int, ranks: int) -> tuple[int, int]:
    """MLA: the projections down are on every rank, those up are split by heads."""
    latent = attention.latent
    assert latent is not None
    heads = split(attention.heads, ranks)
    query = heads * (latent.nope + latent.rope)
    down = hidden * (latent.kv_rank + latent.rope) + hidden * latent.query_rank
    up = (latent.query_rank or hidden) * query + latent.kv_rank * heads * (latent.nope + latent.value)
    return down + up + heads * latent.value * hidden, latent.kv_rank + latent.query_rank


def _absorbed(config: ModelConfig, ranks: int, stored: Quantization | None, dtype_bytes: int) -> int:
    """MLA keeps the up-projection a second time, unpacked, where the checkpoint's is quantized (`W_UK_T`, `W_UV`)."""
    if stored is None or stored.experts_only:
        return 0
    return sum(
        block.count * latent.kv_rank * split(block.attention.heads, ranks) * (latent.nope + latent.value) * dtype_bytes
        for block in config.blocks
        if block.attention.kind is AttentionKind.LATENT and (latent := block.attention.latent) is not None
    )


def _state(attention: Attention, hidden: int, ranks: int) -> tuple[int, int]:
    """A state-space layer: projections split, its small vectors too."""
    state = attention.state
    assert state is not None
    matrices = hidden * split(state.projected, ranks) + split(state.inner, ranks) * hidden
    small = split(state.channels, ranks) * state.kernel + 3 * split(state.heads, ranks) + state.norm
    return matrices, small


def _mlp(mlp: Mlp, hidden: int, ranks: int) -> tuple[int, int, int]:
    """Parameters of the dense part, of the experts, and of routers and biases, on one rank."""
    matrices = 3 if mlp.gated else 2
    wide = split(mlp.intermediate, ranks)
    dense = matrices * hidden * wide
    small = ((matrices - 1) * wide + hidden) if mlp.bias and wide else 0
    if not mlp.experts:
        return dense, 0, small
    width = split(mlp.expert_intermediate, ranks)
    experts = mlp.experts * matrices * hidden * width
    small += mlp.experts * hidden + (mlp.experts if mlp.router_bias else 0) + (hidden if mlp.shared_gate else 0)
    if mlp.bias:
        small += mlp.experts * ((matrices - 1) * width + hidden)
    return dense, experts, small
