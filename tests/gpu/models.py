"""Model folders with a config and a tokenizer of bytes: all vLLM needs with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cotenant import catalogue

CATALOGUE = {
    "mistral-24b": "mistralai/Mistral-Small-24B-Instruct-2501",
    "llama-8b": "meta-llama/Llama-3.1-8B-Instruct",
}
QWEN_2B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "dtype": "bfloat16",
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
"""The language model of dots.ocr."""
OURS: dict[str, Any] = {
    "bos_token_id": 256,
    "eos_token_id": 257,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
}


def write_all(root: Path, with_tokenizer: bool) -> None:
    """Every model of the steps as a folder under `root`."""
    configs = {name: catalogue.models()[hub]["config"] for name, hub in CATALOGUE.items()} | {"qwen-2b": QWEN_2B}
    for name, config in configs.items():
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(OURS | config))
        if with_tokenizer:
            _write_tokenizer(folder)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    words = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words |= {special: len(words) + index for index, special in enumerate(("<s>", "</s>"))}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
