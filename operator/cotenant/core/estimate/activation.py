"""The buffers of an engine's largest step: what vLLM's profiling run measures and keeps free."""

from __future__ import annotations

import json

from cotenant.core.estimate import calibration as fitted
from cotenant.core.estimate.figure import Figure
from cotenant.core.estimate.modelconfig import Block, ModelConfig
from cotenant.core.estimate.tensors import vocabulary_rows
from cotenant.core.vllm import Engine


def activation(config: ModelConfig, engine: Engine, ranks: int, tokens: int, sequences: int, dtype: int) -> Figure:
    """The larger of a step of `tokens` through the widest layer, what compiling takes, the sampler, and the vision tower on its
    largest images.
    """
    workspace = _workspace(config, ranks, tokens, dtype)
    step, compiled = _step(config, ranks, tokens, dtype), _compiling(config, engine, ranks, tokens, dtype)
    sampler = workspace + _sampler(config, sequences)
    if old_runner(config):
        sampler += 2 * tokens * config.hidden * dtype  # all hidden states, and noise of their size
    value = max(step + fitted.ACTIVATION_BASE, compiled, sampler)
    part = _bar(config)
    high = max(int(step * (1 + part)), compiled, sampler, int(config.vocab * sequences * fitted.LOGIT_BYTES_HIGH))
    high = max(value, high + 2 * fitted.ACTIVATION_BASE)
    low = int(max(step, sampler) * (1 - part))  # what was compiled before is found on disk
    source = f"{tokens} tokens and {sequences} sequences a step, {fitted.SOURCE}"
    if compiled == value:
        source = f"a copy of the embedding while vLLM compiles, {tokens} tokens a step; low: compiled before"
    if seen := _images(config, engine, tokens, dtype):
        held = tokens * config.hidden * dtype  # the encoder's output waits for its prompt
        value, high = max(value, seen + held), max(high, 2 * seen + held)
        source = f"{tokens} tokens or the largest images a step, {fitted.SOURCE}"
    return Figure(value, low, high, source)


def kept(config: ModelConfig, ranks: int, tokens: int, sequences: int, dtype: int) -> Figure:
    """What torch holds beside weights and KV cache once the engine was under load: the buffers of its largest step, and the
    sampler's, most of which vLLM makes after it has measured.
    """
    step = _step(config, ranks, tokens, dtype)
    if old_runner(config):
        sampler = _sampler(config, sequences)
    else:
        rows = fitted.KEPT_SEQUENCE * sequences + fitted.KEPT_ROW * min(sequences, fitted.PROCESSORS)
        sampler = int(config.vocab * rows)
    sampler += fitted.KEPT_BASE
    part = _bar(config)
    high = int(step * (1 + part) + 1.3 * sampler) + fitted.KEPT_BASE
    return Figure(step + sampler, int(step * (1 - part)) // 2 + sampler // 3, high, fitted.SOURCE)


def old_runner(config: ModelConfig) -> bool:
    """vLLM's first model runner: experts but for a few architectures, and layers with a state.

    After `_is_default_v2_model_runner_model` of 0.26.
    """
    if any(block.attention.state for block in config.blocks):
        return True
    return config.architecture not in _NEW_RUNNER and any(block.mlp.experts for block in config.blocks)


_NEW_RUNNER = frozenset({"DeepseekV2ForCausalLM", "GraniteMoeForCausalLM", "Qwen2MoeForCausalLM"})


def is_plain(config: ModelConfig) -> bool:
    """A known decoder without experts, latent attention or states: those that were measured most."""
    return config.known and not any(
        block.mlp.experts or block.attention.latent or block.attention.state for block in config.blocks
    )


def _bar(config: ModelConfig) -> float:
    """How far off a step may be."""
    return 0.15 if is_plain(config) else 0.5


def _step(config: ModelConfig, ranks: int, tokens: int, dtype: int) -> int:
    widest = max((_layer(block, config.hidden, ranks) for block in config.blocks), default=0)
    return _workspace(config, ranks, tokens, dtype) + widest * tokens * dtype


def _workspace(config: ModelConfig, ranks: int, tokens: int, dtype: int) -> int:
    """Two buffers that fused experts make in their first step and keep: for the halves and the product of each active expert,
    and for what goes in and out (`TritonExperts.workspace_shapes`, `WorkspaceManager`).
    """
    return max(
        (
            block.mlp.active
            * (max(width, config.hidden) + max((2 if block.mlp.gated else 1) * width, config.hidden))
            * tokens
            * dtype
            for block in config.blocks
            if block.mlp.experts and (width := -(-block.mlp.expert_intermediate // ranks))
        ),
        default=0,
    )


def _compiling(config: ModelConfig, engine: Engine, ranks: int, tokens: int, dtype: int) -> int:
    """What choosing kernels takes inside the profiling run of a first start.

    vLLM compiles with `benchmark_combo_kernel`: Inductor times its kernels on random tensors as large as the real ones, and the
    first kernel reads the whole embedding and writes the hidden states twice.
    """
    inductor = _object(engine.compilation_config).get("inductor_compile_config")
    asked = inductor if isinstance(inductor, dict) else {}
    if not engine.cuda_graphs or (
        {"combo_kernels", "benchmark_combo_kernel"} & set(asked) and not asked.get("benchmark_combo_kernel")
    ):
        return 0
    table = vocabulary_rows(config, ranks) * config.hidden
    return (table + 2 * tokens * config.hidden) * dtype + fitted.COMPILE_BASE


def _sampler(config: ModelConfig, sequences: int) -> int:
    """Rows of the vocabulary, gathered from all ranks."""
    if old_runner(config):
        rows = fitted.LOGIT_BYTES_OLD_RUNNER * sequences + 4 * min(sequences, fitted.PROCESSORS)
    else:
        rows = fitted.LOGIT_BYTES * sequences
    return int(config.vocab * rows)


def _layer(block: Block, hidden: int, ranks: int) -> int:
    """Numbers one token needs at once in the widest place of a layer, beside the workspace of its experts."""
    mlp, attention = block.mlp, block.attention
    dense = fitted.MLP_WIDTHS * -(-mlp.intermediate // ranks)
    if attention.latent is not None:
        heads = -(-attention.heads // ranks)
        past = heads * (2 * attention.head_dim + 2 * attention.latent.value)
    elif attention.state is not None:
        past = -(-attention.state.projected // ranks) + 2 * -(-attention.state.channels // ranks)
    else:
        past = (2 * -(-attention.heads // ranks) + 2 * -(-attention.kv_heads // ranks)) * attention.head_dim
    return max(dense, past) + fitted.HIDDEN_WIDTHS * hidden


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
