"""From the keys of a `config.json` to a ModelConfig: the one place that knows how models name their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cotenant.core.estimate.configkeys import Json, names, number, part
from cotenant.core.estimate.families import FAMILIES, Family
from cotenant.core.estimate.layers import blocks
from cotenant.core.estimate.modelconfig import ModelConfig
from cotenant.core.estimate.quantization import quantization
from cotenant.core.estimate.rotary import rotary_rows
from cotenant.core.estimate.tower import tower

_NESTED = ("text_config", "llm_config", "language_config", "language_model_config")
_ALIASES = {
    "n_embd": "hidden_size", "d_model": "hidden_size", "n_layer": "num_hidden_layers", "num_layers": "num_hidden_layers",
    "n_layers": "num_hidden_layers", "n_head": "num_attention_heads", "n_heads": "num_attention_heads",
    "n_inner": "intermediate_size", "ffn_dim": "intermediate_size", "ffn_hidden_size": "intermediate_size",
    "n_positions": "max_position_embeddings", "seq_length": "max_position_embeddings", "max_seq_len": "max_position_embeddings",
    "num_kv_heads": "num_key_value_heads", "n_head_kv": "num_key_value_heads", "word_embed_proj_dim": "hidden_size",
    "multi_query_group_num": "num_key_value_heads", "padded_vocab_size": "vocab_size",
}  # fmt: skip
_UNKNOWN = Family(bias=None, out_bias=None, mlp_bias=None)


def parse_config(config: Json, *, checkpoint_bytes: int | None = None, source: str = "config.json") -> ModelConfig:
    """What memory depends on; ValueError names the key that is missing or wrong."""
    if not isinstance(config, Mapping):
        raise ValueError("the config is not a JSON object")
    text = _text(config)
    kind = str(text.get("model_type") or config.get("model_type") or "")
    family = FAMILIES.get(kind)
    known = family is not None
    family = family or _UNKNOWN
    keys = {**dict(family.defaults), **text}
    hidden = number(keys, "hidden_size")
    architecture = next(iter(names(config, "architectures")), "") or kind or "unknown"
    notes = () if known else (f'"{kind or architecture}" is not a model type we know: counted as a generic decoder',)
    seen = tower(config, hidden)
    return ModelConfig(
        architecture=str(architecture),
        known=known,
        hidden=hidden,
        vocab=number(keys, "vocab_size"),
        tied=_tied(config, text, family),
        max_position=_positions(keys, kind),
        dtype_bytes=_dtype_bytes(config, text),
        blocks=blocks(keys, kind, family),
        norms_per_layer=2 if kind == "falcon" and keys.get("new_decoder_architecture") else family.norms,
        norm_bias=family.norm_bias,
        norm_parameters=family.norm_parameters,
        head_bias=family.head_bias,
        learned_positions=_learned(keys, kind),
        rotary_dim=_rotary(keys, kind, hidden),
        rotary_rows=rotary_rows(keys, kind),
        tower=seen,
        quantization=quantization(config, text),
        checkpoint_bytes=checkpoint_bytes,
        source=source,
        notes=notes,
    )


def _text(config: Json) -> dict[str, Any]:
    """The language model's part, with the usual names for its keys."""
    config = part(config, "thinker_config") or config
    nested = next((found for name in _NESTED if (found := part(config, name))), config)
    text = dict(nested)
    for alias, name in _ALIASES.items():
        if alias in text and text.get(name) is None:
            text[name] = text[alias]
    return {name: value for name, value in text.items() if value is not None}


def _tied(config: Json, text: Json, family: Family) -> bool:
    for where in (text, config):
        if isinstance(value := where.get("tie_word_embeddings"), bool):
            return value
    return family.tied


def _dtype_bytes(config: Json, text: Json) -> int:
    """Bytes of one number in the checkpoint."""
    name = text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or config.get("torch_dtype")
    return 4 if name in ("float32", "torch.float32", "float") else 2


def _positions(keys: Json, kind: str) -> int:
    """The longest context, as vLLM derives it (`_get_and_verify_max_len`)."""
    longest = number(keys, "max_position_embeddings", 2048)
    scaling = part(keys, "rope_scaling") or part(keys, "rope_parameters")
    rope, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
    if (
        not isinstance(factor, int | float)
        or isinstance(factor, bool)
        or not 0 < factor < 1e6
        or kind.startswith("gemma3")
    ):
        return longest
    if rope == "yarn":
        return int(number(scaling, "original_max_position_embeddings", longest) * factor)
    return int(longest * factor) if rope in ("linear", "dynamic") else longest


def _learned(keys: Json, kind: str) -> int:
    """Rows of a learned position table."""
    if kind == "gpt2":
        return number(keys, "max_position_embeddings", 1024)
    return number(keys, "max_position_embeddings", 2048) + 2 if kind == "opt" else 0


def _rotary(keys: Json, kind: str, hidden: int) -> int:
    if kind in ("gpt2", "opt"):
        return 0
    if "qk_rope_head_dim" in keys:
        return number(keys, "qk_rope_head_dim")
    width = number(keys, "head_dim", hidden // max(1, number(keys, "num_attention_heads")))
    turned = keys.get("partial_rotary_factor", keys.get("rotary_pct", 1.0))
    return int(width * turned) if isinstance(turned, int | float) and 0 <= turned <= 1 else width
