"""`kill -9` of the controller at random moments of a busy history: afterwards everything is as if it had never died.

A handful in every run; COTENANT_KILLS=200 for the long one (`pytest -m soak tests/controller/test_killed.py`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.control_plane import ControlPlane
from tests.scenarios.stage import Stage, model
from tests.sim import GIB, ModelSpec, Sim

NODES, GPUS = 3, 4
SHARES = ("20%", "30%", "40%", "45%")
WISHES = 6
"""Placements of the history; together they always fit onto the GPUs there are."""


@pytest.fixture
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Three nodes of four GPUs; a start takes about a second."""
    with (
        ControlPlane.start(tmp_path_factory.mktemp("killed")) as cluster,
        Sim(cluster.kubeconfig, seed=11, speed=90, models={"sim/tiny": ModelSpec(2 * GIB, 32_768, 8192)}) as sim,
    ):
        for index in range(NODES):
            sim.add_node(f"gpu-{index}", gpus=GPUS)
        # one identity: a successor need not wait for the lease of the dead to run out
        yield Stage(cluster, sim, identity="the-only-one", resync="20", hub_offline="true")


@pytest.mark.timeout(600)
def test_a_controller_killed_again_and_again_leaves_what_one_that_lived_would(stage: Stage) -> None:
    kill_and_check(stage, kills=8, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_hundred_kills(stage: Stage) -> None:
    kill_and_check(stage, kills=int(os.environ.get("COTENANT_KILLS", "200")), seed=2)


def kill_and_check(stage: Stage, kills: int, seed: int) -> None:
    """Change wishes at random while the controller is killed and started; then wait for rest and look at everything."""
    chance = random.Random(seed)
    wishes: dict[str, list[dict[str, Any]]] = {}
    for _ in range(kills):
        before = lives_seen(stage)
        stage.start_controller()
        if chance.random() < 0.85:  # else it dies while it begins
            stage.until(lambda before=before: lives_seen(stage) > before, 60, "the controller to see the cluster")
        end = time.monotonic() + chance.uniform(0.0, 2.0)
        while time.monotonic() < end:
            change(stage, wishes, chance)
            time.sleep(chance.uniform(0, 0.4))
        stage.kill_controller()
        if chance.random() < 0.3:
            change(stage, wishes, chance)  # nobody hears of it

    stage.start_controller()
    for name in wishes:
        stage.until_ready(name, 180)
    stage.until(lambda: settled(stage, wishes), 60, "rest")
    look(stage, wishes)


def lives_seen(stage: Stage) -> int:
    """How many controllers have come so far as to see the whole cluster."""
    log = stage.cluster.directory / "logs" / "controller.log"
    return log.read_text().count("in view: ") if log.exists() else 0


def change(stage: Stage, wishes: dict[str, list[dict[str, Any]]], chance: random.Random) -> None:
    """Apply a new or another wish, or delete one."""
    name = f"w{chance.randrange(WISHES)}"
    if name in wishes and chance.random() < 0.25:
        del wishes[name]
        stage.delete(name)
        return
    # at most 2 models x 45 % of 6 placements: 5.4 GPUs of 12, so that all fit whatever the order
    wishes[name] = [model(f"m{index}", chance.choice(SHARES)) for index in range(chance.randint(1, 2))]
    stage.apply(name, *wishes[name])


def expected(wishes: dict[str, list[dict[str, Any]]]) -> Counter[str]:
    """The pods there should be, by name."""
    return Counter(f"{name}-{wish['name']}-0" for name, models in wishes.items() for wish in models)


def settled(stage: Stage, wishes: dict[str, list[dict[str, Any]]]) -> bool:
    """Exactly the wished pods, all serving."""
    ready = {pod["metadata"]["name"] for pod in stage.ready_pods()}
    return Counter(pod["metadata"]["name"] for pod in stage.pods()) == expected(wishes) and ready == set(
        expected(wishes)
    )


def look(stage: Stage, wishes: dict[str, list[dict[str, Any]]]) -> None:
    """No pod doubled or orphaned, no GPU promised twice, no rule of the hardware broken, the shares as wished."""
    stage.check()
    placements = {p["metadata"]["uid"]: p for p in stage.api.list("cotenant.dev/v1alpha1", "ModelPlacement")}
    promised: Counter[str] = Counter()
    for pod in stage.pods():
        metadata = pod["metadata"]
        owner = next(o for o in metadata["ownerReferences"] if o.get("controller"))
        assert owner["uid"] in placements, f"{metadata['name']} is an orphan"
        given = json.loads(metadata["annotations"]["cotenant.dev/allocation"])
        wish = next(
            m
            for m in wishes[metadata["labels"]["cotenant.dev/placement"]]
            if m["name"] == metadata["labels"]["cotenant.dev/model"]
        )
        assert round(float(given["utilization"]) * 100) == int(wish["share"][:-1])
        for gpu in given["gpus"]:
            promised[gpu] += round(float(given["utilization"]) * 10_000)
    assert all(amount <= 9_500 for amount in promised.values()), promised
    services = {s["metadata"]["name"] for s in stage.api.list("v1", "Service", "default")} - {"kubernetes"}
    assert services == {name.rpartition("-")[0] for name in expected(wishes)}


@pytest.mark.timeout(240)
def test_a_controller_that_is_asked_to_end_ends_cleanly_and_its_successor_goes_on(stage: Stage) -> None:
    stage.start_controller()
    stage.apply("w", model("a", "40%"), model("b", "30%"))
    stage.until(lambda: stage.pods(), 60, "the first pod")

    begun = time.monotonic()
    process = stage.cluster.processes.end("controller")
    took = time.monotonic() - begun

    assert took < 8
    lease = stage.api.get("coordination.k8s.io/v1", "Lease", "cotenant-controller", "cotenant-system")
    assert lease["spec"]["holderIdentity"] == "", "the lease was given back"
    before = {pod["metadata"]["uid"] for pod in stage.pods()}
    stage.start_controller()
    stage.until_ready("w", 90)
    assert before <= {pod["metadata"]["uid"] for pod in stage.pods()}, "nothing was restarted"
    assert process is None or process == -signal.SIGTERM or process == 0
    stage.check()
