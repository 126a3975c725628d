"""What the agent says of its node."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cotenant.agent.podresources import Holding, Holdings
from cotenant.agent.publish import summary
from cotenant.agent.readings import NodeReading, Xid
from cotenant.agent.report import STEP, Known, Report, Verdict, matters, report
from cotenant.core.snapshot import Stranger, TenantReading
from tests.agent.builders import GIB, A, B, gpu, held, in_pod, known, pod, said, surroundings


# ------------------------------------------------------------------------------------------------------ whose memory
def test_engines_are_tenants_and_their_processes_are_added_up() -> None:
    around = surroundings(pod("chat-0", "engine", gpus=(A,)), processes=(in_pod(1, "chat-0"), in_pod(2, "chat-0")))

    device = said(gpu(A, (1, 5 * GIB), (2, GIB)), around=around).devices[0]

    assert device.tenants == (TenantReading("models", "chat-0", 6 * GIB),)
    assert device.strangers == ()


def test_an_engine_whose_role_was_stripped_by_hand_is_no_stranger() -> None:
    body = pod("chat-0", "engine", gpus=(A,))
    del body["metadata"]["labels"]["cotenant.dev/role"]

    device = said(gpu(A, (1, GIB)), around=surroundings(body, processes=(in_pod(1, "chat-0"),))).devices[0]

    assert (device.tenants, device.strangers) == ((TenantReading("models", "chat-0", GIB),), ())


def test_everyone_else_is_a_stranger_with_pid_command_and_pod() -> None:
    around = surroundings(
        pod("notebook", namespace="other"), processes=(in_pod(1, "notebook"), in_pod(2, command="Xorg"))
    )

    device = said(gpu(A, (1, GIB), (2, GIB)), around=around).devices[0]

    assert device.strangers == (Stranger(1, "python", GIB, "other/notebook"), Stranger(2, "Xorg", GIB))


def test_an_engine_on_a_gpu_it_was_not_given_is_a_stranger_there() -> None:
    around = surroundings(pod("chat-0", "engine", gpus=(A,)), processes=(in_pod(1, "chat-0"),))

    one, other = said(gpu(A, (1, GIB)), gpu(B, (1, GIB), index=1), around=around).devices

    assert (len(one.tenants), len(one.strangers)) == (1, 0)
    assert other.strangers == (Stranger(1, "python", GIB, "models/chat-0"),)


def test_our_preflight_pod_disturbs_nobody() -> None:
    around = surroundings(pod("pre", "preflight"), processes=(in_pod(1, "pre"),))

    device = said(gpu(A, (1, GIB)), around=around).devices[0]

    assert (device.tenants, device.strangers) == ((), ())


def test_a_deleted_engine_stays_a_tenant_until_its_memory_is_back() -> None:
    pods = surroundings(pod("chat-0", "engine", gpus=(A,))).pods

    assert pods.after([], frozenset({"uid-chat-0"})).by_uid["uid-chat-0"].role == "engine"
    assert pods.after([], frozenset()).by_uid == {}


def test_memory_nobody_accounts_for_is_a_stranger_when_it_lasts() -> None:
    state = Known()
    for _ in range(2):
        state = state.after(NodeReading((gpu(A, (1, GIB), index=0, hidden=5 * GIB),)))
        assert report("n1", state, surroundings(processes=(in_pod(1),))).devices[0].strangers == (
            Stranger(1, "python", GIB),
        )

    state = state.after(NodeReading((gpu(A, (1, GIB), hidden=5 * GIB),)))

    assert report("n1", state, surroundings(processes=(in_pod(1),))).devices[0].strangers[0] == Stranger(
        0, "(hidden)", 5 * GIB
    )


# ------------------------------------------------------------------------------------------------------- who holds it
def test_our_holder_is_named() -> None:
    around = surroundings(pod("hold-0", "holder"), holdings=held("hold-0", A))

    one, other = said(gpu(A), gpu(B, index=1), around=around).devices

    assert (one.holder, one.owner) == ("hold-0", None)
    assert (other.holder, other.owner) == (None, None)


def test_a_foreign_pod_that_has_the_gpu_is_its_owner() -> None:
    around = surroundings(pod("notebook", namespace="other"), holdings=held("notebook", A, namespace="other"))

    device = said(gpu(A), around=around).devices[0]

    assert (device.holder, device.owner) == (None, "other/notebook")


@pytest.mark.parametrize("bodies", [(), (pod("hold-0", "holder", phase="Succeeded"),)], ids=["gone", "ended"])
def test_a_pod_that_is_over_holds_nothing(bodies: tuple[dict[str, object], ...]) -> None:
    around = surroundings(*bodies, holdings=held("hold-0", A))

    assert said(gpu(A), around=around).devices[0].holder is None


def test_of_two_pods_of_one_name_the_living_one_counts() -> None:
    around = surroundings(
        pod("hold-0", "holder", uid="old", phase="Failed"),
        pod("hold-0", "holder", uid="new"),
        holdings=held("hold-0", A),
    )

    assert said(gpu(A), around=around).devices[0].holder == "hold-0"


# ---------------------------------------------------------------------------------------------------------- supported
def test_whole_gpus_are_supported() -> None:
    assert said(gpu(A)).supported.holds


@pytest.mark.parametrize(
    ("labels", "device", "allocatable", "reason"),
    [
        ({}, gpu(A, mig=True), (), "MIG"),
        ({}, gpu(A), ("MIG-0a1b",), "MIG"),
        ({"nvidia.com/gpu.sharing-strategy": "time-slicing"}, gpu(A), (), "TimeSliced"),
        ({"nvidia.com/gpu.sharing-strategy": "mps"}, gpu(A), ("GPU-a::0",), "MPSReplicated"),
        ({"nvidia.com/gpu.replicas": "4"}, gpu(A), (), "TimeSliced"),
        ({}, gpu(A), ("GPU-a::0", "GPU-a::1"), "TimeSliced"),
    ],
)
def test_divided_gpus_are_not(
    labels: dict[str, str], device: object, allocatable: tuple[str, ...], reason: str
) -> None:
    around = surroundings(labels=tuple(labels.items()), holdings=Holdings(at=1.0, allocatable=allocatable))

    verdict = said(device, around=around).supported  # type: ignore[arg-type]

    assert (verdict.holds, verdict.reason) == (False, reason)


@pytest.mark.parametrize("labels", [{"nvidia.com/gpu.sharing-strategy": "none", "nvidia.com/gpu.replicas": "1"}, {}])
def test_gfd_labels_of_whole_gpus_are_fine(labels: dict[str, str]) -> None:
    assert said(gpu(A), around=surroundings(labels=tuple(labels.items()))).supported.holds


def test_a_replica_held_by_a_pod_counts_as_its_gpu() -> None:
    around = surroundings(pod("x", namespace="other"), holdings=held("x", f"{A}::2", namespace="other"))

    result = said(gpu(A), around=around)

    assert result.devices[0].owner == "other/x"
    assert result.supported.reason == "TimeSliced"


# ------------------------------------------------------------------------------------------------------ ready, health
def test_processes_that_cannot_be_seen_make_the_node_not_ready() -> None:
    state = Known()
    for _ in range(3):
        state = state.after(NodeReading((gpu(A, hidden=5 * GIB),)))

    verdict = report("n1", state, surroundings()).ready

    assert (verdict.holds, verdict.reason) == (False, "ProcessesHidden")
    assert "hostPID" in verdict.message


def test_what_cannot_be_believed_is_said() -> None:
    assert said().ready.reason == "NoGPUs"
    assert said(gpu(A), around=surroundings(holdings_problem="old")).ready.reason == "PodResourcesUnavailable"
    assert said(gpu(A), around=surroundings(pods_problem="refused")).ready.reason == "PodsUnknown"
    assert said(gpu(A)).ready == Verdict(True, "Reporting", "1 GPU")


def test_a_fatal_xid_stays_until_the_driver_is_loaded_anew() -> None:
    state = known(gpu(A), xids=(Xid(A, 31), Xid(A, 79), Xid(A, 48)))
    later = state.after(NodeReading((gpu(A),)))

    assert report("n1", later, surroundings()).devices[0].health == "Unhealthy/XID79"
    assert report("n1", later, surroundings()).ready.message == "1 GPU, 1 unhealthy"
    reloaded = later.after(NodeReading((gpu(A),), reloaded=True))
    assert report("n1", reloaded, surroundings()).devices[0].health == "Healthy"


def test_one_failed_call_does_not_condemn_a_gpu_but_three_do_and_a_lost_one_is_lost_at_once() -> None:
    state = known(gpu(A))
    said_of = []
    for _ in range(3):
        state = state.after(NodeReading((gpu(A, error="NVMLError999"),)))
        said_of.append(report("n1", state, surroundings()).devices[0].health)

    assert said_of == ["Healthy", "Healthy", "Unhealthy/NVMLError999"]
    assert report("n1", state.after(NodeReading((gpu(A),))), surroundings()).devices[0].health == "Healthy"
    assert report("n1", known(gpu(A, error="GPULost")), surroundings()).devices[0].health == "Unhealthy/GPULost"


def test_more_strangers_than_a_gpunode_holds_keep_their_bytes() -> None:
    crowd = [(pid, pid * 1000) for pid in range(1, 400)]

    device = said(gpu(A, *crowd)).devices[0]

    assert len(device.strangers) == 255
    assert sum(stranger.used for stranger in device.strangers) == sum(used for _, used in crowd)
    assert device.strangers[0].command == "(145 more)"


def test_a_gpu_that_vanished_stays_as_missing_with_its_last_figures() -> None:
    state = known(gpu(A, (1, GIB)), gpu(B, (2, 2 * GIB), index=1)).after(NodeReading((gpu(A, (1, GIB)),)))

    lost = report("n1", state, surroundings()).devices[1]

    assert (lost.uuid, lost.health, lost.used) == (B, "Unhealthy/Missing", 2 * GIB)
    back = state.after(NodeReading((gpu(A), gpu(B, index=1))))
    assert report("n1", back, surroundings()).devices[1].health == "Healthy"


def test_without_nvml_the_last_figures_stand_and_the_node_is_not_ready() -> None:
    problem = Verdict(False, "DriverNotLoaded", "NVML: Driver Not Loaded")

    result = report("n1", known(gpu(A, (1, GIB))), surroundings(), problem)

    assert result.ready == problem
    assert result.devices[0].used == GIB


# ----------------------------------------------------------------------------------------------------- what matters
def test_the_first_report_matters() -> None:
    assert matters(None, said(gpu(A)))


@given(before=st.integers(0, 100 * GIB), after=st.integers(0, 100 * GIB))
def test_memory_matters_from_256_mib_on(before: int, after: int) -> None:
    around = surroundings(pod("c", "engine"), processes=(in_pod(1, "c"),))

    one, other = said(gpu(A, (1, before)), around=around), said(gpu(A, (1, after)), around=around)

    assert matters(one, other) == (abs(before - after) >= STEP)


def test_a_process_that_came_or_went_matters_however_small() -> None:
    around = surroundings(processes=(in_pod(1), in_pod(2)))

    one, other = said(gpu(A, (1, GIB)), around=around), said(gpu(A, (1, GIB), (2, 1)), around=around)

    assert matters(one, other)
    assert matters(other, one)


@given(used=st.integers(0, 100 * GIB), pid=st.integers(1, 1 << 22))
def test_saying_the_same_again_never_matters(used: int, pid: int) -> None:
    assert not matters(said(gpu(A, (pid, used))), said(gpu(A, (pid, used))))


def test_every_other_field_matters() -> None:
    result = said(gpu(A))
    device = result.devices[0]
    changed: list[Report] = [
        *(
            replace(result, devices=(replace(device, **change),))
            for change in (
                {"health": "Unhealthy/XID79"},
                {"holder": "h"},
                {"owner": "a/b"},
                {"island": 0},
                {"reserved": 1},
            )
        ),
        replace(result, ready=Verdict(False, "X", "")),
        replace(result, supported=Verdict(False, "MIG", "")),
        replace(result, driver="595"),
    ]

    assert all(matters(result, other) for other in changed)


def test_holdings_of_other_devices_are_nobodys_business() -> None:
    fpga = Holdings(at=1.0, held=(Holding("n", "p", "c", "example.com/fpga", "fpga0"),))

    assert said(gpu(A), around=surroundings(pod("p", namespace="n"), holdings=fpga)).devices[0].owner is None


def test_a_summary_counts_the_gpus_of_each_product() -> None:
    assert summary([{"product": "NVIDIA H200"}, {"product": "NVIDIA H100"}, {"product": "NVIDIA H200"}]) == (
        "1 x NVIDIA H100, 2 x NVIDIA H200"
    )
    assert summary([{}]) == "1 x unknown GPU"
