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
from typing import Any, TextIO

from urllib3.exceptions import HTTPError

from tests.cluster.access import KubectlError
from tests.cluster.api import Api, ApiError, Object
from tests.gpu.bench import Bench
from tests.node.world import MODELS, SYSTEM

Figures = dict[str, Any]
PATIENCE = 300.0
LOAD_SECONDS = 600
PROMPT, ANSWER = 1500, 128
"""Tokens of each request of the load."""


def load(bench: Bench, out: Figures) -> None:
    """24B at 70 % and 2B at 20 % with CUDA graphs and all defaults; ten minutes of requests; every second's use beside the ledger."""
    begin = time.monotonic()
    bench.apply("founding", _founding(bench))
    bench.await_ready("founding", PATIENCE)
    out["bothReadySeconds"] = round(time.monotonic() - begin)
    _facts(bench, out)
    with pressed(bench, "founding", out):
        time.sleep(max(1.0, min(LOAD_SECONDS, bench.ends - time.monotonic())))
    bench.say(f"load: {out['load']}")


def cards4(bench: Bench, out: Figures) -> None:
    """On four cards at once: the load above on one, two pairs of ranks on two of which a worker is killed, then the stranger."""
    begin = time.monotonic()
    bench.apply("founding", _founding(bench))
    bench.apply("pairs", _pairs(bench), headroom="5%")
    bench.world.until("places", lambda: _placed(bench, "founding") + _placed(bench, "pairs") == 4, 60)
    bench.say(f"placed: {[bench.world.replicas(name) for name in ('founding', 'pairs')]}")
    bench.await_ready("founding", PATIENCE)
    out["foundingReadySeconds"] = round(time.monotonic() - begin)
    _facts(bench, out)
    with pressed(bench, "founding", out):
        bench.await_ready("pairs", PATIENCE)
        out["pairsReadySeconds"] = round(time.monotonic() - begin)
        with _recorded(out, "worker"):
            _kill_worker(bench, out.setdefault("worker", {}))
        time.sleep(max(1.0, min(LOAD_SECONDS, bench.ends - 110 - time.monotonic())))
    bench.say(f"load: {out['load']}")
    _squeeze(bench, out.setdefault("squeezed", {}), "founding")


def _founding(bench: Bench) -> list[Object]:
    return [bench.entry("chat", "mistral-24b", "70%", eager=False), bench.entry("ocr", "qwen-2b", "20%", eager=False)]


def _pairs(bench: Bench) -> list[Object]:
    return [
        bench.entry("big", "mistral-24b", "45%", tensorParallelSize=2),
        bench.entry("small", "llama-8b", "45%", tensorParallelSize=2),
    ]


def _facts(bench: Bench, out: Figures) -> None:
    out["readySeconds"], out["flags"] = bench.started("founding"), bench.flags("founding")
    engines = bench.world.engines("founding")
    out["arguments"] = {name: pod["spec"]["containers"][0]["args"] for name, pod in engines.items()}


def _placed(bench: Bench, placement: str) -> int:
    return sum(bool(each.get("gpus")) for each in bench.world.replicas(placement).values())


def grows(bench: Bench, out: Figures) -> None:
    """An engine that takes more under load than it was planned with (logprobs of whole prompts): seen, learned, used by the next plans.

    Idle it takes some 0.6 GiB beyond its share; the operator's setting for models nobody knows is put to 1 GiB for this step.
    """
    default = 1 << 30
    bench.world.lab.kubectl("set", "env", "-n", SYSTEM, "deploy/cotenant-controller", f"COTENANT_OVERRUN={default}")
    bench.world.lab.kubectl("rollout", "status", "-n", SYSTEM, "deploy/cotenant-controller", "--timeout=60s")
    out["defaultOverrun"] = default
    bench.apply("grows", [_wide(bench)], headroom="0%")
    bench.await_ready("grows", PATIENCE)
    out["before"] = ledger(bench)
    # fits beside the first by what both are planned with and a quarter of a GiB to spare, and not by what is learned
    memory = bench.gpu()["memory"]
    room = memory["total"] - memory["reserved"] - out["before"]["expected"] - default - (256 << 20)
    beside = [bench.entry("beside", "llama-8b", f"{room >> 20}Mi")]
    out["besideShareBytes"], out["besideFitBefore"] = room, _fits(bench, beside)
    with requests(bench, "grows", workers=8, more={"prompt_logprobs": 1, "max_tokens": 1}, prompt=4000) as answered:
        with _recorded(out, "condition"):
            bench.world.until("MemoryPressure", lambda: _is_pressed(bench), 60)
            out["condition"] = bench.world.condition("grows", "MemoryPressure")
        with _recorded(out, "learning"):
            bench.world.until("its overrun in status", lambda: _overrun(bench, "grows"), 120)
        time.sleep(20)
    out["answered"] = dict(answered)
    out["learned"] = _learned(bench, "grows")
    out["held"] = bench.gpu()["tenants"]
    out["besideFitAfter"] = _fits(bench, beside)
    bench.apply("beside", beside, headroom="0%")
    bench.world.until("it is told", lambda: bench.world.replicas("beside").get("beside/0", {}).get("reason"), 30)
    bench.world.steady(10)
    out["besideTold"] = bench.world.replicas("beside")["beside/0"]
    out["besidePods"] = sorted(bench.world.engines("beside"))
    _start_again(bench, out)
    bench.world.lab.kubectl("set", "env", "-n", SYSTEM, "deploy/cotenant-controller", "COTENANT_OVERRUN-")
    bench.world.lab.kubectl("rollout", "status", "-n", SYSTEM, "deploy/cotenant-controller", "--timeout=60s")
    bench.say(f"grows: {out}")


def _wide(bench: Bench) -> Object:
    return bench.entry("wide", "qwen-2b", "20%", engine={"maxNumBatchedTokens": 4096})


def _start_again(bench: Bench, out: Figures) -> None:
    """Its pod deleted by hand: the next start is written down with what was learned."""
    old = {pod["metadata"]["uid"] for pod in bench.world.engines("grows").values()}
    bench.world.lab.kubectl("delete", "pod", "-n", MODELS, "grows-wide-0", "--wait=false")

    def replaced() -> bool:
        now = {pod["metadata"]["uid"] for pod in bench.world.engines("grows").values()}
        return bool(now) and not old & now

    bench.world.until("another pod", replaced, 60)
    bench.await_ready("grows", PATIENCE)
    out["after"] = ledger(bench)


def _fits(bench: Bench, entries: list[Object]) -> bool:
    """What `cotenant plan`, asked in the controller's pod, says of a placement that is not applied."""
    words = [
        "exec",
        "-i",
        "-n",
        SYSTEM,
        "deploy/cotenant-controller",
        "--",
        "cotenant",
        "plan",
        "-n",
        MODELS,
        "-f",
        "-",
    ]
    try:
        bench.note("plan", bench.world.lab.kubectl(*words, input=json.dumps(bench.manifest("beside", entries, "0%"))))
    except KubectlError as error:
        if "exit code 2" not in str(error):
            raise
        return False
    return True


def squeezed(bench: Bench, out: Figures) -> None:
    """20 GiB of nobody's in the way of an engine that must start again: told on one card, moved where there is another."""
    bench.apply("squeezed", [bench.entry("chat", "mistral-24b", "70%"), bench.entry("ocr", "qwen-2b", "20%")])
    bench.await_ready("squeezed", PATIENCE)
    _squeeze(bench, out, "squeezed")


def _squeeze(bench: Bench, out: Figures, name: str) -> None:
    out["ocrWas"] = bench.world.replicas(name)["ocr/0"]["gpus"]
    ocr, chat = f"{name}-ocr-0", f"{name}-chat-0"
    before, neighbour = _uid(bench, ocr), _uid(bench, chat)
    others = len(bench.world.lab.gpus) > 1
    with bench.lurking(20, card=out["ocrWas"][0]) as (pid, take):
        begin = time.monotonic()
        os.kill(process_of(before, b"EngineCore"), signal.SIGKILL)
        take()
        out["stranger"] = pid
        if others:
            bench.world.until("another pod", lambda: _uid(bench, ocr) not in ("", before), 90)
            bench.await_ready(name, PATIENCE)
            out["readyAgainSeconds"] = round(time.monotonic() - begin)
            out["ocrIs"] = bench.world.replicas(name)["ocr/0"]["gpus"]
        else:
            out["told"] = bench.world.until("it is told", lambda: _told(bench, name, pid), 90)
            out["toldSeconds"] = round(time.monotonic() - begin)
            bench.world.steady(15)
            out["stillTold"] = _told(bench, name, pid)
        out["conflict"] = bench.world.condition(name, "GPUConflict")
        out["strangers"] = [each for gpu in bench.world.gpus().values() for each in gpu["strangers"]]
    begin = time.monotonic()
    bench.await_ready(name, PATIENCE)
    out["readyAfterStrangerSeconds"] = round(time.monotonic() - begin)
    out["fault"] = bench.world.fault(name, "ocr")
    out["chatUntouched"] = _uid(bench, chat) == neighbour
    bench.say(f"squeezed: {out}")


def worker(bench: Bench, out: Figures) -> None:
    """Two models over two cards; `kill -9` of one's second worker: found, its verdict, back on both cards, the other untouched."""
    begin = time.monotonic()
    bench.apply("pairs", _pairs(bench), headroom="5%")
    bench.await_ready("pairs", 400)
    out["bothReadySeconds"] = round(time.monotonic() - begin)
    _kill_worker(bench, out)


def _kill_worker(bench: Bench, out: Figures) -> None:
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
    bench.say(f"worker: {out}")


# ------------------------------------------------------------------------------------------------------------------ parts
def ledger(bench: Bench, uuid: str = "") -> Figures:
    """One card, by default the first, as `cotenant map` shows it, asked in the controller's own pod; bytes."""
    words = ["exec", "-n", SYSTEM, "deploy/cotenant-controller", "--", "cotenant", "map", "-o", "json"]
    (node,) = json.loads(bench.world.lab.kubectl(*words))["nodes"]
    found: Figures = next(gpu for gpu in node["gpus"] if gpu["uuid"] == (uuid or bench.world.lab.gpus[0].uuid))
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
def pressed(bench: Bench, placement: str, out: Figures) -> Iterator[None]:
    """Requests for the length of a block; what its first model's GPU holds each second, beside the ledger before and after."""
    uuid = bench.world.replicas(placement)["chat/0"]["gpus"][0]
    before = ledger(bench, uuid)
    samples: list[Figures] = []
    begin, stop = time.monotonic(), threading.Event()

    def sample(stream: TextIO) -> None:
        while not stop.wait(1 - time.monotonic() % 1):
            gpu = bench.world.gpus()[uuid]
            held = {each["pod"]: each["used"] for each in gpu["tenants"]}
            samples.append({"at": round(time.time(), 1), "used": gpu["memory"]["used"], "tenants": held})
            stream.write(json.dumps(samples[-1]) + "\n")
            stream.flush()

    with (bench.out / "load-seconds.jsonl").open("w") as stream:
        sampler = threading.Thread(target=sample, args=(stream,), daemon=True)
        sampler.start()
        try:
            with requests(bench, placement, workers=24) as answered:
                yield
        finally:
            stop.set()
            sampler.join(10)
            after = ledger(bench, uuid)
            out["ledger"], out["ledgerAfter"] = before, after
            expected = min(before["expected"], after["expected"])
            pods = {pod for each in samples for pod in each["tenants"]}
            out["load"] = {
                "seconds": round(time.monotonic() - begin),
                "samples": len(samples),
                "answered": dict(answered),
                "usedMost": max(each["used"] for each in samples),
                "expected": expected,
                "samplesOverLedger": sum(each["used"] > expected for each in samples),
                "tenantsMost": {pod: max(each["tenants"].get(pod, 0) for each in samples) for pod in sorted(pods)},
            }
            out["learned"] = _learned(bench, placement)


@contextmanager
def requests(
    bench: Bench, placement: str, workers: int, more: Figures | None = None, prompt: int = PROMPT
) -> Iterator[dict[str, int]]:
    """So many clients per model for the length of a block; answers and refusals by model, counted."""
    counts: dict[str, int] = {}
    lock, stop = threading.Lock(), threading.Event()

    def ask(pod: str, model: str, seed: int) -> None:
        # a client of its own: the lab's has fewer connections than there are askers
        client = Api(bench.world.lab.kubeconfig)
        path = f"api/v1/namespaces/{MODELS}/pods/{pod}:8000/proxy/v1/completions"
        while not stop.is_set():
            seed += 1000
            tokens = [(seed * 7919 + position * 31) % 250 for position in range(prompt)]
            body = {"model": model, "prompt": tokens, "max_tokens": ANSWER, "ignore_eos": True, **(more or {})}
            try:
                client.request("POST", path, body)
                key = model
            except (ApiError, OSError, HTTPError):
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
        until = time.monotonic() + 20
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))


@contextmanager
def _recorded(out: Figures, name: str) -> Iterator[None]:
    """What did not come about is noted, and the step goes on."""
    try:
        yield
    except AssertionError as error:
        out[f"{name}Failed"] = str(error).splitlines()[0]


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


def _told(bench: Bench, name: str, pid: int) -> Figures | None:
    """Its phase and words once they say that it waits, and the stranger is known."""
    replica = bench.world.replicas(name)["ocr/0"]
    conflict = bench.world.condition(name, "GPUConflict")
    known = str(pid) in str(conflict.get("message"))
    waits = replica["phase"] in ("Unplaced", "Waiting", "Pending") and replica.get("message")
    return {"replica": replica, "conflict": conflict} if waits and known else None


UPSETS: dict[str, Callable[[Bench, Figures], None]] = {
    "load": load,
    "cards4": cards4,
    "grows": grows,
    "squeezed": squeezed,
    "worker": worker,
}
