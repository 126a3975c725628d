"""The life of a placement: apply, edit, delete, share a GPU, wait for room. Every rule is also watched by the oracle."""

from __future__ import annotations

import pytest

from tests.scenarios.stage import Stage, flag, gpus, model

pytestmark = pytest.mark.cluster
RTX = "NVIDIA-RTX-PRO-6000-Blackwell"
H100 = "NVIDIA-H100-80GB-HBM3"


def test_the_founding_case_seventy_and_twenty_on_one_gpu(stage: Stage) -> None:
    stage.sim.add_node("rtx", RTX, 1)

    stage.apply(
        "sparrow",
        model("mistral-small", "70%", "hf://mistralai/Mistral-Small-3.2-24B-Instruct-2506"),
        model("dots-ocr", "20%", "hf://rednote-hilab/dots.ocr"),
        headroom="10%",
    )
    stage.until_ready("sparrow")

    pods = {pod["metadata"]["labels"]["cotenant.dev/model"]: pod for pod in stage.pods("sparrow")}
    assert {name: flag(pod) for name, pod in pods.items()} == {"mistral-small": "0.70", "dots-ocr": "0.20"}
    assert gpus(pods["mistral-small"]) == gpus(pods["dots-ocr"])
    assert stage.placement("sparrow")["status"]["summary"] == "2/2"


def test_fifty_and_fifty_never_fit_and_the_reason_says_what_would(stage: Stage) -> None:
    stage.sim.add_node("rtx", RTX, 1)

    stage.apply("halves", model("a", "50%"), model("b", "50%"))
    stage.until(lambda: len(stage.ready_pods("halves")) == 1, 60, "one of them to run")

    unplaced = stage.until(
        lambda: [r for r in stage.replicas("halves") if r["phase"] == "Unplaced"], 20, "the other's reason"
    )
    assert "%" in unplaced[0]["message"] or "Gi" in unplaced[0]["message"]


def test_an_edited_share_restarts_that_model_only(stage: Stage) -> None:
    stage.sim.add_node("rtx", RTX, 1)
    stage.apply("pair", model("a", "40%"), model("b", "30%"))
    stage.until_ready("pair")
    before = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in stage.pods("pair")}

    stage.apply("pair", model("a", "40%"), model("b", "20%"))
    stage.until(lambda: "0.20" in [flag(pod) for pod in stage.ready_pods("pair")], 60, "the new flag")
    stage.until_ready("pair")

    after = {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in stage.pods("pair")}
    assert before.keys() == after.keys()
    assert before["pair-a-0"] == after["pair-a-0"]
    assert before["pair-b-0"] != after["pair-b-0"]


def test_models_and_replicas_come_and_go(stage: Stage) -> None:
    stage.sim.add_node("h", H100, 2)
    stage.apply("p", model("a", "40%", replicas=2, spread="GPU"))
    stage.until_ready("p")
    assert len({uuid for pod in stage.pods("p") for uuid in gpus(pod)}) == 2

    stage.apply("p", model("a", "40%", replicas=1, spread="GPU"), model("b", "30%"))
    stage.until_ready("p")
    stage.until(lambda: len(stage.pods("p")) == 2, 20, "two engines")

    stage.apply("p", model("b", "30%"))
    stage.until(lambda: [pod["metadata"]["name"] for pod in stage.pods("p")] == ["p-b-0"], 20, "a to be gone")

    stage.apply("p", model("b", "30%", replicas=0))
    stage.until(lambda: not stage.pods("p"), 20, "nothing to run")
    stage.delete("p")


def test_two_placements_share_a_gpu_and_one_that_does_not_fit_waits_for_room(stage: Stage) -> None:
    stage.sim.add_node("rtx", RTX, 1)
    stage.apply("first", model("a", "60%"))
    stage.until_ready("first")
    stage.apply("second", model("b", "25%"))
    stage.until_ready("second")
    stage.apply("third", model("c", "50%"))
    unplaced = stage.until(lambda: stage.replicas("third"), 20, "third's status")
    assert unplaced[0]["phase"] == "Unplaced"

    stage.delete("first")
    stage.until_ready("third")
    assert len(stage.ready_pods()) == 2


def test_a_tensor_parallel_pair_shares_two_gpus_on_one_island(stage: Stage) -> None:
    stage.sim.add_node("h", "NVIDIA-H200", 4, islands=[0, 0, 1, 1])
    stage.apply(
        "tp",
        model("a", "45%", "hf://sim/big", tensorParallelSize=2),
        model("b", "40%", "hf://sim/big", tensorParallelSize=2),
    )
    stage.until_ready("tp")

    uuids = stage.sim.uuids("h")
    used = [sorted(uuids.index(uuid) for uuid in gpus(pod)) for pod in stage.pods("tp")]
    assert all(pair in ([0, 1], [2, 3]) for pair in used)


def test_a_gpu_that_somebody_else_has_is_not_used(stage: Stage) -> None:
    stage.sim.add_node("h", H100, 2)
    container = {"name": "x", "image": "x:1", "resources": {"limits": {"nvidia.com/gpu": 1}}}
    stage.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "theirs", "namespace": stage.namespace},
                      "spec": {"containers": [container], "terminationGracePeriodSeconds": 0}})  # fmt: skip
    stage.until(lambda: stage.sim.world.nodes["h"].devices, 20, "their pod to have its GPU")
    theirs = next(iter(stage.sim.world.nodes["h"].devices))

    stage.apply("p", model("a", "60%"), model("b", "50%"))
    stage.until(lambda: stage.ready_pods("p"), 60, "one engine")
    stage.until(lambda: any(r["phase"] == "Unplaced" for r in stage.replicas("p")), 30, "the other to be unplaced")

    assert all(theirs not in gpus(pod) for pod in stage.pods("p"))
    stage.api.delete("v1", "Pod", "theirs", stage.namespace, grace=0)
    stage.until_ready("p")
