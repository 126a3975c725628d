"""The program itself: exit statuses, help, and one line for whatever goes wrong."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from cotenant.__main__ import finished
from cotenant.api.crd import documents
from tests.cli.worlds import save, wish
from tests.core.builders import Cluster

Cotenant = Callable[..., "Done"]
PROBLEM = (
    "products: [{name: p, memory: 80Gi}]\nnodes: [{name: n, product: p, gpus: 1}]\nmodels: [{name: m, share: %s}]\n"
)


@dataclass(frozen=True)
class Done:
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def cotenant(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """`cotenant WORDS`."""

    def run(*words: str, **more: Any) -> Done:
        try:
            status = finished(list(words), **more)
        except SystemExit as e:
            status = int(e.code or 0)
        said = capsys.readouterr()
        return Done(status, said.out, said.err)

    return run


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["paln"], 'there is no command "paln"; did you mean "plan"?'),
        (["plan", "--fsat"], "cotenant plan: unrecognized arguments: --fsat; see `cotenant plan --help`"),
        (["pack", "x", "--seconds", "x"], "cotenant pack: argument --seconds: a number of seconds from 0 to 86400 is wanted, not x"),
        (["pack", "/nonexist"], "cotenant pack: /nonexist: cannot be read: No such file or directory"),
        (["plan", "--snapshot", "/nonexist"], "cotenant plan: /nonexist cannot be read: No such file or directory"),
        (["plan", "--snapshot", "-", "-f", "-"], "standard input cannot be the snapshot and a file"),
        (["map", "--kubeconfig", os.devnull], "there is no kubeconfig"),
        (["crds", "--dir", os.devnull], "/dev/null cannot be written"),
        (["estimate"], "cotenant estimate: give a MODEL or --config FILE"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_status_1(cotenant: Cotenant, words: list[str], says: str) -> None:
    done = cotenant(*words)

    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty"),
        ("hello", "it holds no mapping with clusters, contexts and users"),
        ("a: [", "it is not YAML"),
    ],
)
def test_a_kubeconfig_that_is_none_is_told(cotenant: Cotenant, tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "config"
    file.write_text(text)

    done = cotenant("map", "--kubeconfig", str(file))

    assert done.returncode == 1
    assert f"reading the kubeconfig {file}: {says}" in done.stderr


def test_a_context_that_is_not_there_is_told_with_those_that_are(cotenant: Cotenant, tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(yaml.safe_dump({"contexts": [{"name": "home", "context": {}}], "current-context": "home"}))

    done = cotenant("map", "--kubeconfig", str(file), "--context", "hme")

    assert done.stderr == f"cotenant map: kubeconfig {file} has no context hme; it has home\n"


def test_a_server_that_does_not_answer_is_told_with_where_its_address_came_from(
    cotenant: Cotenant, tmp_path: Path
) -> None:
    file = tmp_path / "config"
    cluster = {"name": "c", "cluster": {"server": "https://127.0.0.1:1", "insecure-skip-tls-verify": True}}
    context = {"name": "home", "context": {"cluster": "c", "user": "u"}}
    user = {"name": "u", "user": {"token": "t"}}
    file.write_text(
        yaml.safe_dump({"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "home"})
    )

    done = cotenant("map", "--kubeconfig", str(file))

    assert done.returncode == 1
    assert done.stderr.endswith(f"; kubeconfig {file}, context home\n")


@pytest.mark.parametrize(("share", "status"), [("50%", 0), ("90Gi", 2)])
def test_the_exit_status_of_pack_says_whether_all_is_placed(
    cotenant: Cotenant, tmp_path: Path, share: str, status: int
) -> None:
    file = tmp_path / "problem.yaml"
    file.write_text(PROBLEM % share)

    assert cotenant("pack", str(file), "--seconds", "0").returncode == status


def test_the_exit_status_of_an_estimate_says_whether_it_is_refused(cotenant: Cotenant) -> None:
    words = ["estimate", "meta-llama/Llama-3.1-8B-Instruct", "--offline", "--share"]

    assert [cotenant(*words, share).returncode for share in ("40Gi", "5Gi", "much")] == [0, 2, 1]


def test_a_snapshot_that_is_nested_too_deeply_is_told(cotenant: Cotenant, tmp_path: Path) -> None:
    file = tmp_path / "deep.yaml"
    file.write_text("a: " + "[" * 5000)

    assert cotenant("map", "--snapshot", str(file)).stderr.endswith(
        "is neither YAML nor JSON: it is nested too deeply\n"
    )


def test_what_nobody_foresaw_is_one_line_until_more_is_asked_for(cotenant: Cotenant) -> None:
    programs = {"broken": ("tests.cli.broken", "")}

    done = cotenant("broken", programs=programs, env={})

    assert done.returncode == 1
    assert done.stderr == (
        "cotenant: ZeroDivisionError: integer division or modulo by zero: this is a bug in Cotenant; COTENANT_DEBUG=1 shows where\n"
    )
    with pytest.raises(ZeroDivisionError):
        cotenant("broken", programs=programs, env={"COTENANT_DEBUG": "1"})


def test_help_of_a_command_is_that_commands_help(cotenant: Cotenant) -> None:
    assert cotenant("help", "plan").stdout.startswith("usage: cotenant plan")


def test_the_definitions_are_printed_and_written_only_where_asked(cotenant: Cotenant, tmp_path: Path) -> None:
    before = sorted(Path().iterdir())

    printed = cotenant("crds")

    assert list(yaml.safe_load_all(printed.stdout)) == list(documents().values())
    assert sorted(Path().iterdir()) == before
    assert cotenant("crds", "--dir", str(tmp_path)).returncode == 0
    assert {file.name for file in tmp_path.iterdir()} == set(documents())
    assert cotenant("crds", "--check", "--dir", str(tmp_path)).returncode == 0
    (tmp_path / "cotenant.dev_gpunodes.yaml").write_text("")
    assert cotenant("crds", "--check", "--dir", str(tmp_path)).returncode == 1


def test_a_plan_that_leaves_somebody_out_is_exit_status_2(cotenant: Cotenant, tmp_path: Path) -> None:
    file = wish(tmp_path, "new", {"name": "a", "share": "20%"})

    assert (
        cotenant("plan", "--offline", "--snapshot", save(Cluster([]).snapshot(), tmp_path), "-f", file).returncode == 2
    )
