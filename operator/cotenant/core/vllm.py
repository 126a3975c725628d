"""One replica's vLLM command line and environment: the only module that knows a vLLM flag."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Engine:
    """The `engine` block of a model as written; None where the user is silent. Maps and JSON are canonical JSON text."""

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
