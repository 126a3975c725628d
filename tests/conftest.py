"""What many tests stand on: one real control plane for the whole session."""

from collections.abc import Iterator

import pytest

from tests.cluster import build
from tests.cluster.control_plane import ControlPlane


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever asks for the control plane is a `cluster` test."""
    for item in items:
        if "control_plane" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.cluster)


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A real control plane that is ended with the session; use a namespace of your own in it."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():  # a first build takes minutes: its progress is to be seen
        build.kube(), build.kwok()
    with ControlPlane.start(tmp_path_factory.mktemp("cluster")) as started:
        yield started
