"""The vision tower a config describes, counted by its family's rules (model code of transformers 5 and vLLM 0.33)."""

from __future__ import annotations

from cotenant.core.estimate.configkeys import Json, flag, number, part
from cotenant.core.estimate.modelconfig import Tower

_QWEN2_PIXELS = 12_845_056
"""`max_pixels` of the preprocessors of Qwen2-VL and its kin."""
_QWEN3_PIXELS = 16_777_216
_DOTS_PIXELS = 11_289_600


def tower(config: Json, text_hidden: int) -> Tower | None:
    """What sees, or None for a model of text."""
    config = part(config, "thinker_config") or config
    vision = part(config, "vision_config") or part(config, "vision_tower_config")
    if not vision:
        return None
    kind = str(vision.get("model_type") or "")
    owner = str(config.get("model_type") or "")
    if owner in ("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker") or kind in ("qwen2_vl", "qwen2_5_vl"):
        return _qwen2(vision, text_hidden)
    if owner.startswith(("qwen3_vl", "qwen3_5")):
        return _qwen3(vision)
    if kind.startswith("dots"):
        return _dots(vision)
    if kind == "pixtral":
        return _pixtral(vision, text_hidden, owner)
    if kind.startswith("siglip"):
        return _siglip(vision, text_hidden, number(config, "mm_tokens_per_image", 256) or 256)
    return _generic(vision, text_hidden)


def _qwen2(vision: Json, text_hidden: int) -> Tower:
    """Qwen2-VL (plain MLP) and Qwen2.5-VL (gated MLP, RMS norms)."""
    gated = "intermediate_size" in vision
    hidden = number(vision, "hidden_size", 1280) if gated else number(vision, "embed_dim", 1280)
    wide = number(vision, "intermediate_size", 3420) if gated else int(hidden * number(vision, "mlp_ratio", 4))
    out = number(vision, "out_hidden_size", text_hidden)
    patch, merged = number(vision, "patch_size", 14), hidden * number(vision, "spatial_merge_size", 2) ** 2
    mlp = 3 * hidden * wide + 2 * wide + hidden if gated else 2 * hidden * wide + wide + hidden
    norm = hidden if gated else 2 * hidden
    layer = 4 * hidden * hidden + 4 * hidden + mlp + 2 * norm
    head = norm + merged * merged + merged + merged * out + out
    frames = number(vision, "temporal_patch_size", 2)
    stem = 3 * frames * patch * patch * hidden
    return Tower(hidden, wide, number(vision, "depth", 32) * layer + head + stem, patch, _QWEN2_PIXELS // patch**2)


def _qwen3(vision: Json) -> Tower:
    """Qwen3-VL: learned positions, and a merger for each layer it hands on."""
    hidden, wide = number(vision, "hidden_size", 1152), number(vision, "intermediate_size", 4304)
    out, patch = number(vision, "out_hidden_size", 3584), number(vision, "patch_size", 16)
    merged = hidden * number(vision, "spatial_merge_size", 2) ** 2
    layer = 4 * hidden * hidden + 4 * hidden + 2 * hidden * wide + wide + hidden + 4 * hidden
    handed = vision.get("deepstack_visual_indexes")
    mergers = len(handed) if isinstance(handed, list) else 3 if handed is None else 0
    merger = merged * merged + merged + merged * out + out
    stem = 3 * number(vision, "temporal_patch_size", 2) * patch * patch * hidden + hidden
    positions = number(vision, "num_position_embeddings", 2304) * hidden
    norms = 2 * hidden + mergers * 2 * merged
    total = number(vision, "depth", 27) * layer + (1 + mergers) * merger + norms + stem + positions
    return Tower(hidden, wide, total, patch, _QWEN3_PIXELS // patch**2)


def _dots(vision: Json) -> Tower:
    """dots.ocr: gated MLP without biases."""
    hidden, wide = number(vision, "embed_dim", 1536), number(vision, "intermediate_size", 4224)
    patch, merged = number(vision, "patch_size", 14), hidden * number(vision, "spatial_merge_size", 2) ** 2
    out = number(vision, "hidden_size", hidden)
    layer = 4 * hidden * hidden + 3 * hidden * wide + 2 * hidden
    head = 2 * hidden + merged * merged + merged + merged * out + out
    stem = 3 * patch * patch * hidden + 2 * hidden
    count = number(vision, "num_hidden_layers", 42) * layer + head + stem + hidden
    return Tower(hidden, wide, count, patch, _DOTS_PIXELS // patch**2)


def _pixtral(vision: Json, text_hidden: int, owner: str) -> Tower:
    """Pixtral: gated MLP without biases; Mistral 3 merges patches before the projector."""
    hidden, wide = number(vision, "hidden_size", 1024), number(vision, "intermediate_size", 4096)
    patch, side = number(vision, "patch_size", 14), number(vision, "image_size", 1540)
    layer = 4 * hidden * hidden + 3 * hidden * wide + 2 * hidden
    projector = hidden * text_hidden + text_hidden * text_hidden
    projector += 4 * hidden * hidden + hidden if owner == "mistral3" else 2 * text_hidden
    stem = 3 * patch * patch * hidden + hidden
    count = number(vision, "num_hidden_layers", 24) * layer + projector + stem
    return Tower(hidden, wide, count, patch, (side // patch) ** 2, merged=4 if owner == "mistral3" else 1)


def _siglip(vision: Json, text_hidden: int, tokens: int) -> Tower:
    """SigLIP as in Gemma 3: biases, learned positions, one projection."""
    hidden, wide = number(vision, "hidden_size", 768), number(vision, "intermediate_size", 3072)
    patch, side = number(vision, "patch_size", 14), number(vision, "image_size", 224)
    patches = (side // patch) ** 2
    layer = 4 * hidden * hidden + 2 * hidden * wide + 9 * hidden + wide
    stem = 3 * patch * patch * hidden + hidden + patches * hidden
    count = number(vision, "num_hidden_layers", 12) * layer + stem + 2 * hidden + hidden * text_hidden + hidden
    return Tower(hidden, wide, count, patch, patches, merged=max(1, patches // tokens))


def _generic(vision: Json, text_hidden: int) -> Tower | None:
    """Any vision transformer with biases and a projector of two layers."""
    hidden = number(vision, "hidden_size", number(vision, "embed_dim", 0))
    depth = number(vision, "num_hidden_layers", number(vision, "depth", number(vision, "layers", 0)))
    if not hidden or not depth:
        return Tower(0, 0, 0, known=False)
    wide = number(vision, "intermediate_size", 4 * hidden)
    patch, side = number(vision, "patch_size", 14) or 14, number(vision, "image_size", 448)
    patches = (side // patch) ** 2
    mlp = (3 if flag(vision, "use_swiglu_ffn") else 2) * hidden * wide + wide
    layer = 4 * hidden * hidden + mlp + 9 * hidden
    merged = 4 * hidden
    projector = merged * text_hidden + text_hidden * text_hidden
    count = depth * layer + 3 * patch * patch * hidden + patches * hidden + projector
    return Tower(hidden, wide, count, patch, patches, known=False)
