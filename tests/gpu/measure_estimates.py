"""Predicted against real on one card, with random weights: python3 tests/gpu/measure_estimates.py OUT.json [--seconds 540] [NAME ...]

Each case starts vLLM with the flags Cotenant renders, waits until it serves, loads it with 48 prompts of 1,500 tokens and
notes what vLLM's log says and what NVML says the card holds. Needs vLLM importable and the package's `operator` folder on
PYTHONPATH; asks no network. A case that fails is noted with the end of its log.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

from cotenant import catalogue
from cotenant.core.estimate.advice import at_share
from cotenant.core.estimate.configparse import parse_config
from cotenant.core.learn import learn
from cotenant.core.share import GIB, Bytes
from cotenant.core.vllm import Engine, Sizing, command, environment, settle

PORT = 8123
CASES: dict[str, tuple[str, int, Engine, dict[str, Any]]] = {
    # name: (model of the catalogue, share in GiB, engine block, changes to its config)
    "llama-1b": ("meta-llama/Llama-3.2-1B-Instruct", 8, Engine(max_model_len=8192), {}),
    "llama-8b": ("meta-llama/Llama-3.1-8B-Instruct", 30, Engine(max_model_len=16384), {}),
    "llama-8b-fp8": ("meta-llama/Llama-3.1-8B-Instruct", 20, Engine(max_model_len=8192, quantization="fp8"), {}),
    "qwen3-8b-fp8": ("Qwen/Qwen3-8B-FP8", 24, Engine(max_model_len=8192), {}),
    "qwen3-32b-awq": ("Qwen/Qwen3-32B-AWQ", 40, Engine(max_model_len=8192), {}),
    "gemma-2-9b": ("google/gemma-2-9b-it", 40, Engine(max_model_len=8192), {}),
    "gemma-3-1b": ("google/gemma-3-1b-it", 10, Engine(max_model_len=16384), {}),
    "command-r7b": ("CohereLabs/c4ai-command-r7b-12-2024", 30, Engine(max_model_len=32768), {}),
    "phi-4": ("microsoft/phi-4", 60, Engine(max_model_len=16384), {}),
    "glm-4-9b": ("zai-org/GLM-4-9B-0414", 40, Engine(max_model_len=32768), {}),
    "olmo-2-7b": ("allenai/OLMo-2-1124-7B-Instruct", 30, Engine(max_model_len=4096, cuda_graphs=False), {}),
    "qwen3-30b-a3b": ("Qwen/Qwen3-30B-A3B", 80, Engine(max_model_len=16384), {}),
    "gpt-oss-20b": ("openai/gpt-oss-20b", 40, Engine(max_model_len=16384), {}),
    "deepseek-v2-lite": ("deepseek-ai/DeepSeek-V2-Lite-Chat", 50, Engine(max_model_len=16384), {}),
    "qwen3-next-8-layers": ("Qwen/Qwen3-Next-80B-A3B-Instruct", 50, Engine(max_model_len=16384), {"num_hidden_layers": 8}),
    "mistral-24b": ("mistralai/Mistral-Small-24B-Instruct-2501", 90, Engine(max_model_len=16384), {}),
}  # fmt: skip


def main() -> None:
    """Run what was named, or all, as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", choices=[*CASES, []])
    parser.add_argument("--seconds", type=float, default=540)
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    results: dict[str, Any] = {"card": smi("name,driver_version,memory.total,memory.reserved"), "runs": {}}
    for name in options.names or CASES:
        if time.monotonic() > ends - 100:
            break
        began = time.monotonic()
        results["runs"][name] = run(name, ends)
        print(name, f"{time.monotonic() - began:.0f} s", json.dumps(results["runs"][name])[:400], flush=True)
        options.out.write_text(json.dumps(results, indent=1))


def run(name: str, ends: float) -> dict[str, Any]:
    """One engine: predicted, started, loaded, stopped."""
    model, gib, engine, changed = CASES[name]
    config_json = {**catalogue.models()[model]["config"], **changed}
    config = parse_config(config_json)
    total, reserved = (int(each) << 20 for each in smi("memory.total,memory.reserved").split(", "))
    flag = Bytes(gib * GIB).utilization(total - reserved)
    share = flag.of(total - reserved)
    found = at_share(config, engine, 1, share)
    engine = settle(replace(engine, load_format="dummy"), Sizing(share))
    out: dict[str, Any] = {
        "model": model,
        "share": share,
        "utilization": str(flag),
        "predicted": {
            "weights": found.weights.value,
            "kvTokens": found.kv_tokens(share).value,
            "activation": found.activation.value,
            "graphs": found.cuda_graphs.value,
            "peak": found.peak(share).value,
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder), config_json)
        arguments = command(engine, model=folder, served_name="m", tensor_parallel=1, utilization=str(flag), port=PORT)
        out["arguments"] = list(arguments[1:])
        out |= measure(folder, arguments, config.vocab, ends)
    return out


def measure(folder: str, arguments: tuple[str, ...], vocab: int, ends: float) -> dict[str, Any]:
    """What the started engine says and holds."""
    idle, log = used(), Path(folder) / "log"
    env = {**os.environ, **dict(environment(folder)), "VLLM_USE_FLASHINFER_SAMPLER": "0"}
    began = time.monotonic()
    with log.open("w") as stream:
        engine = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *arguments],
            stdout=stream, stderr=subprocess.STDOUT, env=env, start_new_session=True,
        )  # fmt: skip
        try:
            while engine.poll() is None and time.monotonic() < min(ends, began + 240) and not healthy():
                time.sleep(1)
            if not healthy():
                return {"failed": log.read_text()[-3000:]}
            ready = round(time.monotonic() - began)
            at_start = used() - idle
            peak = load(vocab, idle)
        finally:
            stop(engine, idle)
    text = log.read_text()
    known = learn("m", "k", text, ready_seconds=ready)
    lines = [line[-240:] for line in text.splitlines() if any(mark in line for mark in MARKS)]
    real = {
        "weights": known.weights, "kvTokens": known.kv_cache_tokens, "kvBytes": known.kv_cache_bytes,
        "graphs": known.cuda_graphs, "readySeconds": ready, "atStart": at_start, "peak": peak,
    }  # fmt: skip
    return {"real": real, "log": lines}


MARKS = (
    "Model loading took", "Available KV cache", "GPU KV cache size", "Graph capturing", "Actual usage", "CUDA graph memory",
    "attention block size", "attention backend", "padding layers", "page size",
)  # fmt: skip


def load(vocab: int, idle: int) -> int:
    """The most the card held while 48 prompts of 1,500 tokens were answered."""

    def ask(seed: int) -> None:
        prompt = [(seed * 7919 + position * 31) % min(250, vocab) for position in range(1500)]
        body = {"model": "m", "prompt": prompt, "max_tokens": 64, "ignore_eos": True, "temperature": 0.7}
        request = urllib.request.Request(
            f"http://127.0.0.1:{PORT}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=60).read()

    most = used() - idle
    with concurrent.futures.ThreadPoolExecutor(48) as pool:
        waiting = [pool.submit(ask, seed) for seed in range(48)]
        while not all(each.done() for each in waiting):
            most = max(most, used() - idle)
            time.sleep(0.3)
        for each in waiting:
            each.result()
    return max(most, used() - idle)


def stop(engine: subprocess.Popen[bytes], idle: int) -> None:
    """End the engine and wait until the card is as before."""
    engine.send_signal(signal.SIGTERM)
    try:
        engine.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(engine.pid, signal.SIGKILL)
        engine.wait()
    for _ in range(40):
        if used() - idle < 64 << 20:
            return
        time.sleep(0.5)


def healthy() -> bool:
    """Whether it serves."""
    try:
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=2).status == 200)
    except OSError:
        return False


def used() -> int:
    """Bytes the card holds."""
    return int(smi("memory.used")) << 20


def smi(fields: str) -> str:
    """What nvidia-smi says of the first card."""
    query = ["nvidia-smi", "-i", "0", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    return subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip()


def write_model(folder: Path, config: dict[str, Any]) -> None:
    """A model's folder: its config and a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    (folder / "config.json").write_text(json.dumps({"eos_token_id": 257, "bos_token_id": 256, **config}))
    words = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for special in ("<s>", "</s>"):
        words[special] = len(words)
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[], unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


if __name__ == "__main__":
    main()
