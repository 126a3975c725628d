"""What an engine is started with, and what users may add to it."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from cotenant.core.share import GIB
from cotenant.core.source import Source, SourceKind, source
from cotenant.core.vllm import Engine, Sizing, command, contradiction, defaults, environment, settle
from cotenant.core.vllmflags import SWITCHES, VALUED, owned_flag, refuse_extra

HUB = "hf://mistralai/Mistral-Small-3.2-24B-Instruct-2506@95a6d26"
FULL = Engine(
    quantization="fp8",
    dtype="bfloat16",
    kv_cache_dtype="fp8",
    max_model_len=32768,
    max_num_seqs=64,
    max_num_batched_tokens=4096,
    target_concurrency=8,
    max_capture_size=64,
    compilation_config='{"mode":3}',
    limit_mm_per_prompt='{"image":3,"video":0}',
    mm_processor_kwargs='{"max_pixels":589824}',
    mm_processor_cache_gb=4,
    cpu_offload_gb=0,
    kv_offloading_gb=0,
    load_format="auto",
    extra_args=("--enable-prefix-caching",),
)


SILENT = Engine()


def rendered(engine: Engine = SILENT, *, model: str = HUB, sizing: Sizing | None = None) -> tuple[str, ...]:
    return command(engine, model=model, served_name="m", tensor_parallel=2, utilization="0.70", sizing=sizing)


def test_every_field_of_the_engine_becomes_its_flag() -> None:
    assert rendered(FULL) == (
        "mistralai/Mistral-Small-3.2-24B-Instruct-2506",
        "--quantization=fp8",
        "--dtype=bfloat16",
        "--kv-cache-dtype=fp8",
        "--max-model-len=32768",
        "--max-num-seqs=64",
        "--max-num-batched-tokens=4096",
        "--max-cudagraph-capture-size=64",
        '--compilation-config={"mode":3}',
        '--limit-mm-per-prompt={"image":3,"video":0}',
        '--mm-processor-kwargs={"max_pixels":589824}',
        "--mm-processor-cache-gb=4",
        "--cpu-offload-gb=0",
        "--kv-offloading-size=0",
        "--load-format=auto",
        "--revision=95a6d26",
        "--tokenizer-revision=95a6d26",
        "--served-model-name=m",
        *("--tensor-parallel-size", "2"),
        *("--gpu-memory-utilization", "0.70"),
        *("--host", "0.0.0.0"),
        *("--port", "8000"),
        "--enable-prefix-caching",
    )


def test_no_field_of_the_engine_is_forgotten() -> None:
    silent = set(rendered())
    not_flags = {"name", "target_concurrency", "auto_max_model_len", "cuda_graphs", "extra_args"}
    for field in dataclasses.fields(Engine):
        if field.name not in not_flags:
            one = dataclasses.replace(Engine(), **{field.name: getattr(FULL, field.name)})
            assert len(set(rendered(one)) - silent) == 1, field.name


def test_every_flag_we_render_is_one_vllm_knows_with_a_value_where_it_takes_one() -> None:
    pinned = Sizing(share=20 * GIB, kv_cache_bytes=GIB)
    eager = dataclasses.replace(FULL, cuda_graphs=False)
    for arguments in (rendered(FULL, sizing=pinned)[1:], rendered(eager)[1:]):
        for argument, following in itertools.pairwise((*arguments, "--")):
            name, joined, _ = argument.removeprefix("--").partition("=")
            if argument.startswith("--"):
                assert name in (VALUED if joined or not following.startswith("--") else SWITCHES), argument


def test_a_silent_engine_gets_what_fits_its_share_not_the_card() -> None:
    small = rendered(sizing=Sizing(share=10 * GIB, multimodal=True))
    assert "--max-num-seqs=32" in small
    assert "--max-num-batched-tokens=2048" in small
    assert "--max-cudagraph-capture-size=32" in small
    assert '--limit-mm-per-prompt={"image":1,"video":0}' in small
    assert "--max-num-batched-tokens=8192" in rendered(sizing=Sizing(share=98 * GIB))


def test_defaults_never_shrink_with_the_share() -> None:
    steps = [defaults(share * GIB) for share in range(1, 200)]
    for below, above in itertools.pairwise(steps):
        for field in dataclasses.fields(below):
            assert getattr(below, field.name) <= getattr(above, field.name)


def test_what_the_user_wrote_is_never_changed_by_the_share() -> None:
    assert settle(FULL, Sizing(share=GIB)) == FULL


def test_settling_twice_changes_nothing() -> None:
    sizing = Sizing(share=30 * GIB, multimodal=True, max_model_len=4096)
    once = settle(Engine(auto_max_model_len=True, target_concurrency=500), sizing)
    assert settle(once, sizing) == once
    assert once.max_num_seqs == 500
    assert once.max_model_len == 4096


def test_few_tokens_a_step_mean_few_sequences() -> None:
    assert settle(Engine(max_num_batched_tokens=16), Sizing(100 * GIB)).max_num_seqs == 16


@pytest.mark.parametrize(
    ("engine", "says"),
    [
        (Engine(max_num_seqs=64, max_num_batched_tokens=32), "maxNumBatchedTokens 32 is less than maxNumSeqs 64"),
        (Engine(max_num_seqs=4, target_concurrency=8), "targetConcurrency 8 is more than maxNumSeqs 4"),
        (FULL, ""),
        (SILENT, ""),
    ],
)
def test_settings_that_contradict_each_other_are_said(engine: Engine, says: str) -> None:
    assert contradiction(engine).startswith(says)
    assert bool(contradiction(engine)) == bool(says)


def test_a_pinned_cache_stands_beside_the_share() -> None:
    arguments = rendered(sizing=Sizing(share=20 * GIB, kv_cache_bytes=4 * GIB))
    assert f"--kv-cache-memory-bytes={4 * GIB}" in arguments
    assert arguments[arguments.index("--gpu-memory-utilization") + 1] == "0.70"


def test_the_longest_context_is_left_to_vllm_unless_it_was_estimated() -> None:
    auto = Engine(auto_max_model_len=True)
    assert "--max-model-len=auto" in rendered(auto)
    assert "--max-model-len=auto" in rendered(auto, sizing=Sizing(share=GIB))
    assert "--max-model-len=9000" in rendered(auto, sizing=Sizing(share=GIB, max_model_len=9000))


def test_no_graphs_is_eager() -> None:
    arguments = rendered(Engine(cuda_graphs=False), sizing=Sizing(share=GIB))
    assert "--enforce-eager" in arguments
    assert not any(a.startswith("--max-cudagraph-capture-size") for a in arguments)


@pytest.mark.parametrize(
    ("uri", "parts", "model"),
    [
        ("hf://org/name", Source(SourceKind.HUB, repository="org/name"), "org/name"),
        ("hf://org/name@refs/pr/1", Source(SourceKind.HUB, repository="org/name", revision="refs/pr/1"), "org/name"),
        ("hf://gpt2", Source(SourceKind.HUB, repository="gpt2"), "gpt2"),
        ("pvc://weights", Source(SourceKind.CLAIM, claim="weights"), "/models"),
        ("pvc://weights/llama/8b", Source(SourceKind.CLAIM, claim="weights", path="llama/8b"), "/models/llama/8b"),
        ("oci://ghcr.io:443/a/b:v1", Source(SourceKind.IMAGE, image="ghcr.io:443/a/b:v1"), "/models"),
        ("oci://r.io/a@sha256:" + "0" * 64, Source(SourceKind.IMAGE, image="r.io/a@sha256:" + "0" * 64), "/models"),
    ],
)
def test_a_uri_says_where_the_files_are(uri: str, parts: Source, model: str) -> None:
    assert source(uri) == parts
    assert source(uri).model == model


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("org/name", "names no source"),
        ("s3://bucket/x", 'unknown scheme "s3"'),
        ("hf://", "no repository"),
        ("hf://a/b/c", "no repository"),
        ("hf://-a/b", "no repository"),
        ("hf://a/b c", "no repository"),
        ("hf://a/b\n", "no repository"),
        ("hf://../x", "no repository"),
        ("hf://a/b@", "revision"),
        ("hf://a/b@--x", "revision"),
        ("hf://a/b@x/../y", "revision"),
        ("pvc://UPPER/x", "PersistentVolumeClaim"),
        ("pvc://claim/../etc", "usable path"),
        ("pvc://claim//x", "usable path"),
        ("pvc://claim/.cache", "usable path"),
        ("pvc://claim/--host", "usable path"),
        ("oci://", "names no image"),
        ("oci://Registry/a b", "names no image"),
        ("hf://" + "a" * 2000, "names no source"),
    ],
)
def test_a_wrong_uri_says_what_to_write(uri: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        source(uri)


def test_a_mounted_model_is_never_looked_up_on_a_hub() -> None:
    assert dict(environment("pvc://w/x"))["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in dict(environment(HUB))
    assert dict(environment(HUB))["HOME"] == "/tmp"


@pytest.mark.parametrize(
    "argument",
    [
        "--gpu-memory-utilization",
        "--gpu_memory_utilization=0.9",
        "--gpu-memory-util",
        "--gpu-m=1",
        "--device-memory-utilization=1",
        "--kv-cache-memory=1G",
        "--kv-cache-memory-bytes",
        "--tensor-parallel-size",
        "--tensor_par=8",
        "--port",
        "--host=0.0.0.0",
        "--download-dir=/",
        "--api-key",
        "--trust-remote-code",
        "--trust-rem",
        "--ssl-keyfile=x",
        "--chat-template=/etc/passwd",
        "--middleware=os.system",
        "--tool-parser-plugin=x",
        "--worker-extension-cls=x",
        "--load-format=x",
        "--config=/tmp/x",
        "--confi",
        "--served-model-name",
        "--max-model-len=1",
        "--no-enforce-eager",
        "--compilation-config.mode=0",
        "--compilation_config.cudagraph_mode",
        "--kv-transfer-config.kv_connector_module_path=x",
        "--data-parallel-size=2",
        "--num-gpu-blocks-override",
        "--GPU-memory-utilization",
        "--en",
    ],
)
def test_what_the_operator_owns_is_refused_in_every_spelling(argument: str) -> None:
    assert owned_flag(argument)
    assert "refused" in refuse_extra((argument,))


def test_no_beginning_of_an_owned_flag_gets_through() -> None:
    owned = [flag for flag in sorted(SWITCHES | VALUED) if owned_flag(f"--{flag}")]
    for flag in owned:
        for end in range(1, len(flag)):
            beginning = flag[:end]
            assert beginning in SWITCHES | VALUED or owned_flag(f"--{beginning}=1"), beginning
    assert len(owned) > 80


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--enable-prefix-caching",),
        ("--seed", "-1"),
        ("--seed=3", "--reasoning-parser", "qwen3", "--enable-auto-tool-choice"),
        ("--config-format=hf",),
        ("--chat-template-content-format", "openai"),
        ("--model-impl=auto",),
        ("--some-flag-of-tomorrow", "1"),
        ("--override-generation-config.temperature", "0.1"),
    ],
)
def test_other_flags_are_the_users(arguments: tuple[str, ...]) -> None:
    assert refuse_extra(arguments) == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("-tp", "8"), "long form"),
        (("-O3",), "long form"),
        (("--", "x"), "long form"),
        (("model",), "without a flag"),
        (("--enable-prefix-caching", "x"), "takes none"),
        (("--seed=1", "x"), "takes none"),
        (("--seed", "--host"), "refused"),
        (("--max-num-seqs=3",), "write engine.maxNumSeqs"),
        (("--gpu-memory-utilization=1",), "write share"),
        (("--ssl-ca-certs=x",), "where it put it"),
    ],
)
def test_what_is_wrong_with_extra_arguments_is_said(arguments: tuple[str, ...], says: str) -> None:
    assert says in refuse_extra(arguments)
