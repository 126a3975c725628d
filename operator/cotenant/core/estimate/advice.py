"""What an estimate means for a share: the one `auto` asks for, why another is refused, how long a context fits."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cotenant.core.estimate.engine import Estimate, Taught, estimate
from cotenant.core.estimate.modelconfig import ModelConfig
from cotenant.core.share import MIB, gib
from cotenant.core.vllm import Engine, Sizing, settle

CONCURRENCY = 8
"""`engine.targetConcurrency` where the user is silent."""
CONTEXT = 8_192
"""The context `share: auto` is sized for where `maxModelLen` is silent or auto, if the model goes so far."""
STEP = 64 * MIB
"""Shares we propose are whole multiples of it."""


@dataclass(frozen=True, slots=True)
class AutoShare:
    """What `share: auto` comes to."""

    bytes: int
    max_model_len: int
    """To be rendered: the share was sized for it."""
    concurrency: int
    estimate: Estimate


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a share cannot start this engine, and the smallest that would."""

    reason: str
    """`WeightsTooLarge`, `ContextTooLong`, `ContextBeyondModel` or `HeadsDoNotDivide`."""
    message: str
    needs: int
    """Bytes per GPU; 0 = no share would do."""
    context: int
    """The longest context that fits the share as it is; 0 = none."""


def context(config: ModelConfig, engine: Engine) -> int:
    """Tokens of the longest sequence the engine is to serve."""
    if engine.max_model_len:
        return min(engine.max_model_len, config.max_position)
    return min(CONTEXT, config.max_position) if engine.auto_max_model_len else config.max_position


def at_share(
    config: ModelConfig, engine: Engine, tensor_parallel: int, share: int, taught: Taught | None = None
) -> Estimate:
    """The estimate of an engine as it is rendered for a share."""
    return estimate(config, settle(engine, Sizing(share, multimodal=config.multimodal)), tensor_parallel, taught)


def auto_context(config: ModelConfig, engine: Engine) -> int:
    """Tokens of the sequences that `share: auto` is sized for."""
    return min(engine.max_model_len or CONTEXT, config.max_position)


def sized(engine: Engine, context: int | None) -> Engine:
    """The engine as it starts with `share: auto`: with the context its share was sized for, where its spec names none."""
    if context is None or engine.max_model_len is not None:
        return engine
    return replace(engine, max_model_len=context, auto_max_model_len=False)


def auto_share(
    config: ModelConfig, engine: Engine, tensor_parallel: int = 1, taught: Taught | None = None
) -> AutoShare:
    """The smallest share that serves the wanted context at the wanted concurrency, by the estimate's upper error bar.

    What is rendered where the user is silent grows with the share, and the need with it: the least share that holds its own need.
    """
    length = auto_context(config, engine)
    sequences = engine.target_concurrency or CONCURRENCY
    share = 0
    while True:
        found = at_share(config, engine, tensor_parallel, share, taught)
        need = _rounded(found.need(length, sequences).high)
        if need <= share:
            return AutoShare(share, length, sequences, found)
        share = need


def smallest_share(
    config: ModelConfig, engine: Engine, tensor_parallel: int, length: int, taught: Taught | None = None
) -> int:
    """The least share that starts at all with one sequence of `length` tokens."""
    share = 0
    while (need := _rounded(at_share(config, engine, tensor_parallel, share, taught).need(length, 1).value)) > share:
        share = need
    return share


def longest_context(
    config: ModelConfig, engine: Engine, tensor_parallel: int, share: int, taught: Taught | None = None
) -> int:
    """What `maxModelLen: auto` comes to: the longest sequence that fits; 0 = none."""
    return at_share(config, engine, tensor_parallel, share, taught).context_that_fits(share, config.max_position)


def refuse(
    config: ModelConfig, engine: Engine, tensor_parallel: int, share: int, taught: Taught | None = None
) -> Refusal | None:
    """Why this share cannot start this engine; None = it can, as far as the estimate knows.

    Where the architecture is not known the lower error bar decides: nothing is refused on a guess.
    """
    if impossible := _impossible(config, engine, tensor_parallel):
        return impossible
    found = at_share(config, engine, tensor_parallel, share, taught)
    room = found.kv_cache(share)
    left = room.value if config.known else room.high
    length = 1 if engine.auto_max_model_len else context(config, engine)
    if left >= found.cache.need(length, 1):
        return None
    needs = smallest_share(config, engine, tensor_parallel, length, taught)
    fits = found.cache.longest(max(0, left), config.max_position)
    held = f"{gib(share)} cannot hold the weights ({gib(found.weights.value)}) and a step's buffers"
    if fits <= 0:
        return Refusal("WeightsTooLarge", f"{held}; {length:,} tokens need {gib(needs)}", needs, 0)
    message = f"{gib(share)} holds the weights and {fits:,} tokens; {length:,} need {gib(needs)}"
    return Refusal("ContextTooLong", message, needs, fits)


def _impossible(config: ModelConfig, engine: Engine, ranks: int) -> Refusal | None:
    """What no share can help: vLLM refuses it of any model it knows."""
    if not config.known:
        return None
    heads = next((block.attention.heads for block in config.blocks if block.attention.heads), 0)
    if heads % ranks:
        fitting = ", ".join(str(n) for n in range(1, min(heads, 16) + 1) if heads % n == 0)
        message = f"{heads} attention heads cannot be split over {ranks} GPUs; tensorParallelSize may be {fitting}"
        return Refusal("HeadsDoNotDivide", message, 0, 0)
    stretched = any(argument.startswith("--hf-overrides") for argument in engine.extra_args)
    if (engine.max_model_len or 0) > config.max_position and not stretched:
        message = f"the model goes to {config.max_position:,} tokens, maxModelLen asks for {engine.max_model_len:,}"
        return Refusal("ContextBeyondModel", message, 0, config.max_position)
    return None


def _rounded(amount: int) -> int:
    return -(-amount // STEP) * STEP
