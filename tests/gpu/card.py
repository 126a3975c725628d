"""Cotenant on one real node with real cards and real vLLM: python3 -m tests.gpu.card OUT --parts PARTS --site SITE STEP ...

Starts the node of card_lab.py with the chart's rendered controller and agent, takes the steps named, writes figures to
OUT/card.json after each and the logs to OUT/logs.tar.gz. A step that fails is recorded with the state of things, and the next
one is taken. `--stand-in` takes the same steps on the stand-in cards of tests/node, to try this script without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from tests.gpu import card_lab, steps
from tests.gpu.bench import Bench, say
from tests.node.config import Gpu
from tests.node.lab import NODE, Lab
from tests.node.world import MODELS, SYSTEM, World

ROOT = Path(__file__).parents[2]


def main() -> int:
    """Take the steps; 0 if none failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("steps", nargs="+", choices=list(steps.STEPS))
    parser.add_argument("--parts", type=Path, required=True, help="holds chart.yaml and python-layer.tar")
    parser.add_argument("--site", type=Path, default=Path("/nowhere"), help="the folder that holds vLLM")
    parser.add_argument("--seconds", type=float, default=540, help="after so many no further round or step is begun")
    parser.add_argument(
        "--programs", type=Path, help="the folder with kubelet, containerd and the like; built if not given"
    )
    parser.add_argument("--stand-in", action="store_true", help="without a GPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    # short: a Unix socket's path has 108 bytes
    folder = Path(tempfile.mkdtemp(prefix="card-"))
    record: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **_versions(options),
        "steps": {},
    }
    lab = _start(folder, options)
    say(began, f"node ready: {[gpu.uuid for gpu in lab.gpus]}")
    try:
        with lab:
            bench = Bench(World(lab), began, began + options.seconds, options.stand_in, options.out)
            _install(bench, options.parts / "chart.yaml")
            for name in options.steps:
                record["steps"][name] = _take(bench, name)
                (options.out / "card.json").write_text(json.dumps(record, indent=1) + "\n")
            _keep_logs(bench, folder)
    finally:
        say(began, "ended")
        shutil.rmtree(folder, ignore_errors=True)
    return int(any("failed" in each for each in record["steps"].values()))


def _start(folder: Path, options: argparse.Namespace) -> Lab:
    if options.stand_in:
        from tests.node import images
        from tests.node.conftest import FIRST, RTX_PRO_6000

        cards = [Gpu(uuid, *RTX_PRO_6000) for uuid in (FIRST,)]
        return Lab.start(folder, cards, [images.archive(folder)])
    card_lab.CardLab.site = options.site
    archive = card_lab.archive(folder / "made", options.parts / "python-layer.tar")
    return card_lab.CardLab.start(folder, card_lab.cards(), [archive], options.programs)


def _install(bench: Bench, chart: Path) -> None:
    """As the guide says: label the node, apply the chart, a namespace for models that enforces `restricted`."""
    world = bench.world
    labels = ["cotenant.dev/managed=true", "nvidia.com/gpu.present=true"]
    world.lab.kubectl("label", "node", NODE, *labels)
    text = chart.read_text()
    if bench.stand_in:
        text = text.replace(card_lab.ENGINE, "localhost/lab/vllm:0.33.0")
    world.lab.kubectl("apply", "--server-side", "-f", "-", input=text)
    world.lab.kubectl("create", "namespace", MODELS)
    world.lab.kubectl("label", "namespace", MODELS, "pod-security.kubernetes.io/enforce=restricted")
    bench.mount_models()
    world.until("the agent's report", lambda: len(world.gpus()) == len(world.lab.gpus))
    world.lab.kubectl("rollout", "status", "-n", SYSTEM, "deploy/cotenant-controller", "--timeout=60s")
    bench.say("controller and agent run")


def _take(bench: Bench, name: str) -> dict[str, object]:
    bench.say(f"step {name}")
    if time.monotonic() > bench.ends:
        return {"failed": "no time was left for it"}
    begin = time.monotonic()
    figures: dict[str, object] = {}
    try:
        steps.STEPS[name](bench, figures)
    except Exception as error:
        traceback.print_exc()
        figures["failed"] = str(error).splitlines()[0]
        bench.note(f"{name}-failed", str(error))
    finally:
        bench.clear()
    figures["seconds"] = round(time.monotonic() - begin)
    bench.say(f"step {name}: {json.dumps(figures)}")
    return figures


def _versions(options: argparse.Namespace) -> dict[str, object]:
    if options.stand_in:
        return {"card": "stand-in"}
    fields = "name,driver_version,memory.total"
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    said = subprocess.run(query, check=True, capture_output=True, text=True).stdout.strip().splitlines()
    versions = "import torch, vllm; print(torch.__version__, vllm.__version__)"
    found = subprocess.run(
        [sys.executable, "-c", versions],
        env={"PYTHONPATH": str(options.site), "HOME": "/tmp"},
        capture_output=True,
        text=True,
    ).stdout.split()[-2:]
    name, driver, _ = said[0].split(", ")
    commit = options.parts / "commit"
    return {
        "card": name, "cards": len(said), "driver": driver, "torch": found[0], "vllm": found[1],
        "kubernetes": "1.37.1", "containerd": "2.3.4", "nvidia-container-toolkit": "1.20.1",
        "cotenant": commit.read_text().strip() if commit.exists() else "",
    }  # fmt: skip


def _keep_logs(bench: Bench, folder: Path) -> None:
    bench.note("end", bench.world.picture())
    for component in ("deploy/cotenant-controller -n cotenant-system", "ds/cotenant-agent -c agent -n cotenant-agent"):
        bench.note(component.split()[0].replace("/", "-"), bench.world.lab.kubectl("logs", *component.split()))
    archive: list[str | Path] = [
        "tar",
        "--exclude=kube-apiserver*",
        "-czf",
        bench.out / "logs.tar.gz",
        "-C",
        folder,
        "logs",
        "cdi",
    ]
    subprocess.run(archive, check=False)


if __name__ == "__main__":
    sys.exit(main())
