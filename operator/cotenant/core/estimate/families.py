"""What a `model_type` fixes and its config.json need not say.

Defaults are those of the config classes of Hugging Face transformers 5; biases, norms and which layers differ are read from
its model code and vLLM 0.33's.
"""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.core.estimate.modelconfig import QKNorm


@dataclass(frozen=True, slots=True)
class Family:
    """One model_type. Where `defaults` names a key, the config may leave it out."""

    gated: bool = True
    norms: int = 2
    """Norms as wide as the hidden state in each layer."""
    norm_bias: bool = False
    norm_parameters: bool = True
    bias: bool | None = False
    """Of queries, keys and values; None = the config's `attention_bias` says it."""
    out_bias: bool | None = False
    mlp_bias: bool | None = False
    qk_norm: QKNorm = QKNorm.NONE
    tied: bool = False
    head_bias: bool = False
    sinks: bool = False
    gated_query: bool = False
    shared_gate: bool = False
    router_bias: bool = False
    defaults: tuple[tuple[str, object], ...] = ()


def _llama(**differences: object) -> Family:
    return Family(bias=None, out_bias=None, mlp_bias=None, **differences)  # type: ignore[arg-type]


_PLAIN = Family()
_QWEN2 = Family(bias=True)
_QWEN3 = Family(bias=None, qk_norm=QKNorm.HEAD, defaults=(("head_dim", 128),))
_QWEN3_NEXT = Family(
    bias=None,
    qk_norm=QKNorm.HEAD,
    gated_query=True,
    shared_gate=True,
    defaults=(("head_dim", 256), ("full_attention_interval", 4)),
)
_LAYER_NORM = Family(gated=False, norm_bias=True, bias=True, out_bias=True, mlp_bias=True)
_DEEPSEEK = Family(bias=None, router_bias=True)
_GEMMA3 = Family(
    norms=4,
    qk_norm=QKNorm.HEAD,
    tied=True,
    defaults=(
        ("vocab_size", 262208), ("num_attention_heads", 8), ("num_key_value_heads", 4), ("head_dim", 256),
        ("max_position_embeddings", 131072), ("sliding_window", 4096), ("sliding_window_pattern", 6),
    ),
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "llama": _llama(),
    "mistral": _PLAIN,
    "ministral": _PLAIN,
    "ministral3": _PLAIN,
    "cwm": _PLAIN,
    "helium": _PLAIN,
    "minicpm3": _PLAIN,
    "mixtral": Family(defaults=(("num_local_experts", 8), ("num_experts_per_tok", 2))),
    "arcee": _llama(gated=False),
    "smollm3": _llama(tied=True),
    "seed_oss": Family(bias=None, out_bias=None),
    "minicpm": _PLAIN,
    "internlm2": Family(bias=None),
    "exaone": _PLAIN,
    "ernie4_5": _llama(tied=True),
    "granite": _llama(),
    "granite_swa": _llama(),
    "granitemoe": Family(bias=None, out_bias=None),
    "granitemoeshared": Family(bias=None, out_bias=None),
    "qwen2": _QWEN2,
    "qwen2_vl": _QWEN2,
    "qwen2_vl_text": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen2_5_vl_text": _QWEN2,
    "dots_ocr": _QWEN2,
    "qwen2_moe": Family(
        bias=True,
        shared_gate=True,
        defaults=(("num_experts", 60), ("num_experts_per_tok", 4), ("decoder_sparse_step", 1)),
    ),
    "qwen3": _QWEN3,
    "qwen3_vl_text": _QWEN3,
    "qwen3_moe": _QWEN3,
    "qwen3_vl_moe_text": _QWEN3,
    "qwen3_next": _QWEN3_NEXT,
    "qwen3_5_text": _QWEN3_NEXT,
    "qwen3_5_moe_text": _QWEN3_NEXT,
    "gemma": Family(tied=True, defaults=(("head_dim", 256),)),
    "gemma2": Family(
        norms=4, tied=True, defaults=(("head_dim", 256), ("sliding_window", 4096), ("sliding_window_pattern", 2))
    ),
    "gemma3_text": _GEMMA3,
    "phi": Family(gated=False, norms=1, norm_bias=True, bias=True, out_bias=True, mlp_bias=True, head_bias=True),
    "phi3": _PLAIN,
    "phimoe": Family(norm_bias=True, bias=None, out_bias=None, head_bias=True),
    "gpt_oss": Family(
        bias=True, out_bias=True, mlp_bias=True, sinks=True, router_bias=True, defaults=(("head_dim", 64),)
    ),
    "glm": Family(bias=None, defaults=(("head_dim", 128), ("attention_bias", True))),
    "glm4": Family(norms=4, bias=None, defaults=(("head_dim", 128),)),
    "glm4_moe": Family(bias=None, router_bias=True, defaults=(("head_dim", 128),)),
    "glm4_moe_lite": _DEEPSEEK,
    "olmo": Family(bias=None, out_bias=None, norm_parameters=False),
    "olmo2": Family(bias=None, out_bias=None, qk_norm=QKNorm.FULL),
    "olmo3": Family(bias=None, out_bias=None, qk_norm=QKNorm.FULL, defaults=(("sliding_window", 4096),)),
    "olmoe": Family(bias=None, out_bias=None, qk_norm=QKNorm.FULL, defaults=(("num_experts", 64),)),
    "deepseek_v2": Family(bias=None),
    "deepseek_v3": _DEEPSEEK,
    "youtu": Family(bias=None),
    "kimi_k2": _DEEPSEEK,
    "dots1": Family(bias=None, qk_norm=QKNorm.HEAD, router_bias=True),
    "llama4_text": Family(bias=None, out_bias=None, defaults=(("attention_chunk_size", 8192), ("head_dim", 128))),
    "cohere": Family(norms=1, tied=True, bias=None, out_bias=None),
    "cohere2": Family(norms=1, tied=True, bias=None, out_bias=None, defaults=(("sliding_window_pattern", 4),)),
    "starcoder2": Family(gated=False, norm_bias=True, bias=True, out_bias=True, mlp_bias=True, tied=True),
    "gpt_neox": _LAYER_NORM,
    "gpt2": Family(gated=False, norm_bias=True, bias=True, out_bias=True, mlp_bias=True, tied=True),
    "opt": Family(gated=False, norm_bias=True, bias=True, out_bias=True, mlp_bias=True, tied=True),
    "stablelm": Family(norm_bias=True, bias=None),
    "falcon": Family(gated=False, norm_bias=True, norms=1, tied=True),
    "nemotron": Family(gated=False, norm_bias=True),
    "exaone4": Family(qk_norm=QKNorm.HEAD, defaults=(("sliding_window_pattern", 4),)),
    "hunyuan_v1_dense": Family(bias=None, out_bias=None, qk_norm=QKNorm.HEAD),
    "ernie4_5_moe": Family(bias=None, out_bias=None, router_bias=True, tied=True),
    "minimax_m2": Family(qk_norm=QKNorm.FULL, router_bias=True),
    "apertus": Family(gated=False, bias=None, out_bias=None, qk_norm=QKNorm.HEAD),
}
