"""The cluster that `make cluster` leaves running, by the command that does it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.cluster import build
from tests.cluster.access import Cluster

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[2]


class Machine:
    """A user's settings: a cache and a home of their own, and whatever variables they set."""

    def __init__(self, folder: Path) -> None:
        build.kube(), build.kwok()
        self.cache = folder / "cache"
        self.home = folder / "home"
        (self.home / ".kube").mkdir(parents=True)
        (self.home / ".kube" / "config").write_text("not a kubeconfig")
        self.cache.mkdir()
        (self.cache / "tools").symlink_to(build.cache() / "tools")

    def python(self, *words: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        env = {
            **os.environ,
            "COTENANT_CACHE": str(self.cache),
            "HOME": str(self.home),
            "KUBECONFIG": str(self.home / ".kube" / "config"),
            **(variables or {}),
        }
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=120)

    def cluster(self, verb: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "tests.cluster", verb, variables=variables)

    def run_beside(self) -> int:
        """A process that is to end with the cluster."""
        program = "from tests.cluster import resident; print(resident.run_beside('beside', ['sleep', '600']))"
        return int(self.python("-c", program).stdout)

    def keeper(self) -> int:
        pid: int = json.loads((self.cache / "cluster" / "state.json").read_text())["pid"]
        return pid

    @property
    def admin(self) -> Path:
        return self.cache / "cluster" / "admin.kubeconfig"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.cluster("down")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def command_lines() -> list[list[str]]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text().split("\0"))
        except OSError:
            continue
    return found


def test_it_outlives_the_command_that_started_it_and_ends_by_another(machine: Machine) -> None:
    first = machine.cluster("up")
    assert first.returncode == 0, first.stderr
    assert f"export KUBECONFIG={machine.admin}\n" in first.stdout
    assert "already running" in machine.cluster("up").stdout
    assert machine.cluster("kubeconfig").stdout == f"{machine.admin}\n"
    beside = machine.run_beside()
    owner = machine.keeper()
    assert is_alive(beside)

    assert machine.cluster("down").stdout == "cluster ended\n"

    assert not is_alive(owner)
    assert not is_alive(beside)
    assert not [words for words in command_lines() if str(machine.cache / "cluster") in " ".join(words)]
    assert not (machine.cache / "cluster").exists()
    assert machine.cluster("down").stdout == "no cluster is running\n"
    assert "make cluster" in machine.cluster("kubeconfig").stderr


def test_the_users_own_settings_are_neither_read_nor_written(machine: Machine) -> None:
    assert machine.cluster("up").returncode == 0
    program = "from tests.cluster import resident; print(resident.running().kubectl('get', 'namespaces'))"

    assert "kube-system" in machine.python("-c", program).stdout

    assert sorted(path.name for path in machine.home.rglob("*")) == [".kube", "config"]
    assert (machine.home / ".kube" / "config").read_text() == "not a kubeconfig"


def test_a_stale_one_is_noticed_and_replaced(machine: Machine) -> None:
    assert machine.cluster("up").returncode == 0
    old = machine.keeper()
    beside = machine.run_beside()
    os.kill(old, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while is_alive(old) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert machine.cluster("kubeconfig").returncode == 1

    again = machine.cluster("up")

    assert again.returncode == 0, again.stderr
    assert "clearing away a cluster that died" in again.stderr
    assert machine.keeper() != old
    assert not is_alive(beside)


def test_assets_of_kubebuilder_are_used_when_named(machine: Machine, tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    for name in ("etcd", "kube-apiserver", "kubectl"):
        (assets / name).symlink_to(build.kube() / "kube")

    up = machine.cluster("up", {"KUBEBUILDER_ASSETS": str(assets)})

    assert f"{assets}/kubectl get nodes" in up.stdout, up.stderr
    programs = {words[0] for words in command_lines()}
    assert {str(assets / "etcd"), str(assets / "kube-apiserver")} <= programs
    assert "kube-system" in Cluster(tmp_path, machine.admin, assets / "kubectl").kubectl("get", "namespaces")


def test_assets_that_are_not_there_are_named(machine: Machine, tmp_path: Path) -> None:
    up = machine.cluster("up", {"KUBEBUILDER_ASSETS": str(tmp_path)})

    assert up.returncode == 1
    assert f"KUBEBUILDER_ASSETS={tmp_path} holds no etcd: unset it to use the one built here" in up.stderr
    assert "Traceback" not in up.stderr


def test_without_go_it_is_said_what_to_install(machine: Machine) -> None:
    (machine.cache / "tools").unlink()

    built = machine.cluster("build", {"PATH": str(machine.home)})

    assert built.returncode == 1
    assert "needs Go 1.26 or newer on PATH" in built.stderr
    assert "Traceback" not in built.stderr
