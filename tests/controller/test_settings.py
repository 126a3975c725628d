"""Settings: a bad value names its variable and says what to write."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cotenant.agent.settings import AgentSettings
from cotenant.core.snapshot import Policy
from cotenant.errors import SettingsError
from cotenant.settings import Settings, load


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("COTENANT_") and name != "COTENANT_CACHE"]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("COTENANT_HEADROOM", "70", "percentage"),
        ("COTENANT_HEADROOM", "100%", "leaves nothing"),
        ("COTENANT_OVERRUN", "-3Gi", "quantity"),
        ("COTENANT_ENGINES", "/nowhere/engines.yaml", "cannot be read"),
        ("COTENANT_ENGINES", '[{"name": "vllm"}]', "image"),
        ("COTENANT_ENGINES", "[{", "neither JSON nor YAML"),
        ("COTENANT_MANAGED_LABEL", "managed", "cotenant.dev/managed=true"),
        ("COTENANT_INJECTION", "magic", "cdi-device-plugin"),
        ("COTENANT_CONCURRENCY", "many", "integer"),
        ("COTENANT_HEADROM", "5%", "no such setting"),
    ],
)
def test_a_bad_value_names_its_variable_and_what_to_write(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as raised:
        load()

    assert name in str(raised.value)
    assert says in str(raised.value)


def test_settings_become_the_policy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engines = tmp_path / "engines.yaml"
    engines.write_text("- {name: vllm, image: registry.local/vllm:1, version: 0.33.0}\n")
    monkeypatch.setenv("COTENANT_ENGINES", str(engines))
    monkeypatch.setenv("COTENANT_HEADROOM", "10%")
    monkeypatch.setenv("COTENANT_OVERRUN", "2Gi")
    monkeypatch.setenv("COTENANT_DEFAULT_CPU", "500m")
    monkeypatch.setenv("COTENANT_MANAGED_LABEL", "*")

    policy = load().policy

    assert (policy.headroom, policy.overrun, policy.default_cpu) == (1000, 2 << 30, 500)
    assert policy.managed_label == ("", "")
    assert [engine.image for engine in policy.engines] == ["registry.local/vllm:1"]


def test_every_field_of_the_policy_is_a_setting_and_defaults_agree() -> None:
    policy = load().policy

    for field in dataclasses.fields(Policy):
        assert field.name in Settings.model_fields, f"{field.name} cannot be set"
        if field.name != "engines":
            assert getattr(policy, field.name) == getattr(Policy(), field.name), field.name


def test_the_page_of_settings_is_the_codes() -> None:
    """If this fails: uv run python -m tests.controller.write_settings_page"""
    from tests.controller.write_settings_page import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page()


def test_every_setting_says_what_it_means() -> None:
    for settings in (Settings, AgentSettings):
        assert not [name for name, field in settings.model_fields.items() if not field.description]
