"""What estimates cannot be reasoned out, and the measurements they were fitted to.

All measured with random weights on one NVIDIA H200 (two where TP=2), driver 580.159.04, vLLM 0.26.0, torch 2.11+cu130,
2026-11-21; usable memory 139.80 GiB. `tests/core/test_estimate.py` holds the formulas against the table.
"""

from __future__ import annotations

from dataclasses import dataclass

from cotenant.core.share import GIB, MIB

SOURCE = "fitted to vLLM 0.26.0 on an H200, 2026-11-21"

# --------------------------------------------------------------------------------------------------- inside the share
NON_TORCH = int(0.22 * GIB)
"""Grown outside torch between vLLM's first snapshot and its profile; the same in all runs with one rank."""
NON_TORCH_GROUP = int(0.07 * GIB)
"""With several ranks: NCCL has its memory before the first snapshot."""
MLP_WIDTHS = 3
"""Both halves of a gated MLP and their product."""
HIDDEN_WIDTHS = 3
"""Hidden states, residual and the output."""
ACTIVATION_BASE = int(0.03 * GIB)
COMPILE_BASE = int(0.01 * GIB)
LOGIT_BYTES = 5.8
"""Per sequence and word of the vocabulary: logits in 16 bits and what sampling makes of them (second runner)."""
LOGIT_BYTES_OLD_RUNNER = 14.0
"""Logits in 16 and in 32 bits, probabilities and noise (first runner)."""
LOGIT_BYTES_HIGH = 16.0
PROCESSORS = 132
"""Multiprocessors of an H100 or H200: the sampler's kernels keep a row of the vocabulary for each."""
GRAPH_BOOKED_BASE = int(0.1 * GIB)
"""What the first runner sets aside for graphs: the largest of each kind as captured to see, 1 MiB at least for each other."""
GRAPH_BOOKED = int(6 * MIB)

# -------------------------------------------------------------------------------------------------- outside the share
CONTEXT = int(0.49 * GIB)
"""CUDA context and cuBLAS handles, gone from free memory before vLLM's first snapshot."""
GROUP_CONTEXT = int(1.24 * GIB)
"""NCCL, custom and symmetric-memory all-reduce, per rank of a group."""
KEPT_BASE = int(0.15 * GIB)
"""What torch holds of blocks too small or too scattered to be used again."""
KEPT_SEQUENCE = 8.0
"""Per sequence and word: counts for penalties (4 bytes and a bit), and what warming the sampler up leaves."""
KEPT_ROW = 9.0
"""The same for as many sequences as the card has multiprocessors: buffers of the sampler's kernels."""
GRAPH_BASE = int(0.08 * GIB)
GRAPH_LAYER = int(0.27 * MIB)
"""What captured graphs really take, per layer and size."""


@dataclass(frozen=True, slots=True)
class Run:
    """One start as it was measured; GiB unless said otherwise."""

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    share: float
    weights: float
    batched_tokens: int = 8192
    sequences: int = 1024
    max_model_len: int = 4096
    capture: int = 0
    """Largest captured size; 0 = eager."""
    tensor_parallel: int = 1
    kv_bits: int = 16
    online: str | None = None
    qk_norm: bool = False
    activation: float | None = None
    kv_tokens: int | None = None
    over_start: float | None = None
    """Used by the process beyond its share when ready."""
    over_load: float | None = None
    """The same after 96 prompts of 1,500 tokens (24B: 128 of 3,000)."""


_LLAMA_8B = (4096, 14336, 32, 32, 8, 128, 128256)
_QWEN3_8B = (4096, 12288, 36, 32, 8, 128, 151936)
_MISTRAL_24B = (5120, 32768, 40, 32, 8, 128, 131072)

RUNS = (
    Run("Qwen3-8B eager", *_QWEN3_8B, share=83.88, weights=15.27, qk_norm=True, activation=0.84, kv_tokens=491_840,
        over_start=1.24, over_load=1.80),
    Run("Qwen3-8B graphs", *_QWEN3_8B, share=83.88, weights=15.27, qk_norm=True, capture=512, activation=1.29, kv_tokens=488_624,
        over_start=1.79, over_load=2.17),
    Run("Llama-3.1-8B eager, fp8 KV", *_LLAMA_8B, share=83.88, weights=14.97, kv_bits=8, activation=0.88,
        kv_tokens=1_110_560, over_start=0.98, over_load=1.64),
    Run("Llama-3.1-8B eager, fp8 weights", *_LLAMA_8B, share=83.88, weights=8.5, online="fp8", activation=0.84,
        kv_tokens=608_784, over_start=1.06, over_load=1.72),
    Run("Llama-3.1-8B eager, 2,048 tokens, 64 sequences", *_LLAMA_8B, share=83.88, weights=14.97, batched_tokens=2048,
        sequences=64, activation=0.24, kv_tokens=560_720, over_start=0.49, over_load=0.73),
    Run("Llama-3.1-8B eager, 32,768 tokens", *_LLAMA_8B, share=83.88, weights=14.97, batched_tokens=32768,
        activation=3.41, kv_tokens=534_800, over_start=-1.55, over_load=2.45),
    Run("Mistral-Small-3 24B graphs", *_MISTRAL_24B, share=97.86, weights=43.91, capture=512, kv_tokens=340_208,
        over_start=1.04, over_load=2.91),
    Run("Llama-3.1-8B eager, TP 2", *_LLAMA_8B, share=62.91, weights=7.49, tensor_parallel=2, activation=0.71,
        kv_tokens=895_280, over_start=2.74, over_load=2.75),
    Run("Mistral-Small-3 24B eager, TP 2", *_MISTRAL_24B, share=62.91, weights=21.96, tensor_parallel=2, activation=1.02,
        kv_tokens=522_560, over_start=2.46, over_load=2.96),
)  # fmt: skip
