"""Without an API server: the same samples are taken and refused, and what to write instead is said."""

from __future__ import annotations

from typing import Any

import pytest

from cotenant.api.placement import HOLDS, ROOT_RULES, check, parse
from tests.api.test_crds import SAMPLES, rules_of_all, sample

BASE: dict[str, Any] = {"name": "m", "uri": "hf://org/m", "share": "70%"}


def told(model: dict[str, Any], **spec: Any) -> list[str]:
    body = {"metadata": {"name": "p", "namespace": "ns"}, "spec": {"models": [BASE | model], **spec}}
    return [f"{one.path}: {one.reason}" for one in check(body)]


@pytest.mark.parametrize("case", SAMPLES["good"], ids=lambda case: case["name"])
def test_good_is_taken(case: dict[str, Any]) -> None:
    assert check(sample(case)) == []


@pytest.mark.parametrize("case", SAMPLES["bad"], ids=lambda case: case["name"])
def test_bad_is_refused(case: dict[str, Any]) -> None:
    said = " ".join(f"{one.path}: {one.reason}" for one in check(sample(case)))

    assert case["says"].replace("Duplicate value", "each may stand once") in said


def test_every_cel_rule_of_a_placement_is_asked_here_too() -> None:
    ours = set(HOLDS) | {rule.cel for rule in ROOT_RULES}

    assert {rule["rule"] for rule in rules_of_all()} == ours


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"share": "60GB"}, '"60GB" cannot be used: write a percentage of each GPU above 0% and up to 100% ("70%")'),
        ({"share": 70}, 'share: must be text, not 70; write a percentage of each GPU'),
        ({"uri": "org/m"}, "write hf://org/name[@revision], pvc://claim/path or oci://image"),
        ({"replicas": "2"}, 'replicas: must be a whole number, not "2"'),
        ({"replicas": True}, "replicas: must be a whole number, not true"),
        ({"spread": "node"}, 'must be one of None, GPU, Node, not "node"; did you mean "Node"?'),
        ({"tensorParalelSize": 2}, 'tensorParalelSize: unknown field; did you mean "tensorParallelSize"?'),
        ({"engine": {"maxModelLen": -1}}, 'engine.maxModelLen: must be from 1 to 16777216 or "auto", not -1'),
        ({"perNode": [{"selector": {"a": 1}, "share": "1%"}]}, "selector[a]: must be text, not 1; put it in quotes: '1'"),
        ({"engine": []}, "engine: must be a mapping of fields, not an empty list"),
    ],
)  # fmt: skip
def test_what_to_write_is_said(model: dict[str, Any], says: str) -> None:
    (line,) = told(model)
    assert line.startswith("spec.models[0].")
    assert says in line


def test_everything_that_is_wrong_is_said_at_once() -> None:
    lines = told({"share": "150%", "uri": "org/m"}, nodes={"names": "rtx-1"})

    fields = ["spec.models[0].share", "spec.models[0].uri", "spec.nodes.names"]
    assert sorted(line.split(":")[0] for line in lines) == fields
    assert any(line.endswith('must be a list, not "rtx-1"; write [rtx-1]') for line in lines)


@pytest.mark.parametrize("spec", [None, "hello", 5, [1], {"models": 5}, {"models": [None]}, {"models": ["x"]}])
def test_nothing_that_is_no_spec_is_taken(spec: Any) -> None:
    assert [one.path.partition(".")[0] for one in check({"metadata": {"name": "p"}, "spec": spec})][:1] == ["spec"]


def test_a_status_says_it_in_the_same_words() -> None:
    body = {"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": {"models": [BASE | {"share": "150%"}]}}

    (said,) = check(body)

    assert parse(body).invalid == said
