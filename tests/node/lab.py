"""One real Kubernetes node and its control plane on this machine, in mount, network and PID namespaces of their own.

Nothing of it is seen outside but a port of 127.0.0.1 and the folder it keeps its files in; the machine's settings stay
as they are. All of it ends with the process that started it: the kernel ends a PID namespace with its first process.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import urllib3

from tests.cluster import build, pki
from tests.cluster.access import Cluster
from tests.cluster.api import Api, ApiError
from tests.cluster.processes import Processes
from tests.node import config, namespaces
from tests.node.config import Gpu
from tests.node.images import basic_images
from tests.node.namespaces import HERE, PATIENCE, SETUP, LabError, wait
from tests.nvml import card as nvml

NODE = "lab"
DAEMONS = ("containerd", "kubelet", "gpu-plugin")
"""The node's own programs, in the order in which they start."""


@dataclass(frozen=True)
class Lab(Cluster):
    """A running node and its control plane, seen by the administrator."""

    processes: Processes = field(repr=False)
    anchor: int
    """Pid (of this machine) of the first process of the lab's namespaces."""
    gpus: tuple[Gpu, ...]
    cgroup: str
    programs: Path = field(repr=False)

    own_pids: ClassVar[bool] = True
    """A PID namespace of its own: all of it ends with the lab. A real card's driver lists processes only outside of one."""

    @classmethod
    def start(
        cls, folder: Path, gpus: Sequence[Gpu], images: Sequence[Path] = (), programs: Path | None = None
    ) -> Self:
        """A fresh node `lab`, Ready, with these cards and images; its programs are built unless a folder is given."""
        programs = programs or build.node_tools()
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as undo:
            processes = Processes(folder / "logs")
            undo.callback(processes.stop)
            anchor = namespaces.enter(processes, folder, cls.own_pids)
            cgroup = f"cotenant-node-{anchor}"
            port = folder / "port"
            relay: list[str | Path] = [sys.executable, HERE / "relay.py", str(anchor), config.API_ADDRESS, "443", port]
            processes.start("relay", relay)
            wait("the relay", port.exists, processes, "relay")
            authority = pki.Authority(folder / "pki")
            admin = _kubeconfig(folder, authority, "admin", "cotenant-admin", "system:masters", port.read_text())
            lab = cls(folder, admin, programs / "kubectl", processes, anchor, tuple(gpus), cgroup, programs)
            undo.callback(namespaces.remove_cgroups, cgroup)
            lab._write_files(authority)
            lab._run(SETUP, folder=folder, address=config.NODE_ADDRESS, api=config.API_ADDRESS, cgroup=cgroup)
            lab._start_control_plane(authority)
            lab._start_cards()
            lab.start_daemon("containerd")
            for archive in (basic_images(folder / "images"), *images):
                lab.load(archive)
            lab._await_api("/readyz")
            lab._start_controllers(authority)
            lab.start_daemon("kubelet")
            lab.start_daemon("gpu-plugin")
            lab.api.apply(_RUNTIME_CLASS)
            lab.api.wait("v1", "Node", NODE, is_ready, seconds=PATIENCE)
            lab._await_api("/api/v1/namespaces/default/serviceaccounts/default")
            undo.pop_all()
        return lab

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End everything and remove what it left, the logs excepted."""
        self.api.close()
        self.processes.kill("anchor")  # and the kernel ends everything in its PID namespace
        self.processes.stop()
        namespaces.remove_cgroups(self.cgroup)
        for name in ("containerd", "containerd-state", "etcd", "kubelet", "pki", "images", "ipam"):
            shutil.rmtree(self.directory / name, ignore_errors=True)

    # ------------------------------------------------------------------------------------------ what happens to a node
    def start_daemon(self, name: str) -> None:
        """Start one of DAEMONS, as at boot or after it was killed."""
        folder = self.directory
        command: dict[str, list[str | Path]] = {
            "containerd": ["containerd", "-c", folder / "containerd.toml"],
            "kubelet": ["kubelet", f"--config={folder}/kubelet.yaml", f"--kubeconfig={folder}/node.kubeconfig",
                        f"--hostname-override={NODE}", f"--node-ip={config.NODE_ADDRESS}",
                        "--root-dir=/var/lib/kubelet", "--v=2"],
            "gpu-plugin": ["gpu-plugin", folder / "gpus.json"],
        }  # fmt: skip
        words = command[name]
        self._start(name, [self.programs / words[0], *words[1:]])
        if name == "containerd":
            socket = folder / "containerd.sock"
            wait("containerd", lambda: socket.exists() and self._answers_ctr(), self.processes, "containerd")

    def kill_daemon(self, name: str) -> None:
        """`kill -9` of one of DAEMONS; containers go on."""
        self.processes.kill(name)

    def power_off(self) -> None:
        """All processes of the node gone at one moment, containers included; the control plane goes on."""
        for name in reversed(DAEMONS):
            self.processes.kill(name)
        deadline = time.monotonic() + 10
        while left := [*self.shims(), *self.container_processes()]:
            for pid in left:
                namespaces.kill(pid)
            if time.monotonic() > deadline:
                raise LabError(f"processes {left} of the node do not end")
            time.sleep(0.05)

    def power_on(self) -> None:
        """The node boots: its daemons start, with the disk as it was."""
        for name in DAEMONS:
            self.start_daemon(name)

    def container_processes(self) -> list[int]:
        """Pids (of this machine) of everything that runs in the node's pods."""
        return namespaces.processes_in(self.cgroup)

    def shims(self) -> list[int]:
        """Pids of containerd's shims, which would outlive it."""
        return namespaces.shims_of(self.directory / "containerd.sock")

    def kill_container(self, container_id: str) -> None:
        """`kill -9` of a container's first process."""
        said = self._ctr("tasks", "kill", "--signal", "SIGKILL", container_id)
        assert not said.strip(), said

    # ---------------------------------------------------------------------------------------------- what is inside it
    def enter(self, *command: str | Path) -> list[str]:
        """The command line that runs `command` in the lab's namespaces."""
        namespaces = ["-m", "-n", "-p"] if self.own_pids else ["-m", "-n"]
        return ["nsenter", "-t", str(self.anchor), *namespaces, "--", *map(str, command)]

    def load(self, archive: Path) -> None:
        """Import a container image archive."""
        self._ctr("images", "import", archive)

    def set_gpus(self, uuids: Sequence[str]) -> None:
        """What the device plugin advertises from now on."""
        (self.directory / "gpus.json").write_text(str(list(uuids)).replace("'", '"'))

    # ------------------------------------------------------------------------------------------------------ the start
    def _start(self, name: str, command: Sequence[str | Path]) -> None:
        self.processes.start(name, self.enter(*command), self._environment)

    @property
    def _environment(self) -> dict[str, str]:
        path = f"{self.programs}:{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
        config_file = str(self.directory / "nvidia.toml")
        return {"PATH": path, "HOME": str(self.directory), "NVIDIA_CTK_CONFIG_FILE_PATH": config_file}

    def _run(self, script: str, **variables: object) -> None:
        env = {**self._environment, **{key: str(value) for key, value in variables.items()}}
        done = subprocess.run(self.enter("bash", "-euc", script), env=env, capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"setting up the namespaces: {done.stderr.strip()}")

    def _ctr(self, *words: str | Path) -> str:
        command = self.enter(self.programs / "ctr", "-a", self.directory / "containerd.sock", "-n", "k8s.io", *words)
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True)
        if done.returncode:
            raise LabError(f"ctr {' '.join(map(str, words))}: {done.stderr.strip()}")
        return done.stdout

    def _answers_ctr(self) -> bool:
        try:
            self._ctr("version")
        except LabError:
            return False
        return True

    def _write_files(self, authority: pki.Authority) -> None:
        folder, port = self.directory, "443"
        for name in ("card", "cdi", "cni", "kubelet", "images", "logs/pods"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.set_gpus([gpu.uuid for gpu in self.gpus])
        (folder / "containerd.toml").write_text(config.containerd(folder, self.programs))
        (folder / "nvidia.toml").write_text(config.nvidia_runtime(folder))
        (folder / "kubelet.yaml").write_text(config.kubelet(folder, self.cgroup, authority.certificate))
        (folder / "cni" / "10-lab.conflist").write_text(config.network(folder))
        self._write_cards()
        _kubeconfig(folder, authority, "node", f"system:node:{NODE}", "system:nodes", port, config.API_ADDRESS)

    def _write_cards(self) -> None:
        """The CDI specifications, and here what stands in for a driver."""
        folder = self.directory
        cards = [{"uuid": g.uuid, "name": g.name, "total": g.total, "reserved": g.reserved} for g in self.gpus]
        (folder / "card" / "gpus.json").write_text(str(cards).replace("'", '"'))
        (folder / "cdi" / "device-plugin.json").write_text(config.device_plugin_cdi(folder, self.gpus))
        (folder / "cdi" / "management.json").write_text(config.management_cdi(folder, self.gpus))
        nvml.build(folder)

    def _start_cards(self) -> None:
        self._start("driver", [sys.executable, HERE / "driver.py", self.directory / "card"])

    def _start_control_plane(self, authority: pki.Authority) -> None:
        folder = self.directory
        server = authority.server("kube-apiserver", (config.API_ADDRESS,))
        kubelet_client = authority.client("kubelet-client", "kube-apiserver", "system:masters")
        tokens = authority.signing_key("service-account")
        self._start("etcd", [self.programs / "etcd", f"--data-dir={folder}/etcd", "--unsafe-no-fsync"])
        self._start("kube-apiserver", [
            self.programs / "kube-apiserver",
            "--etcd-servers=http://127.0.0.1:2379",
            "--bind-address=0.0.0.0",  # of the lab's own network
            "--secure-port=443",
            f"--advertise-address={config.NODE_ADDRESS}",
            f"--tls-cert-file={server.certificate}",
            f"--tls-private-key-file={server.key}",
            f"--client-ca-file={authority.certificate}",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={tokens.certificate}",
            f"--service-account-signing-key-file={tokens.key}",
            f"--service-cluster-ip-range={config.SERVICE_SUBNET}",
            "--endpoint-reconciler-type=none",
            "--kubelet-preferred-address-types=InternalIP",
            f"--kubelet-client-certificate={kubelet_client.certificate}",
            f"--kubelet-client-key={kubelet_client.key}",
            "--allow-privileged",
        ])  # fmt: skip

    def _start_controllers(self, authority: pki.Authority) -> None:
        def login(name: str) -> Path:
            return _kubeconfig(self.directory, authority, name, f"system:{name}", "", "443", config.API_ADDRESS)

        key = self.directory / "pki" / "service-account.key"
        self._start("kube-controller-manager", [
            self.programs / "kube-controller-manager",
            f"--kubeconfig={login('kube-controller-manager')}",
            f"--root-ca-file={authority.certificate}",
            f"--service-account-private-key-file={key}",
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--node-monitor-grace-period=10s",
            "--node-monitor-period=2s",
        ])  # fmt: skip
        self._start("kube-scheduler", [
            self.programs / "kube-scheduler", f"--kubeconfig={login('kube-scheduler')}", "--leader-elect=false"
        ])  # fmt: skip

    def _await_api(self, path: str) -> None:
        def answers() -> bool:
            with Api(self.kubeconfig) as api:
                try:
                    api.request("GET", path)
                except (ApiError, urllib3.exceptions.HTTPError, OSError):
                    return False
            return True

        wait(f"the API server's {path}", answers, self.processes, "kube-apiserver")


_RUNTIME_CLASS = {
    "apiVersion": "node.k8s.io/v1",
    "kind": "RuntimeClass",
    "metadata": {"name": "nvidia"},
    "handler": "nvidia",
}


def _kubeconfig(
    folder: Path, authority: pki.Authority, name: str, user: str, group: str, port: str, address: str = "127.0.0.1"
) -> Path:
    login = pki.certificate_user(authority.client(name, user, group))
    url = f"https://{address}:{port}"
    return pki.write_kubeconfig(folder / f"{name}.kubeconfig", url, authority.certificate.read_bytes(), login)


def is_ready(node: object) -> bool:
    """Whether a Node is Ready."""
    if not isinstance(node, dict):
        return False
    conditions = node.get("status", {}).get("conditions", ())
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)
