"""1,000 one-replica models onto 125 nodes of 8 GPUs: how fast the controller makes pods, against a bare apply loop.

`python -m tests.bench.controller`: a real control plane, nodes kept by KWOK, GPUs reported once, no engine: a pod counts
when it is created. The bare loop then applies the very same pods, 16 at a time, on the same machine in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cotenant.api import crd
from cotenant.controller.cache import Cache
from cotenant.controller.sources import PODS, sources
from cotenant.core.reconcile import reconcile
from cotenant.errors import NotFound
from cotenant.kube import Kube
from cotenant.settings import Settings
from tests.cluster import kwok
from tests.cluster.control_plane import ControlPlane

API = "cotenant.dev/v1alpha1"
PRODUCT, TOTAL, RESERVED = "NVIDIA-H100-80GB-HBM3", 85899345920, 1 << 29
GPUS, AT_ONCE, PER_PLACEMENT = 8, 16, 32
OURS = "app.kubernetes.io/managed-by=cotenant"
Body = dict[str, Any]


@dataclass
class Figures:
    """What one run showed."""

    placements: int
    pods: int
    seconds: float
    apply_seconds: float
    cpu: float
    threads: list[float]
    peak_mib: float
    series: dict[str, float]

    @property
    def rate(self) -> float:
        """Pods per second, from the first apply to the last pod."""
        return self.pods / self.seconds


# ----------------------------------------------------------------------------------------------------------- the world
def gpu_node(index: int) -> Body:
    """The report of one node."""
    gpus = [
        {
            "uuid": f"GPU-{index:04d}-{gpu}",
            "index": gpu,
            "product": PRODUCT,
            "memory": {"total": TOTAL, "reserved": RESERVED, "used": 0},
            "island": 0,
            "health": "Healthy",
        }
        for gpu in range(GPUS)
    ]
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "Bench",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "observedGeneration": 1,
    }
    name = f"node-{index:04d}"
    return {
        "apiVersion": API,
        "kind": "GPUNode",
        "metadata": {"name": name},
        "status": {"observedGeneration": 1, "conditions": [ready], "gpus": gpus},
    }


def placements(models: int, each: int) -> list[Body]:
    """So many models in placements of `each`."""
    wishes = [{"name": f"m{i}", "uri": "hf://org/model", "share": "70%"} for i in range(each)]
    return [
        {
            "apiVersion": API,
            "kind": "ModelPlacement",
            "metadata": {"name": f"p{i:04d}", "namespace": "default"},
            "spec": {"models": wishes[: min(each, models - i * each)]},
        }
        for i in range(-(-models // each))
    ]


async def at_once(jobs: Iterator[Any], limit: int = AT_ONCE) -> None:
    """Await all, so many at a time."""
    slots = asyncio.Semaphore(limit)

    async def one(job: Any) -> None:
        async with slots:
            await job

    await asyncio.gather(*(one(job) for job in jobs))


async def build_world(kube: Kube, nodes: int) -> None:
    """Nodes and their reports."""
    labels = {"cotenant.dev/managed": "true"}
    manifests = [kwok.gpu_node(f"node-{i:04d}", PRODUCT, GPUS, TOTAL >> 20, labels) for i in range(nodes)]
    await at_once(kube.create(manifest) for manifest in manifests)
    reports = [gpu_node(i) for i in range(nodes)]
    await at_once(kube.create({k: v for k, v in r.items() if k != "status"}) for r in reports)
    await at_once(kube.apply_status(r, "cotenant-agent") for r in reports)
    while True:
        found = await kube.list("v1", "Node")
        if all(c["status"] == "True" for n in found for c in n["status"].get("conditions", ()) if c["type"] == "Ready"):
            return
        await asyncio.sleep(0.5)


async def count_pods(kube: Kube) -> int:
    """How many pods of ours there are, without reading them."""
    page = await kube._json(
        "GET", "/api/v1/namespaces/default/pods", "counting pods", {"limit": "1"}, kind="Pod"
    )  # pods of the bench's namespace are all ours; a selector would hide remainingItemCount
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount") or 0)


async def wait_for(kube: Kube, pods: int, seconds: float) -> float:
    """Until so many pods exist; when that was."""
    end = time.monotonic() + seconds
    while (there := await count_pods(kube)) != pods:
        if time.monotonic() > end:
            raise SystemExit(f"only {there} of {pods} pods after {seconds:.0f} s")
        await asyncio.sleep(0.05)
    return time.monotonic()


async def clear(kube: Kube, *, also_placements: bool) -> None:
    """No pods, and no placements."""
    if also_placements:
        await at_once(
            kube.delete(API, "ModelPlacement", p["metadata"]["name"], "default")
            for p in await kube.list(API, "ModelPlacement")
        )

    async def end(name: str) -> None:
        with suppress(NotFound):
            await kube.delete("v1", "Pod", name, "default", grace_seconds=0)

    await at_once(end(p["metadata"]["name"]) for p in await kube.list("v1", "Pod", "default"))
    await wait_for(kube, 0, 120)
    while also_placements and await kube.list("v1", "Service", "default", OURS):  # noqa: ASYNC110 - another's work
        await asyncio.sleep(0.5)


# ------------------------------------------------------------------------------------------------------ the controller
@contextmanager
def controller(cluster: ControlPlane, log: Path) -> Iterator[tuple[int, str]]:
    """`cotenant controller` as a process: its pid and the address of its metrics."""
    environment = {
        **os.environ,
        "COTENANT_KUBECONFIG": str(cluster.kubeconfig),
        "COTENANT_HOST": "127.0.0.1",
        "COTENANT_HEALTH_PORT": "0",
        "COTENANT_METRICS_PORT": "0",
        "COTENANT_RESERVE": "false",
        "COTENANT_PREFLIGHT": "false",
        "COTENANT_LEADER_ELECTION": "false",
        "COTENANT_HUB_OFFLINE": "true",
    }
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "cotenant", "controller"], env=environment, stderr=file)
    try:
        while not (found := re.search(r"in view", log.read_text())):
            if process.poll() is not None:
                raise SystemExit(f"the controller ended: {log.read_text()}")
            time.sleep(0.1)
        found = re.search(r"/metrics on port (\d+)", log.read_text())
        assert found
        time.sleep(2)  # the watches begin
        yield process.pid, f"http://127.0.0.1:{found[1]}/metrics"
    finally:
        process.terminate()
        process.wait(20)


def cpu_seconds(pid: int) -> tuple[float, list[float]]:
    """CPU of a process and of its threads, the first one's first."""
    tick = os.sysconf("SC_CLK_TCK")

    def of(path: Path) -> float:
        words = path.read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / tick

    threads = [of(task / "stat") for task in sorted(Path(f"/proc/{pid}/task").iterdir(), key=lambda t: int(t.name))]
    return of(Path(f"/proc/{pid}/stat")), threads


def peak_mib(pid: int) -> float:
    """Most memory it ever had resident."""
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


async def series(address: str) -> dict[str, float]:
    """All its metrics."""
    import aiohttp

    async with aiohttp.ClientSession() as session, session.get(address) as answer:
        lines = (await answer.text()).splitlines()
    return {n: float(v) for n, _, v in (line.rpartition(" ") for line in lines if line and line[0] != "#")}


async def run(kube: Kube, cluster: ControlPlane, wishes: list[Body], pods: int, log: Path) -> Figures:
    """Apply these placements and watch the controller at it."""
    with controller(cluster, log) as (pid, address):
        cpu_before, threads_before = cpu_seconds(pid)
        writes_before = await series(address)
        begun = time.monotonic()
        applying = asyncio.create_task(at_once(kube.apply(wish, "bench") for wish in wishes))
        applied = begun

        def note(_: object) -> None:
            nonlocal applied
            applied = time.monotonic()

        applying.add_done_callback(note)
        done = await wait_for(kube, pods, 300)
        cpu_after, threads_after = cpu_seconds(pid)
        await applying
        after = await series(address)
        grown = {name: value - writes_before.get(name, 0.0) for name, value in after.items()}
        threads_before += [0.0] * (len(threads_after) - len(threads_before))
        settled = await _settled(address)
        return Figures(
            len(wishes),
            pods,
            done - begun,
            applied - begun,
            cpu_after - cpu_before,
            sorted((a - b for a, b in zip(threads_after, threads_before, strict=True)), reverse=True),
            peak_mib(pid),
            {**grown, "writes in all": settled - _writes(writes_before)},
        )


def _writes(found: dict[str, float]) -> float:
    return sum(v for n, v in found.items() if n.startswith("cotenant_writes_total"))


async def _settled(address: str) -> float:
    """All writes, once none has come for two seconds."""
    last, since = -1.0, time.monotonic()
    while time.monotonic() - since < 3:
        now = _writes(await series(address))
        if now != last:
            last, since = now, time.monotonic()
        await asyncio.sleep(1)
    return last


async def bare(kube: Kube) -> tuple[float, float]:
    """(seconds, CPU seconds) to apply the same pods by a loop that does nothing else."""
    settings = Settings(reserve=False, preflight=False)
    cache = Cache(sources(settings.policy), settings.policy)
    for source in cache.shelves.values():
        if source.source.name != PODS:
            async for items, _ in kube.pages(
                source.source.api_version, source.source.kind, None, source.source.selector or None
            ):
                for item in items:
                    cache.put(source.source.name, item)
    manifests = [create.manifest for create in reconcile(cache.snapshot(time.time())).creates]
    begun, cpu = time.monotonic(), time.process_time()
    await at_once(kube.apply(manifest) for manifest in manifests)
    return time.monotonic() - begun, time.process_time() - cpu


# ------------------------------------------------------------------------------------------------------------- telling
def tell(name: str, found: Figures, bare_seconds: float) -> None:
    """The figures of one run."""
    s = found.series
    steps = {k: s.get(f'cotenant_pass_seconds_sum{{step="{k}"}}', 0.0) for k in ("observe", "reconcile", "act")}
    passes = s.get('cotenant_pass_seconds_count{step="act"}', 0.0)
    writes = {n: v for n, v in s.items() if n.startswith("cotenant_writes_total") and v}
    heard = sum(v for n, v in s.items() if n.startswith("cotenant_news_total"))
    print(f"\n{name}: {found.pods} models in {found.placements} placements")
    print(f"  first apply -> last pod created   {found.seconds:6.2f} s   {found.rate:6.1f} pods/s")
    print(f"  bare apply loop, same pods        {bare_seconds:6.2f} s   {found.pods / bare_seconds:6.1f} pods/s")
    print(f"  ratio                             {bare_seconds / found.seconds:6.2f}")
    print(f"  of that, applying the placements  {found.apply_seconds:6.2f} s")
    print(f"  passes {passes:.0f}: " + ", ".join(f"{k} {v:.2f} s" for k, v in steps.items()))
    print(f"  writes per model {s['writes in all'] / found.pods:.2f}; until the last pod: " + _short(writes))
    print(f"  events heard {heard:.0f}")
    threads = ", ".join(f"{t:.1f}" for t in found.threads[:4])
    print(f"  controller: CPU {found.cpu:.1f} s (busiest threads {threads}), peak memory {found.peak_mib:.0f} MiB")


def _short(writes: dict[str, float]) -> str:
    out = []
    for name, value in sorted(writes.items(), key=lambda item: -item[1]):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', name))
        out.append(f"{labels['verb']} {labels['kind']} {labels['result']} {value:.0f}")
    return ", ".join(out)


async def main(models: int, only: str) -> None:
    """Both ways, and the bare loop after each."""
    nodes = -(-models // GPUS)
    with (
        tempfile.TemporaryDirectory(prefix="cotenant-bench-", ignore_cleanup_errors=True) as name,
        ControlPlane.start(Path(name)) as cluster,
    ):
        directory = Path(name)
        cluster.api.install_crds(list(crd.documents().values()))
        async with await Kube.connect(str(cluster.kubeconfig)) as kube:
            await kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cotenant-system"}})
            await kube.create(
                {
                    "apiVersion": "node.k8s.io/v1",
                    "kind": "RuntimeClass",
                    "metadata": {"name": "nvidia"},
                    "handler": "nvidia",
                }
            )
            print(f"{nodes} nodes of {GPUS} GPUs", flush=True)
            await build_world(kube, nodes)
            for size, each in (("large", PER_PLACEMENT), ("small", 1)):
                if only not in ("", size):
                    continue
                found = await run(kube, cluster, placements(models, each), models, directory / f"{size}.log")
                await clear(kube, also_placements=False)
                seconds, _ = await bare(kube)
                tell(f"{size} placements", found, seconds)
                await clear(kube, also_placements=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--only", choices=["large", "small"], default="")
    options = parser.parse_args()
    asyncio.run(main(options.models, options.only))
