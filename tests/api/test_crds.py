"""The real API server takes what the samples call good and refuses what they call bad, by the field's name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from cotenant.api import placement
from cotenant.api.crd import documents
from cotenant.core.names import API_VERSION
from tests.cluster.api import Api, ApiError
from tests.cluster.control_plane import ControlPlane

SAMPLES: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "samples.yaml").read_text())


def sample(case: dict[str, Any]) -> dict[str, Any]:
    spec = copy.deepcopy(SAMPLES["base"]["spec"])
    spec["models"][0] |= case.get("model", {})
    spec |= case.get("spec", {})
    return {
        "apiVersion": API_VERSION,
        "kind": "ModelPlacement",
        "metadata": {"name": case["name"], "namespace": "default"},
        "spec": spec,
    }


@pytest.fixture(scope="module")
def api(control_plane: ControlPlane) -> Api:
    client = Api(control_plane.kubeconfig)
    client.install_crds(documents().values())
    return client


@pytest.mark.parametrize("case", SAMPLES["good"], ids=lambda case: case["name"])
def test_good_is_taken_and_read(api: Api, case: dict[str, Any]) -> None:
    made = api.create(sample(case))
    try:
        record = placement.parse(made)
        assert record.invalid is None
        assert len(record.models) == 1
    finally:
        api.delete(API_VERSION, "ModelPlacement", case["name"])


@pytest.mark.parametrize("case", SAMPLES["bad"], ids=lambda case: case["name"])
def test_bad_is_refused_by_its_field(api: Api, case: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        api.create(sample(case))
    assert refused.value.status == 422
    assert case["says"] in refused.value.message


def test_every_cel_rule_has_a_bad_sample() -> None:
    messages = {rule["message"] for rule in rules_of_all()}
    said = [case["says"] for case in SAMPLES["bad"]]
    assert messages
    assert [message for message in messages if not any(part in message for part in said)] == []


def rules_of_all() -> list[dict[str, str]]:
    """Every CEL rule of every CRD."""
    return [rule for document in documents().values() for rule in _rules(document)]


def _rules(node: Any) -> list[dict[str, str]]:
    if isinstance(node, dict):
        return list(node.get("x-kubernetes-validations", ())) + [
            rule for child in node.values() for rule in _rules(child)
        ]
    return [rule for child in node for rule in _rules(child)] if isinstance(node, list) else []


@pytest.mark.usefixtures("api")
def test_unknown_fields_are_refused_under_strict_validation(control_plane: ControlPlane) -> None:
    text = yaml.safe_dump(sample({"name": "strict", "model": {"gpuMemoryUtilization": 0.7}}))
    with pytest.raises(Exception, match="gpuMemoryUtilization"):
        control_plane.kubectl("apply", "--validate=strict", "-f", "-", input=text)


def test_no_default_is_written_into_blocks_the_user_left_out(api: Api) -> None:
    made = api.create(sample({"name": "plain"}))
    try:
        assert set(made["spec"]) == {"nodes", "headroom", "models"}
        assert not any(isinstance(value, dict | list) for value in made["spec"]["models"][0].values())
    finally:
        api.delete(API_VERSION, "ModelPlacement", "plain")


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_taken_and_read(api: Api, path: Path) -> None:
    for body in yaml.safe_load_all(path.read_text()):
        body["metadata"].setdefault("namespace", "default")
        made = api.create(body)
        api.delete(API_VERSION, "ModelPlacement", body["metadata"]["name"])
        assert placement.parse(made).invalid is None
