"""The client against the real API server: pages, preconditions, retries, and sentences for what cannot be done."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.aio.config import ConfigException

from cotenant import answers
from cotenant.errors import AlreadyExists, ClusterError, Conflict, NotFound, Refused
from cotenant.kube import Kube
from cotenant.verbs import PAGE
from tests.cluster.control_plane import ControlPlane


def config_map(name: str, namespace: str, **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": {"test": "kube"}},
        "data": data,
    }


async def test_a_list_of_several_pages_is_whole_and_stands_at_one_version(kube: Kube, namespace: str) -> None:
    slots = asyncio.Semaphore(16)

    async def make(index: int) -> None:
        async with slots:
            await kube.create(config_map(f"c-{index:04d}", namespace))

    await asyncio.gather(*(make(index) for index in range(PAGE + 20)))

    pages = [page async for page in kube.pages("v1", "ConfigMap", namespace, "test=kube")]

    assert [len(items) for items, _ in pages] == [PAGE, 20]
    assert len({version for _, version in pages}) == 1
    assert len({item["metadata"]["name"] for items, _ in pages for item in items}) == PAGE + 20
    assert pages[0][0][0]["kind"] == "ConfigMap"


async def test_what_cannot_be_done_is_told_by_its_own_exception_and_a_sentence(kube: Kube, namespace: str) -> None:
    await kube.create(config_map("there", namespace))
    invalid = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": namespace}, "spec": {}}

    with pytest.raises(AlreadyExists, match=f"creating ConfigMap {namespace}/there"):
        await kube.create(config_map("there", namespace))
    with pytest.raises(NotFound, match="not found"):
        await kube.get("v1", "ConfigMap", "nowhere", namespace)
    with pytest.raises(NotFound, match="CRDs"):
        await kube.list("cotenant.dev/v1alpha1", "Elephant")
    with pytest.raises(Refused, match="containers"):
        await kube.create(invalid)
    with pytest.raises(Conflict, match="UID"):
        await kube.delete("v1", "ConfigMap", "there", namespace, uid="not-its-uid")


async def test_apply_takes_a_field_from_another_manager_only_by_force(kube: Kube, namespace: str) -> None:
    await kube.apply(config_map("shared", namespace, a="1"), field_manager="one")

    with pytest.raises(Conflict):
        await kube.apply(config_map("shared", namespace, a="2"), field_manager="two", force=False)
    taken = await kube.apply(config_map("shared", namespace, a="2"), field_manager="two")

    assert taken["data"] == {"a": "2"}


async def test_a_status_is_applied_without_touching_the_spec(kube: Kube, namespace: str) -> None:
    wish = {
        "apiVersion": "cotenant.dev/v1alpha1",
        "kind": "ModelPlacement",
        "metadata": {"name": "sparrow", "namespace": namespace},
        "spec": {"models": [{"name": "m", "uri": "hf://org/m", "share": "70%"}]},
    }
    made = await kube.create(wish)

    written = await kube.apply_status(
        {**wish, "status": {"observedGeneration": 1, "summary": "0/1"}}, "cotenant-status"
    )

    assert written["status"]["summary"] == "0/1"
    assert written["metadata"]["generation"] == made["metadata"]["generation"]


async def test_credentials_that_are_not_accepted_say_so(with_crds: ControlPlane, tmp_path: Path) -> None:
    config = yaml.safe_load(with_crds.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": "not-a-token"}
    (tmp_path / "config").write_text(yaml.safe_dump(config))

    async with await Kube.connect(str(tmp_path / "config")) as stranger:
        with pytest.raises(ClusterError, match="credentials"):
            await stranger.list("v1", "Pod")


async def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="missing"):
        await Kube.connect(str(tmp_path / "missing"))


async def test_without_a_kubeconfig_the_users_own_is_never_used() -> None:
    with pytest.raises(ClusterError, match="COTENANT_KUBECONFIG"):
        await Kube.connect(None)


async def test_requests_survive_an_api_server_that_restarts(tmp_path: Path) -> None:
    with ControlPlane.start(tmp_path / "cluster") as cluster:
        async with await Kube.connect(str(cluster.kubeconfig)) as kube:
            await kube.create(config_map("before", "default"))
            await asyncio.to_thread(cluster.kill_apiserver)
            waiting = asyncio.create_task(_persistent(kube))
            await asyncio.to_thread(cluster.start_apiserver)

            made = await asyncio.wait_for(waiting, 60)

    assert made["metadata"]["name"] == "during"


async def _persistent(kube: Kube) -> dict[str, Any]:
    """As the loop does it: what fails after its retries is tried again."""
    while True:
        try:
            return await kube.create(config_map("during", "default"))
        except AlreadyExists:
            return await kube.get("v1", "ConfigMap", "during", "default")
        except ClusterError:
            await asyncio.sleep(0.2)


def refused(reason: str, **details: Any) -> bytes:
    return json.dumps({"kind": "Status", "reason": reason, "details": details, "message": "no"}).encode()


@pytest.mark.parametrize(
    ("status", "answer", "method", "again"),
    [
        (0, b"", "GET", True),
        (429, refused("TooManyRequests"), "POST", True),
        (503, b"<html>a proxy</html>", "GET", True),
        (500, refused("InternalError", retryAfterSeconds=1), "PATCH", True),
        (500, refused("InternalError"), "POST", False),
        (409, refused("Conflict"), "PATCH", True),
        (409, refused("Conflict"), "POST", True),  # two creates met at one quota
        (409, refused("Conflict"), "DELETE", False),  # another uid
        (409, refused("Conflict", causes=[{"reason": "FieldManagerConflict"}]), "PATCH", False),
        (409, refused("AlreadyExists"), "POST", False),
        (403, refused("Forbidden"), "POST", False),
        (422, refused("Invalid"), "PATCH", False),
    ],
)
def test_what_may_succeed_a_moment_later_is_tried_again(status: int, answer: bytes, method: str, again: bool) -> None:
    assert answers.is_transient(status, answer, method, {"metadata": {"name": "x"}}) is again


def test_a_write_onto_one_version_is_not_repeated_onto_another() -> None:
    body = {"metadata": {"name": "x", "resourceVersion": "7"}}

    assert not answers.is_transient(409, refused("Conflict"), "PATCH", body)


class Credentials(Kube):
    """A kubelet that is about to renew the token: nothing, then one that is no longer good, then the right one."""

    asked = 0

    async def _authorization(self) -> str | None:
        self.asked += 1
        if self.asked == 1:
            raise ConfigException("Token file exists but empty.")
        return "Bearer old" if self.asked == 2 else await super()._authorization()


async def test_credentials_that_are_just_being_renewed_are_waited_for(with_crds: ControlPlane, namespace: str) -> None:
    powerless = with_crds.service_account_kubeconfig(namespace, "default")
    async with await Credentials.connect(str(powerless)) as kube:
        with pytest.raises(Refused, match="cannot get resource"):
            await kube.get("v1", "ConfigMap", "x", namespace)
    assert kube.asked == 3


class Logging(Kube):
    """A kubelet that gives this log."""

    log = b""

    async def _request(self, *_args: Any, **_fields: Any) -> bytes:
        return self.log


async def test_a_log_begins_with_a_whole_line(with_crds: ControlPlane, namespace: str) -> None:
    async with await Logging.connect(str(with_crds.kubeconfig)) as kube:
        kube.log = b"INFO Received request: my password is hunter2\nERROR the end\n"

        assert await kube.pod_log(namespace, "p", limit_bytes=30) == "ERROR the end\n"
        assert (await kube.pod_log(namespace, "p", limit_bytes=300)).startswith("INFO")
