"""Other people on the same node: strangers on a GPU, pods that ask for one, a GPU given away."""

from __future__ import annotations

import pytest

from tests.node.looks import allocation, gpu_of
from tests.node.world import SYSTEM, World


@pytest.mark.usefixtures("sparrow")
def test_memory_of_a_stranger_is_seen_and_left_alone(world: World) -> None:
    uuid, gib = gpu_of(world), 1 << 30
    world.foreign("notebook", uuid=uuid, use=2 * gib)

    strangers = world.until("the stranger", lambda: world.gpus()[uuid]["strangers"])

    assert [(each["pod"], each["used"]) for each in strangers] == [("default/notebook", 2 * gib)]
    world.lab.api.delete("v1", "Pod", "notebook", grace=0)
    world.until("it gone", lambda: not world.gpus()[uuid]["strangers"])


@pytest.mark.usefixtures("sparrow")
def test_a_pod_that_asks_for_a_gpu_gets_one_of_the_others_and_keeps_it(world: World) -> None:
    ours = gpu_of(world)
    world.foreign("training", limits={"nvidia.com/gpu": "1"})

    def owners() -> dict[str, str]:
        return {uuid: gpu["owner"] for uuid, gpu in world.gpus().items() if gpu.get("owner")}

    found = world.until("its owner", owners)

    assert list(found.values()) == ["default/training"]
    assert ours not in found
    with world.placed("wide", {"pair": "50%"}, each={"replicas": 3, "spread": "GPU"}):
        world.until("two placed", lambda: len(world.engines("wide")) >= 1)
        assert not [pod for pod in world.engines("wide").values() if set(allocation(pod)["gpus"]) & set(found)]
    world.lab.api.delete("v1", "Pod", "training", grace=0)


def test_a_gpu_given_away_behind_our_back_is_a_conflict_and_our_models_move(world: World, sparrow: str) -> None:
    ours = gpu_of(world)
    free = [uuid for uuid, gpu in world.gpus().items() if not gpu.get("holder")]
    names = [f"taker-{index}" for index in range(len(free) + 1)]
    for name in names:
        world.foreign(name, limits={"nvidia.com/gpu": "1"})

    def running() -> set[str]:
        return {name for name in names if world.phase(name) == "Running"}

    world.until("all free ones taken", lambda: len(running()) == len(free))
    (waiting,) = set(names) - running()

    # somebody deletes our holder while a pod waits for a GPU
    world.lab.api.delete("v1", "Pod", world.gpus()[ours]["holder"], SYSTEM, grace=0)
    world.until("the GPU given away", lambda: world.gpus()[ours].get("owner") == f"default/{waiting}")
    world.until("the conflict", lambda: world.condition(sparrow, "GPUConflict").get("status") == "True")
    world.until("our engines gone from it", lambda: not world.gpus()[ours]["tenants"])

    for name in running() - {waiting}:
        world.lab.api.delete("v1", "Pod", name, grace=0)
    world.await_ready(sparrow)
    assert gpu_of(world) != ours
    world.lab.api.delete("v1", "Pod", waiting, grace=0)


def test_only_what_is_used_is_held(world: World, sparrow: str) -> None:
    used = {gpu for pod in world.engines(sparrow).values() for gpu in allocation(pod)["gpus"]}

    def held() -> set[str]:
        return {uuid for uuid, gpu in world.gpus().items() if gpu.get("holder")}

    world.until("the others given back", lambda: held() == used and len(world.pods("holder")) == len(used))
