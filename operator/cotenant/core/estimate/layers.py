"""The decoder layers a config describes: which attention and which MLP each has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from cotenant.core.estimate.configkeys import Json, flag, names, number
from cotenant.core.estimate.families import Family
from cotenant.core.estimate.modelconfig import Attention, AttentionKind, Block, Latent, Mlp, QKNorm, State

T = TypeVar("T")
MOST_LAYERS = 4096
_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")


def blocks(keys: Json, kind: str, family: Family) -> tuple[Block, ...]:
    """All layers, equal ones counted together, in the order in which they first appear."""
    count = number(keys, "num_hidden_layers")
    if not 0 < count <= MOST_LAYERS:
        raise ValueError(f'"num_hidden_layers" is {count}: 1 to {MOST_LAYERS} are believable')
    counted: dict[tuple[Attention, Mlp], int] = {}
    attentions = _attentions(keys, kind, family, count)
    for index, attention in enumerate(attentions):
        layer = (attention, _mlp(keys, kind, family, index))
        counted[layer] = counted.get(layer, 0) + 1
    return tuple(Block(times, *layer) for layer, times in counted.items())


# ------------------------------------------------------------------------------------------------------------ attention
def _attentions(keys: Json, kind: str, family: Family, count: int) -> list[Attention]:
    """One attention for each layer."""
    full = _full(keys, kind, family)
    window = number(keys, "sliding_window", 0)
    if kind == "llama4_text":
        chunked = _windowed(full, AttentionKind.CHUNKED, number(keys, "attention_chunk_size"))
        rotary = keys.get("no_rope_layers") or [(index + 1) % 4 != 0 for index in range(count)]
        return [chunked if rotates else full for rotates in _stretched(rotary, count)]
    types = names(keys, "layer_types") or _pattern(keys, count)
    if types:
        return [_typed(each, full, keys, window) for each in _stretched(types, count)]
    if window and flag(keys, "use_sliding_window", not kind.startswith("qwen")):
        return [_windowed(full, AttentionKind.SLIDING, window)] * count
    return [full] * count


def _stretched(values: Sequence[T], count: int) -> list[T]:
    return [values[index % len(values)] for index in range(count)]


def _pattern(keys: Json, count: int) -> tuple[str, ...]:
    """Layer types that a config gives as "each n-th is full"."""
    if every := number(keys, "full_attention_interval", 0):
        return tuple("full_attention" if (index + 1) % every == 0 else "linear_attention" for index in range(count))
    every = keys.get("sliding_window_pattern")  # type: ignore[assignment]
    if isinstance(every, str) and every:  # EXAONE 4: "LLLG"
        return tuple("full_attention" if each == "G" else "sliding_attention" for each in _stretched(every, count))
    if isinstance(every, int) and every > 0 and keys.get("sliding_window"):
        return tuple("full_attention" if (index + 1) % every == 0 else "sliding_attention" for index in range(count))
    return ()


def _typed(name: str, full: Attention, keys: Json, window: int) -> Attention:
    """The attention that one entry of `layer_types` names."""
    if name == "sliding_attention" and window:
        return _windowed(full, AttentionKind.SLIDING, window)
    if name == "chunked_attention":
        return _windowed(full, AttentionKind.CHUNKED, number(keys, "attention_chunk_size"))
    if name == "linear_attention":
        return Attention(AttentionKind.STATE, state=_delta_net(keys))
    if name in ("mamba", "mamba2"):
        return Attention(AttentionKind.STATE, state=_mamba(keys))
    return full


def _windowed(full: Attention, kind: AttentionKind, window: int) -> Attention:
    return Attention(
        kind, full.heads, full.kv_heads, full.head_dim, window,
        bias=full.bias, out_bias=full.out_bias, norm=full.norm, gated=full.gated, sinks=full.sinks,
    )  # fmt: skip


def _full(keys: Json, kind: str, family: Family) -> Attention:
    """The attention of a layer that sees everything."""
    heads = number(keys, "num_attention_heads")
    if not heads:
        raise ValueError('"num_attention_heads" is 0')
    configured = flag(keys, "attention_bias", flag(keys, "use_qkv_bias", flag(keys, "qkv_bias", flag(keys, "bias"))))
    if number(keys, "kv_lora_rank", 0):
        latent = Latent(
            query_rank=number(keys, "q_lora_rank", 0),
            kv_rank=number(keys, "kv_lora_rank"),
            rope=number(keys, "qk_rope_head_dim", 64),
            nope=number(keys, "qk_nope_head_dim", 128),
            value=number(keys, "v_head_dim", 128),
        )
        wide = latent.rope + latent.nope
        if (
            kind == "minicpm3"
        ):  # vLLM computes keys and values from the latent first and remembers them in full, values padded
            return Attention(AttentionKind.FULL, heads, heads, wide, bias=configured, latent=latent)
        return Attention(AttentionKind.LATENT, heads, 1, wide, bias=configured, latent=latent)
    norm = family.qk_norm
    if kind in ("glm4_moe", "cohere", "stablelm") and flag(keys, "use_qk_norm", flag(keys, "qk_layernorm")):
        norm = QKNorm.FULL if kind == "cohere" else QKNorm.HEAD
    return Attention(
        AttentionKind.FULL,
        heads,
        _kv_heads(keys, kind, heads),
        number(keys, "head_dim", number(keys, "hidden_size") // heads),
        bias=configured if family.bias is None else family.bias,
        out_bias=_out_bias(keys, kind, configured) if family.out_bias is None else family.out_bias,
        norm=norm,
        gated=family.gated_query and flag(keys, "attn_output_gate", True),
        sinks=family.sinks,
    )


def _kv_heads(keys: Json, kind: str, heads: int) -> int:
    if kind == "falcon" and not flag(keys, "new_decoder_architecture"):
        return 1 if flag(keys, "multi_query", True) else heads
    return number(keys, "num_key_value_heads", heads) or heads


def _out_bias(keys: Json, kind: str, configured: bool) -> bool:
    return flag(keys, "attention_out_bias", False) if kind == "seed_oss" else configured


def _delta_net(keys: Json) -> State:
    """Gated delta net (Qwen3-Next and after)."""
    key = number(keys, "linear_num_key_heads", 16) * number(keys, "linear_key_head_dim", 128)
    heads, width = number(keys, "linear_num_value_heads", 32), number(keys, "linear_value_head_dim", 128)
    value = heads * width
    return State(
        projected=2 * key + 2 * value + 2 * heads,
        inner=value,
        channels=2 * key + value,
        kernel=number(keys, "linear_conv_kernel_dim", 4),
        heads=heads,
        norm=width,
        elements=heads * width * number(keys, "linear_key_head_dim", 128),
        state_bytes=_state_bytes(keys, "mamba_ssm_dtype"),
    )


def _mamba(keys: Json) -> State:
    """Mamba 2 (Granite 4, Bamba)."""
    heads = number(keys, "mamba_n_heads", 128)
    width = number(keys, "mamba_d_head", number(keys, "mamba_expand", 2) * number(keys, "hidden_size") // heads)
    groups, size = number(keys, "mamba_n_groups", 1), number(keys, "mamba_d_state", 256)
    inner = heads * width
    return State(
        projected=2 * inner + 2 * groups * size + heads,
        inner=inner,
        channels=inner + 2 * groups * size,
        kernel=number(keys, "mamba_d_conv", 4),
        heads=heads,
        norm=inner,
        elements=inner * size,
        state_bytes=_state_bytes(keys, "mamba_ssm_cache_dtype"),
    )


def _state_bytes(keys: Json, name: str) -> int:
    """Bytes of a number of the recurrent state: what the config asks for, else the model's dtype (vLLM's `auto`)."""
    wanted = keys.get(name) or keys.get("dtype") or keys.get("torch_dtype")
    return 4 if wanted == "float32" else 2


# ------------------------------------------------------------------------------------------------------------------ MLP
def _mlp(keys: Json, kind: str, family: Family, index: int) -> Mlp:
    """What layer `index` does with each token."""
    bias = flag(keys, "mlp_bias", flag(keys, "use_bias")) if family.mlp_bias is None else family.mlp_bias
    experts = next((n for name in _EXPERTS if (n := number(keys, name, 0))), 0)
    hidden = number(keys, "hidden_size")
    if not experts or not _is_sparse(keys, kind, index):
        wide = number(keys, "intermediate_size_mlp", 0) if kind == "llama4_text" else 0
        width = wide or number(keys, "intermediate_size", 0 if experts else 4 * hidden)
        return Mlp(width, gated=family.gated, bias=bias)
    width = number(keys, "moe_intermediate_size", number(keys, "intermediate_size", 0))
    shared = number(keys, "shared_expert_intermediate_size", number(keys, "shared_intermediate_size", 0))
    if kind == "llama4_text":
        shared = width
    count = number(
        keys, "n_shared_experts", number(keys, "num_shared_experts", number(keys, "moe_num_shared_experts", 0))
    )
    return Mlp(
        shared or count * width,
        gated=family.gated,
        bias=bias,
        experts=experts,
        expert_intermediate=width,
        active=number(keys, "num_experts_per_tok", number(keys, "moe_k", 2)),
        shared_gate=family.shared_gate,
        router_bias=family.router_bias,
    )


def _is_sparse(keys: Json, kind: str, index: int) -> bool:
    """Whether layer `index` has experts."""
    if types := names(keys, "mlp_layer_types"):
        return types[index % len(types)] == "sparse"
    if index < number(keys, "first_k_dense_replace", number(keys, "moe_layer_start_index", 0)):
        return False
    if kind == "llama4_text":
        return (index + 1) % max(1, number(keys, "interleave_moe_layer_step", 1)) == 0
    only = keys.get("mlp_only_layers")
    if isinstance(only, list) and index in only:
        return False
    step = number(keys, "decoder_sparse_step", number(keys, "moe_layer_interval", number(keys, "moe_layer_freq", 1)))
    return (index + 1) % max(1, step) == 0
