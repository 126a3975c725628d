"""What goes wrong: dead engines, missing secrets, strangers, sick GPUs, lost and rebooted nodes, killed controllers."""

from __future__ import annotations

import time

import pytest

from tests.scenarios.stage import Stage, gpus, model, provide_claim
from tests.sim import GIB

pytestmark = pytest.mark.cluster
COUNTED = ("cotenant_faults_total", "cotenant_remedies_total", "cotenant_recovery_seconds_count")
RTX = "NVIDIA-RTX-PRO-6000-Blackwell"
H100 = "NVIDIA-H100-80GB-HBM3"


@pytest.mark.parametrize("fault", ["die", "oom-killed", "cuda-oom", "kill-worker"])
def test_a_dead_engine_is_replaced(stage: Stage, fault: str) -> None:
    stage.sim.add_node("rtx", RTX, 1)
    stage.apply("p", model("a", "40%"), model("b", "30%"))
    stage.until_ready("p")
    before = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in stage.pods("p")}
    counted = {name: sum(stage.series(name).values()) for name in COUNTED}

    stage.sim.fault(f"{stage.namespace}/p-a-0", fault)
    stage.until(lambda: stage.condition("p", "Ready").get("status") == "False", 20, "Ready to be false")
    stage.until_ready("p", 90)

    after = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in stage.pods("p")}
    assert after["p-a-0"] != before["p-a-0"]
    assert after["p-b-0"] == before["p-b-0"]
    assert {name: sum(stage.series(name).values()) - was for name, was in counted.items()} == dict.fromkeys(COUNTED, 1)
    verdict = stage.placement("p")["status"]["models"][0]["lastFault"]["reason"]
    assert f'verdict="{verdict}"' in stage.series("cotenant_recovery_seconds_count")


def test_a_missing_token_secret_is_named_and_healed(stage: Stage) -> None:
    stage.sim.add_node("rtx", RTX, 1)
    stage.apply("p", model("a", "40%", tokenSecret="hf-token"))
    stage.until(lambda: "hf-token" in str(stage.placement("p").get("status")), 30, "the secret to be named")

    stage.cluster.kubectl("create", "secret", "generic", "hf-token", "-n", stage.namespace, "--from-literal=token=x")
    stage.until_ready("p")


def test_a_missing_claim_for_downloads_is_named_and_healed(stage: Stage) -> None:
    stage.sim.add_node("rtx", RTX, 1)
    stage.apply("p", model("a", "40%", cache={"claim": "hub-cache"}))
    stage.until(lambda: 'persistentvolumeclaim "hub-cache" not found' in told(stage), 60, "the claim to be named")

    provide_claim(stage, "hub-cache")
    stage.until_ready("p", 60)


def told(stage: Stage) -> str:
    """What the status says of the first replica."""
    models = stage.placement("p").get("status", {}).get("models") or [{}]
    return " ".join(str(replica.get("message")) for replica in models[0].get("replicas", ()))


def test_after_a_reboot_engines_start_one_after_the_other(stage: Stage) -> None:
    stage.sim.add_node("rtx", RTX, 1)
    stage.apply("p", model("a", "40%"), model("b", "30%"))
    stage.until_ready("p")

    stage.sim.reboot("rtx")
    stage.until(lambda: not stage.ready_pods("p"), 20, "both to be dead")
    stage.until_ready("p", 90)


def test_a_stranger_s_memory_is_not_promised(stage: Stage) -> None:
    stage.sim.add_node("h", H100, 2)
    stage.sim.stranger("h", 0, 50 * GIB, "train")
    time.sleep(0.5)
    stage.apply("p", model("a", "60%"))
    stage.until_ready("p")

    assert gpus(stage.pods("p")[0]) == [stage.sim.uuids("h")[1]]


def test_a_sick_gpu_is_left(stage: Stage) -> None:
    stage.sim.add_node("h", H100, 2)
    stage.apply("p", model("a", "40%"))
    stage.until_ready("p")
    first = gpus(stage.pods("p")[0])[0]

    stage.sim.health("h", stage.sim.uuids("h").index(first), "XID79")
    stage.until(
        lambda: [gpus(pod) for pod in stage.ready_pods("p")] not in ([], [[first]]), 90, "the other GPU to be used"
    )


def test_a_lost_node_s_replicas_go_elsewhere(stage: Stage) -> None:
    stage.sim.add_node("one", H100, 1)
    stage.sim.add_node("two", H100, 1)
    stage.apply("p", model("a", "40%"))
    stage.until_ready("p")
    node = stage.pods("p")[0]["spec"]["nodeName"]

    stage.sim.lose(node)
    stage.until(
        lambda: [pod["spec"]["nodeName"] for pod in stage.ready_pods("p") if pod["spec"]["nodeName"] != node],
        120,
        "the other node",
    )
    stage.sim.back(node)


def test_a_controller_killed_anywhere_goes_on_where_it_was(stage: Stage) -> None:
    stage.sim.add_node("h", H100, 4)
    for i in range(4):
        stage.apply(f"p{i}", model("a", "40%"), model("b", "30%"))
        stage.kill_controller()
        time.sleep(0.1 * i)
        stage.start_controller()
        time.sleep(0.7 * i)
    for i in range(4):
        stage.until_ready(f"p{i}", 120)
    assert len(stage.pods()) == 8
