"""Predicted against real on one card, with random weights: python3 tests/gpu/measure_estimates.py OUT.json [--seconds 540] [NAME ...]

Each case starts vLLM with the flags Cotenant renders, waits until it serves, loads it with 48 prompts of 1,500 tokens and
notes what vLLM's log says and what NVML says the card holds. Only one engine is on the card at a time: vLLM books what others
take and give back as its own. The next ones import and parse meanwhile, and are stopped (SIGSTOP) at the line after which an
engine takes its device, until it is their turn. Needs vLLM importable and the package's `operator` folder on PYTHONPATH; asks
no network. The whole log of every case goes to OUT.logs.tar.gz.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cotenant import catalogue
from cotenant.core.estimate.advice import at_share
from cotenant.core.estimate.configparse import parse_config
from cotenant.core.learn import learn
from cotenant.core.share import GIB, Bytes
from cotenant.core.vllm import Engine, Sizing, command, environment, settle

AHEAD = 3
"""Engines that import while another one is on the card."""
FIRST_PORT = 28123
CARD = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
"""The one card to use, by index or UUID."""
GATE = "Initializing a V1 LLM engine"
"""The engine core's last line before it makes its worker, which takes the device (vLLM 0.26 to 0.33, `v1/engine/core.py`)."""
LEAST_SECONDS = 75
"""No case takes the card with less time left: 45 to 60 s are usual."""
MOST_SECONDS = 130
"""What a case may take from its turn until it serves."""


@dataclass(frozen=True)
class Case:
    """One model at one share."""

    model: str
    gib: float
    engine: Engine
    config: Mapping[str, Any] = field(default_factory=dict)
    """What differs from the catalogue's config."""
    env: Mapping[str, str] = field(default_factory=dict)


# its kernels are compiled when they are first used, against headers that a packed vLLM may lack
_NO_DEEP_GEMM = {"VLLM_USE_DEEP_GEMM": "0", "VLLM_MOE_USE_DEEP_GEMM": "0"}

CASES: dict[str, Case] = {
    "qwen3-8b-fp8": Case("Qwen/Qwen3-8B-FP8", 24, Engine(max_model_len=8192), env=_NO_DEEP_GEMM),
    "deepseek-v2-lite": Case("deepseek-ai/DeepSeek-V2-Lite-Chat", 50, Engine(max_model_len=16384)),
    # the other kernel for its delta nets comes with FlashInfer, which a packed vLLM lacks
    "qwen3-next-8-layers": Case(
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
        50,
        Engine(max_model_len=16384, extra_args=("--gdn-prefill-backend=triton",)),
        {"num_hidden_layers": 8},
    ),
    "llama-1b": Case("meta-llama/Llama-3.2-1B-Instruct", 8, Engine(max_model_len=8192)),
    # the same once more: what was compiled is found on disk
    "llama-1b@again": Case("meta-llama/Llama-3.2-1B-Instruct", 8, Engine(max_model_len=8192)),
    "qwen3-32b-awq": Case("Qwen/Qwen3-32B-AWQ", 40, Engine(max_model_len=8192)),
    "olmoe-1b-7b": Case("allenai/OLMoE-1B-7B-0924-Instruct", 30, Engine(max_model_len=4096)),
    "starcoder2-7b": Case("bigcode/starcoder2-7b", 30, Engine(max_model_len=16384)),
    "phi-4": Case("microsoft/phi-4", 60, Engine(max_model_len=16384)),
    "gpt-oss-20b": Case("openai/gpt-oss-20b", 40, Engine(max_model_len=16384)),
    "gemma-3-1b": Case("google/gemma-3-1b-it", 10, Engine(max_model_len=16384)),
    "command-r7b": Case("CohereLabs/c4ai-command-r7b-12-2024", 30, Engine(max_model_len=32768)),
    "glm-4.5-air-8-layers": Case("zai-org/GLM-4.5-Air", 60, Engine(max_model_len=16384), {"num_hidden_layers": 8}),
    "llama-8b-fp8": Case("meta-llama/Llama-3.1-8B-Instruct", 20, Engine(max_model_len=8192, quantization="fp8")),
    "granite-3.3-8b": Case("ibm-granite/granite-3.3-8b-instruct", 30, Engine(max_model_len=16384)),
    "olmo-2-7b": Case("allenai/OLMo-2-1124-7B-Instruct", 30, Engine(max_model_len=4096, cuda_graphs=False)),
    "mistral-24b": Case("mistralai/Mistral-Small-24B-Instruct-2501", 90, Engine(max_model_len=16384)),
    "qwen3-30b-a3b": Case("Qwen/Qwen3-30B-A3B", 80, Engine(max_model_len=16384)),
    "llama-8b": Case("meta-llama/Llama-3.1-8B-Instruct", 30, Engine(max_model_len=16384)),
    "gemma-2-9b": Case("google/gemma-2-9b-it", 40, Engine(max_model_len=8192)),
    "glm-4-9b": Case("zai-org/GLM-4-9B-0414", 40, Engine(max_model_len=32768)),
}

MARKS = (
    "Model loading took", "Available KV cache", "GPU KV cache size", "Graph capturing", "Actual usage", "CUDA graph", "cuda graph",
    "attention block size", "backend", "padding layers", "page size", "Memory profiling", "memory snapshot", "Initial free memory",
    "Free memory after profiling", "requested memory", "Encoder cache", "encoder cache", "V2 Model Runner", "kernel", "torch.compile",
    "workspace", "Workspace",
)  # fmt: skip
LINE = 2000
"""Characters kept of a line of the log."""


def main() -> None:
    """Run what was named, or all, as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(CASES)}")
    parser.add_argument("--seconds", type=float, default=540)
    options = parser.parse_intermixed_args()
    if unknown := [name for name in options.names if name not in CASES]:
        parser.error(f"no such case: {', '.join(unknown)}")
    ends = time.monotonic() + options.seconds
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"), "vllm": version("vllm"), "torch": version("torch"),
        "card": smi("name,driver_version,memory.total,memory.reserved"), "runs": {},
    }  # fmt: skip
    waiting = list(options.names or CASES)
    started: list[Started] = []
    with tempfile.TemporaryDirectory() as root:
        try:
            while waiting or started:
                while waiting and len(started) <= AHEAD:
                    started.append(Started.of(waiting.pop(0), Path(root), FIRST_PORT + len(CASES) - len(waiting)))
                if time.monotonic() > ends - LEAST_SECONDS:
                    break
                began, case = time.monotonic(), started.pop(0)
                results["runs"][case.name] = case.measure(ends)
                told = json.dumps(results["runs"][case.name].get("real") or results["runs"][case.name].get("failed"))
                print(case.name, f"{time.monotonic() - began:.0f} s", told[-600:], flush=True)
                options.out.write_text(json.dumps(results, indent=1))
                with tarfile.open(options.out.with_suffix(".logs.tar.gz"), "w:gz") as tar:
                    for log in sorted(Path(root).glob("*.log")):
                        tar.add(log, log.name)
        finally:
            for case in started:
                case.kill()


class Started:
    """One engine, from its imports to its end."""

    def __init__(
        self, name: str, port: int, out: dict[str, Any], log: Path, engine: subprocess.Popen[bytes], vocab: int
    ):
        self.name, self.port, self.out, self.log, self.engine, self.vocab = name, port, out, log, engine, vocab
        self.lock, self.is_turn, self.is_held = threading.Lock(), False, False
        threading.Thread(target=self.hold_at_gate, daemon=True).start()

    @classmethod
    def of(cls, name: str, root: Path, port: int) -> Started:
        """Predicted, and its process begun."""
        case = CASES[name]
        config_json = {**catalogue.models()[case.model]["config"], **case.config}
        config = parse_config(config_json)
        total, reserved = (int(each) << 20 for each in smi("memory.total,memory.reserved").split(", "))
        flag = Bytes(int(case.gib * GIB)).utilization(total - reserved)
        share = flag.of(total - reserved)
        found = at_share(config, case.engine, 1, share)
        engine = settle(replace(case.engine, load_format="dummy"), Sizing(share))
        folder = root / name.partition("@")[0]
        folder.mkdir(exist_ok=True)
        write_model(folder, config_json)
        arguments = command(
            engine, model=str(folder), served_name="m", tensor_parallel=1, utilization=str(flag), port=port
        )
        out = {
            "model": case.model, "share": share, "utilization": str(flag), "config": dict(case.config), "env": dict(case.env),
            "predicted": {
                "weights": found.weights.value, "kvTokens": found.kv_tokens(share).value, "activation": found.activation.value,
                "graphs": found.cuda_graphs.value, "peak": found.peak(share).value,
            },
            "arguments": list(arguments[1:]),
        }  # fmt: skip
        log = root / f"{name}.log"
        env = {**os.environ, **dict(environment(str(folder))), "VLLM_USE_FLASHINFER_SAMPLER": "0"}
        env |= case.env
        with log.open("w") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", *arguments],
                stdout=stream, stderr=subprocess.STDOUT, env=env, start_new_session=True,
            )  # fmt: skip
        return cls(name, port, out, log, process, config.vocab)

    def hold_at_gate(self) -> None:
        """Stops the engine where it would take its device, unless it is its turn."""
        while self.engine.poll() is None and not self.is_turn:
            if GATE in self.log.read_text(errors="replace"):
                with self.lock:
                    if not self.is_turn:
                        self.is_held = True
                        os.killpg(self.engine.pid, signal.SIGSTOP)
                return
            time.sleep(0.05)

    def measure(self, ends: float) -> dict[str, Any]:
        """What it says and holds, once it has the card."""
        idle = used()
        strangers = self.strangers()
        with self.lock:
            self.is_turn = True
            if self.is_held:
                os.killpg(self.engine.pid, signal.SIGCONT)
        began = time.monotonic()
        failed = None
        ready, at_start, peak = 0, 0, 0
        try:
            while (
                self.engine.poll() is None and time.monotonic() < min(ends, began + MOST_SECONDS) and not self.healthy()
            ):
                time.sleep(0.5)
                strangers |= self.strangers()
            ready = round(time.monotonic() - began)
            if self.healthy():
                time.sleep(1)
                at_start = used() - idle
                peak = self.load(idle)
            else:
                failed = why(self.log.read_text(errors="replace"))
        except OSError as error:
            failed = f"{error!r} under load\n{why(self.log.read_text(errors='replace'))}"
        finally:
            self.stop(idle)
        text = self.log.read_text(errors="replace")
        lines = [line[:LINE] for line in text.splitlines() if any(mark in line for mark in MARKS)]
        if failed is not None:
            return self.out | {"failed": failed, "log": lines}
        known = learn("m", "k", text, ready_seconds=ready)
        real = {
            "weights": known.weights, "kvTokens": known.kv_cache_tokens, "kvBytes": known.kv_cache_bytes,
            "graphs": known.cuda_graphs, "secondsOnCard": ready, "atStart": at_start, "peak": peak,
            "strangers": len(strangers),
        }  # fmt: skip
        return self.out | {"real": real, "log": lines}

    def strangers(self) -> set[int]:
        """Processes on the card that are not this engine's: they would spoil what vLLM books."""
        query = ["nvidia-smi", "-i", CARD, "--query-compute-apps=pid", "--format=csv,noheader,nounits"]
        found = subprocess.run(query, check=False, capture_output=True, text=True).stdout.split()
        return {int(pid) for pid in found if pid.isdigit() and group(int(pid)) != self.engine.pid}

    def load(self, idle: int) -> int:
        """The most the card held while 48 prompts of 1,500 tokens were answered."""

        def ask(seed: int) -> None:
            prompt = [(seed * 7919 + position * 31) % min(250, self.vocab) for position in range(1500)]
            body = {"model": "m", "prompt": prompt, "max_tokens": 64, "ignore_eos": True, "temperature": 0.7}
            url, kind = f"http://127.0.0.1:{self.port}/v1/completions", {"Content-Type": "application/json"}
            urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), kind), timeout=60).read()

        most = used() - idle
        with concurrent.futures.ThreadPoolExecutor(48) as pool:
            asked = [pool.submit(ask, seed) for seed in range(48)]
            while not all(each.done() for each in asked):
                most = max(most, used() - idle)
                time.sleep(0.2)
            for each in asked:
                each.result()
        return max(most, used() - idle)

    def stop(self, idle: int) -> None:
        """End the engine and wait until the card is as before."""
        self.engine.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.engine.wait(5)
        self.kill()
        for _ in range(60):
            if used() - idle < 64 << 20:
                return
            time.sleep(0.2)

    def kill(self) -> None:
        """End what is left of it, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.engine.pid, signal.SIGKILL)
        self.engine.wait()

    def healthy(self) -> bool:
        """Whether it serves."""
        try:
            return bool(urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).status == 200)
        except OSError:
            return False


def why(log: str) -> str:
    """The first traceback, every line that names an error, and the end."""
    lines = log.splitlines()
    first = next((index for index, line in enumerate(lines) if "Traceback (most recent call last)" in line), len(lines))
    told = [*lines[first : first + 60], "...", *(line for line in lines if "ERROR" in line or "Error:" in line), "..."]
    return "\n".join(line[:LINE] for line in told)[:40_000] + log[-20_000:]


def group(pid: int) -> int:
    """The process group of a process; 0 = it is gone."""
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def version(package: str) -> str:
    """What is installed; "" where nobody says."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def used() -> int:
    """Bytes the card holds."""
    return int(smi("memory.used")) << 20


def smi(fields: str) -> str:
    """What nvidia-smi says of the card."""
    query = ["nvidia-smi", "-i", CARD, f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
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
