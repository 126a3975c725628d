"""5,000 GPUNodes published at once: what it costs the API server and the controller.

`python -m tests.bench.gpunodes`: a real control plane and the controller; first every node's report is new, then every one
changes again (256 MiB moved), as when a fleet's agents start or a job begins everywhere. Nodes are not needed for that.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from cotenant.api import crd
from cotenant.core.names import AGENT_MANAGER
from cotenant.kube import Kube
from tests.bench.controller import at_once, controller, cpu_seconds, gpu_node, peak_mib, series
from tests.cluster.control_plane import ControlPlane

AGENTS = 32
"""Reports under way at a time."""


async def publish(kube: Kube, reports: list[dict[str, Any]], *, new: bool) -> float:
    """All reports, as agents send them; seconds."""
    begun = time.monotonic()
    if new:
        bare = ({key: value for key, value in report.items() if key != "status"} for report in reports)
        await at_once((kube.apply(item, AGENT_MANAGER) for item in bare), AGENTS)
    await at_once((kube.apply_status(report, AGENT_MANAGER) for report in reports), AGENTS)
    return time.monotonic() - begun


async def heard(address: str, wanted: float) -> float:
    """Seconds until the controller has taken in so many reports that changed something."""
    begun = time.monotonic()
    while time.monotonic() - begun < 300:
        if sum(value for name, value in (await series(address)).items() if _is_news(name)) >= wanted:
            break
        await asyncio.sleep(0.2)
    return time.monotonic() - begun


async def main(nodes: int) -> None:
    """Both waves."""
    directory = Path(tempfile.mkdtemp(prefix="cotenant-bench-"))
    with ControlPlane.start(directory) as cluster:
        cluster.api.install_crds(list(crd.documents().values()))
        async with await Kube.connect(str(cluster.kubeconfig)) as kube:
            await kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "cotenant-system"}})
            reports = [gpu_node(index) for index in range(nodes)]
            server = cluster.processes.pid("kube-apiserver")
            assert server is not None
            with controller(cluster, directory / "controller.log") as (pid, address):
                print(f"{nodes} GPUNodes of 8 GPUs, {AGENTS} reports at a time")
                for wave, new in (("new", True), ("changed", False)):
                    for report in reports:
                        report["status"]["gpus"][0]["memory"]["used"] += 1 << 28
                    before, server_before = cpu_seconds(pid)[0], cpu_seconds(server)[0]
                    known = sum(v for n, v in (await series(address)).items() if _is_news(n))
                    seconds = await publish(kube, reports, new=new)
                    late = await heard(address, known + nodes)
                    used, server_used = cpu_seconds(pid)[0] - before, cpu_seconds(server)[0] - server_before
                    print(
                        f"  {wave:<8} published in {seconds:6.1f} s ({nodes / seconds:5.0f}/s), all heard {late:5.1f} s later;"
                        f" CPU: API server {server_used:6.1f} s, controller {used:6.1f} s;"
                        f" peak memory: API server {peak_mib(server):.0f} MiB, controller {peak_mib(pid):.0f} MiB",
                        flush=True,
                    )


def _is_news(name: str) -> bool:
    return name.startswith("cotenant_news_total") and "gpunodes" in name and 'changed="yes"' in name


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000)
    asyncio.run(main(parser.parse_args().nodes))
