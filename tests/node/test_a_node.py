"""On a real kubelet: who sees which GPU, who holds it, and what becomes of models whatever dies."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cotenant.core import preflight
from cotenant.core.injection import Style, inject
from cotenant.core.names import ALLOCATION_ANNOTATION
from tests.cluster.access import KubectlError
from tests.cluster.api import Object
from tests.node import images
from tests.node.conftest import FIRST, SECOND, THIRD
from tests.node.engine import OVERRUN
from tests.node.lab import NODE
from tests.node.world import AGENTS, MODELS, SYSTEM, World

SPARROW = Path(__file__).parents[2] / "examples" / "sparrow.yaml"
CHAT, OCR = "sparrow-mistral-small-0", "sparrow-dots-ocr-0"


@pytest.fixture
def sparrow(world: World) -> Iterator[str]:
    """The founding case, Ready; it stays from test to test."""
    world.lab.kubectl("apply", "-n", MODELS, "-f", SPARROW)
    world.await_ready("sparrow")
    yield "sparrow"
    world.calm()


def uids(pods: dict[str, Object]) -> dict[str, str]:
    """What tells a pod from its successor of the same name."""
    return {name: pod["metadata"]["uid"] for name, pod in pods.items()}


def allocation(pod: Object) -> Object:
    """What a pod was given."""
    given: Object = json.loads(pod["metadata"]["annotations"][ALLOCATION_ANNOTATION])
    return given


def gpu_of(world: World, pod: str = CHAT) -> str:
    """The GPU an engine was given."""
    uuid: str = allocation(world.engines()[pod])["gpus"][0]
    return uuid


# ------------------------------------------------------------------------------------------------- the founding case
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


def assert_in_turn(world: World, sparrow: str) -> None:
    """The second pod was made when the first was Ready."""
    first, second = sorted(world.engines(sparrow).values(), key=lambda pod: pod["metadata"]["creationTimestamp"])

    ready = next(each for each in first["status"]["conditions"] if each["type"] == "Ready")
    assert ready["lastTransitionTime"] <= second["metadata"]["creationTimestamp"]


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


def assert_told_apart(world: World) -> None:
    """Both engines are in the agent's report, each with its bytes, and nobody else."""
    usable = world.lab.gpus[0].usable
    wanted = {CHAT: int(usable * 0.7) + OVERRUN, OCR: int(usable * 0.2) + OVERRUN}

    def told() -> bool:
        gpu = world.gpus()[gpu_of(world)]
        return {tenant["pod"]: tenant["used"] for tenant in gpu["tenants"]} == wanted and not gpu["strangers"]

    world.until("both tenants with their bytes", told)


def test_the_node_was_proven_before_anything_ran_on_it(world: World, sparrow: str) -> None:
    (proof,) = world.pods("preflight").values()

    assert isinstance(preflight.read(proof).verdict, preflight.Passed)
    assert all(pod["metadata"]["creationTimestamp"] >= _ended(proof) for pod in world.engines(sparrow).values())


def _ended(pod: Object) -> str:
    ended: str = pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"]
    return ended


# ------------------------------------------------------------------------------------------------------- the injection
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


# ------------------------------------------------------------------------------------------------- engines that die
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


# ------------------------------------------------------------------------------------------- programs that are killed
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
    before = uids(world.engines(sparrow))

    world.lab.power_off()
    world.until("the node lost", lambda: not world.node_is_ready())
    world.lab.power_on()
    world.until("new pods", lambda: not set(uids(world.engines(sparrow)).values()) & set(before.values()))
    world.await_ready(sparrow)

    assert_in_turn(world, sparrow)
    assert_told_apart(world)


# -------------------------------------------------------------------------------------------------------- other people
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
