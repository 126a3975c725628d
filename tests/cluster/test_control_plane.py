"""The test cluster itself: real, isolated, and gone when it should be."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster import build
from tests.cluster.access import KubectlError
from tests.cluster.api import Api, ApiError, Object
from tests.cluster.control_plane import ControlPlane

REPOSITORY = Path(__file__).parents[2]

READY_SECONDS = 15.0
"""What a start may take; 4 to 6 are usual on two cores."""

WIDGETS: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.tests.cotenant.dev"},
    "spec": {
        "group": "tests.cotenant.dev",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "properties": {"size": {"type": "integer"}},
                                "x-kubernetes-validations": [{"rule": "self.size > 0", "message": "size is positive"}],
                            }
                        },
                    }
                },
            }
        ],
    },
}


def service_account(control_plane: ControlPlane, name: str) -> Api:
    control_plane.api.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}})
    return Api(control_plane.service_account_kubeconfig("default", name))


def pod(name: str, labels: dict[str, str] | None = None) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"containers": [{"name": "main", "image": "none"}]},
    }


def processes_of(directory: Path) -> list[int]:
    """The processes whose command line names the directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(directory).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def wait_until_gone(directory: Path, seconds: float = 15.0) -> list[int]:
    deadline = time.monotonic() + seconds
    while processes_of(directory) and time.monotonic() < deadline:
        time.sleep(0.1)
    return processes_of(directory)


def owner_of_a_cluster(directory: Path) -> subprocess.Popen[str]:
    """Another Python process that owns a ready cluster in `directory`."""
    program = (
        "import signal, sys, time; from pathlib import Path; from tests.cluster.control_plane import ControlPlane\n"
        # a shell starts what it puts in the background deaf to it
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "control_plane = ControlPlane.start(Path(sys.argv[1])); print('ready', flush=True); time.sleep(600)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program, str(directory)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    return owner


def test_a_second_cluster_beside_the_first_is_ready_in_time_and_knows_nothing_of_it(
    control_plane: ControlPlane, tmp_path: Path
) -> None:
    control_plane.api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "only-in-the-first"}})
    begin = time.monotonic()

    with ControlPlane.start(tmp_path / "second") as second:
        ready_after = time.monotonic() - begin

        assert second.api.find("v1", "Namespace", "only-in-the-first") is None
        assert second.url != control_plane.url
        assert ready_after < READY_SECONDS
        visitor = json.loads(second.kubeconfig.read_text())
        token = control_plane.service_account_kubeconfig("default", "default")
        visitor["users"] = json.loads(token.read_text())["users"]
        (tmp_path / "visitor.kubeconfig").write_text(json.dumps(visitor))
        with pytest.raises(ApiError, match="401"):
            Api(tmp_path / "visitor.kubeconfig").list("v1", "Pod", "default")

    assert wait_until_gone(tmp_path) == []


def test_it_says_the_version_it_was_built_from(control_plane: ControlPlane) -> None:
    assert control_plane.api.request("GET", "/version")["gitVersion"] == build.KUBERNETES
    assert f"Client Version: {build.KUBERNETES}" in control_plane.kubectl("version")


def test_it_listens_on_loopback_only(control_plane: ControlPlane) -> None:
    pids = [control_plane.processes.pid(name) for name in ("etcd", "kube-apiserver", "kube-scheduler", "kwok")]
    sockets = {os.readlink(fd) for pid in pids for fd in Path(f"/proc/{pid}/fd").iterdir() if fd.is_symlink()}
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                listening.append(fields[1].partition(":")[0])

    assert set(listening) == {"0100007F"}
    assert len(listening) >= 3  # the API server's port and etcd's two


def test_a_service_account_without_rights_is_refused(control_plane: ControlPlane) -> None:
    nobody = service_account(control_plane, "nobody")

    with pytest.raises(ApiError) as refusal:
        nobody.list("v1", "Pod", "default")

    assert refusal.value.status == 403
    assert "system:serviceaccount:default:nobody" in refusal.value.message


def test_a_service_account_has_exactly_the_rights_bound_to_it(control_plane: ControlPlane) -> None:
    rbac = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": {"name": "reader"}}
    control_plane.api.apply({**role, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]})
    binding = {"apiVersion": f"{rbac}/v1", "kind": "RoleBinding", "metadata": {"name": "reader"}}
    subject = {"kind": "ServiceAccount", "name": "reader", "namespace": "default"}
    reference = {"apiGroup": rbac, "kind": "Role", "name": "reader"}
    control_plane.api.apply({**binding, "roleRef": reference, "subjects": [subject]})
    reader = service_account(control_plane, "reader")

    reader.list("v1", "Pod", "default")

    with pytest.raises(ApiError, match="403"):
        reader.create(pod("not-allowed"))
    with pytest.raises(ApiError, match="403"):
        reader.list("v1", "Pod")


def test_kubectl_says_what_went_wrong(control_plane: ControlPlane) -> None:
    with pytest.raises(KubectlError, match='namespaces "nowhere" not found'):
        control_plane.kubectl("get", "namespace", "nowhere")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_its_owner(how: signal.Signals, tmp_path: Path) -> None:
    owner = owner_of_a_cluster(tmp_path)
    assert len(processes_of(tmp_path)) >= 6  # five components, the supervisor, and the owner itself

    owner.send_signal(how)
    owner.wait()

    assert wait_until_gone(tmp_path) == []


def test_nothing_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with ControlPlane.start(tmp_path) as control_plane:
        supervisor = control_plane.processes._supervisor
        supervisor.kill()
        supervisor.wait()

        assert wait_until_gone(tmp_path, seconds=5) == []


def test_the_api_server_comes_back_with_all_it_had(control_plane: ControlPlane) -> None:
    data: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kept"}, "data": {"a": "b"}}
    control_plane.api.apply(data)

    control_plane.kill_apiserver()
    assert control_plane.processes.pid("kube-apiserver") is None
    control_plane.start_apiserver()

    assert control_plane.api.get("v1", "ConfigMap", "kept")["data"] == {"a": "b"}


def test_a_paused_etcd_stops_writes_until_it_goes_on(control_plane: ControlPlane) -> None:
    data: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "paused"}}
    path = "/api/v1/namespaces/default/configmaps"
    control_plane.pause_etcd()
    try:
        with pytest.raises(ApiError) as refusal:
            control_plane.api.request("POST", path, data, query={"timeout": "2s"})
    finally:
        control_plane.resume_etcd()

    assert refusal.value.status == 504
    control_plane.api.apply(data)


def test_a_simulated_node_offers_its_gpus_stays_ready_and_can_be_lost(control_plane: ControlPlane) -> None:
    control_plane.add_gpu_node("simulated", "NVIDIA-H200", 8, 143771, labels={"rack": "r1"})
    try:
        node = control_plane.api.wait("v1", "Node", "simulated", _is_ready)

        assert node is not None
        assert node["status"]["allocatable"]["nvidia.com/gpu"] == "8"
        assert node["metadata"]["labels"]["nvidia.com/gpu.memory"] == "143771"
        assert node["metadata"]["labels"]["rack"] == "r1"
        time.sleep(12)  # longer than a node may be silent
        assert _is_ready(control_plane.api.get("v1", "Node", "simulated"))

        control_plane.lose_node("simulated")
        lost = control_plane.api.wait("v1", "Node", "simulated", _is_tainted_as_unreachable)
        assert not _is_ready(lost)

        control_plane.return_node("simulated")
        control_plane.api.wait("v1", "Node", "simulated", _is_ready)
    finally:
        control_plane.api.delete("v1", "Node", "simulated")


def _is_ready(node: Object | None) -> bool:
    conditions = (node or {}).get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _is_tainted_as_unreachable(node: Object | None) -> bool:
    taints = (node or {}).get("spec", {}).get("taints", [])
    return "node.kubernetes.io/unreachable" in {taint["key"] for taint in taints}


def test_kwok_plays_all_pods_but_ours(control_plane: ControlPlane) -> None:
    control_plane.add_gpu_node("stage", "NVIDIA-H200", 1, 143771)
    try:
        control_plane.api.apply(pod("ours", {"cotenant.dev/role": "engine"}))
        control_plane.api.apply(pod("theirs"))
        control_plane.api.wait("v1", "Pod", "theirs", lambda p: p is not None and p["status"]["phase"] == "Running")
        ours = control_plane.api.wait("v1", "Pod", "ours", lambda p: p is not None and "nodeName" in p["spec"])

        assert ours is not None
        assert ours["status"]["phase"] == "Pending"
        for name in ("ours", "theirs"):
            control_plane.api.delete("v1", "Pod", name)
        control_plane.api.wait("v1", "Pod", "theirs", lambda p: p is None)
        assert control_plane.api.get("v1", "Pod", "ours")["metadata"]["deletionTimestamp"]
    finally:
        control_plane.api.delete("v1", "Pod", "ours", grace=0)
        control_plane.api.delete("v1", "Node", "stage")


def test_objects_of_a_new_crd_can_be_written_at_once_and_watched(control_plane: ControlPlane) -> None:
    api = control_plane.api
    api.install_crds([WIDGETS])
    widget: Object = {
        "apiVersion": "tests.cotenant.dev/v1",
        "kind": "Widget",
        "metadata": {"name": "w"},
        "spec": {"size": 1},
    }

    api.apply(widget)

    assert [item["spec"] for item in api.list("tests.cotenant.dev/v1", "Widget")] == [{"size": 1}]
    kind, seen = next(api.watch("tests.cotenant.dev/v1", "Widget", "default", seconds=5))
    assert (kind, seen["metadata"]["name"]) == ("ADDED", "w")
    with pytest.raises(ApiError, match="size is positive") as refusal:
        api.apply({**widget, "spec": {"size": 0}})
    assert refusal.value.status == 422


def test_a_thousand_objects_are_no_matter(control_plane: ControlPlane) -> None:
    api = control_plane.api
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "many"}})
    many = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"c{number}", "namespace": "many"}}
        for number in range(1000)
    ]
    begin = time.monotonic()

    api.apply_all(many)

    assert len(api.list("v1", "ConfigMap", "many")) >= 1000
    assert time.monotonic() - begin < 60  # 5 s on an idle machine of two cores


def test_processes_started_beside_end_with_it(tmp_path: Path) -> None:
    with ControlPlane.start(tmp_path) as control_plane:
        control_plane.processes.start("beside", ["/bin/sh", "-c", f"echo hello; exec sleep 600 # {tmp_path}"])
        deadline = time.monotonic() + 5
        while "hello" not in control_plane.processes.tail("beside") and time.monotonic() < deadline:
            time.sleep(0.05)
        assert control_plane.processes.tail("beside") == "hello"

    assert wait_until_gone(tmp_path) == []


def test_the_source_root_is_no_package() -> None:
    # The standard library owns the name `operator`: a package of that name would shadow it.
    assert not (REPOSITORY / "operator" / "__init__.py").exists()
    assert not (REPOSITORY / "operator" / "__init__.pyi").exists()
