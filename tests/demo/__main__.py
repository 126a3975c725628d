"""`python -m tests.demo`: cluster, nodes, controller, `examples/sparrow.yaml`, and a picture; leaves the cluster running."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests import install
from tests.cluster import build, resident
from tests.cluster.access import Cluster, KubectlError
from tests.cluster.api import ApiError
from tests.cluster.control_plane import ControlPlaneError
from tests.demo.picture import console, flag, picture
from tests.sim import node_manifest

SPARROW = install.ROOT / "examples" / "sparrow.yaml"
NODES = (
    ("rtx-1", "NVIDIA-RTX-PRO-6000-Blackwell", 1),
    ("rtx-2", "NVIDIA-RTX-PRO-6000-Blackwell", 2),
    ("hopper-1", "NVIDIA-H100-80GB-HBM3", 4),
    ("hopper-2", "NVIDIA-H100-80GB-HBM3", 2),
)
SPEED = 9
"""A start of 90 s takes 10."""
SECONDS = 180.0
WANTED = {"mistral-small": "0.70", "dots-ocr": "0.20"}


class DemoError(Exception):
    """The demo cannot go on; the text says why and what to do."""


@dataclass(slots=True)
class Progress:
    """One line per step and per change, with the seconds since the start."""

    began: float

    def say(self, text: str) -> None:
        """Print a line at once, also where nobody looks at a terminal."""
        print(f"{time.monotonic() - self.began:6.1f} s  {text}", flush=True)


def main() -> int:
    """Run the demo; 0 only when both models are Ready with the right flags."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--down", action="store_true", help="end the cluster when all is shown")
    arguments = parser.parse_args()
    progress = Progress(time.monotonic())
    # Somebody who closes the terminal ends the demo as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        cluster = _cluster(progress)
        _install(cluster, progress)
        good = _run(cluster, progress)
        _show(cluster)
        if not arguments.down:
            _next(cluster)
    except (DemoError, build.BuildError, ControlPlaneError, ApiError, KubectlError, RuntimeError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nending what was started", file=sys.stderr)
        resident.stop()
        return 130
    finally:
        if arguments.down:
            resident.stop()
    return 0 if good else 1


def _cluster(progress: Progress) -> Cluster:
    """A fresh cluster; one of an earlier demo is ended, one of somebody's own is not."""
    running = resident.running()
    if running:
        names = {node["metadata"]["name"] for node in running.api.list("v1", "Node")}
        if names - {name for name, _, _ in NODES}:
            raise DemoError("a cluster is running that is not this demo's: `make cluster-down` ends it")
        progress.say("ending the cluster of an earlier demo")
        resident.stop()
    progress.say("starting a control plane (the first time its programs are built: about 10 minutes)")
    cluster = resident.start()
    progress.say(f"Kubernetes is ready at {cluster.url}")
    return cluster


def _install(cluster: Cluster, progress: Progress) -> None:
    beside = {**os.environ, "PYTHONPATH": str(install.ROOT)}
    for name, product, gpus in NODES:
        cluster.api.create(node_manifest(name, product, gpus))
    command = [
        sys.executable,
        "-m",
        "tests.sim",
        "--kubeconfig",
        str(cluster.kubeconfig),
        "--seed",
        "1",
        "--speed",
        str(SPEED),
    ]
    resident.run_beside("sim", command, beside)
    progress.say(
        f"{len(NODES)} simulated nodes: " + ", ".join(f"{name} ({gpus} x {product})" for name, product, gpus in NODES)
    )
    controller = install.install(cluster)
    progress.say("CRDs, rights and settings are applied from charts/cotenant")
    resident.run_beside("controller", controller.command, controller.env)
    progress.say("the controller runs, as ServiceAccount cotenant-system/cotenant-controller")


def _run(cluster: Cluster, progress: Progress) -> bool:
    """Apply the example and tell what changes until it is Ready; False when that takes too long."""
    placement = yaml.safe_load(SPARROW.read_text())
    name = placement["metadata"]["name"]
    cluster.kubectl("apply", "-f", SPARROW)
    progress.say(f"applied {SPARROW.relative_to(install.ROOT)}")
    tell = _teller(progress)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        found = cluster.api.get("cotenant.dev/v1alpha1", "ModelPlacement", name)
        tell(found)
        if _is_ready(found):
            return _flags_are_right(cluster, name)
        time.sleep(0.2)
    log = cluster.directory / "logs" / "controller.log"
    tail = "\n".join(log.read_text().splitlines()[-15:]) if log.exists() else ""
    print(f"\ndemo: {name} was not Ready after {SECONDS:.0f} s. The end of {log}:\n{tail}", file=sys.stderr)
    return False


def _teller(progress: Progress) -> Callable[[dict[str, Any]], None]:
    """Says each replica's and condition's change once."""
    said: dict[str, str] = {}

    def tell(placement: dict[str, Any]) -> None:
        status = placement.get("status") or {}
        for model in status.get("models") or ():
            for replica in model.get("replicas") or ():
                where = f" on {replica['node']}" if replica.get("node") else ""
                why = f": {replica['message']}" if replica.get("message") else ""
                news = f"{replica['phase']}{where}{why}"
                who = f"{model['name']}-{replica['index']}"
                if said.get(who) != news:
                    said[who] = news
                    progress.say(f"  {who:<18}{news}")
        for condition in status.get("conditions") or ():
            news = f"{condition['status']} ({condition['reason']})"
            if condition["type"] == "Ready" and said.get("Ready") != news:
                said["Ready"] = news
                progress.say(f"  Ready = {news} {condition.get('message', '')}")

    return tell


def _is_ready(placement: dict[str, Any]) -> bool:
    status = placement.get("status") or {}
    current = status.get("observedGeneration") == placement["metadata"]["generation"]
    conditions = status.get("conditions") or ()
    return current and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _flags_are_right(cluster: Cluster, name: str) -> bool:
    pods = cluster.api.list("v1", "Pod", "default", labels=f"cotenant.dev/placement={name},cotenant.dev/role=engine")
    flags = {pod["metadata"]["labels"]["cotenant.dev/model"]: flag(pod) for pod in pods}
    gpus = {
        entry["value"]
        for pod in pods
        for entry in pod["spec"]["containers"][0]["env"]
        if entry["name"] == "NVIDIA_VISIBLE_DEVICES"
    }
    if flags != WANTED or len(gpus) != 1:
        print(f"\ndemo: the pods run with {flags} on {len(gpus)} GPUs; wanted {WANTED} on one", file=sys.stderr)
        return False
    return True


def _show(cluster: Cluster) -> None:
    time.sleep(0.5)  # until the agents have reported what the last engine took
    version = "cotenant.dev/v1alpha1"
    engines = cluster.api.list("v1", "Pod", labels="cotenant.dev/role=engine")
    drawn = picture(cluster.api.list(version, "ModelPlacement"), cluster.api.list(version, "GPUNode"), engines)
    console().print()
    console().print(drawn)


def _next(cluster: Cluster) -> None:
    kubectl, cotenant = cluster.kubectl_path, Path(sys.executable).with_name("cotenant")
    print(f"""
What to try next (the cluster keeps running):
  export KUBECONFIG={cluster.kubeconfig}
  alias kubectl={kubectl} cotenant={cotenant}
  kubectl get mplace sparrow -o wide
  cotenant explain default/sparrow/dots-ocr     # its whole story: place, flag, ledger, what its start taught
  kubectl logs sparrow-dots-ocr-0 | grep -i memory
  kubectl patch mplace sparrow --type json -p '[{{"op": "replace", "path": "/spec/models/1/share", "value": "15%"}}]'
  kubectl annotate pod sparrow-mistral-small-0 sim.cotenant.dev/fault=cuda-oom     # it dies at run time, and is replaced
  kubectl annotate node rtx-1 sim.cotenant.dev/stranger=6Gi@0:train      # somebody else's process: one model moves away
  cotenant map                            # where everything is now
  kubectl get events --field-selector involvedObject.kind=ModelPlacement
  kubectl delete mplace sparrow
Logs: {cluster.directory / "logs"}
To end it: make cluster-down""")


if __name__ == "__main__":
    sys.exit(main())
