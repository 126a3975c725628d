"""The estimate against what was measured, and what must hold of it always."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cotenant import catalogue
from cotenant.core.estimate.advice import at_share, auto_share, longest_context, refuse, smallest_share
from cotenant.core.estimate.calibration import RUNS, Run
from cotenant.core.estimate.configparse import parse_config
from cotenant.core.estimate.engine import Estimate, Taught, captured_sizes, estimate
from cotenant.core.estimate.modelconfig import ModelConfig
from cotenant.core.estimate.tensors import allocated
from cotenant.core.estimate.weights import checkpoint_bytes, parameters, weight_bytes
from cotenant.core.share import GIB, MIB
from cotenant.core.vllm import Engine

EIGHT_B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


def model(**different: Any) -> ModelConfig:
    return parse_config({**EIGHT_B, **different})


def named(name: str) -> ModelConfig:
    found = catalogue.find(name)
    assert found is not None
    return found


def of(run: Run) -> Estimate:
    config = model(
        model_type="qwen3" if run.qk_norm else "llama",
        hidden_size=run.hidden,
        intermediate_size=run.intermediate,
        num_hidden_layers=run.layers,
        num_attention_heads=run.heads,
        num_key_value_heads=run.kv_heads,
        head_dim=run.head_dim,
        vocab_size=run.vocab,
        max_position_embeddings=32768,
    )
    engine = Engine(
        quantization=run.online,
        kv_cache_dtype="fp8" if run.kv_bits == 8 else None,
        max_model_len=run.max_model_len,
        max_num_seqs=run.sequences,
        max_num_batched_tokens=run.batched_tokens,
        cuda_graphs=run.capture > 0,
        max_capture_size=run.capture or None,
    )
    return estimate(config, engine, run.tensor_parallel)


# ---------------------------------------------------------------------------------------------------- what was measured
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_formulas_say_what_was_measured(run: Run) -> None:
    found, share = of(run), int(run.share * GIB)

    assert found.weights.value == pytest.approx(run.weights * GIB, rel=0.01)
    assert found.kv_tokens(share).value == pytest.approx(run.kv_tokens, rel=0.02)
    assert found.kv_tokens(share).low <= (run.kv_tokens or 0) <= found.kv_tokens(share).high
    peak = (run.share + (run.over_load or 0)) * GIB
    assert abs(found.peak(share).value - peak) <= max(0.03 * peak, GIB)
    assert found.peak(share).low <= peak <= found.peak(share).high
    if run.activation is not None:
        assert found.activation.value == pytest.approx(run.activation * GIB, rel=0.05, abs=0.02 * GIB)


@pytest.mark.parametrize("name", sorted(catalogue.models()))
def test_every_tensor_of_a_known_model_is_counted(name: str) -> None:
    config = named(name)
    rows = -config.vocab % 64 * config.hidden * (1 if config.tied else 2)

    assert parameters(config).total - rows == pytest.approx(catalogue.models()[name]["parameters"], rel=0.001)
    assert config.known


def test_mxfp4_experts_are_padded_as_vllm_does() -> None:
    config = named("openai/gpt-oss-20b")

    # on Triton's kernels: measured on an H200; on Marlin's: "Model loading took 13.72 GiB" in public logs of vLLM
    assert weight_bytes(config, 1, None, 2) == pytest.approx(13.03 * GIB, rel=0.01)
    assert weight_bytes(config, 1, None, 2, most=True) == pytest.approx(13.72 * GIB, rel=0.01)
    assert estimate(config, Engine()).weights.high >= 13.72 * GIB


@pytest.mark.parametrize(
    ("size", "taken"), [(3 * MIB, 3 * MIB), (11 * MIB, 12 * MIB), (10 * MIB + 1, 10 * MIB + 1), (31 * MIB, 32 * MIB)]
)
def test_a_large_tensor_takes_whole_steps_of_two_mebibytes(size: int, taken: int) -> None:
    assert allocated(size) == taken


def test_tables_of_positions_are_as_long_as_vllm_makes_them() -> None:
    gemma = {**EIGHT_B, "model_type": "gemma3_text", "max_position_embeddings": 1000}
    yarn = {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 1000}

    assert parse_config(gemma).rotary_rows == 2000
    # stretched eightfold for the layers that see everything: 0.5 GiB of tables for gemma-3-4b
    assert parse_config({**gemma, "rope_scaling": {"rope_type": "linear", "factor": 8}}).rotary_rows == 9000
    assert model(rope_scaling=yarn).rotary_rows == 4000
    assert model().rotary_rows == 131072


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", 131_072),
        ("mistralai/Mistral-Small-3.2-24B-Instruct-2506", 163_840),
        ("deepseek-ai/DeepSeek-V3", 61 * 576 * 2),
        ("Qwen/Qwen2.5-7B-Instruct", 57_344),
        ("google/gemma-3-27b-it", 62 * 2 * 16 * 128 * 2),
    ],
)
def test_a_token_takes_what_its_layers_keep(name: str, bytes_per_token: int) -> None:
    assert estimate(named(name), Engine()).token_bytes.value == bytes_per_token


def test_kv_heads_are_replicated_where_there_are_more_ranks() -> None:
    config = model(num_key_value_heads=4)

    at = [estimate(config, Engine(), ranks).token_bytes.value for ranks in (1, 2, 4, 8)]

    assert at == [at[0], at[0] // 2, at[0] // 4, at[0] // 4]


def test_latent_attention_is_the_same_on_every_rank() -> None:
    config = named("deepseek-ai/DeepSeek-V3")

    assert estimate(config, Engine(), 8).token_bytes == estimate(config, Engine(), 1).token_bytes


def test_a_latent_that_vllm_unpacks_is_remembered_in_full() -> None:
    latent = {"q_lora_rank": 768, "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64}
    config = model(model_type="minicpm3", num_attention_heads=40, num_hidden_layers=62, **latent)

    assert estimate(config, Engine()).token_bytes.value == 62 * 2 * 40 * (64 + 32) * 2


def test_windows_keep_less_and_are_said_to() -> None:
    found = estimate(named("google/gemma-3-27b-it"), Engine(max_num_batched_tokens=2048))

    assert found.token_bytes.low == 10 * 2 * 16 * 128 * 2
    assert found.cache.need(131072, 1) < found.token_bytes.value * 131072 / 3


def test_a_state_is_kept_per_sequence_not_per_token() -> None:
    cache = estimate(named("Qwen/Qwen3-Next-80B-A3B-Instruct"), Engine()).cache

    assert cache.need(1, 8) > 8 * 36 * GIB // 1024
    # attention's block grows until its page holds a state
    assert max(group.block for group in cache.groups) > 16


@pytest.mark.parametrize(("largest", "sizes"), [(1, 1), (8, 4), (32, 7), (256, 35), (512, 51)])
def test_captured_sizes_are_vllms(largest: int, sizes: int) -> None:
    assert captured_sizes(largest) == sizes


# ------------------------------------------------------------------------------------------------------- quantization
@pytest.mark.parametrize(
    ("quantization", "gib"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 5.41),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, 8.63),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 8.49),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float"}}}}, 8.49),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 5.64),
    ],
)  # fmt: skip
def test_a_quantized_checkpoint_weighs_less(quantization: dict[str, Any], gib: float) -> None:
    weights = estimate(model(quantization_config=quantization), Engine()).weights

    assert weights.value == pytest.approx(gib * GIB, rel=0.01)


def test_vllms_own_quantization_counts_only_where_the_checkpoint_has_none() -> None:
    plain = model()
    packed = model(quantization_config={"quant_method": "awq", "bits": 4, "group_size": 128})

    assert estimate(plain, Engine(quantization="fp8")).weights.value < 0.6 * estimate(plain, Engine()).weights.value
    assert estimate(packed, Engine(quantization="fp8")).weights == estimate(packed, Engine()).weights


def test_an_fp8_cache_is_half_a_cache() -> None:
    assert (
        2 * estimate(model(), Engine(kv_cache_dtype="fp8")).token_bytes.value
        == estimate(model(), Engine()).token_bytes.value
    )
    scheme = {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}, "config_groups": {}}
    assert estimate(model(quantization_config=scheme), Engine()).token_bytes.value == 65_536


def test_offloaded_weights_are_not_on_the_gpu() -> None:
    offloaded = estimate(model(), Engine(cpu_offload_gb=10)).weights.value

    assert offloaded == estimate(model(), Engine()).weights.value - 10 * GIB


# ----------------------------------------------------------------------------------------------------------- what sees
def test_images_cost_what_they_are_allowed_to() -> None:
    seeing = named("rednote-hilab/dots.ocr")
    most, fewer, none = (
        estimate(
            seeing, Engine(max_num_seqs=8, mm_processor_kwargs=pixels, limit_mm_per_prompt=images)
        ).activation.value
        for pixels, images in ((None, None), ('{"max_pixels":589824}', '{"image":3}'), (None, '{"image":0,"video":0}'))
    )

    assert most > 2 * fewer
    assert fewer >= none


def test_as_many_images_as_fit_a_step_are_seen_at_once() -> None:
    seeing = named("google/gemma-3-4b-it")
    one, eight, many = (
        estimate(
            seeing,
            Engine(
                limit_mm_per_prompt=f'{{"image":{count}}}',
                max_num_batched_tokens=2048,
                max_num_seqs=64,
                cuda_graphs=False,
            ),
        ).activation.value
        for count in (1, 8, 100)
    )

    assert one < eight == many


# ------------------------------------------------------------------------------------------------ what nobody heard of
def test_an_unknown_architecture_is_counted_with_a_wide_bar_and_says_so() -> None:
    config = model(model_type="xyz", architectures=["XyzForCausalLM"])
    weights = estimate(config, Engine()).weights

    assert not config.known
    assert "XyzForCausalLM not known" in weights.source
    assert weights.high >= 1.25 * weights.value


def test_the_files_of_an_unknown_architecture_are_believed() -> None:
    config = parse_config({**EIGHT_B, "model_type": "xyz"}, checkpoint_bytes=20 * GIB)
    weights = estimate(config, Engine()).weights

    assert weights.value == pytest.approx(20 * GIB, rel=0.01)
    assert "bytes of the checkpoint" in weights.source


@pytest.mark.parametrize("missing", ["hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size"])
def test_a_config_without_a_size_names_it(missing: str) -> None:
    config = {key: value for key, value in EIGHT_B.items() if key != missing}

    with pytest.raises(ValueError, match=f'no "{missing}"'):
        parse_config(config)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**12), 10**12) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*EIGHT_B, "head_dim", "sliding_window", "layer_types", "quantization_config",
       "vision_config", "rope_scaling", "num_experts", "kv_lora_rank", "text_config", "dtype"]), JSON, max_size=6))  # fmt: skip
def test_any_config_is_read_or_refused_in_words(different: dict[str, Any]) -> None:
    try:
        config = parse_config({**EIGHT_B, **different})
    except ValueError:
        return
    assert estimate(config, Engine()).weights.value >= 0
    assert checkpoint_bytes(config) >= 0


# ----------------------------------------------------------------------------------------------------------- properties
CONFIGS = st.sampled_from(sorted(catalogue.models())).map(named)
ENGINES = st.builds(
    Engine,
    quantization=st.none() | st.just("fp8"),
    kv_cache_dtype=st.none() | st.just("fp8"),
    max_num_seqs=st.none() | st.sampled_from([1, 16, 256, 1024]),
    max_num_batched_tokens=st.none() | st.sampled_from([2048, 8192, 32768]),
    cuda_graphs=st.booleans(),
)
TOKENS = st.integers(1, 200_000)


@settings(deadline=None)
@given(CONFIGS, ENGINES, TOKENS, TOKENS, st.integers(1, 64), st.integers(1, 64))
def test_longer_or_more_never_needs_less(
    config: ModelConfig, engine: Engine, one: int, other: int, few: int, many: int
) -> None:
    found = estimate(config, engine)
    few, many = sorted((few, many))
    short, long = sorted((one, other))

    assert found.need(short, few).value <= found.need(long, few).value
    assert found.need(short, few).value <= found.need(short, many).value


@settings(deadline=None)
@given(CONFIGS, ENGINES, TOKENS, st.integers(1, 64))
def test_fewer_bits_never_need_more(config: ModelConfig, engine: Engine, tokens: int, sequences: int) -> None:
    wide, narrow = (replace(engine, kv_cache_dtype=name) for name in ("float32", "fp8"))
    assert (
        estimate(config, narrow).need(tokens, sequences).value <= estimate(config, wide).need(tokens, sequences).value
    )
    fp8, plain = (replace(engine, quantization=name) for name in ("fp8", None))
    assert estimate(config, fp8).weights.value <= estimate(config, plain).weights.value


@settings(deadline=None)
@given(CONFIGS, ENGINES, TOKENS, st.integers(1, 64), st.sampled_from([2, 3, 4, 6, 8, 16]))
def test_more_gpus_never_need_more_of_each(
    config: ModelConfig, engine: Engine, tokens: int, sequences: int, ranks: int
) -> None:
    alone, together = estimate(config, engine, 1), estimate(config, engine, ranks)

    assert together.weights.value <= alone.weights.value
    assert together.need(tokens, sequences).value <= alone.need(tokens, sequences).value


@settings(deadline=None)
@given(CONFIGS, ENGINES, st.integers(1, 180))
def test_every_figure_lies_in_its_bar(config: ModelConfig, engine: Engine, share: int) -> None:
    found = estimate(config, engine)
    for figure in (
        found.weights, found.activation, found.cuda_graphs, found.graphs_booked, found.non_torch, found.context,
        found.overrun, found.token_bytes, found.kv_cache(share * GIB), found.kv_tokens(share * GIB), found.peak(share * GIB),
    ):  # fmt: skip
        assert figure.low <= figure.value <= figure.high, figure


@settings(deadline=None)
@given(CONFIGS, ENGINES, st.integers(1, 180))
def test_the_context_that_fits_is_the_longest(config: ModelConfig, engine: Engine, share: int) -> None:
    found = estimate(config, engine)
    longest = found.context_that_fits(share * GIB, config.max_position)
    room = found.kv_cache(share * GIB).value

    assert longest == 0 or found.cache.need(longest, 1) <= room
    assert longest == config.max_position or found.cache.need(longest + 1, 1) > room


# --------------------------------------------------------------------------------------------------------------- advice
@settings(deadline=None)
@given(CONFIGS, ENGINES, st.integers(1, 8))
def test_the_automatic_share_holds_what_it_was_made_for(config: ModelConfig, engine: Engine, ranks: int) -> None:
    assume(config.blocks[-1].attention.heads % ranks == 0)
    auto = auto_share(config, engine, ranks)
    sized = replace(engine, max_model_len=auto.max_model_len)

    assert auto.estimate.need(auto.max_model_len, auto.concurrency).high <= auto.bytes
    assert refuse(config, sized, ranks, auto.bytes) is None


@settings(deadline=None)
@given(CONFIGS, ENGINES, st.integers(1, 8), st.sampled_from([1024, 8192]))
def test_what_a_refusal_asks_for_is_not_refused(config: ModelConfig, engine: Engine, ranks: int, length: int) -> None:
    assume(config.blocks[-1].attention.heads % ranks == 0)
    engine = replace(engine, max_model_len=min(length, config.max_position))
    needs = smallest_share(config, engine, ranks, min(length, config.max_position))

    assert refuse(config, engine, ranks, needs) is None
    refusal = refuse(config, engine, ranks, needs // 2)
    assert refusal is None or refusal.needs == needs


def test_a_share_too_small_for_the_context_says_what_fits_and_what_would_do() -> None:
    refusal = refuse(model(), Engine(max_model_len=65_536), 1, 20 * GIB)

    assert refusal is not None
    assert refusal.reason == "ContextTooLong"
    assert refusal.message.startswith(f"20Gi holds the weights and {refusal.context:,} tokens; 65,536 need 24.")
    assert refuse(model(), Engine(max_model_len=refusal.context), 1, 20 * GIB) is None


def test_a_share_too_small_for_the_weights_says_so() -> None:
    refusal = refuse(model(), Engine(max_model_len=4096), 1, 10 * GIB)

    assert refusal is not None
    assert refusal.reason == "WeightsTooLarge"
    assert "10Gi cannot hold the weights (15Gi)" in refusal.message


def test_an_automatic_context_is_the_longest_that_fits() -> None:
    engine = Engine(auto_max_model_len=True)
    longest = longest_context(model(), engine, 1, 20 * GIB)

    assert refuse(model(), replace(engine, auto_max_model_len=False, max_model_len=longest), 1, 20 * GIB) is None
    assert (
        refuse(model(), replace(engine, auto_max_model_len=False, max_model_len=longest + 1), 1, 20 * GIB) is not None
    )
    assert refuse(model(), engine, 1, 20 * GIB) is None


def test_heads_that_do_not_divide_are_refused_with_what_does() -> None:
    refusal = refuse(named("Qwen/Qwen2.5-14B-Instruct"), Engine(max_model_len=4096), 3, 60 * GIB)

    assert refusal is not None
    assert (
        refusal.message == "40 attention heads cannot be split over 3 GPUs; tensorParallelSize may be 1, 2, 4, 5, 8, 10"
    )


def test_a_context_beyond_the_model_is_refused() -> None:
    refusal = refuse(named("google/gemma-2-9b-it"), Engine(max_model_len=32_768), 1, 60 * GIB)

    assert refusal is not None
    assert refusal.message == "the model goes to 8,192 tokens, maxModelLen asks for 32,768"
    stretched = Engine(max_model_len=32_768, extra_args=("--hf-overrides={}",))
    assert refuse(named("google/gemma-2-9b-it"), stretched, 1, 60 * GIB) is None


def test_nothing_is_refused_on_a_guess() -> None:
    unknown = model(model_type="xyz")
    share = at_share(unknown, Engine(max_model_len=1024), 1, 20 * GIB).need(1024, 1).value - GIB

    assert refuse(unknown, Engine(max_model_len=1024), 1, share) is None


def test_compiling_takes_a_copy_of_the_embedding_unless_kernels_are_not_timed() -> None:
    graphs = Engine(max_num_seqs=64, max_num_batched_tokens=2048, max_capture_size=64)
    untimed = replace(
        graphs,
        compilation_config='{"inductor_compile_config":{"combo_kernels":true,"benchmark_combo_kernel":false}}',
    )

    timed = estimate(model(), graphs).activation
    assert timed.value > 128256 * 4096 * 2
    assert (
        estimate(model(), untimed).activation.value
        == estimate(model(), replace(graphs, cuda_graphs=False)).activation.value
    )
    assert timed.low < estimate(model(), untimed).activation.value < timed.value


def test_what_was_measured_replaces_what_was_estimated() -> None:
    found = estimate(model(), Engine(), 1, Taught(weights=16 * GIB, overrun=GIB))

    assert found.weights.value == found.weights.high == 16 * GIB
    assert found.peak(20 * GIB).value == 21 * GIB
