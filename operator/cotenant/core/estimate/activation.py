"""The buffers of an engine's largest step: what vLLM's profiling run measures and keeps free."""

from __future__ import annotations

import json

from cotenant.core.estimate import calibration as fitted
from cotenant.core.estimate.figure import Figure
from cotenant.core.estimate.modelconfig import Block, ModelConfig
from cotenant.core.vllm import Engine


def activation(config: ModelConfig, engine: Engine, ranks: int, tokens: int, sequences: int, dtype: int) -> Figure:
    """The larger of a step of `tokens` through the widest layer, the sampler, and the vision tower on its largest images."""
    step = max((_layer(block, config.hidden, ranks) for block in config.blocks), default=0) * tokens * dtype
    sampler = logits(config, sequences, fitted.LOGIT_BYTES)
    value = max(step + fitted.ACTIVATION_BASE, sampler)
    plain = config.known and not any(
        block.mlp.experts or block.attention.latent or block.attention.state for block in config.blocks
    )
    part = 0.15 if plain else 0.5
    high = max(int(step * (1 + part)), logits(config, sequences, fitted.LOGIT_BYTES_HIGH)) + 2 * fitted.ACTIVATION_BASE
    low = int(value * (1 - part))
    if seen := _images(config, engine, tokens, dtype):
        kept = tokens * config.hidden * dtype  # the encoder's output waits for its prompt
        value, high = max(value, seen + kept), max(high, 2 * seen + kept)
        return Figure(value, low, high, f"{tokens} tokens or the largest images a step, {fitted.SOURCE}")
    return Figure(value, low, high, f"{tokens} tokens and {sequences} sequences a step, {fitted.SOURCE}")


def logits(config: ModelConfig, sequences: int, bytes_each: float) -> int:
    """One row of the vocabulary for each sequence; gathered from all ranks."""
    return int(config.vocab * sequences * bytes_each)


def _layer(block: Block, hidden: int, ranks: int) -> int:
    """Numbers one token needs at once in the widest place of a layer."""
    mlp, attention = block.mlp, block.attention
    dense = fitted.MLP_WIDTHS * -(-mlp.intermediate // ranks)
    width = -(-mlp.expert_intermediate // ranks)
    # fused experts: one buffer for both halves and, later, the output of each active expert; one for the product
    sparse = mlp.active * (max(2 * width, hidden) + width)
    if attention.latent is not None:
        heads = -(-attention.heads // ranks)
        past = heads * (2 * attention.head_dim + 2 * attention.latent.value)
    elif attention.state is not None:
        past = -(-attention.state.projected // ranks) + 2 * -(-attention.state.channels // ranks)
    else:
        past = (2 * -(-attention.heads // ranks) + 2 * -(-attention.kv_heads // ranks)) * attention.head_dim
    return max(dense + sparse, past) + fitted.HIDDEN_WIDTHS * hidden


def _images(config: ModelConfig, engine: Engine, tokens: int, dtype: int) -> int:
    """Bytes of the vision tower on the largest images it may be given at once; 0 where it is given none.

    vLLM profiles as many of the largest images as are allowed and fit into a step, at least one.
    """
    tower = config.tower
    if tower is None or not tower.patches:
        return 0
    limits, kwargs = _object(engine.limit_mm_per_prompt), _object(engine.mm_processor_kwargs)
    allowed = limits.get("image", 1)
    if allowed == 0 and limits.get("video", 0) == 0:
        return 0
    patches = tower.patches
    pixels = kwargs.get("max_pixels")
    if isinstance(pixels, int) and pixels > 0:
        patches = min(patches, pixels // tower.patch**2)
    fitting = max(1, tokens * tower.merged // max(1, patches))
    count = min(fitting, allowed) if isinstance(allowed, int) and allowed > 0 else fitting
    return count * patches * (3 * tower.intermediate + 4 * tower.hidden) * dtype


def _object(text: str | None) -> dict[str, object]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
