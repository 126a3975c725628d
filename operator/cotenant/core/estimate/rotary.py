"""The tables of cosines and sines that vLLM computes for every position when it loads a model.

After `vllm/model_executor/layers/rotary_embedding` of 0.26 to 0.33: one table for each set of parameters, shared by all layers.
"""

from __future__ import annotations

from cotenant.core.estimate.configkeys import Json, number, part

_LONGEST = 1 << 26
"""Positions of a table that are believed."""


def rotary_rows(keys: Json, kind: str) -> int:
    """Positions in all tables together."""
    positions = number(keys, "max_position_embeddings", 2048)
    found = part(keys, "rope_parameters") or part(keys, "rope_scaling")
    if kind == "gemma3_text" and "full_attention" not in found:
        # layers with a window have a base of their own, and are not stretched
        return _rows(found, positions) + positions
    by_layer = {name: part(found, name) for name in sorted(found) if part(found, name)}
    if not by_layer:
        return _rows(found, positions)
    different = {repr(sorted(each.items(), key=lambda item: item[0])): each for each in by_layer.values()}
    return sum(_rows(each, positions) for each in different.values())


def _rows(scaling: Json, positions: int) -> int:
    """Positions of one table."""
    rope, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
    usable = isinstance(factor, int | float) and not isinstance(factor, bool) and 1 <= factor < 1e4
    original = number(scaling, "original_max_position_embeddings", positions)
    if rope in ("yarn", "deepseek_yarn") and usable:
        return min(_LONGEST, int(original * float(factor or 1)))
    if rope == "linear" and usable:
        return min(_LONGEST, int(positions * float(factor or 1)))
    # LongRoPE keeps one for short sequences and one for long ones
    return min(_LONGEST, original + positions) if rope == "longrope" else positions
