"""The outputs in docs/cli.md: what is printed on one simulated cluster. `python -m tests.cli.docsamples` writes them anew."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from dataclasses import replace
from pathlib import Path

from cotenant.__main__ import run
from cotenant.cli import cluster, placementfile, simulation, snapshotfile
from cotenant.core.share import GIB, MIB
from cotenant.core.snapshot import Device, GPUNode, Policy, Snapshot, Stranger, TenantReading
from tests.core.builders import POLICY, Cluster, node

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "cli.md"
BEGIN = 1795173600.0
"""2026-11-20T10:40:00Z."""
SAMPLE = re.compile(r"```\n\$ cotenant (?P<words>(?:map|plan|explain)[^\n]*)\n(?P<output>.*?)```", re.DOTALL)
LLAMA = """\
apiVersion: cotenant.dev/v1alpha1
kind: ModelPlacement
metadata: {name: llama}
spec:
  models:
  - {name: chat, uri: "hf://meta-llama/Llama-3.1-8B-Instruct", share: 40%, replicas: 3, engine: {maxModelLen: 32768}}
  - {name: large, uri: "hf://meta-llama/Llama-3.3-70B-Instruct", share: 90%, tensorParallelSize: 4}
  - {name: embed, uri: "hf://Qwen/Qwen3-0.6B", share: auto}
"""


def empty() -> Snapshot:
    """Two RTX PRO 6000 and four H100, nobody on them."""
    rtx = node("rtx-1", 2, 97887 * MIB, "NVIDIA-RTX-PRO-6000-Blackwell")
    hopper = node("hopper-1", 4, 81559 * MIB, "NVIDIA-H100-80GB-HBM3")
    kept = (597 * MIB, 479 * MIB)
    reports = []
    for (_, report), reserved in zip((rtx, hopper), kept, strict=True):
        island = 0 if report.name == "hopper-1" else None
        devices = tuple(replace(d, reserved=reserved, island=island) for d in report.devices)
        reports.append(replace(report, devices=devices))
    seen = Cluster([rtx, hopper], policy=Policy(engines=POLICY.engines), now=BEGIN).snapshot()
    return replace(seen, gpu_nodes=tuple(reports))


def trained_on(seen: Snapshot) -> Snapshot:
    """The same with a training run on GPU 1 of rtx-1."""
    stranger = Stranger(4023, "train", 5 * GIB, "")

    def visited(device: Device) -> Device:
        there = (device.node, device.index) == ("rtx-1", 1)
        return replace(device, strangers=(stranger,), used=device.used + stranger.used) if there else device

    reports = (replace(r, devices=tuple(map(visited, r.devices))) for r in seen.gpu_nodes)
    return replace(seen, gpu_nodes=tuple(reports))


def after(seen: Snapshot, file: str) -> Snapshot:
    """Once this file was applied and everything serves, with what the engines use."""
    wished = placementfile.applied(seen, placementfile.read([file], "default"))
    known = cluster.with_configs(cluster.View(wished), offline=True).snapshot
    done = simulation.run(known).after
    pods = tuple(replace(pod, uid=f"uid-{pod.name}") for pod in done.pods)
    done = replace(done, now=seen.now + 600, pods=pods)
    return replace(done, gpu_nodes=tuple(_read(report, done) for report in done.gpu_nodes))


def _read(report: GPUNode, seen: Snapshot) -> GPUNode:
    def used(device: Device) -> Device:
        there = [(p, p.allocation) for p in seen.pods if p.allocation and device.uuid in p.allocation.gpus]
        tenants = tuple(TenantReading(p.namespace, p.name, given.bytes + given.overrun * 3 // 4) for p, given in there)
        return replace(
            device, tenants=tenants, used=sum(t.used for t in tenants) + sum(s.used for s in device.strangers)
        )

    return replace(report, devices=tuple(used(device) for device in report.devices))


def written() -> str:
    """The page with its samples as they are printed now."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("llama.yaml").write_text(LLAMA)
        before = trained_on(after(empty(), str(ROOT / "examples" / "sparrow.yaml")))
        Path("before.yaml").write_text(snapshotfile.dump(before))
        Path("after.yaml").write_text(snapshotfile.dump(after(before, "llama.yaml")))

        def sample(found: re.Match[str]) -> str:
            words = found["words"].split()
            seen = "before.yaml" if words[0] == "plan" else "after.yaml"
            offline = [] if words[0] == "map" else ["--offline"]
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                run([*words, *offline, "--snapshot", seen])
            return f"```\n$ cotenant {found['words']}\n{out.getvalue().strip(chr(10))}\n```"

        return SAMPLE.sub(sample, DOC.read_text())


if __name__ == "__main__":
    DOC.write_text(written())
