"""The agent's settings, from the environment (COTENANT_*), checked once at the start."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from cotenant.errors import SettingsError

S = TypeVar("S", bound=BaseSettings)
Seconds = Annotated[float, Field(gt=0, le=3600)]


class AgentSettings(BaseSettings):
    """What one agent is told. Times in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="COTENANT_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    node_name: Annotated[str, Field(min_length=1)]
    """spec.nodeName of the agent's pod."""
    agent_namespace: Annotated[str, Field(min_length=1)] = "cotenant-agent"
    """Where the Lease of the heartbeat is; the controller is told the same."""
    pod_name: str = ""
    """Names the holder of the Lease."""
    proc: Path = Path("/proc")
    """The host's /proc; with hostPID the container's own is it."""
    sys: Path = Path("/sys")
    """The host's /sys."""
    podresources_file: Path = Path("/run/cotenant/podresources.json")
    """What the second container wrote of the kubelet's answer."""
    interval: Seconds = 2.0
    """Between two readings."""
    podresources_patience: Seconds = 30.0
    """How old the kubelet's last answer may be (it is silent while it restarts) before the node is not Ready."""
    nvml_patience: Seconds = 30.0
    """How long one reading may take before the node is not Ready."""
    heartbeat: Seconds = 20.0
    """Between two renewals of the Lease, jittered by a fifth."""
    lease_duration: Annotated[int, Field(gt=0)] = 60
    """Seconds without a renewal after which what the agent said is old."""
    resync: Seconds = 300.0
    """Between two publications of an unchanged state, jittered, and two lists of the node's pods."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 9401
    """/metrics, /healthz and /readyz; 0 = any free one."""
    kubeconfig: str | None = None
    """A file; empty = the pod's ServiceAccount."""
    log_format: Annotated[str, Field(pattern="^(text|json)$")] = "text"
    """`json` for machines."""
    log_level: Annotated[str, Field(pattern="^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"
    """How much is said."""


class ReaderSettings(BaseSettings):
    """What the PodResources reader is told."""

    model_config = SettingsConfigDict(
        env_prefix="COTENANT_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    podresources_socket: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    podresources_file: Path = Path("/run/cotenant/podresources.json")
    interval: Seconds = 2.0
    log_format: Annotated[str, Field(pattern="^(text|json)$")] = "text"
    log_level: Annotated[str, Field(pattern="^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"


def load(kind: type[S], **given: Any) -> S:
    """The settings; SettingsError names the variable that is missing or wrong."""
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        name = f"COTENANT_{'_'.join(str(part) for part in first['loc']).upper()}"
        missing = first["type"] == "missing"
        raise SettingsError(
            f"{name} must be set" if missing else f"{name}={first['input']!r}: {first['msg']}"
        ) from error
