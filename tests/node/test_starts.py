"""What keeps an engine from starting on a real node: no image, no Secret, too little time; and a node nobody hears of."""

from __future__ import annotations

from tests.cluster.api import Object
from tests.node.looks import uids
from tests.node.world import MODELS, World


def _only(world: World, placement: str) -> Object:
    """The status of its one replica, empty before there is one."""
    return next(iter(world.replicas(placement).values()), {})


def test_a_missing_image_is_named_at_once_and_gives_up_its_turn_after_a_minute(world: World) -> None:
    with world.placed("imageless", {"m": "5%"}, each={"engine": {"name": "nowhere"}}):
        said = world.until("it named", lambda: "ImagePull" in (r := _only(world, "imageless")).get("reason", "") and r)
        assert "localhost/lab/not-there:1" in said["message"]

        world.until("its fault", lambda: world.fault("imageless", "m").get("reason") == "ImageMissing")
        with world.placed("beside", {"m": "5%"}):
            world.await_ready("beside")


def test_a_missing_secret_is_named_and_the_start_goes_on_once_it_is_there(world: World) -> None:
    with world.placed("secretless", {"m": "5%"}, each={"tokenSecret": "hub-token"}):
        said = world.until(
            "it named", lambda: (r := _only(world, "secretless")).get("reason") == "CreateContainerConfigError" and r
        )
        assert 'secret "hub-token" not found' in said["message"]

        world.lab.kubectl("create", "secret", "generic", "hub-token", "-n", MODELS, "--from-literal=token=x")
        world.await_ready("secretless")
        assert not world.fault("secretless", "m")
    world.lab.kubectl("delete", "secret", "hub-token", "-n", MODELS)


def test_a_slow_start_is_ended_in_time_and_gets_more(world: World) -> None:
    world.order("slow-m-0", "slow 50")
    with world.placed("slow", {"m": "5%"}), world.endings() as endings:
        fault = world.until("its fault", lambda: world.fault("slow", "m"))

        assert (fault["reason"], fault["remedy"]) == ("SlowStart", "MoreTime")
        assert endings["slow-m-0"]["exitCode"] == 130
        world.await_ready("slow")  # as slow as before, in twice the time
    world.calm()


def test_engines_of_a_node_whose_kubelet_is_gone_serve_on_and_are_not_said_to_start(world: World, sparrow: str) -> None:
    before = uids(world.engines(sparrow))

    world.lab.kill_daemon("kubelet")
    try:
        world.until("the node lost", lambda: not world.node_is_ready())
        said = world.until(
            "it said", lambda: (all_ := world.replicas(sparrow)) and _reasons(all_) == {"NotReady"} and all_
        )
        assert {replica["phase"] for replica in said.values()} == {"Waiting"}
    finally:
        world.lab.start_daemon("kubelet")
    world.until("the node back", world.node_is_ready)
    world.await_ready(sparrow)

    assert uids(world.engines(sparrow)) == before


def _reasons(replicas: dict[str, Object]) -> set[str]:
    return {str(replica.get("reason")) for replica in replicas.values()}
