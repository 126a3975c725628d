"""A namespace of its own on the real API server, and clients for it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from itertools import count

import pytest
import pytest_asyncio

from cotenant.api import crd
from cotenant.kube import Kube
from tests.cluster.control_plane import ControlPlane

_numbers = count()


@pytest.fixture(scope="session")
def with_crds(control_plane: ControlPlane) -> ControlPlane:
    """The session's control plane, knowing our kinds."""
    control_plane.api.install_crds(list(crd.documents().values()))
    return control_plane


@pytest.fixture
def namespace(with_crds: ControlPlane) -> Iterator[str]:
    """A fresh namespace with its default ServiceAccount."""
    name = f"controller-{next(_numbers)}"
    with_crds.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    while with_crds.api.find("v1", "ServiceAccount", "default", name) is None:
        time.sleep(0.05)
    yield name
    with_crds.api.delete("v1", "Namespace", name)


@pytest_asyncio.fixture
async def kube(with_crds: ControlPlane) -> AsyncIterator[Kube]:
    """The administrator's client."""
    async with await Kube.connect(str(with_crds.kubeconfig)) as client:
        yield client
