"""Steps of the card test that press: ten minutes of load, an engine that grows, a stranger in the way of a start, a worker killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.cluster.api import ApiError
from tests.gpu.bench import Bench
from tests.node.world import MODELS, SYSTEM

Figures = dict[str, Any]
PATIENCE = 300.0
LOAD_SECONDS = 600
PROMPT, ANSWER = 1500, 128
"""Tokens of each request of the load."""


def load(bench: Bench, out: Figures) -> None:
    """24B at 70 % and 2B at 20 % with CUDA graphs and all defaults; ten minutes of requests; every second's use beside the ledger."""
    entries = [
        bench.entry("chat", "mistral-24b", "70%", eager=False),
        bench.entry("ocr", "qwen-2b", "20%", eager=False),
    ]
    begin = time.monotonic()
    bench.apply("founding", entries)
    bench.await_ready("founding", PATIENCE)
    out["bothReadySeconds"] = round(time.monotonic() - begin)
    out["readySeconds"], out["flags"] = bench.started("founding"), bench.flags("founding")
    out["arguments"] = {
        name: pod["spec"]["containers"][0]["args"] for name, pod in bench.world.engines("founding").items()
    }
    out["ledger"] = ledger(bench)
    seconds = min(LOAD_SECONDS, bench.ends - time.monotonic())
    samples: list[Figures] = []
    with requests(bench, "founding", workers=24) as answered:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            samples.append(_sample(bench))
            time.sleep(max(0.0, 1 - time.monotonic() % 1))
    after = ledger(bench)
    out["ledgerAfter"] = after
    expected = min(out["ledger"]["expected"], after["expected"])
    out["load"] = {
        "seconds": round(seconds),
        "samples": len(samples),
        "answered": dict(answered),
        "usedMost": max(each["used"] for each in samples),
        "expected": expected,
        "secondsOverLedger": sum(each["used"] > expected for each in samples),
        "tenantsMost": {
            pod: max(each["tenants"].get(pod, 0) for each in samples) for pod in bench.world.engines("founding")
        },
        "faults": [fault for model in ("chat", "ocr") if (fault := bench.world.fault("founding", model))],
    }
    (bench.out / "load-seconds.json").write_text(json.dumps(samples))
    out["learned"] = _learned(bench, "founding")
    bench.say(f"load: {out['load']}")


def grows(bench: Bench, out: Figures) -> None:
    """An engine that takes more under load than vLLM's profile foresaw (logprobs of whole prompts): seen, learned, used at the next plan."""
    default = 512 << 20
    bench.world.lab.kubectl("set", "env", "-n", SYSTEM, "deploy/cotenant-controller", f"COTENANT_OVERRUN={default}")
    bench.world.lab.kubectl("rollout", "status", "-n", SYSTEM, "deploy/cotenant-controller", "--timeout=60s")
    out["defaultOverrun"] = default
    bench.apply("grows", [bench.entry("wide", "qwen-2b", "20%", engine={"maxNumBatchedTokens": 4096})])
    bench.await_ready("grows", PATIENCE)
    before = ledger(bench)
    out["before"] = before
    with requests(bench, "grows", workers=8, more={"prompt_logprobs": 1, "max_tokens": 1}, prompt=4000):
        with _recorded(out, "condition"):
            bench.world.until("MemoryPressure", lambda: _is_pressed(bench), 60)
            out["condition"] = bench.world.condition("grows", "MemoryPressure")
        with _recorded(out, "learning"):
            bench.world.until("its overrun in status", lambda: _overrun(bench, "grows"), 60)
    out["learned"] = _learned(bench, "grows")
    out["held"] = bench.gpu()["tenants"]
    old = {pod["metadata"]["uid"] for pod in bench.world.engines("grows").values()}
    bench.world.lab.kubectl("delete", "pod", "-n", MODELS, "grows-wide-0", "--wait=false")

    def replaced() -> bool:
        now = {pod["metadata"]["uid"] for pod in bench.world.engines("grows").values()}
        return bool(now) and not old & now

    bench.world.until("another pod", replaced, 60)
    bench.await_ready("grows", PATIENCE)
    out["after"] = ledger(bench)
    bench.world.lab.kubectl("set", "env", "-n", SYSTEM, "deploy/cotenant-controller", "COTENANT_OVERRUN-")
    bench.world.lab.kubectl("rollout", "status", "-n", SYSTEM, "deploy/cotenant-controller", "--timeout=60s")
    bench.say(f"grows: {out}")


def squeezed(bench: Bench, out: Figures) -> None:
    """20 GiB of nobody's in the way of an engine that must start again: told on one card, moved where there is another."""
    bench.apply("squeezed", [bench.entry("chat", "mistral-24b", "70%"), bench.entry("ocr", "qwen-2b", "20%")])
    bench.await_ready("squeezed", PATIENCE)
    here = bench.world.replicas("squeezed")["ocr/0"]["gpus"]
    others = [gpu.uuid for gpu in bench.world.lab.gpus if gpu.uuid not in here]
    out["ocrWas"], out["chatIs"] = here, bench.world.replicas("squeezed")["chat/0"]["gpus"]
    if out["chatIs"] != here or here != [bench.world.lab.gpus[0].uuid]:
        raise AssertionError(f"both were expected on the first card: {out}")
    before = bench.world.engines("squeezed")["squeezed-ocr-0"]["metadata"]["uid"]
    chat = bench.world.engines("squeezed")["squeezed-chat-0"]["metadata"]["uid"]
    with bench.lurking(20) as (pid, take):
        begin = time.monotonic()
        os.kill(process_of(before, b"EngineCore"), signal.SIGKILL)
        take()
        out["stranger"] = pid
        if others:
            bench.world.until("another pod", lambda: _uid(bench, "squeezed-ocr-0") not in ("", before), 90)
            bench.await_ready("squeezed", PATIENCE)
            out["readyAgainSeconds"] = round(time.monotonic() - begin)
            out["ocrIs"] = bench.world.replicas("squeezed")["ocr/0"]["gpus"]
        else:
            out["told"] = bench.world.until("it is told", lambda: _told(bench, pid), 90)
            out["toldSeconds"] = round(time.monotonic() - begin)
            bench.world.steady(15)
            out["stillTold"] = _told(bench, pid)
        out["conflict"] = bench.world.condition("squeezed", "GPUConflict")
        out["strangers"] = [each for gpu in bench.world.gpus().values() for each in gpu["strangers"]]
    begin = time.monotonic()
    bench.await_ready("squeezed", PATIENCE)
    out["readyAfterStrangerSeconds"] = round(time.monotonic() - begin)
    out["fault"] = bench.world.fault("squeezed", "ocr")
    out["chatUntouched"] = _uid(bench, "squeezed-chat-0") == chat
    bench.say(f"squeezed: {out}")


def worker(bench: Bench, out: Figures) -> None:
    """Two models over two cards; `kill -9` of one's second worker: found, its verdict, back on both cards, the other untouched."""
    entries = [
        bench.entry("big", "mistral-24b", "45%", tensorParallelSize=2),
        bench.entry("small", "llama-8b", "45%", tensorParallelSize=2),
    ]
    begin = time.monotonic()
    bench.apply("pairs", entries, headroom="5%")
    bench.await_ready("pairs", 400)
    out["bothReadySeconds"] = round(time.monotonic() - begin)
    out["ledger"] = ledger(bench)
    victim, other = _uid(bench, "pairs-small-0"), _uid(bench, "pairs-big-0")
    begin = time.monotonic()
    os.kill(process_of(victim, b"Worker_TP1"), signal.SIGKILL)
    bench.world.until("its end", lambda: _uid(bench, "pairs-small-0") != victim, 90)
    out["goneAfterSeconds"] = round(time.monotonic() - begin, 1)
    bench.await_ready("pairs", PATIENCE)
    out["readyAgainSeconds"] = round(time.monotonic() - begin)
    out["fault"] = bench.world.fault("pairs", "small")
    out["otherUntouched"] = _uid(bench, "pairs-big-0") == other
    out["gpusOf"] = {key: each.get("gpus") for key, each in bench.world.replicas("pairs").items()}
    out["completionTokens"] = bench.complete("pairs")
    out["learned"] = _learned(bench, "pairs")
    out["ledgerAfter"] = ledger(bench)
    bench.say(f"worker: {out}")


# ------------------------------------------------------------------------------------------------------------------ parts
def ledger(bench: Bench) -> Figures:
    """The first card as `cotenant map` shows it, asked in the controller's own pod; bytes."""
    words = ["exec", "-n", SYSTEM, "deploy/cotenant-controller", "--", "cotenant", "map", "-o", "json"]
    (node,) = json.loads(bench.world.lab.kubectl(*words))["nodes"]
    found: Figures = next(gpu for gpu in node["gpus"] if gpu["uuid"] == bench.world.lab.gpus[0].uuid)
    return found


def process_of(uid: str, title: bytes) -> int:
    """The pid of a process in a pod by its title."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            mine = uid in (process / "cgroup").read_text().replace("_", "-")
            if mine and title in (process / "cmdline").read_bytes():
                return int(process.name)
        except OSError:
            continue
    raise AssertionError(f"no {title.decode()} in pod {uid}")


@contextmanager
def requests(
    bench: Bench, placement: str, workers: int, more: Figures | None = None, prompt: int = PROMPT
) -> Iterator[dict[str, int]]:
    """So many clients per model for the length of a block; answers and refusals by model, counted."""
    counts: dict[str, int] = {}
    lock, stop = threading.Lock(), threading.Event()

    def ask(pod: str, model: str, seed: int) -> None:
        path = f"api/v1/namespaces/{MODELS}/pods/{pod}:8000/proxy/v1/completions"
        while not stop.is_set():
            seed += 1000
            tokens = [(seed * 7919 + position * 31) % 250 for position in range(prompt)]
            body = {"model": model, "prompt": tokens, "max_tokens": ANSWER, "ignore_eos": True, **(more or {})}
            try:
                bench.world.lab.api.request("POST", path, body)
                key = model
            except (ApiError, OSError):
                key = f"{model} refused"
                stop.wait(1)
            with lock:
                counts[key] = counts.get(key, 0) + 1

    threads = [
        threading.Thread(target=ask, args=(name, pod["metadata"]["labels"]["cotenant.dev/model"], seed), daemon=True)
        for name, pod in bench.world.engines(placement).items()
        for seed in range(workers)
    ]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


@contextmanager
def _recorded(out: Figures, name: str) -> Iterator[None]:
    """What did not come about is noted, and the step goes on."""
    try:
        yield
    except AssertionError as error:
        out[f"{name}Failed"] = str(error).splitlines()[0]


def _sample(bench: Bench) -> Figures:
    gpu = bench.gpu()
    return {
        "second": round(time.monotonic() - bench.began, 1),
        "used": gpu["memory"]["used"],
        "tenants": {each["pod"]: each["used"] for each in gpu["tenants"]},
    }


def _learned(bench: Bench, placement: str) -> Figures:
    return {model["name"]: model.get("learned") for model in bench.world.status(placement)["models"]}


def _is_pressed(bench: Bench) -> bool:
    return bool(bench.world.condition("grows", "MemoryPressure").get("status") == "True")


def _overrun(bench: Bench, placement: str) -> bool:
    return any(
        "overrun" in each for model in bench.world.status(placement)["models"] for each in model.get("learned") or ()
    )


def _uid(bench: Bench, pod: str) -> str:
    found = bench.world.engines().get(pod)
    return str(found["metadata"]["uid"]) if found else ""


def _told(bench: Bench, pid: int) -> Figures | None:
    """Its phase and words once they say that it waits, and the stranger is known."""
    replica = bench.world.replicas("squeezed")["ocr/0"]
    conflict = bench.world.condition("squeezed", "GPUConflict")
    known = str(pid) in str(conflict.get("message"))
    waits = replica["phase"] in ("Unplaced", "Waiting", "Pending") and replica.get("message")
    return {"replica": replica, "conflict": conflict} if waits and known else None


UPSETS: dict[str, Callable[[Bench, Figures], None]] = {
    "load": load,
    "grows": grows,
    "squeezed": squeezed,
    "worker": worker,
}
