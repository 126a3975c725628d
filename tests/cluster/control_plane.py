"""Starts and stops a control plane: etcd, API server, controller manager, scheduler, and KWOK beside them."""

import os
import shutil
import signal
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import urllib3

from tests.cluster import build, kwok, pki
from tests.cluster.access import Cluster
from tests.cluster.api import Api, ApiError
from tests.cluster.processes import Processes

START_SECONDS = 60.0
"""How long a start may take before it is called failed; 5 to 10 s are usual."""

ATTEMPTS = 3
"""Starts tried: between finding a free port and binding it, someone else may take it."""

NODE_LOSS_SECONDS = 10
"""After this long without a heartbeat a node is NotReady (Kubernetes' default is 50)."""


class ControlPlaneError(Exception):
    """The control plane could not be started; the text has the end of the log concerned."""


class _PortTakenError(Exception):
    """Another process was faster to bind a port."""


@dataclass(frozen=True)
class ControlPlane(Cluster):
    """A control plane that lives as long as this object's process, or until `stop`."""

    processes: Processes = field(repr=False)
    """What runs it; `processes.start` adds a process that ends with it."""
    _api_server: tuple[str, ...] = field(repr=False, default=())

    @classmethod
    def start(cls, directory: Path, *, node_loss_seconds: int = NODE_LOSS_SECONDS) -> Self:
        """A fresh control plane with all its files in `directory`; its programs are built if they are missing."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return cls._start(directory, node_loss_seconds)
            except _PortTakenError as error:
                if attempt == ATTEMPTS:
                    raise ControlPlaneError(f"no free port after {ATTEMPTS} attempts: {error}") from error
        raise AssertionError("unreachable")

    @classmethod
    def _start(cls, directory: Path, node_loss_seconds: int) -> Self:
        programs = _Programs.find()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for leftover in ("etcd", "logs"):
            shutil.rmtree(directory / leftover, ignore_errors=True)
        plan = _Plan.make(directory, programs, node_loss_seconds)
        with ExitStack() as undo:
            processes = Processes(directory / "logs")
            undo.callback(processes.stop)
            environment = _environment(directory)
            processes.start("etcd", plan.etcd, environment)
            processes.start("kube-apiserver", plan.api_server, environment)
            control_plane = cls(
                directory, plan.admin, programs.kubectl, processes=processes, _api_server=tuple(plan.api_server)
            )
            control_plane._wait_until("/readyz")
            processes.start("kube-controller-manager", plan.controller_manager, environment)
            processes.start("kube-scheduler", plan.scheduler, environment)
            processes.start("kwok", plan.kwok, environment)
            # The controller manager makes it; before that no pod can be created.
            control_plane._wait_until("/api/v1/namespaces/default/serviceaccounts/default")
            undo.pop_all()
        return control_plane

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End everything it started, the API server before etcd (or its shutdown hangs)."""
        self.api.close()
        self.processes.stop()

    def kill_apiserver(self) -> None:
        """`kill -9` of the API server; everything else goes on."""
        self.processes.kill("kube-apiserver")

    def start_apiserver(self) -> None:
        """Start the API server again at the same address; returns when it is ready."""
        self.processes.start("kube-apiserver", self._api_server, _environment(self.directory))
        self._wait_until("/readyz")

    def pause_etcd(self) -> None:
        """Freeze etcd: requests hang and time out, nothing is lost."""
        self.processes.signal("etcd", signal.SIGSTOP)

    def resume_etcd(self) -> None:
        self.processes.signal("etcd", signal.SIGCONT)

    def _wait_until(self, path: str) -> None:
        """Wait until `path` is answered well; at once an error when something that must run has ended."""
        deadline = time.monotonic() + START_SECONDS
        problem: Exception | None = None
        with Api(self.kubeconfig, timeout=2) as api:
            while time.monotonic() < deadline:
                try:
                    api.request("GET", path)
                    return
                except (ApiError, urllib3.exceptions.HTTPError, OSError) as error:
                    problem = error
                self._check_running()
                time.sleep(0.1)
        raise ControlPlaneError(
            f"the API server did not answer {path} within {START_SECONDS:g} s ({problem}); "
            f"logs are in {self.processes.logs}:\n{self.processes.tail('kube-apiserver')}"
        )

    def _check_running(self) -> None:
        for name in self.processes.ended():
            tail = self.processes.tail(name)
            if "address already in use" in tail:
                raise _PortTakenError(tail)
            raise ControlPlaneError(f"{name} ended at once; the end of {self.processes.logs / name}.log:\n{tail}")


@dataclass(frozen=True, slots=True)
class _Programs:
    """Where the binaries are: ours, or for three of them those of $KUBEBUILDER_ASSETS."""

    etcd: Path
    api_server: Path
    kubectl: Path
    controller_manager: Path
    scheduler: Path
    kwok: Path

    @classmethod
    def find(cls) -> Self:
        ours = build.kube()
        assets = Path(os.environ.get("KUBEBUILDER_ASSETS") or ours)
        for name in ("etcd", "kube-apiserver", "kubectl"):
            if not os.access(assets / name, os.X_OK):
                raise ControlPlaneError(
                    f"KUBEBUILDER_ASSETS={assets} holds no {name}: unset it to use the one built here"
                )
        return cls(
            etcd=assets / "etcd",
            api_server=assets / "kube-apiserver",
            kubectl=assets / "kubectl",
            controller_manager=ours / "kube-controller-manager",
            scheduler=ours / "kube-scheduler",
            kwok=build.kwok(),
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    """The command lines of one cluster, and the administrator's kubeconfig."""

    etcd: list[str]
    api_server: list[str]
    controller_manager: list[str]
    scheduler: list[str]
    kwok: list[str]
    admin: Path

    @classmethod
    def make(cls, directory: Path, programs: _Programs, node_loss_seconds: int) -> Self:
        authority = pki.Authority(directory / "pki")
        tokens = authority.signing_key("service-account")
        etcd_port, peer_port, port = _free_ports(3)
        url = f"https://127.0.0.1:{port}"

        def kubeconfig(name: str, user: str, group: str = "") -> Path:
            login = pki.certificate_user(authority.client(name, user, group))
            ca = authority.certificate.read_bytes()
            return pki.write_kubeconfig(directory / f"{name}.kubeconfig", url, ca, login)

        admin = kubeconfig("admin", "cotenant-admin", "system:masters")
        return cls(
            etcd=_etcd(programs, directory, authority, etcd_port, peer_port),
            api_server=_api_server(programs, authority, tokens, etcd_port, port),
            controller_manager=[
                str(programs.controller_manager),
                f"--kubeconfig={kubeconfig('controller-manager', 'system:kube-controller-manager')}",
                f"--root-ca-file={authority.certificate}",
                f"--service-account-private-key-file={tokens.key}",
                "--use-service-account-credentials",
                f"--node-monitor-grace-period={node_loss_seconds}s",
                "--node-monitor-period=2s",
                *_loopback_client_flags(),
            ],
            scheduler=[
                str(programs.scheduler),
                f"--kubeconfig={kubeconfig('scheduler', 'system:kube-scheduler')}",
                *_loopback_client_flags(),
            ],
            # A lease is renewed every quarter of its time: two and a half heartbeats until a node counts as lost.
            kwok=kwok.command(
                programs.kwok,
                kubeconfig("kwok", "kwok", "system:masters"),
                lease_seconds=round(1.6 * node_loss_seconds),
            ),
            admin=admin,
        )


def _etcd(
    programs: _Programs, directory: Path, authority: pki.Authority, client_port: int, peer_port: int
) -> list[str]:
    server = authority.server("etcd")
    peer = f"https://127.0.0.1:{peer_port}"
    return [
        str(programs.etcd),
        f"--data-dir={directory / 'etcd'}",
        "--unsafe-no-fsync",  # nothing here outlives the machine
        f"--listen-client-urls=https://127.0.0.1:{client_port}",
        f"--advertise-client-urls=https://127.0.0.1:{client_port}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
        *(
            flag
            for prefix in ("", "peer-")
            for flag in (
                f"--{prefix}cert-file={server.certificate}",
                f"--{prefix}key-file={server.key}",
                f"--{prefix}trusted-ca-file={authority.certificate}",
                f"--{prefix}client-cert-auth",
            )
        ),
    ]


def _api_server(
    programs: _Programs, authority: pki.Authority, tokens: pki.Pair, etcd_port: int, port: int
) -> list[str]:
    server = authority.server("kube-apiserver")
    etcd_client = authority.client("etcd-client", "kube-apiserver")
    return [
        str(programs.api_server),
        f"--etcd-servers=https://127.0.0.1:{etcd_port}",
        f"--etcd-cafile={authority.certificate}",
        f"--etcd-certfile={etcd_client.certificate}",
        f"--etcd-keyfile={etcd_client.key}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={port}",
        f"--tls-cert-file={server.certificate}",
        f"--tls-private-key-file={server.key}",
        f"--client-ca-file={authority.certificate}",
        "--authorization-mode=Node,RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={tokens.certificate}",
        f"--service-account-signing-key-file={tokens.key}",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--endpoint-reconciler-type=none",  # a loopback address is no valid endpoint
        "--kubelet-preferred-address-types=InternalIP",
        "--allow-privileged",
    ]


def _loopback_client_flags() -> list[str]:
    """For a component that is alone: no election, no port, and no limit of its own (20 requests/s) on what it sends."""
    return ["--leader-elect=false", "--secure-port=0", "--kube-api-qps=500", "--kube-api-burst=1000"]


def _environment(directory: Path) -> dict[str, str]:
    """What the components see: nothing of the user's own Kubernetes settings."""
    inherited = {key: os.environ[key] for key in ("PATH", "TMPDIR", "LANG") if key in os.environ}
    return {**inherited, "HOME": str(directory)}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
