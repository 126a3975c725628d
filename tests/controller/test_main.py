"""The `cotenant` command and the controller as a process: endpoints, ends, and errors in one line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster.control_plane import ControlPlane

BARE = {k: v for k, v in os.environ.items() if not k.startswith("COTENANT_") and k != "KUBECONFIG"}


def cotenant(*words: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cotenant", *words], env={**BARE, **settings}, text=True, capture_output=True, timeout=60
    )


def test_errors_are_one_line_and_an_exit_status() -> None:
    unknown = cotenant("dance")
    nowhere = cotenant("controller")
    wrong = cotenant("controller", COTENANT_HEADROOM="lots")

    assert (unknown.returncode, nowhere.returncode, wrong.returncode) == (1, 1, 1)
    assert "COTENANT_KUBECONFIG" in nowhere.stderr
    assert "COTENANT_HEADROOM" in wrong.stderr
    for done in (unknown, nowhere, wrong):
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_help_and_version_need_no_cluster() -> None:
    assert "controller" in cotenant("--help").stdout
    assert cotenant("version").stdout.startswith("cotenant ")


@contextmanager
def controller(cluster: ControlPlane, log: Path, **settings: str) -> Iterator[tuple[subprocess.Popen[bytes], int, int]]:
    """A running controller, its health port and its metrics port."""
    environment = {
        **BARE,
        "COTENANT_KUBECONFIG": str(cluster.kubeconfig),
        "COTENANT_HOST": "127.0.0.1",
        "COTENANT_HEALTH_PORT": "0",
        "COTENANT_METRICS_PORT": "0",
        "COTENANT_NAMESPACE": "default",
        "COTENANT_HUB_OFFLINE": "true",
        **settings,
    }
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "cotenant", "controller"], env=environment, stderr=file)
    try:
        end = time.monotonic() + 60
        while not (found := re.search(r"/healthz on port (\d+), /metrics on port (\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process, int(found[1]), int(found[2])
    finally:
        process.kill()
        process.wait()


def get(port: int, path: str) -> tuple[int, str]:
    """Status and text of an endpoint."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def wait(true: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.1)


def test_a_controller_is_ready_after_its_first_pass_shows_its_series_and_ends_with_status_0(
    with_crds: ControlPlane, tmp_path: Path
) -> None:
    with controller(with_crds, tmp_path / "log", COTENANT_LEADER_ELECTION="false") as (process, health, series):
        wait(lambda: get(health, "/readyz")[0] == 200)
        assert get(health, "/healthz") == (200, "ok\n")
        text = get(series, "/metrics")[1]
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert process.wait(15) == 0

    assert time.monotonic() - begun < 8
    assert 'cotenant_passes_total{result="ok"}' in text
    assert 'cotenant_cache_objects{kind="pods"}' in text
    assert 'cotenant_api_request_seconds_count{kind="Node",verb="GET"}' in text


def test_of_two_controllers_one_leads_and_the_other_takes_over(with_crds: ControlPlane, tmp_path: Path) -> None:
    settings = {"COTENANT_LEASE_SECONDS": "3", "COTENANT_LEASE_NAME": "two"}
    leads = re.compile(r"^cotenant_leader 1\.0$", re.M)
    with controller(with_crds, tmp_path / "a", COTENANT_IDENTITY="a", **settings) as (first, _, series_a):
        wait(lambda: leads.search(get(series_a, "/metrics")[1]))
        with controller(with_crds, tmp_path / "b", COTENANT_IDENTITY="b", **settings) as (_, health_b, series_b):
            wait(lambda: "waiting for the Lease" in (tmp_path / "b").read_text())
            assert get(health_b, "/readyz")[0] == 200, "a standby must not hold up a rolling update"
            assert not leads.search(get(series_b, "/metrics")[1])

            first.kill()

            wait(lambda: leads.search(get(series_b, "/metrics")[1]), 20)
            wait(lambda: get(health_b, "/readyz")[0] == 200)


def test_a_silent_agent_is_noticed_by_its_lease_in_the_agents_namespace(
    with_crds: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    old = {"holderIdentity": "agent", "leaseDurationSeconds": 5, "renewTime": "2026-01-01T00:00:00.000000Z"}
    meta = {"name": "n1", "namespace": namespace, "labels": {"app.kubernetes.io/managed-by": "cotenant"}}
    api = with_crds.api
    api.create({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": old})
    settings = {"COTENANT_AGENT_NAMESPACE": namespace, "COTENANT_LEASE_NAME": "silent-agent"}

    with controller(with_crds, tmp_path / "log", **settings):
        wait(lambda: "the agent of n1 has fallen silent" in (tmp_path / "log").read_text())
