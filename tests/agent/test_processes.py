"""Whose process it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cotenant.agent.processes import Membership, Processes, parse_cgroup

CORPUS: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("cgroups.yaml").read_text())


@pytest.mark.parametrize("line", CORPUS, ids=[line["of"] for line in CORPUS])
def test_the_cgroup_text_names_the_pod(line: dict[str, Any]) -> None:
    wanted = Membership(line["pod"], line["container"]) if line["pod"] else None

    assert parse_cgroup(line["text"]) == wanted


@given(uid=st.uuids().map(str), container=st.from_regex(r"[0-9a-f]{64}", fullmatch=True), is_systemd=st.booleans())
def test_both_spellings_name_the_same_pod(uid: str, container: str, is_systemd: bool) -> None:
    pod = f"kubepods-pod{uid.replace('-', '_')}.slice" if is_systemd else f"kubepods/pod{uid}"
    scope = f"cri-containerd-{container}.scope" if is_systemd else container

    assert parse_cgroup(f"0::/{pod}/{scope}\n") == Membership(uid, container)


@given(st.text())
def test_any_text_has_an_answer(text: str) -> None:
    parse_cgroup(text)


class Proc:
    """A /proc of files."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, pid: int, command: str, cgroup: str, born: int = 1000) -> None:
        folder = self.root / str(pid)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "comm").write_text(f"{command}\n")
        (folder / "cgroup").write_text(cgroup)
        (folder / "stat").write_text(f"{pid} ({command}) S " + " ".join(["0"] * 18) + f" {born} 0 0\n")

    def remove(self, pid: int) -> None:
        for file in (self.root / str(pid)).iterdir():
            file.unlink()
        (self.root / str(pid)).rmdir()


POD = "c5a3a0a5-6a57-4d7c-8b33-2f8ad7f2f0a1"
CGROUP = f"0::/../../pod{POD}/" + "ab" * 32


def test_a_process_that_just_ended_is_whose_it_was(tmp_path: Path) -> None:
    proc, processes = Proc(tmp_path), Processes(tmp_path)
    proc.add(7, "VLLM::EngineCor", CGROUP)
    processes.read(frozenset({7}))

    proc.remove(7)

    assert processes.read(frozenset({7}))[7].membership == Membership(POD, "ab" * 32)
    assert processes.read(frozenset()) == {}
    assert processes.read(frozenset({7}))[7].membership is None


def test_a_pid_used_again_is_another_process(tmp_path: Path) -> None:
    proc, processes = Proc(tmp_path), Processes(tmp_path)
    proc.add(7, "python) S (x", CGROUP, born=1000)
    assert processes.read(frozenset({7}))[7].membership is not None

    proc.add(7, "miner", "0::/user.slice/session-3.scope", born=2000)

    again = processes.read(frozenset({7}))[7]
    assert again.command == "miner"
    assert again.membership is None


def test_this_very_process_can_be_read() -> None:
    import os

    me = Processes(Path("/proc")).read(frozenset({os.getpid()}))[os.getpid()]

    assert me.command
