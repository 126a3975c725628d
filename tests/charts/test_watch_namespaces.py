"""With a list of namespaces the controller works there, has no rights elsewhere, and misses none that it needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import install
from tests.cluster.access import KubectlError
from tests.cluster.api import Object
from tests.cluster.control_plane import ControlPlane

API = "cotenant.dev/v1alpha1"
USER = f"system:serviceaccount:{install.NAMESPACE}:{install.ACCOUNT}"


pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A control plane of its own: others expect the chart as it comes."""
    with ControlPlane.start(tmp_path_factory.mktemp("watched")) as started:
        for name in ("served", "other"):
            started.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        controller = install.install(started, {"watchNamespaces": "{served}"})
        started.processes.start("controller", controller.command, controller.env)
        yield started


def place(plane: ControlPlane, namespace: str) -> None:
    """One model that no node can hold: there are none."""
    models = [{"name": "small", "uri": "hf://example/small", "share": "10%"}]
    meta = {"name": "m", "namespace": namespace}
    plane.api.apply({"apiVersion": API, "kind": "ModelPlacement", "metadata": meta, "spec": {"models": models}})


def has_status(item: Object | None) -> bool:
    return bool(item and item.get("status", {}).get("conditions"))


def test_only_the_listed_namespace_is_served_and_nothing_is_forbidden(plane: ControlPlane) -> None:
    place(plane, "other")
    place(plane, "served")

    served = plane.api.wait(API, "ModelPlacement", "m", has_status, "served", seconds=60)

    assert has_status(served)
    assert not has_status(plane.api.find(API, "ModelPlacement", "m", "other"))
    log = (plane.processes.logs / "controller.log").read_text()
    assert "forbidden" not in log.lower()


@pytest.mark.parametrize(
    ("namespace", "verb", "resource", "answer"),
    [
        ("served", "create", "pods", "yes"),
        ("served", "get", "pods/log", "yes"),
        ("served", "patch", "services", "yes"),
        (install.NAMESPACE, "create", "pods", "yes"),
        ("other", "create", "pods", "no"),
        ("other", "list", "modelplacements.cotenant.dev", "no"),
        ("served", "get", "secrets", "no"),
        ("served", "create", "pods/exec", "no"),
        (install.NAMESPACE, "get", "secrets", "no"),
    ],
)
def test_rights_end_at_the_listed_namespaces(
    plane: ControlPlane, namespace: str, verb: str, resource: str, answer: str
) -> None:
    kind, _, part = resource.partition("/")
    try:
        said = plane.kubectl("auth", "can-i", verb, kind, f"--subresource={part}", "-n", namespace, f"--as={USER}")
    except KubectlError:  # kubectl exits 1 for "no"
        said = "no"

    assert said.strip() == answer
