"""docs/settings.md, made from the settings' own fields. Run it to refresh the page: `uv run python -m tests.controller.write_settings_page`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from cotenant.agent.settings import AgentSettings
from cotenant.settings import DEFAULT_ENGINES, PREFIX, Settings

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "settings.md"
TEMPLATES = ROOT / "charts" / "cotenant" / "templates"
BY_OTHER_WAYS = {
    "namespace": "namespaceOverride",
    "agent_namespace": "agent.namespace",
    "engines": "engines",
    "preflight_image": "controller.image",
    "hub_offline": "hub.offline",
}
"""Chart values that reach a setting through a helper of the templates."""
FIXED = {
    "identity",
    "service_account",
    "health_port",
    "metrics_port",
    "leader_election",
    "node_name",
    "pod_name",
    "podresources_file",
}
"""Set by the chart, to one value."""


def page() -> str:
    """The whole text."""
    return f"""\
# Settings

Generated from the code (`python -m tests.controller.write_settings_page`). Each setting is an environment variable; a value that
cannot be used ends the program with one line that names it. What has a value of the [chart](../charts/cotenant/README.md) is best set
there; every other one in `controller.env` or `agent.env`, which also win over the chart's values. Memory is a Kubernetes quantity
(`3Gi`), CPU too (`500m`), times are seconds, yes and no are `true` and `false`.

## Controller

`cotenant map`, `plan` and the other views take the same variables from your shell, before those of the operator's Deployment.

{table(Settings, "controller", "controller.yaml")}
## Agent

{table(AgentSettings, "agent", "agent.yaml")}
## Elsewhere

`COTENANT_CACHE` is where tests and demos keep what they built (`~/.cache/cotenant`). The controller's way to the hub goes by the
hub's own variables (`HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`, `HF_HOME`): `hub.*` of the chart, [install.md](install.md).
"""


def table(settings: type[BaseModel], workload: str, template: str) -> str:
    """One row for each field, in the order of the code."""
    values = chart_values((TEMPLATES / template).read_text(encoding="utf-8"))
    rows = ["| variable | default | meaning | chart value |", "|---|---|---|---|"]
    for name, field in settings.model_fields.items():
        value = BY_OTHER_WAYS.get(name) or values.get(name)
        where = f"`{value}`" if value else "set by the chart" if name in FIXED else f"`{workload}.env`"
        default = None if field.default is PydanticUndefined else field.default
        rows.append(f"| `{PREFIX}{name.upper()}` | {shown(name, default)} | {field.description} | {where} |")
    return "\n".join(rows) + "\n"


def chart_values(template: str) -> dict[str, str]:
    """setting -> the chart value it is filled from, as the template says."""
    found = re.findall(rf'"{PREFIX}(\w+)" \(dict "value" [^\n]*?\.Values\.([\w.]+)', template)
    return {name.lower(): value for name, value in found}


def shown(name: str, default: Any) -> str:
    """A default as one would write it."""
    match name:
        case "headroom":
            text = f"{default / 100:g}%"
        case "overrun" | "default_memory":
            text = f"{default >> 30}Gi"
        case "default_cpu":
            text = f"{default / 1000:g}"
        case "managed_label":
            text = "=".join(default)
        case "engines":
            text = ", ".join(f"{engine.name} {engine.version}" for engine in DEFAULT_ENGINES)
        case _ if isinstance(default, bool):
            text = str(default).lower()
        case _ if isinstance(default, float):
            text = f"{default:g}"
        case _:
            text = "" if default in (None, ()) else str(default)
    return f"`{text}`" if text else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
