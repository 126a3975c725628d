"""The verbs of an API server: plain dicts in and out, as their YAML would say them. How they travel is kube.py's."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

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
REQUEST_SECONDS = 30.0

Manifests = list[Manifest]


class Verbs(ABC):
    """What can be asked of an API server. Every method raises ClusterError with a sentence when it cannot do what it says."""

    def __init__(self) -> None:
        self._plurals = dict(PLURALS)

    @abstractmethod
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
    ) -> bytes:
        """One request, tried again while that makes sense; the body of its answer."""

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
        body = await self._request("GET", f"{path}/log", doing, query, kind="Pod/log", attempts=1, seconds=10)
        if len(body) > limit_bytes:
            body = body[-limit_bytes:].partition(b"\n")[2]  # of a line without its beginning nobody knows what it is
        return body.decode("utf-8", "replace")

    # ------------------------------------------------------------------------------------------------------ writing
    async def create(
        self, manifest: Manifest, field_manager: str = FIELD_MANAGER, *, dry_run: bool = False
    ) -> Manifest:
        """Make one object, or ask whether it could be made; AlreadyExists where the name is taken."""
        kind, namespace, name = _identity(manifest)
        path = await self._path(manifest["apiVersion"], kind, namespace)
        query = {"fieldManager": field_manager} | ({"dryRun": "All"} if dry_run else {})
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

    # -------------------------------------------------------------------------------------------------------- paths
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
        data = await self._request(method, path, doing, query, body, kind=kind, media=media)
        try:
            answer = json.loads(data)
        except ValueError as e:
            raise ClusterError(f"{doing}: the API server's answer is not JSON") from e
        if not isinstance(answer, dict):
            raise ClusterError(f"{doing}: the API server's answer is not an object")
        return answer


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"


def _identity(manifest: Manifest) -> tuple[str, str | None, str]:
    """(kind, namespace, name)."""
    metadata = manifest["metadata"]
    return manifest["kind"], metadata.get("namespace"), metadata.get("name") or metadata.get("generateName", "")


def _say(kind: str, namespace: str | None, name: str) -> str:
    return f"{kind} {namespace}/{name}" if namespace else f"{kind} {name}"
