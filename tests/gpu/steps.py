"""The steps of the card test, each a function that fills in its figures as it goes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from tests.gpu.bench import Bench
from tests.gpu.upsets import UPSETS, process_of
from tests.node.world import MODELS

Figures = dict[str, Any]
GIB = 1 << 30
PATIENCE = 240.0


def founding(bench: Bench, out: Figures) -> None:
    """24B at 70 % and 2B at 20 % by one apply; a stranger; a third that does not fit; an engine killed while it serves."""
    begin = time.monotonic()
    entries = [bench.entry("chat", "mistral-24b", "70%"), bench.entry("ocr", "qwen-2b", "20%")]
    bench.apply("founding", entries)
    bench.await_ready("founding", PATIENCE)
    out["bothReadySeconds"] = round(time.monotonic() - begin)
    out["readySeconds"] = bench.started("founding")
    out["flags"] = bench.flags("founding")
    out["completionTokens"] = bench.complete("founding")
    out["learned"] = {m["name"]: m.get("learned") for m in bench.world.status("founding")["models"]}
    bench.world.until("both tenants", lambda: len(bench.gpu()["tenants"]) == 2)
    out["gpu"] = bench.gpu()
    bench.say(f"both Ready: {out}")
    if not bench.stand_in:
        _stranger(bench, out, "founding")
    _third(bench, out)
    _kill_core(bench, out)


def stranger(bench: Bench, out: Figures) -> None:
    """Both declared at once, and beside them 4 GiB of nobody's."""
    begin = time.monotonic()
    bench.apply("beside", [bench.entry("big", "llama-8b", "70%"), bench.entry("small", "qwen-2b", "20%")])
    bench.await_ready("beside", PATIENCE)
    out["round"] = {
        "ready": True,
        "bothReadySeconds": round(time.monotonic() - begin),
        "readySeconds": bench.started("beside"),
    }
    out["round"]["completionTokens"] = bench.complete("beside")
    if not bench.stand_in:
        _stranger(bench, out, "beside")


def _stranger(bench: Bench, out: Figures, placement: str) -> None:
    def holds() -> Any:
        found = bench.gpu()["strangers"]
        return found if sum(each["used"] for each in found) > 4 * GIB else None

    with bench.stranger(4) as (pid, total):
        memory = bench.gpu()["memory"]
        out["torchTotal"], out["agentUsable"] = total, memory["total"] - memory["reserved"]
        out["equalToTheByte"] = out["torchTotal"] == out["agentUsable"]
        found = bench.world.until("the stranger with its bytes", holds, 30)
        out["stranger"] = {"pid": pid, "said": found, "named": [each.get("pid") for each in found] == [pid]}
        out["toldApart"] = {
            "tenants": bench.gpu()["tenants"],
            "strangers": found,
            "used": bench.gpu()["memory"]["used"],
        }
        bench.world.until("GPUConflict", lambda: bench.world.condition(placement, "GPUConflict"), 30)
        out["conflict"] = bench.world.condition(placement, "GPUConflict")
        out["enginesBesideStranger"] = sorted(bench.world.engines(placement))
    bench.world.until("it gone", lambda: not bench.gpu()["strangers"], 30)
    bench.world.until(
        "no conflict", lambda: bench.world.condition(placement, "GPUConflict").get("status") != "True", 30
    )
    bench.say(f"stranger: {out['stranger']} {out['conflict']}")


def _third(bench: Bench, out: Figures) -> None:
    bench.apply("third", [bench.entry("extra", "qwen-2b", "20%")])
    bench.world.until("its answer", lambda: bench.world.replicas("third"), 30)
    bench.world.steady(10)
    (replica,) = bench.world.replicas("third").values()
    out["third"] = {
        "phase": replica["phase"],
        "message": replica.get("message") or bench.conditions("third"),
        "pods": len(bench.world.engines("third")),
        "others": bench.world.condition("founding", "Ready"),
    }
    bench.world.remove("third")
    bench.say(f"third: {out['third']}")


def _kill_core(bench: Bench, out: Figures) -> None:
    """`kill -9` of the small model's engine core: the pod ends well, and the model must come back by itself."""
    pod = "founding-ocr-0"
    before = {name: each["metadata"]["uid"] for name, each in bench.world.engines("founding").items()}
    begin = time.monotonic()
    with bench.world.endings() as endings:
        if bench.stand_in:
            bench.world.order(pod, "exit 0")
        else:
            os.kill(process_of(before[pod], b"EngineCore"), signal.SIGKILL)
        bench.world.until("its end", lambda: bench.world.engines("founding").get(pod, {}).get("metadata", {}).get("uid") != before[pod], 60)  # fmt: skip
        gone = time.monotonic() - begin
        bench.await_ready("founding", PATIENCE)
    ended = endings.get(pod, {})
    out["coreKilled"] = {
        "exitCode": ended.get("exitCode"),
        "reason": ended.get("reason"),
        "goneAfterSeconds": round(gone, 1),
        "readyAgainSeconds": round(time.monotonic() - begin),
        "fault": bench.world.fault("founding", "ocr"),
        "otherUntouched": bench.world.engines("founding")["founding-chat-0"]["metadata"]["uid"]
        == before["founding-chat-0"],
        "completionTokens": bench.complete("founding"),
    }
    bench.say(f"core killed: {out['coreKilled']}")


def together(bench: Bench, out: Figures) -> None:
    """8B at 70 % and 2B at 20 % declared at once, again and again; without turns one of the two died in 3 of 3 tries."""
    out["rounds"] = []
    entries = [bench.entry("big", "llama-8b", "70%"), bench.entry("small", "qwen-2b", "20%")]
    longest = 60.0
    while len(out["rounds"]) < 10 and time.monotonic() + longest * 1.1 < bench.ends:
        name, begin = f"round-{len(out['rounds'])}", time.monotonic()
        bench.apply(name, entries)
        figures: Figures = {"ready": False}
        out["rounds"].append(figures)
        bench.await_ready(name, PATIENCE)
        figures.update(ready=True, bothReadySeconds=round(time.monotonic() - begin), readySeconds=bench.started(name))
        figures["completionTokens"] = bench.complete(name)
        figures["faults"] = [fault for model in ("big", "small") if (fault := bench.world.fault(name, model))]
        figures["used"] = bench.gpu()["memory"]["used"]
        bench.clear()
        longest = max(longest, time.monotonic() - begin)
        bench.say(f"{name}: {figures}")
    out["ready"] = f"{sum(each['ready'] for each in out['rounds'])} of {len(out['rounds'])}"


def context(bench: Bench, out: Figures) -> None:
    """A share too small for one sequence of full length, with leave to shorten it: vLLM's own answer, and it serves."""
    model = bench.entry("tight", "qwen-2b", "5%", engine={"maxModelLen": 131072})
    model["onOutOfMemory"] = {"allow": ["ReduceContext"], "maxAttempts": 6}
    begin = time.monotonic()
    bench.apply("tight", [model])
    faults: list[Any] = []
    out["faults"] = faults
    while not bench.world.is_ready("tight"):
        fault = bench.world.fault("tight", "tight")
        known = {key: fault.get(key) for key in ("reason", "message", "remedy", "attempt")} if fault else None
        if known and known not in faults:
            faults.append(known)
            bench.say(f"  fault: {known}")
        if time.monotonic() - begin > PATIENCE * 1.2:
            raise AssertionError(f"tight: not Ready\n{bench.world.picture()}")
        time.sleep(0.5)
    out["readySeconds"] = round(time.monotonic() - begin)
    (pod,) = bench.world.engines("tight").values()
    out["arguments"] = [each for each in pod["spec"]["containers"][0]["args"] if "max-model-len" in each]
    out["completionTokens"] = bench.complete("tight")
    out["lastFault"] = bench.world.fault("tight", "tight")


def pairs(bench: Bench, out: Figures) -> None:
    """Two models, each split over the same two cards."""
    begin = time.monotonic()
    entries = [
        bench.entry("big", "mistral-24b", "45%", tensorParallelSize=2),
        bench.entry("small", "llama-8b", "45%", tensorParallelSize=2),
    ]
    bench.apply("pairs", entries, headroom="5%")
    out["islands"] = {uuid: gpu.get("island") for uuid, gpu in bench.world.gpus().items()}
    bench.await_ready("pairs", 400)
    out["bothReadySeconds"] = round(time.monotonic() - begin)
    out["readySeconds"] = bench.started("pairs")
    out["flags"] = bench.flags("pairs")
    out["gpusOf"] = {key: each.get("gpus") for key, each in bench.world.replicas("pairs").items()}
    out["completionTokens"] = bench.complete("pairs")
    bench.world.steady(3)
    out["gpus"] = bench.world.gpus()
    out["learned"] = {m["name"]: m.get("learned") for m in bench.world.status("pairs")["models"]}


STEPS: dict[str, Callable[[Bench, Figures], None]] = {
    "founding": founding,
    "together": together,
    "stranger": stranger,
    "context": context,
    "pairs": pairs,
    **UPSETS,
}

__all__ = ["MODELS", "STEPS"]
