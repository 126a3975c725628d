"""The whole agent, both its processes, with its chart's rights against a real API server; the card is the stand-in."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from cotenant.agent import podresources_reader
from cotenant.agent.podresources import read_holdings
from tests.agent.kubelet import Kubelet
from tests.agent.test_processes import Proc
from tests.cluster import kwok
from tests.cluster.control_plane import ControlPlane
from tests.nvml.card import H200_RESERVED, H200_TOTAL, Card, build, environment

pytestmark = pytest.mark.cluster

API = "cotenant.dev/v1alpha1"
A, B = "GPU-aaaaaaaa-0000-4000-8000-000000000001", "GPU-bbbbbbbb-0000-4000-8000-000000000002"
GIB, MIB = 1 << 30, 1 << 20
NAMESPACE = "agent-test"
RIGHTS = [
    {"apiGroups": ["cotenant.dev"], "resources": ["gpunodes"], "verbs": ["get", "create", "patch"]},
    {"apiGroups": ["cotenant.dev"], "resources": ["gpunodes/status"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "patch"]},
]
NUMBERS = itertools.count()
CRD = Path(__file__).parents[2] / "crds/cotenant.dev_gpunodes.yaml"


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with the GPUNode kind, and a ServiceAccount with the agent's rights."""
    api = control_plane.api
    api.install_crds([yaml.safe_load(CRD.read_text())])
    rbac, account = "rbac.authorization.k8s.io/v1", {"namespace": NAMESPACE, "name": "cotenant-agent"}
    api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    api.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account})
    api.apply({"apiVersion": rbac, "kind": "ClusterRole", "metadata": {"name": NAMESPACE}, "rules": RIGHTS})
    api.apply(
        {
            "apiVersion": rbac,
            "kind": "ClusterRoleBinding",
            "metadata": {"name": NAMESPACE},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": NAMESPACE},
            "subjects": [{"kind": "ServiceAccount", **account}],
        }
    )
    return control_plane


@dataclass
class Node:
    """One node of the test: its card, its kubelet's socket, its /proc, its agent."""

    cluster: ControlPlane
    name: str
    folder: Path
    library: Path
    card: Card
    kubelet: Kubelet
    proc: Proc
    kubeconfig: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, part: str = "report", holdings: Path | None = None) -> None:
        """The agent (or its reader), as its container runs it."""
        settings = {
            "COTENANT_NODE_NAME": self.name,
            "COTENANT_AGENT_NAMESPACE": NAMESPACE,
            "COTENANT_POD_NAME": f"agent-{self.name}",
            "COTENANT_KUBECONFIG": str(self.kubeconfig),
            "COTENANT_PROC": str(self.proc.root),
            "COTENANT_PODRESOURCES_SOCKET": str(self.kubelet.socket),
            "COTENANT_PODRESOURCES_FILE": str(holdings or self.holdings),
            "COTENANT_PODRESOURCES_PATIENCE": "2",
            "COTENANT_NVML_PATIENCE": "1",
            "COTENANT_INTERVAL": "0.2",
            "COTENANT_HEARTBEAT": "1",
            "COTENANT_METRICS_PORT": "0",
        }
        command = [sys.executable, "-m", "cotenant", "agent", part]
        log = (self.folder / f"{part}.log").open("ab")
        env = {**os.environ, **environment(self.library, self.card.path), **settings}
        self.running.append(subprocess.Popen(command, env=env, stdout=log, stderr=log))

    @contextmanager
    def reading_holdings(self) -> Iterator[None]:
        """The reader as a thread: what its process runs, without the seconds a process takes to start."""
        stopping = threading.Event()
        arguments = (self.kubelet.socket, self.holdings, 0.2, stopping)
        reader = threading.Thread(target=podresources_reader.run, args=arguments)
        reader.start()
        try:
            yield
        finally:
            stopping.set()
            reader.join()

    def stop(self) -> list[int]:
        """SIGTERM to all of it; the exit codes."""
        for process in self.running:
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(timeout=20) for process in self.running]
        self.running.clear()
        return codes

    @property
    def holdings(self) -> Path:
        return self.folder / "podresources.json"

    def log(self) -> str:
        return (self.folder / "report.log").read_text()

    def wait(self, until: Callable[[dict[str, Any]], Any], seconds: float = 20) -> dict[str, Any]:
        """The GPUNode's status as soon as it is so."""

        def is_so(found: dict[str, Any] | None) -> bool:
            return bool(found and found.get("status") and until(found["status"]))

        try:
            found = self.cluster.api.wait(API, "GPUNode", self.name, is_so, seconds=seconds)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log()[-3000:]}") from error
        assert found is not None
        status: dict[str, Any] = found["status"]
        return status

    def version(self) -> str:
        found = self.cluster.api.get(API, "GPUNode", self.name)
        return str(found["metadata"]["resourceVersion"])

    def pod(self, name: str, role: str = "", pid: int = 0, **allocation: Any) -> None:
        """A pod on this node, with one process if a pid is given."""
        text = json.dumps({"node": self.name, **allocation})
        annotations = {"cotenant.dev/allocation": text} if allocation else {}
        labels = {"cotenant.dev/role": role, "cotenant.dev/model": "chat"} if role else {}
        meta = {"name": name, "namespace": NAMESPACE, "labels": labels, "annotations": annotations}
        spec = {"nodeName": self.name, "containers": [{"name": "c", "image": "none"}]}
        made = self.cluster.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
        if pid:
            self.proc.add(pid, "python", f"0::/../../pod{made['metadata']['uid']}/{'ab' * 32}\n")

    def metrics(self) -> str:
        """What /metrics says; the port is in the log."""
        return self.http("/metrics")[1]

    def http(self, path: str) -> tuple[int, str]:
        port = self.log().rpartition("metrics on port ")[2].split()[0]
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def node(cluster: ControlPlane, tmp_path: Path) -> Iterator[Node]:
    name = f"agent-{next(NUMBERS)}"
    library = build(tmp_path / "nvml")
    proc = Proc(tmp_path / "proc")
    set_boot(proc, "boot-1")
    kubelet = Kubelet(tmp_path / "kubelet.sock")
    kubelet.start()
    kubelet.offered = [A, B]
    card = Card(tmp_path / "card.txt")
    card.add("driver 580.159.04")
    card.gpu(A), card.gpu(B)
    body = kwok.gpu_node(name, "NVIDIA-H200", 2, 143771)
    body["metadata"]["annotations"] = {}  # nobody plays its kubelet
    cluster.api.create(body)
    kubeconfig = cluster.service_account_kubeconfig(NAMESPACE, "cotenant-agent")
    made = Node(cluster, name, tmp_path, library, card, kubelet, proc, kubeconfig)
    with made.reading_holdings():
        yield made
    for process in made.running:
        process.kill()
        process.wait()
    kubelet.stop()
    for pod in cluster.api.list("v1", "Pod", NAMESPACE):
        cluster.api.delete("v1", "Pod", pod["metadata"]["name"], NAMESPACE, grace=0)
    cluster.api.delete("v1", "Node", name)


def set_boot(proc: Proc, boot: str) -> None:
    folder = proc.root / "sys/kernel/random"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "boot_id").write_text(f"{boot}\n")


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(condition for condition in status["conditions"] if condition["type"] == kind)


def ready(status: dict[str, Any]) -> tuple[str, str]:
    found = condition(status, "Ready")
    return found["status"], found["reason"]


def is_ready(status: dict[str, Any]) -> bool:
    return ready(status)[0] == "True"


# --------------------------------------------------------------------------------------------------------- what it says
def test_it_says_whose_memory_it_is_and_who_holds_the_gpus(node: Node) -> None:
    node.pod("hold-0", "holder")
    node.pod("chat-0", "engine", pid=100, gpus=[A], bytes=60 * GIB, utilization="0.43")
    node.pod("notebook", pid=300)
    node.kubelet.hold(NAMESPACE, "hold-0", A)
    node.kubelet.hold(NAMESPACE, "notebook", B)
    node.card.process(A, 100, 62 * GIB)
    node.card.process(B, 300, GIB)
    node.card.process(B, 400, 2 * GIB)
    node.proc.add(400, "miner", "0::/user.slice/session-3.scope\n")

    node.start()
    status = node.wait(lambda said: is_ready(said) and said["gpus"][0].get("holder"))

    first, second = status["gpus"]
    assert first["memory"] == {"total": H200_TOTAL, "reserved": H200_RESERVED, "used": 62 * GIB}
    assert (first["holder"], first["health"], first["product"]) == ("hold-0", "Healthy", "NVIDIA H200")
    assert first["tenants"] == [{"namespace": NAMESPACE, "pod": "chat-0", "used": 62 * GIB}]
    assert second["owner"] == f"{NAMESPACE}/notebook"
    assert second["strangers"] == [
        {"pid": 300, "command": "python", "pod": f"{NAMESPACE}/notebook", "used": GIB},
        {"pid": 400, "command": "miner", "used": 2 * GIB},
    ]
    assert status["driverVersion"] == "580.159.04"
    assert status["summary"] == "2 x NVIDIA H200"
    table = node.cluster.kubectl("get", "gpunode", node.name, "--no-headers")
    assert table.split(maxsplit=1)[1].startswith("2 x NVIDIA H200 ")
    assert condition(status, "Supported")["status"] == "True"

    found = node.cluster.api.get(API, "GPUNode", node.name)
    owner = node.cluster.api.get("v1", "Node", node.name)
    assert found["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]
    assert found["metadata"]["labels"]["nvidia.com/gpu.product"] == "NVIDIA-H200"
    assert status["observedGeneration"] == found["metadata"]["generation"]

    text = node.metrics()
    assert f'cotenant_gpu_memory_used_bytes{{index="0",node="{node.name}",product="NVIDIA H200",uuid="{A}"}}' in text
    overrun = next(line for line in text.splitlines() if line.startswith("cotenant_model_overrun_bytes"))
    assert float(overrun.rpartition(" ")[2]) == 2 * GIB
    assert 'model="chat"' in overrun
    assert node.http("/healthz")[0] == 200
    assert node.http("/readyz")[0] == 200
    assert node.stop() == [0]


def test_it_writes_when_something_matters_and_only_then(node: Node) -> None:
    node.card.process(A, 100, 10 * GIB)
    node.start()
    node.wait(lambda said: is_ready(said) and said["gpus"][0]["memory"]["used"] == 10 * GIB)
    time.sleep(2)
    before = node.version()

    for step in range(10):  # less than 256 MiB away from what was said
        node.card.process(A, 100, 10 * GIB + step * 20 * MIB)
        time.sleep(0.2)
    assert node.version() == before

    node.card.process(A, 100, 11 * GIB)
    node.wait(lambda said: said["gpus"][0]["memory"]["used"] == 11 * GIB)
    node.card.process(A, 200, MIB)
    node.wait(lambda said: len(said["gpus"][0]["strangers"]) == 2)
    node.card.end(200)
    node.wait(lambda said: len(said["gpus"][0]["strangers"]) == 1)


def test_the_heartbeat_is_a_lease_of_the_node(node: Node) -> None:
    def spec(_: object = None) -> dict[str, Any]:
        found = node.cluster.api.find("coordination.k8s.io/v1", "Lease", node.name, NAMESPACE)
        return found["spec"] if found else {}

    node.start()
    node.wait(is_ready)
    first = spec()
    deadline = time.monotonic() + 10
    while spec().get("renewTime") == first["renewTime"] and time.monotonic() < deadline:
        time.sleep(0.1)

    assert spec()["renewTime"] > first["renewTime"]
    assert spec()["holderIdentity"] == f"agent-{node.name}"


def test_a_sharing_device_plugin_makes_the_node_unsupported(node: Node) -> None:
    node.kubelet.offered = [f"{A}::0", f"{A}::1"]

    node.start()

    status = node.wait(lambda said: condition(said, "Supported")["status"] == "False")
    assert condition(status, "Supported")["reason"] == "TimeSliced"


# ---------------------------------------------------------------------------------------------------- what it survives
def test_a_driver_reload_is_said_and_over_by_itself(node: Node) -> None:
    node.start()
    since = condition(node.wait(is_ready), "Ready")["lastTransitionTime"]

    node.card.change(lambda lines: ["driver none", *lines[1:]])
    status = node.wait(lambda said: ready(said) == ("False", "DriverNotLoaded"))
    assert [gpu["uuid"] for gpu in status["gpus"]] == [A, B]

    time.sleep(1)
    node.card.change(lambda lines: ["driver 595.91.07", "generation 2", *lines[1:]])
    status = node.wait(is_ready)
    assert status["driverVersion"] == "595.91.07"
    assert condition(status, "Ready")["lastTransitionTime"] > since


def test_a_lost_gpu_and_a_fatal_xid_are_said_of_that_gpu(node: Node) -> None:
    node.start()
    node.wait(is_ready)

    node.card.xid(A, 31)
    node.card.add(f"error * {B} 15")
    status = node.wait(lambda said: said["gpus"][1]["health"] == "Unhealthy/GPULost")
    assert status["gpus"][0]["health"] == "Healthy"

    node.card.xid(A, 79)
    node.wait(lambda said: said["gpus"][0]["health"] == "Unhealthy/XID79")
    assert 'xid="31"' in node.metrics()


def test_an_xid_outlives_the_agent_but_not_the_machine(node: Node) -> None:
    node.start()
    node.wait(is_ready)
    node.card.xid(A, 79)
    node.wait(lambda said: said["gpus"][0]["health"] == "Unhealthy/XID79")

    node.stop()
    node.card.process(B, 500, GIB)  # something the next agent will say
    node.start()
    status = node.wait(lambda said: said["gpus"][1]["strangers"])
    assert status["gpus"][0]["health"] == "Unhealthy/XID79"

    node.stop()
    set_boot(node.proc, "boot-2")
    node.start()
    node.wait(lambda said: said["gpus"][0]["health"] == "Healthy")


def test_an_agent_that_starts_without_a_driver_leaves_what_was_said(node: Node) -> None:
    node.start()
    node.wait(is_ready)
    node.stop()

    node.card.change(lambda lines: ["driver none", *lines[1:]])
    node.start()

    status = node.wait(lambda said: ready(said) == ("False", "DriverNotLoaded"))
    assert [gpu["uuid"] for gpu in status["gpus"]] == [A, B]


def test_a_silent_kubelet_makes_the_node_not_ready_until_it_answers(node: Node) -> None:
    node.pod("hold-0", "holder")
    node.kubelet.hold(NAMESPACE, "hold-0", A)
    node.start()
    node.wait(lambda said: is_ready(said) and said["gpus"][0].get("holder"))

    node.kubelet.stop()
    status = node.wait(lambda said: ready(said) == ("False", "PodResourcesUnavailable"))
    assert status["gpus"][0]["holder"] == "hold-0"

    node.kubelet.held.clear()
    node.kubelet.start()
    status = node.wait(is_ready)
    assert "holder" not in status["gpus"][0]


def test_a_call_that_hangs_is_said_and_waited_for(node: Node) -> None:
    node.start()
    node.wait(is_ready)

    node.card.add("delay nvmlDeviceGetMemoryInfo_v2 4000")
    node.wait(lambda said: ready(said) == ("False", "NVMLTimeout"))

    node.card.drop("delay")
    node.wait(is_ready)


def test_an_api_server_that_is_away_is_caught_up_with(node: Node) -> None:
    node.start()
    node.wait(is_ready)
    node.card.xid(B, 79)
    node.wait(lambda said: said["gpus"][1]["health"] == "Unhealthy/XID79")

    node.cluster.kill_apiserver()
    node.card.process(A, 100, 3 * GIB)
    time.sleep(2)
    assert node.http("/healthz")[0] == 200
    assert node.stop() == [0]
    node.start()  # and one that begins meanwhile
    time.sleep(4)
    assert node.running[0].poll() is None
    node.cluster.start_apiserver()

    status = node.wait(lambda said: is_ready(said) and said["gpus"][0]["memory"]["used"] == 3 * GIB, seconds=60)
    assert status["gpus"][1]["health"] == "Unhealthy/XID79"


def test_its_reader_is_a_process_of_its_own_that_ends_when_told(node: Node) -> None:
    node.kubelet.hold("other", "notebook", A)
    file = node.folder / "of-the-process.json"

    node.start("podresources", holdings=file)

    deadline = time.monotonic() + 20
    while not (found := read_holdings(file)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found is not None
    assert [held.pod for held in found.held] == ["notebook"]
    assert node.stop() == [0]


def test_a_deleted_gpunode_comes_back_when_something_matters(node: Node) -> None:
    node.start()
    node.wait(is_ready)
    node.cluster.api.delete(API, "GPUNode", node.name)

    node.card.process(A, 100, GIB)

    node.wait(is_ready)


def test_a_setting_that_is_missing_or_wrong_is_named() -> None:
    def ask(**variables: str) -> str:
        env = {key: value for key, value in os.environ.items() if not key.startswith("COTENANT_")} | variables
        command = [sys.executable, "-m", "cotenant", "agent"]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "COTENANT_NODE_NAME must be set" in ask()
    assert "COTENANT_INTERVAL='soon'" in ask(COTENANT_NODE_NAME="n", COTENANT_INTERVAL="soon")
