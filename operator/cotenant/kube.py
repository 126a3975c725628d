"""What Cotenant asks of the API server: plain dicts over `kubernetes.aio`. The only importer of `kubernetes`.

Objects go in and come out as their YAML would say them. The typed models are strict, slow and drop unknown fields
(3.6 s and 367 MiB to list 5,000 pods against 0.5 s and 167 MiB for dicts), so they are not used.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote, urlencode

import aiohttp
import yaml
from kubernetes.aio import config as kube_config
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject

from cotenant import answers
from cotenant.core.names import FIELD_MANAGER
from cotenant.core.snapshot import Manifest
from cotenant.errors import ClusterError, NotFound

PLURALS = {
    ("v1", "Pod"): "pods",
    ("v1", "Node"): "nodes",
    ("v1", "Service"): "services",
    ("v1", "Namespace"): "namespaces",
    ("v1", "ConfigMap"): "configmaps",
    ("v1", "ServiceAccount"): "serviceaccounts",
    ("events.k8s.io/v1", "Event"): "events",
    ("coordination.k8s.io/v1", "Lease"): "leases",
    ("apiextensions.k8s.io/v1", "CustomResourceDefinition"): "customresourcedefinitions",
    ("cotenant.dev/v1alpha1", "ModelPlacement"): "modelplacements",
    ("cotenant.dev/v1alpha1", "GPUNode"): "gpunodes",
}
"""How the paths we use most are spelt; others are asked of the API server once."""

PAGE = 500
ATTEMPTS = 6
LONGEST_WAIT = 20.0
REQUEST_SECONDS = 30.0

Manifests = list[Manifest]
OnRequest = Callable[[str, str, int, float], None]
"""Called after each attempt with (verb, kind, HTTP status or 0, seconds): for metrics."""


@dataclass(frozen=True, slots=True)
class Connection:
    """Where the API server is and how to prove who asks, for other clients (kopf)."""

    server: str
    ca_path: str | None
    insecure: bool
    scheme: str | None
    token: str | None
    certificate_path: str | None
    private_key_path: str | None
    proxy: str | None


def find_kubeconfig(explicit: str | None = None) -> str | None:
    """The kubeconfig a person at a terminal means: the one named, $KUBECONFIG, or ~/.kube/config; None = in-cluster.

    Only command-line views call this. The controller and the agent use exactly what they are given.
    """
    if explicit:
        return explicit
    if os.environ.get("KUBECONFIG"):
        return os.environ["KUBECONFIG"]
    default = os.path.expanduser("~/.kube/config")
    return default if os.path.exists(default) and "KUBERNETES_SERVICE_HOST" not in os.environ else None


async def _load(kubeconfig: str | None, context: str | None) -> Configuration:
    """The client's configuration from a kubeconfig, or from the pod's ServiceAccount where none is named."""
    configuration = Configuration()
    try:
        if kubeconfig is None:
            kube_config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            await kube_config.load_kube_config(  # type: ignore[no-untyped-call]
                kubeconfig, context, configuration, persist_config=False
            )
    except (kube_config.ConfigException, OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as e:
        if kubeconfig is None:
            raise ClusterError(
                f"no kubeconfig was named and this is not a pod with a ServiceAccount ({e}); "
                "name one with --kubeconfig or COTENANT_KUBECONFIG"
            ) from e
        raise ClusterError(f"reading the kubeconfig {kubeconfig}: {' '.join(str(e).split())}") from e
    configuration.connection_pool_maxsize = 64
    return configuration


class Kube:
    """A connection to one API server. Every method raises ClusterError with a sentence when it cannot do what it says.

    Transient trouble (429, 5xx, a lost connection) is retried with back-off before that.
    """

    def __init__(self, configuration: Configuration, kubeconfig: str | None, context: str | None) -> None:
        self._configuration = configuration
        self._source = (kubeconfig, context)
        self._rest = RESTClientObject(configuration)
        self._plurals = dict(PLURALS)
        self._timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS, connect=10)
        self.on_request: OnRequest | None = None

    @classmethod
    async def connect(cls, kubeconfig: str | None = None, context: str | None = None) -> Self:
        """A client for the cluster a kubeconfig names; without one, for the cluster this pod runs in."""
        return cls(await _load(kubeconfig, context), kubeconfig, context)

    async def close(self) -> None:
        """Close the connections."""
        await self._rest.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def server(self) -> str:
        """The API server's address."""
        return str(self._configuration.host)

    async def connection(self) -> Connection:
        """What another client needs to reach the same API server as the same user, read anew."""
        await self._reload()
        scheme, _, token = (await self._authorization() or "").partition(" ")
        return Connection(
            server=self.server,
            ca_path=self._configuration.ssl_ca_cert,
            insecure=not self._configuration.verify_ssl,
            scheme=scheme.capitalize() or None,
            token=token.strip() or None,
            certificate_path=self._configuration.cert_file,
            private_key_path=self._configuration.key_file,
            proxy=self._configuration.proxy,
        )

    # ------------------------------------------------------------------------------------------------------ reading
    async def version(self) -> dict[str, Any]:
        """What /version says."""
        return await self._json("GET", "/version", "asking the API server's version", kind="Version")

    async def get(self, api_version: str, kind: str, name: str, namespace: str | None = None) -> Manifest:
        """One object; NotFound where there is none."""
        path = await self._path(api_version, kind, namespace, name)
        return await self._json("GET", path, f"reading {_say(kind, namespace, name)}", kind=kind)

    async def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> Manifests:
        """Every object of a kind that is selected, in one namespace or in all."""
        found: Manifests = []
        async for items, _ in self.pages(api_version, kind, namespace, label_selector, field_selector):
            found += items
        return found

    async def pages(
        self,
        api_version: str,
        kind: str,
        namespace: str | None = None,
        label_selector: str | None = None,
        field_selector: str | None = None,
    ) -> AsyncIterator[tuple[Manifests, str]]:
        """The same, page by page, each with the resourceVersion the list as a whole stands at."""
        path = await self._path(api_version, kind, namespace)
        query = {"limit": str(PAGE)}
        if label_selector:
            query["labelSelector"] = label_selector
        if field_selector:
            query["fieldSelector"] = field_selector
        while True:
            try:
                page = await self._json("GET", path, f"listing {self._plural(api_version, kind)}", query, kind=kind)
            except ClusterError as e:
                if e.status == 410 and "continue" in query:  # the list took too long: etcd has compacted its version
                    del query["continue"]
                    continue
                raise
            metadata = page.get("metadata") or {}
            items = page.get("items") or []
            for item in items:
                item["apiVersion"], item["kind"] = api_version, kind  # left out of what a built-in list holds
            yield items, metadata.get("resourceVersion", "")
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]

    async def pod_log(
        self, namespace: str, name: str, tail_lines: int = 400, limit_bytes: int = 65536, container: str | None = None
    ) -> str:
        """The end of a pod's log: at most so many lines and so many bytes. One attempt; the caller tries again.

        The API's own limitBytes cuts the end off, where an engine says why it died: more is asked for and cut here.
        """
        path = await self._path("v1", "Pod", namespace, name)
        query = {"tailLines": str(tail_lines), "limitBytes": str(limit_bytes * 8)}
        if container:
            query["container"] = container
        doing = f"reading the log of pod {namespace}/{name}"
        _, body = await self._request("GET", f"{path}/log", doing, query, kind="Pod/log", attempts=1, seconds=10)
        return body[-limit_bytes:].decode("utf-8", "replace")

    # ------------------------------------------------------------------------------------------------------ writing
    async def create(self, manifest: Manifest, field_manager: str = FIELD_MANAGER) -> Manifest:
        """Make one object; AlreadyExists where the name is taken."""
        kind, namespace, name = _identity(manifest)
        path = await self._path(manifest["apiVersion"], kind, namespace)
        query = {"fieldManager": field_manager}
        return await self._json("POST", path, f"creating {_say(kind, namespace, name)}", query, manifest, kind=kind)

    async def replace(self, manifest: Manifest, field_manager: str = FIELD_MANAGER) -> Manifest:
        """Put one whole object; Conflict where its resourceVersion is not the current one."""
        kind, namespace, name = _identity(manifest)
        path = await self._path(manifest["apiVersion"], kind, namespace, name)
        query = {"fieldManager": field_manager}
        return await self._json("PUT", path, f"replacing {_say(kind, namespace, name)}", query, manifest, kind=kind)

    async def apply(self, manifest: Manifest, field_manager: str = FIELD_MANAGER, force: bool = True) -> Manifest:
        """Server-side apply: the fields in the manifest become ours and as written, others stay as they are."""
        return await self._apply(manifest, field_manager, force, "")

    async def apply_status(self, manifest: Manifest, field_manager: str, force: bool = True) -> Manifest:
        """Server-side apply of the manifest's `status`."""
        return await self._apply(manifest, field_manager, force, "/status")

    async def _apply(self, manifest: Manifest, field_manager: str, force: bool, subresource: str) -> Manifest:
        kind, namespace, name = _identity(manifest)
        path = await self._path(manifest["apiVersion"], kind, namespace, name) + subresource
        query = {"fieldManager": field_manager, "force": "true" if force else "false"}
        doing = f"applying {'the status of ' if subresource else ''}{_say(kind, namespace, name)}"
        media = "application/apply-patch+yaml"
        return await self._json("PATCH", path, doing, query, manifest, kind=kind + subresource, media=media)

    async def merge(
        self,
        api_version: str,
        kind: str,
        name: str,
        patch: Manifest,
        namespace: str | None = None,
        subresource: str = "",
    ) -> Manifest:
        """JSON merge patch: the keys in the patch take its values, null removes one."""
        path = await self._path(api_version, kind, namespace, name) + (f"/{subresource}" if subresource else "")
        doing = f"patching {_say(kind, namespace, name)}"
        media = "application/merge-patch+json"
        return await self._json("PATCH", path, doing, {"fieldManager": FIELD_MANAGER}, patch, kind=kind, media=media)

    async def delete(
        self,
        api_version: str,
        kind: str,
        name: str,
        namespace: str | None = None,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> Manifest:
        """Delete one object; where a uid is given only that very one, else Conflict. What the API server answered."""
        path = await self._path(api_version, kind, namespace, name)
        options: Manifest = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        return await self._json("DELETE", path, f"deleting {_say(kind, namespace, name)}", body=options, kind=kind)

    # ---------------------------------------------------------------------------------------------------- transport
    async def _path(self, api_version: str, kind: str, namespace: str | None = None, name: str | None = None) -> str:
        """The URL path of a collection or an object."""
        if (api_version, kind) not in self._plurals:
            await self._discover(api_version)
        parts = [_root(api_version)]
        if namespace and kind != "Namespace":
            parts.append(f"namespaces/{quote(namespace, safe='')}")
        parts.append(self._plural(api_version, kind))
        if name:
            parts.append(quote(name, safe=""))
        return "/".join(parts)

    def _plural(self, api_version: str, kind: str) -> str:
        plural = self._plurals.get((api_version, kind))
        if plural is None:
            raise NotFound(f"the API server knows no {kind} in {api_version}; are the CRDs installed?", 404)
        return plural

    async def _discover(self, api_version: str) -> None:
        found = await self._json("GET", _root(api_version), f"asking for the kinds in {api_version}", kind="Discovery")
        for resource in found.get("resources") or []:
            if "/" not in resource["name"]:
                self._plurals[(api_version, resource["kind"])] = resource["name"]

    async def _json(
        self,
        method: str,
        path: str,
        doing: str,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        *,
        kind: str,
        media: str = "application/json",
    ) -> dict[str, Any]:
        _, data = await self._request(method, path, doing, query, body, kind=kind, media=media)
        try:
            answer = json.loads(data)
        except ValueError as e:
            raise ClusterError(f"{doing}: the API server's answer is not JSON") from e
        if not isinstance(answer, dict):
            raise ClusterError(f"{doing}: the API server's answer is not an object")
        return answer

    async def _request(
        self,
        method: str,
        path: str,
        doing: str,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        *,
        kind: str,
        media: str = "application/json",
        attempts: int = ATTEMPTS,
        seconds: float = REQUEST_SECONDS,
    ) -> tuple[int, bytes]:
        """One request, tried again while that makes sense; its status and body."""
        url = f"{self.server}{path}?{urlencode(query)}" if query else f"{self.server}{path}"
        timeout = self._timeout if seconds == REQUEST_SECONDS else aiohttp.ClientTimeout(total=seconds, connect=5)
        attempt = 0
        while True:
            attempt += 1
            begun = time.monotonic()
            status, data, wait, cause = 0, b"", 0.0, None
            try:
                headers = {"Accept": "application/json", "Content-Type": media, "User-Agent": "cotenant"}
                if authorization := await self._authorization():
                    headers["Authorization"] = authorization
                response = await self._rest.request(  # type: ignore[no-untyped-call]
                    method, url, headers=headers, body=body, _request_timeout=timeout
                )
                data = await response.read()
                status, wait = response.status, answers.seconds(response.headers.get("Retry-After"))
            except (aiohttp.ClientError, TimeoutError, OSError) as e:
                cause = e
            finally:
                if self.on_request:
                    self.on_request(method, kind, status, time.monotonic() - begun)
            if 200 <= status < 300:
                return status, data
            problem = answers.problem(status, data, cause, doing, self.server)
            if status == 401 and attempt == 1:
                await self._reload()
                continue
            if attempt >= attempts or not answers.is_transient(status, data, method, body):
                raise problem from cause
            backoff = 0.1 * 2 ** (attempt - 1)
            await asyncio.sleep(min(LONGEST_WAIT, max(wait, backoff)) * random.uniform(0.8, 1.2))

    async def _authorization(self) -> str | None:
        """The Authorization header; a pod's token is read anew from its file as it rotates."""
        return await self._configuration.get_api_key_with_prefix("BearerToken")

    async def _reload(self) -> None:
        """Read the credentials again: a token file was rotated, or a credential plugin has a newer one."""
        fresh = await _load(*self._source)
        self._configuration.api_key = fresh.api_key
        self._configuration.refresh_api_key_hook = fresh.refresh_api_key_hook


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def _identity(manifest: Manifest) -> tuple[str, str | None, str]:
    """(kind, namespace, name)."""
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace"), metadata.get("name") or metadata.get("generateName", "")


def _say(kind: str, namespace: str | None, name: str) -> str:
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"
