"""The founding case on a real kubelet, and who sees which GPU."""

from __future__ import annotations

import json

import pytest

from cotenant.core import preflight
from cotenant.core.injection import Style, inject
from tests.cluster.access import KubectlError
from tests.cluster.api import Object
from tests.node import images
from tests.node.conftest import FIRST, SECOND, THIRD
from tests.node.lab import NODE
from tests.node.looks import CHAT, OCR, allocation, assert_in_turn, assert_told_apart, gpu_of, uids
from tests.node.world import MODELS, World


def test_the_founding_case_runs_on_one_gpu_with_the_flags_asked_for(world: World, sparrow: str) -> None:
    said = {name: world.models_of(name) for name in world.engines(sparrow)}

    flags = {name: _flag(answer["args"]) for name, answer in said.items()}
    assert flags == {CHAT: "0.70", OCR: "0.20"}
    assert len({gpu for answer in said.values() for gpu in answer["gpus"]}) == 1


def _flag(args: list[str]) -> str:
    return args[args.index("--gpu-memory-utilization") + 1]


def test_each_tenant_sees_exactly_its_gpu_though_its_image_asks_for_all(world: World, sparrow: str) -> None:
    order = [gpu.uuid for gpu in world.lab.gpus]

    for name, pod in world.engines(sparrow).items():
        given = allocation(pod)["gpus"]
        answer = world.models_of(name)
        assert answer["gpus"] == given
        assert answer["nodes"] == [f"nvidia{order.index(uuid)}" for uuid in given]


def test_one_starts_after_the_other_is_ready(world: World, sparrow: str) -> None:
    assert_in_turn(world, sparrow)


@pytest.mark.usefixtures("sparrow")
def test_a_holder_has_the_gpu_and_its_uuid_is_learned_from_the_kubelet(world: World) -> None:
    uuid = gpu_of(world)

    holder = world.gpus()[uuid]["holder"]
    pod = world.pods("holder")[holder]
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": "1"}
    assert pod["spec"]["nodeName"] == NODE
    assert pod["spec"]["priority"] == 1_000_000
    assert pod["metadata"]["ownerReferences"][0]["kind"] == "Node"


@pytest.mark.usefixtures("sparrow")
def test_the_agent_tells_the_tenants_apart_to_the_byte(world: World) -> None:
    assert_told_apart(world)


def test_the_node_was_proven_before_anything_ran_on_it(world: World, sparrow: str) -> None:
    (proof,) = world.pods("preflight").values()

    assert isinstance(preflight.read(proof).verdict, preflight.Passed)
    assert all(pod["metadata"]["creationTimestamp"] >= _ended(proof) for pod in world.engines(sparrow).values())


def _ended(pod: Object) -> str:
    ended: str = pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"]
    return ended


def test_a_bare_uuid_fails_where_the_operator_made_cdi_the_default(world: World) -> None:
    world.foreign("bare", uuid=SECOND, style="env")

    pod = world.lab.api.wait("v1", "Pod", "bare", lambda _: world.phase("bare") == "Failed", seconds=60)
    world.lab.api.delete("v1", "Pod", "bare", grace=0)
    assert pod
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert ended["reason"] == "StartError"
    assert "unresolvable CDI devices management.nvidia.com/gpu=GPU-" in ended["message"]


def test_two_names_give_two_gpus_in_order(world: World) -> None:
    given = inject("cdi-device-plugin", [THIRD, FIRST], "work")
    pod = preflight.manifest(
        preflight.Ground(NODE, "", Style.CDI_DEVICE_PLUGIN),
        THIRD,
        image=f"{images.COTENANT}:{images.TAG}",
        namespace="default",
    )
    pod["metadata"] = {"name": "two", "namespace": "default"}
    pod["spec"]["containers"][0]["env"] = given.env_list
    world.lab.api.create(pod)

    world.lab.api.wait("v1", "Pod", "two", lambda _: world.phase("two") == "Succeeded", "default", seconds=60)

    log = world.lab.kubectl("logs", "two")
    world.lab.api.delete("v1", "Pod", "two", grace=0)
    assert log.split() == [FIRST, THIRD]


def test_models_run_in_a_namespace_that_enforces_restricted(world: World, sparrow: str) -> None:
    with pytest.raises(KubectlError, match="violates PodSecurity"):
        world.lab.kubectl("run", "-n", MODELS, "loose", "--image=localhost/lab/busybox:1")

    assert set(world.engines(sparrow)) == {CHAT, OCR}


def test_a_node_that_does_not_keep_gpus_apart_gets_no_engine_and_says_why(world: World, sparrow: str) -> None:
    before = uids(world.engines(sparrow))
    spec = world.lab.directory / "cdi" / "device-plugin.json"
    good, leaking = spec.read_text(), json.loads(spec.read_text())
    nodes = [node for device in leaking["devices"] for node in device["containerEdits"]["deviceNodes"]]
    for device in leaking["devices"]:
        device["containerEdits"]["deviceNodes"] = nodes
    spec.write_text(json.dumps(leaking))
    world.forget_proofs()
    try:
        world.place("late", {"small": "5%"})
        world.until("a reason", lambda: "InjectionUnverified" in json.dumps(world.replicas("late")))

        (replica,) = world.replicas("late").values()
        assert "also saw" in json.dumps(replica)
        assert not world.engines("late")
        assert uids(world.engines(sparrow)) == before
    finally:
        spec.write_text(good)
    world.forget_proofs()
    world.await_ready("late")
    world.remove("late")


def test_a_changed_cluster_policy_asks_for_a_new_proof_and_restarts_nobody(world: World, sparrow: str) -> None:
    before, proofs = uids(world.engines(sparrow)), uids(world.pods("preflight"))

    change: Object = {"spec": {"cdi": {"enabled": True, "default": True}}}
    world.lab.api.patch("nvidia.com/v1", "ClusterPolicy", "cluster-policy", change)

    def renewed() -> bool:
        now = world.pods("preflight")
        verdicts = [preflight.read(pod).verdict for pod in now.values()]
        return not set(now) & set(proofs) and [type(each) for each in verdicts] == [preflight.Passed]

    world.until("a new proof", renewed)
    assert uids(world.engines(sparrow)) == before
    world.await_ready(sparrow)
