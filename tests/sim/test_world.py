"""The simulated kubelets without an API server: pods in, statuses out, the oracle's rules. Pure, no clock."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim import mishaps
from tests.sim.models import ModelSpec
from tests.sim.node import SimNode, differs
from tests.sim.products import GIB, PRODUCTS
from tests.sim.settings import Rule, Settings
from tests.sim.world import Remove, World, WriteStatus

H100 = PRODUCTS["NVIDIA-H100-80GB-HBM3"]
TINY = {"tiny": ModelSpec(2 * GIB, 32_768, 8192, load_seconds=60.0)}


def world(gpus: int = 1, **changes: Any) -> World:
    made = World(Settings(**{"models": dict(TINY), "create_seconds": 1.0, **changes}))
    made.add_node(SimNode.make("n", H100, gpus))
    return made


def pod(name: str, role: str, node: str = "n", env: str = "", **more: Any) -> dict[str, Any]:
    container: dict[str, Any] = {"name": role, "image": "vllm/vllm-openai:v0.33.0", **more.pop("container", {})}
    if env:
        container["env"] = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": env}]
    labels = {"cotenant.dev/role": role, "cotenant.dev/model": more.pop("model", name), "cotenant.dev/replica": "0"}
    spec = {"nodeName": node, "restartPolicy": "Never", "runtimeClassName": "nvidia", "containers": [container], **more}
    return {
        "metadata": {"namespace": "d", "name": name, "uid": f"uid-{name}", "labels": labels},
        "spec": spec,
        "status": {},
    }


def holder(name: str) -> dict[str, Any]:
    return pod(name, "holder", container={"resources": {"limits": {"nvidia.com/gpu": 1}}}, restartPolicy="Always")


def engine(name: str, uuids: tuple[str, ...], flag: str, *extra: str, **more: Any) -> dict[str, Any]:
    names = ",".join(f"k8s.device-plugin.nvidia.com/gpu={uuid}" for uuid in uuids)
    args = ["tiny", "--gpu-memory-utilization", flag, "--tensor-parallel-size", str(len(uuids)), *extra]
    return pod(name, "engine", env=names, container={"command": ["vllm", "serve"], "args": args}, **more)


def held(gpus: int = 1, **changes: Any) -> World:
    """A world in which every GPU is held."""
    made = world(gpus, **changes)
    for i in range(gpus):
        made.pod_seen(holder(f"hold-{i}"), 0.0)
    made.advance(1.0)
    return made


def phase_of(made: World, name: str) -> tuple[str, bool]:
    status = made.pods["d", name].status()
    return status["phase"], status["containerStatuses"][0]["ready"]


def leaving(manifest: dict[str, Any], grace: int = 30) -> dict[str, Any]:
    metadata = {**manifest["metadata"], "deletionTimestamp": "now", "deletionGracePeriodSeconds": grace}
    return {**manifest, "metadata": metadata}


def test_a_pod_goes_from_creating_to_ready_and_says_each_step_once() -> None:
    made = held()
    made.outbox.clear()

    made.pod_seen(engine("a", made.nodes["n"].uuids, "0.40"), 10.0)
    made.advance(100.0)

    written = [write.status for write in made.outbox if isinstance(write, WriteStatus)]
    assert [status["phase"] for status in written] == ["Pending", "Running", "Running"]
    assert [status["containerStatuses"][0]["ready"] for status in written] == [False, False, True]
    assert made.audit.violations == []


def test_sigterm_while_loading_holds_the_memory_until_the_grace_period_ends() -> None:
    made = held()
    manifest = engine("a", made.nodes["n"].uuids, "0.40")
    made.pod_seen(manifest, 0.0)
    made.advance(30.0)
    made.pod_seen(leaving(manifest), 30.0)
    made.advance(59.0)
    assert made.nodes["n"].cards[0].used > 0
    made.advance(61.0)

    assert made.nodes["n"].cards[0].used == 0
    assert isinstance(made.outbox[-1], Remove)
    assert made.audit.ends[-1].code == 137


def test_a_bare_uuid_is_a_start_error_in_cdi_mode_and_fine_without_cdi() -> None:
    for style, code in (("cdi", 128), ("legacy", None), ("jit-cdi", None)):
        made = world(need_holders=False)
        made.nodes["n"].style = style
        uuid = made.nodes["n"].uuids[0]
        made.pod_seen(pod("a", "engine", env=uuid, container={"command": ["vllm", "serve"], "args": ["tiny"]}), 0.0)
        made.advance(2.0)
        ended = made.pods["d", "a"].ended
        assert (ended.code if ended else None) == code
        if ended:
            assert f"unresolvable CDI devices management.nvidia.com/gpu={uuid}" in ended.message


def test_a_preflight_prints_exactly_what_it_sees() -> None:
    made = world(gpus=2)
    uuids = made.nodes["n"].uuids
    made.pod_seen(pod("p", "preflight", env=f"k8s.device-plugin.nvidia.com/gpu={uuids[1]}"), 0.0)
    made.advance(5.0)

    done = made.pods["d", "p"].status()["containerStatuses"][0]["state"]["terminated"]
    assert (done["exitCode"], done["message"]) == (0, f"{uuids[1]}\n")


def test_the_device_plugin_gives_each_gpu_once() -> None:
    made = held(gpus=2)
    made.pod_seen(holder("third"), 2.0)
    made.advance(4.0)

    assert set(made.nodes["n"].holders.values()) == {"hold-0", "hold-1"}
    ended = made.pods["d", "third"].ended
    assert ended is not None
    assert ended.reason == "UnexpectedAdmissionError"


@pytest.mark.parametrize(
    ("image", "missing", "reason"),
    [("x/does-not-exist:1", "", "ImagePullBackOff"), ("Bad Image", "", "InvalidImageName"),
     ("x:1", 'secret "hf" not found', "CreateContainerConfigError")],
)  # fmt: skip
def test_what_cannot_be_made_waits_and_says_why(image: str, missing: str, reason: str) -> None:
    made = held()
    manifest = engine("a", made.nodes["n"].uuids, "0.40")
    manifest["spec"]["containers"][0]["image"] = image
    made.pod_seen(manifest, 2.0, missing)
    made.advance(50.0)

    assert made.pods["d", "a"].status()["containerStatuses"][0]["state"]["waiting"]["reason"] == reason


def test_never_ready_is_killed_by_its_startup_probe() -> None:
    made = held(rules=[Rule("d/a", "never-ready")])
    manifest = engine("a", made.nodes["n"].uuids, "0.40")
    manifest["spec"]["containers"][0]["startupProbe"] = {"periodSeconds": 2, "failureThreshold": 60}
    made.pod_seen(manifest, 0.0)
    made.advance(119.0)
    assert phase_of(made, "a") == ("Running", False)
    made.advance(152.0)

    assert made.audit.ends[-1].code == 137


def test_a_hung_engine_is_killed_by_its_liveness_probe() -> None:
    made = held()
    manifest = engine("a", made.nodes["n"].uuids, "0.40")
    manifest["spec"]["containers"][0]["livenessProbe"] = {"periodSeconds": 10, "failureThreshold": 3}
    made.pod_seen(manifest, 0.0)
    made.advance(100.0)
    made.fault(("d", "a"), "hang", 100.0)
    made.advance(129.0)
    assert phase_of(made, "a") == ("Running", False)
    made.advance(161.0)

    assert made.audit.ends[-1].code == 137


def test_memory_that_a_dead_engine_leaves_behind_is_a_stranger_s() -> None:
    made = held()
    made.pod_seen(engine("a", made.nodes["n"].uuids, "0.40"), 0.0)
    made.advance(100.0)
    made.fault(("d", "a"), "leak=2Gi", 100.0)
    made.fault(("d", "a"), "die", 101.0)
    made.advance(120.0)

    left = made.nodes["n"].reading()[0]
    assert left["tenants"] == []
    assert left["strangers"][0]["used"] == 2 * GIB


def test_nvlink_can_change_while_a_node_runs() -> None:
    made = held(gpus=4)
    mishaps.islands(made, "n", [0, 0, 1, None])
    assert [gpu.get("island") for gpu in made.nodes["n"].reading()] == [0, 0, 1, None]


# ------------------------------------------------------------------------------------------------------------- the oracle
def rules_broken(made: World) -> set[str]:
    return {violation.rule for violation in made.audit.violations}


def test_the_oracle_sees_two_starts_on_one_gpu() -> None:
    made = held()
    for name in ("a", "b"):
        made.pod_seen(engine(name, made.nodes["n"].uuids, "0.30"), 0.0)
    made.advance(5.0)
    assert rules_broken(made) == {"StartsTogether"}


def test_the_oracle_sees_a_start_beside_a_tenant_that_leaves() -> None:
    made = held()
    first = engine("a", made.nodes["n"].uuids, "0.30")
    made.pod_seen(first, 0.0)
    made.advance(69.0)
    made.pod_seen(engine("b", made.nodes["n"].uuids, "0.30"), 69.2)
    made.pod_seen(leaving(first), 70.0)  # its process ends half a second later
    made.advance(70.3)
    assert rules_broken(made) == {"StartsBesideLeaver"}


def test_the_oracle_sees_promises_over_the_card_unheld_gpus_and_twins() -> None:
    made = world()
    made.pod_seen(engine("a", made.nodes["n"].uuids, "0.60", model="m"), 0.0)
    made.advance(100.0)
    made.pod_seen(engine("b", made.nodes["n"].uuids, "0.60", model="m"), 100.0)
    made.advance(200.0)
    assert rules_broken(made) == {"NotHeld", "Twin", "Promised"}


def test_the_oracle_sees_a_pod_on_another_gpu_than_it_was_promised() -> None:
    made = held(gpus=2)
    manifest = engine("a", made.nodes["n"].uuids[:1], "0.30")
    manifest["metadata"]["annotations"] = {"cotenant.dev/allocation": '{"gpus": ["GPU-other"]}'}
    made.pod_seen(manifest, 0.0)
    made.advance(5.0)
    assert rules_broken(made) == {"WrongGPU"}


def test_what_a_stranger_causes_is_an_incident_and_no_violation() -> None:
    made = held(overrun=(GIB // 2, 2 * GIB))
    made.pod_seen(engine("a", made.nodes["n"].uuids, "0.40"), 0.0)
    made.advance(62.0)
    mishaps.stranger(made, "n", 0, 80 * GIB)
    made.advance(400.0)

    assert made.audit.violations == []
    assert [incident.rule for incident in made.audit.incidents] == ["MemoryOver"]
    assert made.audit.ends[-1].code == 0  # a run-time death is a success to Kubernetes


# ------------------------------------------------------------------------------------------------------- nodes and agents
def test_a_ready_pod_that_kubernetes_called_not_ready_says_again_that_it_is() -> None:
    made = held()
    manifest = engine("a", made.nodes["n"].uuids, "0.40")
    made.pod_seen(manifest, 0.0)
    made.advance(90.0)
    for status in ("True", "False"):
        made.outbox.clear()
        made.pod_seen({**manifest, "status": {"conditions": [{"type": "Ready", "status": status}]}}, 100.0)

    assert [
        write.status["containerStatuses"][0]["ready"] for write in made.outbox if isinstance(write, WriteStatus)
    ] == [True]


def test_a_reboot_ends_everything_and_a_lost_node_says_nothing_until_it_is_back() -> None:
    made = held()
    made.pod_seen(engine("a", made.nodes["n"].uuids, "0.40"), 0.0)
    made.advance(90.0)
    made.outbox.clear()

    mishaps.reboot(made, "n", 100.0)
    assert made.nodes["n"].cards[0].used == 0
    assert made.outbox == []
    mishaps.back(made, "n", 130.0)
    phases = {write.key[1]: write.status["phase"] for write in made.outbox if isinstance(write, WriteStatus)}
    assert phases == {"a": "Failed", "hold-0": "Running"}


def test_a_pod_deleted_by_force_on_a_lost_node_runs_on_there() -> None:
    made = held()
    manifest = engine("a", made.nodes["n"].uuids, "0.40")
    made.pod_seen(manifest, 0.0)
    made.advance(90.0)
    mishaps.lose(made, "n", 90.0)
    made.pod_gone(("d", "a"), "uid-a", 100.0)
    assert made.nodes["n"].cards[0].used > 0
    mishaps.back(made, "n", 200.0)
    assert made.nodes["n"].cards[0].used == 0


def test_the_agent_reports_who_is_there_and_only_what_moved() -> None:
    made = held(gpus=2)
    node = made.nodes["n"]
    made.pod_seen(engine("a", node.uuids[:1], "0.40"), 0.0)
    made.advance(90.0)
    first = node.reading()
    assert [tenant["pod"] for tenant in first[0]["tenants"]] == ["a"]
    assert (first[0]["holder"], first[1]["holder"]) == ("hold-0", "hold-1")
    assert not differs(node.reading(), first)

    mishaps.stranger(made, "n", 1, 3 * GIB, "train")
    second = node.reading()
    assert differs(second, first)
    assert second[1]["strangers"][0]["command"] == "train"
    mishaps.health(made, "n", 0, "XID79")
    assert node.reading()[0]["health"] == "Unhealthy/XID79"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["start", "leave", "fault", "stranger", "reboot", "force"]),
            st.integers(0, 5),
            st.floats(0.1, 60),
        ),
        max_size=30,
    ),
    st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_whatever_happens_memory_is_never_over_and_all_comes_back(
    steps: list[tuple[str, int, float]], seed: int
) -> None:
    made = held(gpus=2, seed=seed)
    node, now, born = made.nodes["n"], 1.0, 0
    for what, which, wait in steps:
        names = sorted(key for key, p in made.pods.items() if p.role == "engine")
        chosen = names[which % len(names)] if names else None
        if what == "start":
            born += 1
            made.pod_seen(engine(f"e{born}", node.uuids[which % 2 : which % 2 + 1], "0.30"), now)
        elif what == "stranger":
            mishaps.stranger(made, "n", which % 2, which * GIB)
        elif what == "reboot":
            mishaps.reboot(made, "n", now)
            mishaps.back(made, "n", now)
        elif chosen and what == "leave":
            made.pod_seen(leaving(made.pods[chosen].manifest), now)
        elif chosen and what == "force":
            made.pod_gone(chosen, made.pods[chosen].uid, now)
        elif chosen:
            made.fault(chosen, ["die", "cuda-oom", "oom-killed", "slow=3", "exit=3", "kill-worker"][which], now)
        now += wait
        made.advance(now)
        assert all(0 <= card.used <= card.usable for card in node.cards)
    for key, sim_pod in list(made.pods.items()):
        made.pod_gone(key, sim_pod.uid, now)
    assert all(process.pod == "" for card in node.cards for process in card.processes.values())
