"""The cluster as the command line sees it: one LIST per kind, read by the controller's own rules. Nothing is ever written."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from cotenant import sources as hub
from cotenant.cli import bylabels, snapshotfile
from cotenant.controller.cache import Cache
from cotenant.controller.heartbeats import agents_leases, silent_by_the_clock
from cotenant.controller.sources import NODES, Source, sources
from cotenant.controller.surroundings import survey
from cotenant.core.estimate.modelconfig import ModelConfig
from cotenant.core.labelled import PRODUCT
from cotenant.core.snapshot import Snapshot
from cotenant.errors import ClusterError, CotenantError, NotFound, Refused
from cotenant.kube import Kube, find_kubeconfig
from cotenant.settings import PREFIX, Settings, load

T = TypeVar("T")

RESOLUTION = (
    "The cluster is found as kubectl finds it: --kubeconfig, else $KUBECONFIG, else ~/.kube/config, else the "
    "ServiceAccount of the pod this runs in. Nothing is written to it."
)
CONTROLLER_LABELS = "app.kubernetes.io/part-of=cotenant,app.kubernetes.io/component=controller"
POLICY_SETTINGS = frozenset(
    {"namespace", "agent_namespace", "watch_namespaces", "managed_label", "headroom", "overrun", "max_tenants_per_gpu",
     "max_moves", "node_grace", "start_timeout", "default_cpu", "default_memory", "injection", "runtime_class", "reserve",
     "hub_offline", "holder_idle", "holder_image", "holder_priority_class", "preflight", "preflight_image",
     "service_account"}
)  # fmt: skip
"""Settings of the operator that a plan depends on."""


def add_arguments(parser: argparse.ArgumentParser, *, configs: bool = True) -> None:
    """Which cluster, or the file that is read in its place; `configs`: whether models' configs are wanted too."""
    parser.add_argument("--kubeconfig", metavar="FILE", help="the kubeconfig to use, in place of kubectl's own")
    parser.add_argument("--context", metavar="NAME", help="a context of it; default: its current one")
    parser.add_argument(
        "--snapshot", metavar="FILE", help="a file `cotenant snapshot` wrote, instead of a cluster; - = stdin"
    )
    if configs:
        parser.add_argument(
            "--offline",
            action="store_true",
            help="ask no hub for models' configs: its cache on disk, then the catalogue",
        )


@dataclass(frozen=True, slots=True)
class View:
    """What was seen, and what is doubtful about it."""

    snapshot: Snapshot
    notes: tuple[str, ...] = ()
    offline: bool = False
    """The operator asks no hub."""
    installed: bool = True
    """The cluster knows Cotenant's kinds."""


def look(
    options: argparse.Namespace,
    wish: Callable[[Snapshot], Snapshot] = lambda s: s,
    *,
    configs: bool,
    by_labels: bool = False,
) -> View:
    """The cluster, or the file named in its place, after `wish`; with the models' configs where a plan wants them.

    `by_labels`: nodes that no agent reports count with the GPUs their labels speak of, also where Cotenant is not installed.
    """
    if getattr(options, "snapshot", None):
        view = View(snapshotfile.load(options.snapshot))
    else:
        view = connected(options, partial(observe, bare=by_labels))
    if by_labels:
        completed, notes = bylabels.completed(view.snapshot, installed=view.installed)
        view = replace(view, snapshot=completed, notes=(*view.notes, *notes))
    view = replace(view, snapshot=wish(view.snapshot))
    return with_configs(view, offline=options.offline or view.offline) if configs else view


def connected(options: argparse.Namespace, work: Callable[[Kube], Awaitable[T]]) -> T:
    """What `work` comes to with a connection to the cluster that the options name."""

    kubeconfig = find_kubeconfig(options.kubeconfig)
    if kubeconfig is not None and not any(Path(name).is_file() for name in kubeconfig.split(os.pathsep)):
        raise ClusterError(f"there is no kubeconfig {kubeconfig}")
    if kubeconfig is None and "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise ClusterError(
            "no cluster: there is no ~/.kube/config and KUBECONFIG is not set; name one with --kubeconfig, "
            "or read a file with --snapshot"
        )

    for name in (kubeconfig or "").split(os.pathsep):
        _readable(name)
    current, contexts = _contexts(options)
    if contexts and current and current not in contexts:
        raise ClusterError(f"kubeconfig {kubeconfig} has no context {current}; it has {', '.join(sorted(contexts))}")

    async def run() -> T:
        async with await Kube.connect(kubeconfig, options.context) as kube:
            return await work(kube)

    try:
        return asyncio.run(run())
    except ClusterError as e:
        if e.status or type(e) is not ClusterError or kubeconfig is None or "no answer" not in str(e):
            raise
        raise ClusterError(f"{e}; kubeconfig {kubeconfig}, context {current or 'none'}") from e


def _readable(name: str) -> None:
    """A kubeconfig is a mapping, or it is said what it is."""
    if not name or not Path(name).is_file():
        return
    try:
        data = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        raise ClusterError(f"reading the kubeconfig {name}: it is not YAML: {' '.join(str(e).split())}") from e
    if not isinstance(data, dict):
        what = "it is empty" if data is None else "it holds no mapping with clusters, contexts and users"
        raise ClusterError(f"reading the kubeconfig {name}: {what}")


def namespace(options: argparse.Namespace) -> str:
    """Where objects are that name no namespace: -n, the context's, or `default`."""
    if getattr(options, "namespace", None):
        return str(options.namespace)
    if getattr(options, "snapshot", None):
        return "default"
    current, contexts = _contexts(options)
    return str(contexts.get(current, {}).get("namespace") or "default")


def _contexts(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The context that is used, and all there are, by name."""
    current = options.context or ""
    contexts: dict[str, Any] = {}
    for name in (find_kubeconfig(options.kubeconfig) or "").split(os.pathsep):
        try:
            config = yaml.safe_load(Path(name).read_text()) if name else {}
            current = current or config.get("current-context") or ""
            for entry in config.get("contexts") or ():
                contexts.setdefault(entry.get("name"), entry.get("context") or {})
        except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
            continue  # connecting says what is wrong with it
    return current, contexts


# ----------------------------------------------------------------------------------------------------------- observing
async def observe(kube: Kube, *, bare: bool = False) -> View:
    """Everything a pass of the controller would know, by its own rules; `bare`: also where Cotenant is not installed."""
    settings, notes = await _settings(kube)
    found = await survey(kube, settings.policy)
    cache = Cache(sources(found.policy), found.policy)
    cache.injection_version = found.version
    installed = True
    for source in sources(found.policy):
        try:
            await _list(kube, cache, source, settings)
        except NotFound as e:
            if not bare:
                raise ClusterError(
                    f"{kube.server} knows no {source.kind}: Cotenant is not installed there; install its chart, or apply crds/"
                ) from e
            installed = False
    if not installed:
        nodes = next(source for source in sources(found.policy) if source.name == NODES)
        await _list(kube, cache, replace(nodes, selector=PRODUCT), settings)
        notes.append(
            f"Cotenant is not installed on {kube.server}: the plan takes every node with labels for given to it"
        )
    now, silent = time.time(), frozenset[str]()
    try:
        silent = silent_by_the_clock(await agents_leases(kube, settings.agent_namespace), now)
    except Refused:
        notes.append(f"the agents' heartbeats in {settings.agent_namespace} are not yours to read: all count as alive")
    return View(replace(cache.snapshot(now), silent=silent), tuple(notes), settings.hub_offline, installed)


async def _list(kube: Kube, cache: Cache, source: Source, settings: Settings) -> None:
    watched = settings.watch_namespaces
    places = tuple(sorted({*watched, settings.namespace})) if watched and source.namespaced else (None,)
    try:
        for place in places:
            async for page, _ in kube.pages(source.api_version, source.kind, place, source.selector or None):
                for body in page:
                    cache.put(source.name, body)
    except Refused as e:
        raise ClusterError(f"{e}; a view needs to list nodes, gpunodes, pods, services and modelplacements") from e


async def _settings(kube: Kube) -> tuple[Settings, list[str]]:
    """The operator's settings, from its Deployment; COTENANT_* variables of this shell come first."""
    own = {name for name in Settings.model_fields if PREFIX + name.upper() in os.environ}
    try:
        found = await kube.list("apps/v1", "Deployment", label_selector=CONTROLLER_LABELS)
    except (Refused, NotFound):
        found = []
    if not found:
        why = "no controller is deployed here that you may read: the plan goes by default settings and COTENANT_* variables"
        return load(), [why]
    deployment = min(found, key=lambda d: (d["metadata"]["namespace"], d["metadata"]["name"]))
    told = _environment(deployment)
    wanted = {
        name: value
        for name in POLICY_SETTINGS - own
        if (value := told.get(PREFIX + name.upper())) is not None and value != ""
    }
    notes = []
    if "engines" not in own:
        engines = await _engines(kube, deployment, told.get(f"{PREFIX}ENGINES", ""))
        if engines:
            wanted["engines"] = engines
        else:
            notes.append("the operator's engine catalogue could not be read: images are those of the default catalogue")
    return load(**wanted), notes


def _environment(deployment: dict[str, Any]) -> dict[str, str]:
    containers = deployment["spec"]["template"]["spec"].get("containers") or [{}]
    container = next((c for c in containers if c.get("name") == "controller"), containers[0])
    return {entry["name"]: entry["value"] for entry in container.get("env") or () if "value" in entry}


async def _engines(kube: Kube, deployment: dict[str, Any], told: str) -> str | None:
    """The catalogue as text: written in the environment, or in the ConfigMap that is mounted where it points."""
    if not told or told.lstrip().startswith(("[", "{")):
        return told or None
    spec, space = deployment["spec"]["template"]["spec"], deployment["metadata"]["namespace"]
    maps = [volume["configMap"]["name"] for volume in spec.get("volumes") or () if "configMap" in volume]
    for name in maps:
        try:
            data = (await kube.get("v1", "ConfigMap", name, space)).get("data") or {}
        except (NotFound, Refused):
            continue
        text = data.get(Path(told).name)
        if text is not None:
            return _as_json(text)
    return None


def _as_json(text: str) -> str | None:
    try:
        return json.dumps(yaml.safe_load(text))
    except (yaml.YAMLError, TypeError):
        return None


# ------------------------------------------------------------------------------------------------------------- configs
def with_configs(view: View, *, offline: bool) -> View:
    """The same with the configs of all models that are not known yet, as the controller reads them: hub, cache, catalogue."""
    known = dict(view.snapshot.configs)
    wanted = sorted({model.uri for placement in view.snapshot.placements for model in placement.models} - known.keys())
    if not wanted:
        return view

    async def read() -> list[ModelConfig | str]:
        gate = asyncio.Semaphore(8)

        async def one(uri: str) -> ModelConfig | str:
            async with gate:
                return await asyncio.to_thread(_config, uri, offline)

        return list(await asyncio.gather(*(one(uri) for uri in wanted)))

    known |= dict(zip(wanted, asyncio.run(read()), strict=True))
    return replace(view, snapshot=replace(view.snapshot, configs=tuple(sorted(known.items()))))


def _config(uri: str, offline: bool) -> ModelConfig | str:
    try:
        return hub.model_config(uri, offline=offline)
    except CotenantError as error:
        return str(error)
