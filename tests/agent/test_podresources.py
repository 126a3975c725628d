"""Who holds which GPU, by a kubelet's gRPC socket, and how the reader tells the agent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cotenant.agent import podresources_reader
from cotenant.agent.podresources import (
    Holding,
    Holdings,
    PodResources,
    PodResourcesError,
    read_holdings,
    write_holdings,
)
from tests.agent.kubelet import Kubelet


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[Kubelet]:
    kubelet = Kubelet(tmp_path / "kubelet.sock")
    kubelet.start()
    yield kubelet
    kubelet.stop()


def test_the_kubelet_says_who_holds_what(kubelet: Kubelet) -> None:
    kubelet.hold("cotenant-system", "hold-n1-0", "GPU-a")
    kubelet.hold("other", "notebook", "GPU-b")
    kubelet.offered = ["GPU-b", "GPU-a"]

    said = PodResources(kubelet.socket).read(now=5.0)

    assert said.at == 5.0
    assert said.held == (
        Holding("cotenant-system", "hold-n1-0", "main", "nvidia.com/gpu", "GPU-a"),
        Holding("other", "notebook", "main", "nvidia.com/gpu", "GPU-b"),
    )
    assert said.allocatable == ("GPU-a", "GPU-b")


def test_a_replica_is_its_gpu() -> None:
    replica = Holding("n", "p", "c", "nvidia.com/gpu", "GPU-6f3a::3")

    assert replica.gpu == "GPU-6f3a"
    assert Holding("n", "p", "c", "nvidia.com/mig-1g.5gb", "MIG-1").is_mig
    assert Holding("n", "p", "c", "example.com/fpga", "fpga0").gpu == ""


def test_a_silent_kubelet_is_an_error_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(PodResourcesError, match="asking the kubelet List: UNAVAILABLE"):
        PodResources(tmp_path / "none.sock", timeout=1).read(now=0)


def test_the_reader_keeps_the_last_answer_while_the_kubelet_restarts(kubelet: Kubelet, tmp_path: Path) -> None:
    kubelet.hold("cotenant-system", "hold-n1-0", "GPU-a")
    file, stopping = tmp_path / "holdings.json", threading.Event()
    reader = threading.Thread(target=podresources_reader.run, args=(kubelet.socket, file, 0.1, stopping))
    reader.start()
    try:
        before = wait_for(file, lambda said: len(said.held) == 1)

        kubelet.stop()
        silent = wait_for(file, lambda said: said.error != "")
        assert silent.held == before.held
        assert file.stat().st_mode & 0o777 == 0o644

        kubelet.held.clear()
        kubelet.start()
        assert wait_for(file, lambda said: said.held == ()).error == ""
    finally:
        stopping.set()
        reader.join()


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    said = Holdings(at=1.5, held=(Holding("n", "p", "c", "r", "GPU-a"),), allocatable=("GPU-a",), error="x")

    write_holdings(tmp_path / "f", said)

    assert read_holdings(tmp_path / "f") == said


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "at": "x"}', '{"version": 1, "held": [{}]}']
)
def test_a_file_that_cannot_be_read_is_no_answer(tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(text)

    assert read_holdings(tmp_path / "f") is None


def wait_for(file: Path, until: Callable[[Holdings], bool], seconds: float = 10) -> Holdings:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        said = read_holdings(file)
        if said is not None and until(said):
            return said
        time.sleep(0.05)
    raise TimeoutError(f"{file}: {read_holdings(file)}")
