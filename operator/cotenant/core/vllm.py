"""One replica's vLLM command line and environment: the only module that knows a vLLM flag.

Flags are those of vLLM 0.33.0's argument parser; 0.26.0 knows them too. What the user leaves out is written out all the
same where vLLM would derive it from the card: a share of a big card is not a big card (see `defaults`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cotenant.core.share import GIB
from cotenant.core.source import HUB_CACHE as HUB_CACHE
from cotenant.core.source import MODELS as MODELS
from cotenant.core.source import Source as Source
from cotenant.core.source import SourceKind as SourceKind
from cotenant.core.source import source as source
from cotenant.core.vllmflags import owned_flag as owned_flag

PORT = 8000


@dataclass(frozen=True, slots=True)
class Engine:
    """The `engine` block of a model as written; None where the user is silent. Maps are canonical JSON text."""

    name: str = "vllm"
    quantization: str | None = None
    dtype: str | None = None
    kv_cache_dtype: str | None = None
    max_model_len: int | None = None
    auto_max_model_len: bool = False
    """`maxModelLen: auto`: the longest that fits the share."""
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    target_concurrency: int | None = None
    cuda_graphs: bool = True
    max_capture_size: int | None = None
    compilation_config: str | None = None
    limit_mm_per_prompt: str | None = None
    mm_processor_kwargs: str | None = None
    mm_processor_cache_gb: int | None = None
    cpu_offload_gb: int | None = None
    kv_offloading_gb: int | None = None
    load_format: str | None = None
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sizing:
    """What was decided for one start beside the block as written."""

    share: int
    """Bytes per GPU the flag grants: what silent settings are derived from."""
    kv_cache_bytes: int | None = None
    """KV cache per GPU as an earlier start of the same engine, settings and share had it; pins the next one."""
    max_model_len: int | None = None
    """What `maxModelLen: auto` came to, where that was estimated."""
    multimodal: bool = False
    """The model takes images or video, so that limits for them mean something."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What is rendered where the user is silent."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_capture_size: int
    images: int
    videos: int


_STEPS = (
    (12 * GIB, Defaults(max_num_seqs=32, max_num_batched_tokens=2048, max_capture_size=32, images=1, videos=0)),
    (24 * GIB, Defaults(max_num_seqs=64, max_num_batched_tokens=2048, max_capture_size=64, images=2, videos=0)),
    (48 * GIB, Defaults(max_num_seqs=128, max_num_batched_tokens=4096, max_capture_size=128, images=4, videos=1)),
)
LARGE = Defaults(max_num_seqs=256, max_num_batched_tokens=8192, max_capture_size=256, images=8, videos=1)


def defaults(share: int) -> Defaults:
    """What fits a share of so many bytes: below 12, 24 and 48 GiB and above.

    vLLM asks the card: 1,024 sequences, 8,192 tokens a step and graphs up to 512 on 70 GiB and more. Measured on
    an H200 (vLLM 0.26.0, 8B model): 8,192 tokens book 0.84 GiB of activations and end 1.6 GiB above the share, 2,048
    tokens with 64 sequences 0.24 and 0.7 GiB. So what a step costs stays a few per cent of its smallest share.
    """
    for below, fitting in _STEPS:
        if share < below:
            return fitting
    return LARGE


def settle(engine: Engine, sizing: Sizing) -> Engine:
    """The same block, with every silent setting that decides the footprint written out; twice is as once."""

    fitting = defaults(sizing.share)
    seqs = engine.max_num_seqs or max(fitting.max_num_seqs, engine.target_concurrency or 0)
    if engine.max_num_seqs is None and engine.max_num_batched_tokens:
        seqs = min(seqs, engine.max_num_batched_tokens)
    capture = engine.max_capture_size or min(fitting.max_capture_size, seqs)
    limits = engine.limit_mm_per_prompt
    if limits is None and sizing.multimodal:
        limits = f'{{"image":{fitting.images},"video":{fitting.videos}}}'
    length, auto = engine.max_model_len, engine.auto_max_model_len
    if auto and sizing.max_model_len:
        length, auto = sizing.max_model_len, False
    return replace(
        engine,
        max_num_seqs=seqs,
        # vLLM refuses fewer tokens a step than sequences
        max_num_batched_tokens=engine.max_num_batched_tokens or max(fitting.max_num_batched_tokens, seqs),
        max_capture_size=capture if engine.cuda_graphs else engine.max_capture_size,
        limit_mm_per_prompt=limits,
        max_model_len=length,
        auto_max_model_len=auto,
    )


def contradiction(engine: Engine) -> str:
    """What vLLM would refuse about the block before it looks at a GPU, in a sentence; empty = nothing."""
    seqs, tokens = engine.max_num_seqs, engine.max_num_batched_tokens
    if seqs and tokens and tokens < seqs:
        return f"maxNumBatchedTokens {tokens} is less than maxNumSeqs {seqs}: each sequence takes a token a step"
    if seqs and engine.target_concurrency and engine.target_concurrency > seqs:
        return f"targetConcurrency {engine.target_concurrency} is more than maxNumSeqs {seqs} lets run at once"
    return ""


def command(
    engine: Engine,
    *,
    model: str,
    served_name: str,
    tensor_parallel: int,
    utilization: str,
    port: int = PORT,
    sizing: Sizing | None = None,
) -> tuple[str, ...]:
    """The arguments after `vllm serve` (the image's entry point), the model first.

    `model` is the URI of the spec, or a folder inside the container. Values are joined to their flags by `=`, so that
    no value can be read as a flag.
    """
    if sizing is not None:
        engine = settle(engine, sizing)
    weights = source(model) if "://" in model else None
    arguments = [weights.model if weights else model]
    for flag, value in _flags(engine):
        arguments.append(flag if value is None else f"{flag}={value}")
    if weights and weights.revision:
        arguments += [f"--revision={weights.revision}", f"--tokenizer-revision={weights.revision}"]
    if sizing is not None and sizing.kv_cache_bytes is not None:
        arguments.append(f"--kv-cache-memory-bytes={sizing.kv_cache_bytes}")
    arguments += [
        f"--served-model-name={served_name}",
        # values of ours cannot look like flags: two words, as people write and grep them
        *("--tensor-parallel-size", str(tensor_parallel)),
        # beside a pinned KV cache too: the start-up check of free memory reads only this one
        *("--gpu-memory-utilization", utilization),
        *("--host", "0.0.0.0"),
        *("--port", str(port)),
    ]
    return (*arguments, *engine.extra_args)


_BY_REMEDIES = (
    "--max-model-len",
    "--max-num-seqs",
    "--max-num-batched-tokens",
    "--max-cudagraph-capture-size",
    "--enforce-eager",
)
"""What remedies change of the block: it may be another at every start by the same spec."""


def runs(arguments: tuple[str, ...], engine: Engine, share: int, *, any_length: bool = False) -> bool:
    """Whether a command line is this block's at this share, in all that remedies may have changed. `any_length`: its context was
    sized for the share. Of no command line nothing is known: it may be."""
    given: dict[str, str] = {}
    for argument in arguments:
        flag, _, value = argument.partition("=")
        given.setdefault(flag, value)
    wanted = {flag: value or "" for flag, value in _flags(settle(engine, Sizing(share)))}
    free = ("--max-model-len",) if any_length else ()
    return not arguments or all(given.get(flag) == wanted.get(flag) for flag in _BY_REMEDIES if flag not in free)


def _flags(engine: Engine) -> list[tuple[str, str | None]]:
    """Every typed setting that was given, as its flag; None = a switch."""
    length = "auto" if engine.auto_max_model_len else engine.max_model_len
    graphs = engine.max_capture_size if engine.cuda_graphs else None
    given: list[tuple[str, str | int | None]] = [
        ("--quantization", engine.quantization),
        ("--dtype", engine.dtype),
        ("--kv-cache-dtype", engine.kv_cache_dtype),
        ("--max-model-len", length),
        ("--max-num-seqs", engine.max_num_seqs),
        ("--max-num-batched-tokens", engine.max_num_batched_tokens),
        ("--max-cudagraph-capture-size", graphs),
        ("--compilation-config", engine.compilation_config),
        ("--limit-mm-per-prompt", engine.limit_mm_per_prompt),
        ("--mm-processor-kwargs", engine.mm_processor_kwargs),
        ("--mm-processor-cache-gb", engine.mm_processor_cache_gb),
        ("--cpu-offload-gb", engine.cpu_offload_gb),
        ("--kv-offloading-size", engine.kv_offloading_gb),
        ("--load-format", engine.load_format),
    ]
    flags: list[tuple[str, str | None]] = [(flag, str(value)) for flag, value in given if value is not None]
    return flags if engine.cuda_graphs else [*flags, ("--enforce-eager", None)]


def environment(model: str, *, kept: bool = False) -> tuple[tuple[str, str], ...]:
    """Variables of the engine's container: every cache in /tmp (the root is read-only), nothing sent anywhere.

    A model that is mounted is never looked up on a hub. `kept`: hub downloads go where a claim is mounted for them.
    """
    variables = {
        "HOME": "/tmp",
        # torch asks for a user name, and an arbitrary uid has none in /etc/passwd
        "USER": "cotenant",
        "LOGNAME": "cotenant",
        "XDG_CACHE_HOME": "/tmp/.cache",
        "XDG_CONFIG_HOME": "/tmp/.config",
        "VLLM_CACHE_ROOT": "/tmp/.cache/vllm",
        "VLLM_CONFIG_ROOT": "/tmp/.config/vllm",
        "HF_HOME": HUB_CACHE if kept else "/tmp/.cache/huggingface",
        "TRITON_CACHE_DIR": "/tmp/.cache/triton",
        "TORCHINDUCTOR_CACHE_DIR": "/tmp/.cache/inductor",
        "CUDA_CACHE_PATH": "/tmp/.cache/cuda",
        "FLASHINFER_WORKSPACE_BASE": "/tmp",
        "NUMBA_CACHE_DIR": "/tmp/.cache/numba",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # its fingerprint ignores the share: a lowered share would be overrun by the larger KV cache of before
        "VLLM_ENABLE_STARTUP_PLAN": "0",
        # our start timeout decides, not vLLM's 600 s
        "VLLM_ENGINE_READY_TIMEOUT_S": "3600",
    }
    if "://" not in model or source(model).kind is not SourceKind.HUB:
        variables |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return tuple(sorted(variables.items()))


def utilization_of(args: tuple[str, ...]) -> str:
    """The last `--gpu-memory-utilization` of a command line, as argparse would take it."""
    found = ""
    for position, argument in enumerate(args):
        name, equals, value = argument.partition("=")
        if name == "--gpu-memory-utilization":
            found = value if equals else next(iter(args[position + 1 : position + 2]), "")
    return found
