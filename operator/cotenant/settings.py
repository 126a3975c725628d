"""The operator's settings: environment variables `COTENANT_*` -> frozen settings, the core's Policy among them."""

from __future__ import annotations

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from cotenant.core.share import SCALE, parse_cpu, parse_percent, parse_quantity
from cotenant.core.snapshot import EngineImage, Policy
from cotenant.errors import SettingsError

PREFIX = "COTENANT_"

DEFAULT_ENGINES = (EngineImage("vllm", "docker.io/vllm/vllm-openai:v0.26.0", "0.26.0"),)


def _headroom(text: Any) -> Any:
    """Ten-thousandths; 0 % is allowed here."""
    if not isinstance(text, str):
        return text
    return 0 if text in ("0", "0%") else parse_percent(text)


def _names(text: Any) -> Any:
    """`a,b` as ("a", "b")."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if isinstance(text, str) else text


def _label(text: Any) -> Any:
    """`key=value` as a pair; `*` selects every node."""
    if not isinstance(text, str):
        return text
    key, separator, value = text.partition("=")
    if text == "*":
        return "", ""
    if not (key and separator and value):
        raise ValueError(f'"{text}" is not a label such as "cotenant.dev/managed=true"; "*" takes every node')
    return key, value


def _whole(low: int, parse: Any) -> Any:
    def check(text: Any) -> Any:
        value = parse(text) if isinstance(text, str) else text
        if value < low:
            raise ValueError(f'"{text}" is too small')
        return value

    return BeforeValidator(check)


def _below_all(value: int) -> int:
    if value >= SCALE:
        raise ValueError("100% leaves nothing to place")
    return value


class EngineSetting(BaseModel):
    """An entry of the engine catalogue."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    image: str = Field(min_length=1)
    version: str = Field(pattern=r"^v?[0-9]+\.[0-9]+.*$")


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]


class Settings(BaseSettings):
    """What an administrator may set. Every field is the environment variable COTENANT_<NAME>."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True, use_attribute_docstrings=True
    )

    kubeconfig: str | None = None
    """A file; empty = the ServiceAccount of the pod this runs in."""
    context: str | None = None
    """A context of that file; empty = its current one."""
    namespace: str = "cotenant-system"
    """Where the operator itself, its Lease, holders and preflights live."""
    agent_namespace: str = "cotenant-agent"
    """Where the agents and the Leases of their heartbeats live; the agents are told the same."""
    watch_namespaces: Names = ()
    """Namespaces whose ModelPlacements are served, with commas; empty = all."""
    managed_label: Annotated[tuple[str, str], NoDecode, BeforeValidator(_label)] = ("cotenant.dev/managed", "true")
    """Nodes with this label are Cotenant's to use; `*` = all with a GPU."""

    headroom: Annotated[int, BeforeValidator(_headroom), AfterValidator(_below_all)] = 500
    """Of each GPU, promised to nobody, where a placement does not say."""
    overrun: Annotated[int, _whole(0, parse_quantity)] = Policy().overrun
    """What an engine is expected to use beyond its share, per GPU, until measured, of a model whose config is not known."""
    engines: Annotated[tuple[EngineSetting, ...], NoDecode, BeforeValidator(lambda v: _engines(v))] = ()
    """A file (JSON or YAML) or the JSON itself: a list of {name, image, version}."""
    max_tenants_per_gpu: Annotated[int, Field(ge=1, le=64)] = 16
    """Engines on one GPU at most."""
    max_moves: Annotated[int, Field(ge=0, le=64)] = 8
    """Running replicas of lower priority that one plan may move or displace to make room; 0 = none."""
    node_grace: Annotated[float, Field(ge=0)] = 60.0
    """Seconds a node may be NotReady before its replicas are planned elsewhere."""
    start_timeout: Annotated[float, Field(ge=10)] = 1800.0
    """Seconds a start may take before it counts as failed."""
    default_cpu: Annotated[int, _whole(1, parse_cpu)] = 1000
    """What a replica asks of its node where its model does not say."""
    default_memory: Annotated[int, _whole(1, parse_quantity)] = Policy().default_memory
    """The same of the node's memory."""
    binding: Literal["Pinned"] = "Pinned"
    """How pods are bound to GPUs; there is one way yet."""
    injection: Literal["auto", "cdi-device-plugin", "cdi-jit", "env", "nri", "volume-mounts"] = "cdi-device-plugin"
    """How a pod is given its GPUs (install.md)."""
    runtime_class: str = "nvidia"
    """NVIDIA's runtime."""
    reserve: bool = True
    """Hold every GPU with a pod before using it; false only on nodes nobody else uses."""
    hub_offline: bool = False
    """True: models' configs come from the catalogue alone, nobody asks a hub."""
    holder_idle: Annotated[float, Field(ge=0)] = 300.0
    """Seconds a held GPU may be empty before it is given back."""
    holder_image: str = Policy().holder_image
    """Of the pods that hold GPUs; it only has to sleep."""
    holder_priority_class: str = ""
    """Of the pods that hold GPUs; empty = none."""
    preflight: bool = True
    """Prove on every node that a pod sees exactly the GPU it was given before an engine lands there."""
    preflight_image: str = ""
    """An image with the program `cotenant`."""
    service_account: str = ""
    """Of holders and preflights, in the operator's namespace: it needs no rights, it may bring pull secrets."""

    debounce: Annotated[float, Field(ge=0, le=5)] = 0.1
    """Seconds from the first ring to the pass: what comes in between is decided at once."""
    resync: Annotated[float, Field(ge=5)] = 300.0
    """Seconds between full lists and passes when nothing rings."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 16
    """Requests under way at a time; more gained nothing against one API server (225 applies/s at 16)."""
    leader_election: bool = True
    """Work only while holding the Lease; false only where there is one controller for certain."""
    lease_name: str = "cotenant-controller"
    """The Lease by which one controller works."""
    lease_seconds: Annotated[float, Field(ge=3)] = 15.0
    """How long the Lease holds without being renewed."""
    identity: str = Field(default_factory=lambda: f"{os.uname().nodename}_{os.getpid()}")
    """Who holds the Lease; by default the host's name and the process's number."""
    host: str = "0.0.0.0"
    """Where the two ports below listen."""
    health_port: Annotated[int, Field(ge=0, le=65535)] = 8081
    """/healthz and /readyz; 0 = any free port, which the log names."""
    metrics_port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """/metrics; 0 = any free port; the same number as health_port = one server for both."""
    log_format: Literal["text", "json"] = "text"
    """`json` for machines."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """How much is said."""

    @property
    def policy(self) -> Policy:
        """What of this a decision depends on."""
        same: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(Policy) if f.name != "engines"}
        catalogue = tuple(EngineImage(e.name, e.image, e.version) for e in self.engines)
        return Policy(**same, engines=catalogue or DEFAULT_ENGINES)


def _engines(value: Any) -> Any:
    """The catalogue: JSON text or the path of a file."""
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value) if value.lstrip().startswith(("[", "{")) else yaml.safe_load(Path(value).read_text())
    except OSError as e:
        raise ValueError(f"the file {value} cannot be read ({e.strerror})") from e
    except (ValueError, yaml.YAMLError) as e:
        raise ValueError(f"neither JSON nor YAML: {e}") from e
    if isinstance(found, dict) and "engines" in found:
        found = found["engines"]
    if not isinstance(found, list):
        raise ValueError('not a list; write [{"name": "vllm", "image": "...", "version": "0.26.0"}]')
    names = [entry.get("name") for entry in found if isinstance(entry, dict)]
    if len(set(names)) != len(names):
        raise ValueError("two engines have the same name")
    return tuple(found)


def load(**overrides: Any) -> Settings:
    """The settings of this process. SettingsError names the variable and says what to write."""
    try:
        settings = Settings(**overrides)
    except ValidationError as e:
        problems = []
        for error in e.errors():
            where = [str(part) for part in error["loc"]]
            path = PREFIX + where[0].upper() + "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in where[1:])
            message = error["msg"].removeprefix("Value error, ")
            got = error.get("input")
            shown = "" if isinstance(got, (dict, list, tuple)) or str(got) in message else f' (it is "{got}")'
            problems.append(f"{path}: {message}{shown}")
        raise SettingsError("; ".join(problems)) from e
    unknown = sorted(
        name
        for name in os.environ
        if name.startswith(PREFIX) and name[len(PREFIX) :].lower() not in Settings.model_fields
    )
    foreign = [name for name in unknown if name not in OTHERS]
    if foreign:
        known = ", ".join(PREFIX + name.upper() for name in Settings.model_fields)
        raise SettingsError(f"{foreign[0]}: no such setting; there are {known}")
    return settings


OTHERS = frozenset({"COTENANT_CACHE"})
"""Variables of ours that other programs read: where tests and demos keep what they built."""
