"""Whatever dies on a real node, engine, program or the node itself: what becomes of the models."""

from __future__ import annotations

import time

import pytest

from tests.cluster.api import Object
from tests.node.looks import CHAT, OCR, SPARROW, assert_in_turn, assert_told_apart, gpu_of, uids
from tests.node.world import AGENTS, MODELS, SYSTEM, World


def test_a_run_time_death_with_exit_code_0_is_a_death_and_is_started_again(world: World, sparrow: str) -> None:
    before = uids(world.engines(sparrow))

    with world.endings() as endings:
        world.order(OCR, "exit 0")
        world.until("a new pod", lambda: uids(world.engines(sparrow)).get(OCR, before[OCR]) != before[OCR])
    world.await_ready(sparrow)

    assert endings[OCR]["exitCode"] == 0
    assert uids(world.engines(sparrow))[CHAT] == before[CHAT]
    assert world.fault(sparrow, "dots-ocr")


def test_a_death_whose_cause_is_only_in_the_log_is_told_by_its_cause(world: World, sparrow: str) -> None:
    with world.endings() as endings:
        world.order(OCR, "exit 1")
        world.until("its cause", lambda: world.fault(sparrow, "dots-ocr").get("reason") == "RuntimeOutOfMemory")
    world.await_ready(sparrow)

    assert endings[OCR]["exitCode"] == 1
    assert "OutOfMemoryError" not in endings[OCR].get("message", "")


def test_an_engine_killed_from_outside_is_told_so(world: World, sparrow: str) -> None:
    status = world.engines(sparrow)[OCR]["status"]["containerStatuses"][0]

    world.lab.kill_container(status["containerID"].removeprefix("containerd://"))
    world.until("its fault", lambda: world.fault(sparrow, "dots-ocr").get("reason") == "Killed")
    world.await_ready(sparrow)


def test_host_memory_used_up_is_told_from_gpu_memory(world: World) -> None:
    with world.placed("hungry", {"eater": "5%"}, each={"resources": {"memory": "128Mi"}}):
        world.await_ready("hungry")
        with world.endings() as endings:
            world.order("hungry-eater-0", "eat")
            world.until("its fault", lambda: world.fault("hungry", "eater"))
        ended = endings["hungry-eater-0"]
        assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")
        assert "Host" in world.fault("hungry", "eater")["reason"]


@pytest.mark.usefixtures("sparrow")
def test_what_does_not_fit_stays_unplaced_with_the_reason_and_no_pod(world: World) -> None:
    with world.placed("crowd", {"giant": "70%"}, each={"replicas": 3}):
        world.until("two Ready", lambda: _phases(world, "crowd").count("Ready") == 2)

        (left,) = [each for each in world.replicas("crowd").values() if each["phase"] != "Ready"]
        assert left["phase"] == "Unplaced"
        assert "70" in left["message"] or "Gi" in left["message"]
        assert len(world.engines("crowd")) == 2


def _phases(world: World, placement: str) -> list[str]:
    return [replica["phase"] for replica in world.replicas(placement).values()]


@pytest.mark.parametrize("daemon", ["kubelet", "containerd"])
def test_a_killed_daemon_of_the_node_ends_no_engine(world: World, sparrow: str, daemon: str) -> None:
    before = uids(world.engines(sparrow))

    world.lab.kill_daemon(daemon)
    time.sleep(3)
    world.lab.start_daemon(daemon)
    world.until("the node back", lambda: world.node_is_ready())
    world.steady(6)

    assert uids(world.engines(sparrow)) == before
    world.await_ready(sparrow)
    assert world.models_of(CHAT)["gpus"]


@pytest.mark.parametrize("container", ["agent", "podresources"])
def test_a_killed_agent_comes_back_and_ends_no_engine(world: World, sparrow: str, container: str) -> None:
    before, restarts = uids(world.engines(sparrow)), world.restarts(AGENTS, "agent", container)

    world.kill_container(AGENTS, "agent", container)
    world.until("it again", lambda: world.restarts(AGENTS, "agent", container) > restarts)
    world.until("the agent's report", lambda: _holds(world.gpu_node(), "Ready"))
    world.steady(3)

    assert uids(world.engines(sparrow)) == before
    assert world.gpus()[gpu_of(world)]["holder"]


def _holds(status: Object, kind: str) -> bool:
    return any(each["type"] == kind and each["status"] == "True" for each in status.get("conditions", ()))


def test_a_killed_controller_knows_what_the_dead_one_knew(world: World, sparrow: str) -> None:
    before, restarts = uids(world.engines(sparrow)), world.restarts(SYSTEM, "controller", "controller")

    world.kill_container(SYSTEM, "controller", "controller")
    world.until("it again", lambda: world.restarts(SYSTEM, "controller", "controller") > restarts)

    with world.placed("after", {"small": "5%"}):
        world.await_ready("after")
        assert uids(world.engines(sparrow)) == before


def test_after_a_reboot_all_come_back_one_after_the_other(world: World, sparrow: str) -> None:
    # made anew: an engine gets four starts an hour, and the tests before this one have killed it three times
    world.remove(sparrow)
    world.lab.kubectl("apply", "-n", MODELS, "-f", SPARROW)
    world.await_ready(sparrow)
    before = uids(world.engines(sparrow))

    world.lab.power_off()
    world.until("the node lost", lambda: not world.node_is_ready())
    world.lab.power_on()
    world.until("new pods", lambda: not set(uids(world.engines(sparrow)).values()) & set(before.values()))
    world.await_ready(sparrow)
    assert world.fault(sparrow, "dots-ocr")["reason"] == "Evicted"

    assert_in_turn(world, sparrow)
    assert_told_apart(world)
