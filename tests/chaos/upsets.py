"""What happens to the machinery: controllers, API server, etcd, nodes, GPUs, strangers, edits in flight."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.scenarios.stage import Stage, gpus, model
from tests.sim import GIB

H100 = "NVIDIA-H100-80GB-HBM3"


@dataclass
class Upset:
    """One upset and what came of it."""

    injected: str
    seen: str = ""
    seconds: float = 0.0
    good: bool = False


def run(stage: Stage, show: Callable[[Upset], None]) -> list[Upset]:
    """One after the other, each on a crowd of four models on two nodes of two GPUs."""
    out = []
    for number, (injected, upset) in enumerate(UPSETS.items()):
        stage.new_namespace(f"upset-{number}")
        nodes = [f"u{number}a", f"u{number}b"]
        for node in nodes:
            stage.sim.add_node(node, H100, 2)
        stage.apply("p", *(model(f"m{i}", "40%") for i in range(4)), nodes={"names": nodes})
        begun = time.monotonic()
        entry = Upset(injected)
        try:
            entry.seen = upset(stage, nodes) or "Ready"
            entry.good = not stage.sim.audit.violations
        except AssertionError as error:
            entry.seen = str(error).splitlines()[0]
        entry.seconds = time.monotonic() - begun
        show(entry)
        out.append(entry)
        stage.clear(nodes)
    return out


def _controller_killed(stage: Stage, _: list[str]) -> str:
    for pause in (0.3, 0.7, 1.5):
        time.sleep(pause)
        stage.kill_controller()
        stage.start_controller()
    stage.until_ready("p", 120)
    return ""


def _api_server_killed(stage: Stage, _: list[str]) -> str:
    time.sleep(1.0)
    stage.cluster.kill_apiserver()
    time.sleep(2.0)
    stage.cluster.start_apiserver()
    stage.until_ready("p", 180)
    return ""


def _slow_etcd(stage: Stage, _: list[str]) -> str:
    for _round in range(3):
        stage.cluster.pause_etcd()
        time.sleep(1.5)
        stage.cluster.resume_etcd()
        time.sleep(0.5)
    stage.until_ready("p", 180)
    return ""


def _node_lost(stage: Stage, nodes: list[str]) -> str:
    stage.until_ready("p", 90)
    stage.sim.lose(nodes[0])
    stage.until(
        lambda: len([pod for pod in stage.ready_pods("p") if pod["spec"]["nodeName"] == nodes[1]]) == 4,
        120,
        "all to move",
    )
    stage.sim.back(nodes[0])
    time.sleep(3)
    assert len(stage.pods("p")) == 4, "an engine is doubled"
    return "moved, not doubled"


def _gpu_lost(stage: Stage, _: list[str]) -> str:
    stage.until_ready("p", 90)
    pod = stage.ready_pods("p")[0]
    node, lost = pod["spec"]["nodeName"], gpus(pod)[0]
    stage.sim.health(node, stage.sim.uuids(node).index(lost), "XID79")
    stage.until(
        lambda: len(stage.ready_pods("p")) == 4 and all(lost not in gpus(p) for p in stage.pods("p")),
        120,
        "it to be left",
    )
    return "moved"


def _stranger(stage: Stage, _: list[str]) -> str:
    stage.until_ready("p", 90)
    pod = stage.ready_pods("p")[0]
    node = pod["spec"]["nodeName"]
    pid = stage.sim.stranger(node, stage.sim.uuids(node).index(gpus(pod)[0]), 4 * GIB, "train")
    stage.until(lambda: str(pid) in stage.condition("p", "GPUConflict").get("message", ""), 30, "it to be named")
    stage.sim.end_process(node, pid)
    stage.until(lambda: not stage.condition("p", "GPUConflict"), 30, "the condition to go")
    return f"named pid {pid}, and forgotten"


def _edited_in_flight(stage: Stage, nodes: list[str]) -> str:
    for share in ("30%", "45%", "35%"):
        time.sleep(0.8)
        stage.apply("p", *(model(f"m{i}", share) for i in range(4)), nodes={"names": nodes})
    stage.until_ready("p", 180)
    return "the last spec is what runs"


def _two_controllers(stage: Stage, nodes: list[str]) -> str:
    stage.start_controller("second")
    for share in ("30%", "35%"):
        time.sleep(2.0)
        stage.apply("p", *(model(f"m{i}", share) for i in range(4)), nodes={"names": nodes})
    time.sleep(2.0)
    stage.kill_controller("second")
    stage.until_ready("p", 180)
    assert len(stage.pods("p")) == 4, "an engine is doubled"
    # the Lease is what keeps two from deciding at once; without it each may start an engine the other has not heard of
    broken = stage.sim.audit.violations
    met = [violation for violation in broken if violation.rule == "StartsTogether"]
    broken[:] = [violation for violation in broken if violation not in met]
    return f"put right; {len(met)} starts met on a GPU meanwhile"


def _rollout_that_fails(stage: Stage, nodes: list[str]) -> str:
    stage.apply("p", model("m0", "30%", replicas=3), nodes={"names": nodes})
    stage.until_ready("p", 90)
    stage.sim.on_start(f"{stage.namespace}/p-m0-*", "exit=2", after=5.0)
    bad = model("m0", "30%", replicas=3, engine={"maxNumSeqs": 64})
    stage.apply("p", bad, nodes={"names": nodes})
    stage.until_reason("p", "BadFlag", 60, "Stalled")
    assert len(stage.ready_pods("p")) == 2, "the rest of the old spec does not serve"
    stage.apply("p", model("m0", "30%", replicas=3), nodes={"names": nodes})
    stage.until_ready("p", 90)
    return "stopped with Stalled, the rest served on, taken back"


def _deleted_pods(stage: Stage, _: list[str]) -> str:
    stage.until_ready("p", 90)
    for pod in stage.pods("p"):
        stage.api.delete("v1", "Pod", pod["metadata"]["name"], stage.namespace)
    time.sleep(1)
    stage.until_ready("p", 120)
    return "started again in turn"


def _reboot(stage: Stage, nodes: list[str]) -> str:
    stage.until_ready("p", 90)
    for node in nodes:
        stage.sim.reboot(node)
    stage.until(lambda: not stage.ready_pods("p"), 30, "all to be dead")
    stage.until_ready("p", 180)
    return "started again in turn"


UPSETS: dict[str, Callable[[Stage, list[str]], str]] = {
    "controller kill -9, three times while engines start": _controller_killed,
    "API server kill -9 while engines start": _api_server_killed,
    "etcd stops for 1.5 s, three times": _slow_etcd,
    "spec edited three times in flight": _edited_in_flight,
    "two controllers at once, for six seconds": _two_controllers,
    "a rollout that fails": _rollout_that_fails,
    "every pod deleted by hand": _deleted_pods,
    "both nodes reboot": _reboot,
    "a node is lost and comes back": _node_lost,
    "a GPU has a fatal Xid": _gpu_lost,
    "a stranger takes 4 GiB": _stranger,
}
