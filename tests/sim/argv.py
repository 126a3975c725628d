"""`vllm serve ...` as vLLM's own parser takes it: the flags a pod really carries, or argparse's complaint."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

# vLLM 0.33.0's flags as far as an operator or a user's extraArgs may name them (its EngineArgs).
_VALUES = [
    "served-model-name",
    "revision",
    "tokenizer",
    "tokenizer-mode",
    "tokenizer-revision",
    "code-revision",
    "config-format",
    "dtype",
    "max-seq-len-to-capture",
    "quantization",
    "hf-config-path",
    "hf-overrides",
    "hf-token",
    "download-dir",
    "load-format",
    "model-loader-extra-config",
    "seed",
    "max-logprobs",
    "kv-cache-dtype",
    "block-size",
    "prefix-caching-hash-algo",
    "cpu-offload-gb",
    "kv-offloading-size",
    "kv-offloading-backend",
    "kv-transfer-config",
    "max-num-seqs",
    "max-num-batched-tokens",
    "max-num-active-seqs",
    "max-num-queued-reqs",
    "max-num-queued-tokens",
    "max-num-partial-prefills",
    "max-long-partial-prefills",
    "long-prefill-token-threshold",
    "scheduling-policy",
    "num-gpu-blocks-override",
    "limit-mm-per-prompt",
    "mm-processor-kwargs",
    "mm-processor-cache-gb",
    "mm-processor-cache-type",
    "media-io-kwargs",
    "mm-encoder-tp-mode",
    "cudagraph-capture-sizes",
    "max-cudagraph-capture-size",
    "compilation-config",
    "attention-backend",
    "host",
    "port",
    "uvicorn-log-level",
    "api-server-count",
    "chat-template",
    "chat-template-content-format",
    "response-role",
    "tool-call-parser",
    "reasoning-parser",
    "max-loras",
    "max-lora-rank",
    "lora-modules",
    "lora-dtype",
    "pipeline-parallel-size",
    "data-parallel-size",
    "distributed-executor-backend",
    "task",
    "runner",
    "convert",
    "override-generation-config",
    "generation-config",
    "speculative-config",
    "pooler-config",
    "override-pooler-config",
    "root-path",
    "ssl-keyfile",
    "ssl-certfile",
    "api-key",
    "allowed-origins",
    "max-log-len",
    "shutdown-timeout",
    "structured-outputs-config",
    "offload-backend",
    "offload-group-size",
    "tool-parser-plugin",
    "middleware",
    "worker-extension-cls",
    "config",
    "default-chat-template-kwargs",
]
_SWITCHES = [
    "enforce-eager",
    "trust-remote-code",
    "enable-prefix-caching",
    "enable-chunked-prefill",
    "enable-sleep-mode",
    "enable-lora",
    "enable-expert-parallel",
    "enable-auto-tool-choice",
    "enable-log-requests",
    "disable-log-requests",
    "disable-log-stats",
    "disable-uvicorn-access-log",
    "async-scheduling",
    "language-model-only",
    "skip-mm-profiling",
    "disable-custom-all-reduce",
    "disable-cascade-attn",
    "enable-prompt-embeds",
    "enable-request-id-headers",
    "enable-server-load-tracking",
    "kv-cache-metrics",
    "cudagraph-metrics",
    "return-tokens-as-token-ids",
    "skip-tokenizer-init",
    "enable-force-include-usage",
    "enable-prompt-tokens-details",
    "enable-return-routed-experts",
    "calculate-kv-scales",
]
_SIZES = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class BadArgumentsError(Exception):
    """argparse would end the process with exit code 2 and this text."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a start was told."""

    model: str
    served_name: str
    utilization: float = 0.92
    tensor_parallel: int = 1
    max_model_len: int | None = None
    auto_max_model_len: bool = False
    kv_cache_memory_bytes: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = None
    eager: bool = False
    capture_size: int = 512


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadArgumentsError(f"{self.format_usage()}{self.prog}: error: {message}")


def human_int(text: str) -> int:
    """`4G` = 4 GiB, `4g` = 4e9, `32k` = 32,000, `1.5g`; ValueError for anything else (`4GiB` too, as in vLLM)."""
    if not (found := re.fullmatch(r"(-?\d+)|(\d+(?:\.\d+)?)([kKmMgGtT])", text)):
        raise ValueError(text)
    return int(found[1]) if found[1] else int(float(found[2]) * _SIZES[found[3]])


def _length(text: str) -> int:
    return -1 if text == "auto" else human_int(text)


def _json(text: str) -> Any:
    return json.loads(text)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="vllm serve", usage="vllm serve [model_tag] [options]", add_help=False)
    add = parser.add_argument
    add("model_tag", nargs="?")
    add("--model")
    add("--gpu-memory-utilization", "--device-memory-utilization", type=float, default=0.92)
    add("--tensor-parallel-size", "-tp", type=int, default=1)
    add("--max-model-len", type=_length)
    add("--kv-cache-memory-bytes", type=human_int)
    for flag in _VALUES:
        kind: Any = str
        if flag in ("max-num-seqs", "max-num-batched-tokens", "max-cudagraph-capture-size", "max-num-active-seqs"):
            kind = human_int
        elif flag in ("limit-mm-per-prompt", "mm-processor-kwargs", "hf-overrides", "speculative-config"):
            kind = _json
        elif flag in ("port", "seed", "api-server-count", "max-logprobs", "num-gpu-blocks-override"):
            kind = int
        elif flag in ("cpu-offload-gb", "kv-offloading-size", "mm-processor-cache-gb"):
            kind = float
        many = "+" if flag in ("served-model-name", "lora-modules", "cudagraph-capture-sizes") else None
        add(f"--{flag}", type=kind, nargs=many)
    add("-O", "-cc", dest="compilation_short")
    for flag in _SWITCHES:
        add(f"--{flag}", action=argparse.BooleanOptionalAction)
    return parser


_PARSER = _parser()
# The switches come in pairs (`--no-...`); the types' names are what argparse's messages show.
human_int.__name__ = "human_readable_int"
_length.__name__ = "human_readable_int_or_auto"
_json.__name__ = "json.loads"


@lru_cache(4096)
def parse(words: tuple[str, ...]) -> Command:
    """The command of a container (command + args, `vllm serve` in front or baked in the image); BadArgumentsError as vLLM."""
    rest = list(words)
    while rest and rest[0].rsplit("/", 1)[-1] in (
        "vllm",
        "serve",
        "python3",
        "python",
        "-m",
        "vllm.entrypoints.openai.api_server",
    ):
        rest.pop(0)
    # vLLM takes `_` for `-` in flag names.
    dashed = [
        re.sub(r"^--[^=]+", lambda m: m[0].replace("_", "-"), word) if word.startswith("--") else word for word in rest
    ]
    found = _PARSER.parse_args(dashed)
    model = found.model_tag or found.model
    if not model:
        raise BadArgumentsError(
            f"{_PARSER.format_usage()}vllm serve: error: the following arguments are required: model_tag"
        )
    length = found.max_model_len
    return Command(
        model=model,
        served_name=(found.served_model_name or [model])[0],
        utilization=found.gpu_memory_utilization,
        tensor_parallel=found.tensor_parallel_size,
        max_model_len=None if length in (None, -1) else length,
        auto_max_model_len=length == -1,
        kv_cache_memory_bytes=found.kv_cache_memory_bytes,
        max_num_seqs=found.max_num_seqs,
        max_num_batched_tokens=found.max_num_batched_tokens,
        quantization=found.quantization,
        kv_cache_dtype=found.kv_cache_dtype,
        eager=bool(found.enforce_eager),
        capture_size=found.max_cudagraph_capture_size or 512,
    )
