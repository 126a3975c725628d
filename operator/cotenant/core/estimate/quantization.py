"""How many bits a checkpoint or vLLM's online quantization leaves of each weight, scales included."""

from __future__ import annotations

from cotenant.core.estimate.configkeys import Json, flag, names, number, part
from cotenant.core.estimate.modelconfig import Quantization

_PACKED_FLOAT = {"mxfp4": 4 + 8 / 32, "nvfp4": 4 + 8 / 16, "mxfp8": 8 + 8 / 32}
"""One byte of scale for each 32 or 16 weights (OCP MX specification; NVIDIA's NVFP4)."""
_BLOCK_FP8 = 8 + 32 / (128 * 128)
"""A float32 scale for each block of 128 by 128."""

ONLINE = {
    "fp8": 8.0,
    "fp8_per_tensor": 8.0,
    "fp8_per_block": _BLOCK_FP8,
    "fp8_per_channel": 8.0,
    "int8_per_channel_weight_only": 8.0,
    "experts_int8": 8.0,
    "nvfp4_per_token": _PACKED_FLOAT["nvfp4"],
    "mxfp8": _PACKED_FLOAT["mxfp8"],
    "mxfp4": _PACKED_FLOAT["mxfp4"],
}
"""What `--quantization NAME` makes of a checkpoint in 16 bits (vLLM 0.33)."""


def quantization(config: Json, text: Json) -> Quantization | None:
    """The checkpoint's own quantization; None where it has none."""
    found = (
        part(config, "quantization_config") or part(text, "quantization_config") or part(config, "compression_config")
    )
    if not found:
        return None
    method = str(found.get("quant_method") or found.get("quant_algo") or "").lower()
    if method in ("awq", "gptq", "awq_marlin", "gptq_marlin", "auto-round", "autoround", "inc"):
        bits = number(found, "bits", number(found, "w_bit", 4))
        # Machete, which Hopper runs AWQ on, keeps zero points in 16 bits, scales applied (`MacheteLinearKernel`)
        return Quantization(method, _grouped(bits, found, zero=16 if method.startswith("awq") else bits))
    if method == "fp8" or method == "fbgemm_fp8":
        return Quantization(method, _BLOCK_FP8 if found.get("weight_block_size") else 8.0)
    if method in ("mxfp4", "gpt_oss_mxfp4"):
        return Quantization(method, _PACKED_FLOAT["mxfp4"], experts_only=True)
    if method == "compressed-tensors":
        return _compressed(found)
    if "modelopt" in method or found.get("quant_algo"):
        return _modelopt(found)
    if method == "bitsandbytes":
        return Quantization(method, 4.5 if flag(found, "load_in_4bit") else 8.1, exact=False)
    return Quantization(method or "unknown", float(number(found, "bits", 8)) + 0.5, exact=False)


def _grouped(bits: int, found: Json, *, zero: int) -> float:
    """Whole-number weights with a 16-bit scale, and a zero point of `zero` bits, for each group."""
    raw = found.get("group_size", 128)
    group = raw if isinstance(raw, int) and raw > 0 else 0
    return bits + (16 + zero) / group if group else bits + 0.02


def _compressed(found: Json) -> Quantization:
    """compressed-tensors: the first group speaks for all."""
    groups = part(found, "config_groups")
    first = next((part(groups, name) for name in sorted(groups)), {})
    weights = part(first, "weights")
    bits = number(weights, "num_bits", 8)
    kv_cache = bool(part(found, "kv_cache_scheme"))
    if weights.get("type") == "float":
        each = (
            _PACKED_FLOAT["nvfp4"] if bits == 4 else _BLOCK_FP8 if weights.get("strategy") == "block" else float(bits)
        )
    elif weights.get("strategy") == "group":
        each = _grouped(bits, weights, zero=0 if flag(weights, "symmetric", True) else bits)
    else:
        each = float(bits)
    ignored = " ".join(names(found, "ignore"))
    return Quantization(
        "compressed-tensors", each, experts_only="self_attn" in ignored, kv_cache_fp8=kv_cache, exact=bool(weights)
    )


def _modelopt(found: Json) -> Quantization:
    """NVIDIA ModelOpt: FP8, NVFP4 or a mix."""
    inner = part(found, "quantization") or found
    algorithm = str(inner.get("quant_algo") or "FP8").upper()
    kv_cache = str(inner.get("kv_cache_quant_algo") or "").upper() == "FP8" or bool(part(inner, "kv_cache_scheme"))
    bits = {"FP8": 8.0, "NVFP4": _PACKED_FLOAT["nvfp4"], "MXFP8": _PACKED_FLOAT["mxfp8"]}.get(algorithm)
    return Quantization(f"modelopt {algorithm}", bits or 8.0, kv_cache_fp8=kv_cache, exact=bits is not None)
