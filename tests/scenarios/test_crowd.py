"""Many models at once on one node: never a GPU over its memory, never two starting on one GPU, all Ready in the end."""

from __future__ import annotations

import pytest

from tests.scenarios.stage import Stage, gpus, model

pytestmark = pytest.mark.cluster
H100 = "NVIDIA-H100-80GB-HBM3"
GPUS = 8


def crowd(stage: Stage, rounds: int) -> None:
    """16 models of 45 %, each round from a node without engines, with start times from 5 to 90 simulated seconds."""
    stage.sim.settings.load_seconds = (5.0, 90.0)
    stage.sim.add_node("crowd", H100, GPUS)
    for _ in range(rounds):
        stage.apply("crowd", *(model(f"m{i}", "45%", priority=i % 3) for i in range(2 * GPUS)))
        stage.until_ready("crowd", 120)

        given = [gpus(pod)[0] for pod in stage.pods("crowd")]
        assert sorted(given) == sorted(stage.sim.uuids("crowd") * 2)
        assert all(used <= usable for used, usable in stage.sim.memory("crowd"))
        assert all(end.asked for end in stage.sim.audit.ends), stage.dump()
        stage.check()
        stage.delete("crowd")
        stage.until(
            lambda: not stage.pods() and not any(used for used, _ in stage.sim.memory("crowd")), 60, "an empty node"
        )


def test_sixteen_of_45_percent_on_eight_gpus(stage: Stage) -> None:
    crowd(stage, rounds=2)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_sixteen_of_45_percent_on_eight_gpus_a_hundred_times(stage: Stage) -> None:
    crowd(stage, rounds=100)


def test_of_sixteen_of_50_percent_eight_run_and_eight_say_what_would_fit(stage: Stage) -> None:
    stage.sim.settings.load_seconds = (5.0, 90.0)
    stage.sim.add_node("halves", H100, GPUS)
    stage.apply("crowd", *(model(f"m{j}", "50%") for j in range(2 * GPUS)))
    stage.until(lambda: len(stage.ready_pods("crowd")) == GPUS, 120, "eight to run")

    unplaced = [replica for replica in stage.replicas("crowd") if replica["phase"] == "Unplaced"]
    assert len(unplaced) == GPUS
    assert all("%" in replica["message"] or "Gi" in replica["message"] for replica in unplaced), unplaced
