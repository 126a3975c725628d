"""A thin synchronous client of the API server for tests: objects are dicts, connections are kept.

Not the product's client on purpose: what checks `cotenant.kube` should not be `cotenant.kube`.
"""

import base64
import json
import os
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import urllib3
import yaml

Object = dict[str, Any]
Objects = list[Object]

MANAGER = "cotenant-tests"
"""The field manager of what tests apply."""

PATIENCE = 15.0
"""Seconds to wait for the server to be ready: a CRD just installed says 404, then 429, for a second or two."""

CONNECTIONS = 32


class ApiError(Exception):
    """The API server said no; `status` is the HTTP status, `reason` Kubernetes' word for it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class _Resource:
    """Where the objects of one kind live."""

    prefix: str
    plural: str
    namespaced: bool

    def path(self, namespace: str | None = None, name: str = "", subresource: str = "") -> str:
        parts = [self.prefix]
        if self.namespaced and namespace:
            parts += ["namespaces", namespace]
        return "/".join(part for part in (*parts, self.plural, name, subresource) if part)


class Api:
    """Reads and writes objects as one user, given by a kubeconfig."""

    def __init__(self, kubeconfig: Path, *, timeout: float = 90.0) -> None:
        """`timeout`: seconds without a byte after which a request is given up."""
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._url = cluster["server"]
        context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
        if "client-key-data" in user:
            _log_in(context, user)
        self._headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        self._pool = urllib3.PoolManager(maxsize=CONNECTIONS, block=True, ssl_context=context, retries=False)
        self._timeout = urllib3.Timeout(timeout)
        self._resources: dict[tuple[str, str], _Resource] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.clear()

    def get(self, api_version: str, kind: str, name: str, namespace: str = "default") -> Object:
        """One object; ApiError with status 404 where there is none."""
        return self.request("GET", self._resource(api_version, kind).path(namespace, name))

    def find(self, api_version: str, kind: str, name: str, namespace: str = "default") -> Object | None:
        """One object, or None."""
        try:
            return self.get(api_version, kind, name, namespace)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(self, api_version: str, kind: str, namespace: str | None = None, *, labels: str = "") -> Objects:
        """All objects of a kind, of all namespaces unless one is named."""
        query = {"labelSelector": labels} if labels else {}
        items = self.request("GET", self._resource(api_version, kind).path(namespace), query=query)["items"]
        return [{"apiVersion": api_version, "kind": kind, **item} for item in items]

    def create(self, item: Object) -> Object:
        resource, namespace, _ = self._place(item)
        return self.request("POST", resource.path(namespace), item)

    def apply(self, item: Object, *, manager: str = MANAGER, force: bool = True, subresource: str = "") -> Object:
        """Server-side apply; the object as the server has it then."""
        resource, namespace, name = self._place(item)
        query = {"fieldManager": manager, "force": str(force).lower()}
        path = resource.path(namespace, name, subresource)
        return self.request("PATCH", path, item, query=query, content_type="application/apply-patch+yaml")

    def apply_all(self, items: Iterable[Object], *, workers: int = 16) -> Objects:
        """Apply many objects, `workers` at a time, in no order."""
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(self.apply, items))

    def patch(
        self, api_version: str, kind: str, name: str, change: Object, namespace: str = "default", subresource: str = ""
    ) -> Object:
        """Merge `change` into an object (null removes, lists are replaced whole)."""
        path = self._resource(api_version, kind).path(namespace, name, subresource)
        return self.request("PATCH", path, change, content_type="application/merge-patch+json")

    def patch_status(
        self, api_version: str, kind: str, name: str, status: Object, namespace: str = "default"
    ) -> Object:
        """Merge `status` into an object's status."""
        return self.patch(api_version, kind, name, {"status": status}, namespace, "status")

    def delete(
        self, api_version: str, kind: str, name: str, namespace: str = "default", *, grace: int | None = None
    ) -> None:
        """Delete an object; nothing if there is none. `grace` 0 removes a pod at once."""
        options = {} if grace is None else {"gracePeriodSeconds": grace}
        try:
            self.request("DELETE", self._resource(api_version, kind).path(namespace, name), options)
        except ApiError as error:
            if error.status != 404:
                raise

    def watch(
        self,
        api_version: str,
        kind: str,
        namespace: str | None = None,
        *,
        seconds: int = 60,
        resource_version: str = "",
        labels: str = "",
    ) -> Iterator[tuple[str, Object]]:
        """(ADDED | MODIFIED | DELETED | ERROR, object) for `seconds`; without a version, first all there is."""
        query = {"watch": "true", "timeoutSeconds": str(seconds), "resourceVersion": resource_version}
        query |= {"labelSelector": labels} if labels else {}
        path = self._resource(api_version, kind).path(namespace)
        response = self._send("GET", path, None, query, "application/json", stream=True)
        try:
            pending = b""
            for chunk in response.stream(65536, decode_content=True):
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    event = json.loads(line)
                    yield event["type"], event["object"]
        finally:
            response.release_conn() if response.closed else response.close()

    def wait(
        self,
        api_version: str,
        kind: str,
        name: str,
        until: Callable[[Object | None], bool],
        namespace: str = "default",
        *,
        seconds: float = 30,
    ) -> Object | None:
        """The object (or None) as soon as `until` says yes to it; else TimeoutError, with its status."""
        deadline = time.monotonic() + seconds
        while True:
            item = self.find(api_version, kind, name, namespace)
            if until(item):
                return item
            if time.monotonic() > deadline:
                state = json.dumps(item.get("status", {}), indent=1) if item else "it does not exist"
                raise TimeoutError(f"{kind} {namespace}/{name} after {seconds:g} s: {state}")
            time.sleep(0.1)

    def install_crds(self, crds: Iterable[Object]) -> None:
        """Apply CustomResourceDefinitions and wait until their objects can be listed."""
        for crd in crds:
            self.apply(crd)
            spec = crd["spec"]
            for version in (version["name"] for version in spec["versions"] if version["served"]):
                self.list(f"{spec['group']}/{version}", spec["names"]["kind"])

    def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """One request, e.g. `request("GET", "/readyz")`; an answer that is no JSON comes as {"text": ...}."""
        response = self._send(method, path, body, query or {}, content_type)
        if not response.headers.get("Content-Type", "").startswith("application/json"):
            return {"text": response.data.decode(errors="replace")}
        answer: Object = json.loads(response.data)
        return answer

    def _send(
        self,
        method: str,
        path: str,
        body: Object | None,
        query: dict[str, str],
        content_type: str,
        stream: bool = False,
    ) -> Any:
        url = f"{self._url}/{path.lstrip('/')}" + (f"?{urlencode(query)}" if query else "")
        headers = {**self._headers, "Content-Type": content_type}
        data = None if body is None else json.dumps(body).encode()
        timeout = urllib3.Timeout(connect=10) if stream else self._timeout  # a watch may be silent for long
        deadline = time.monotonic() + PATIENCE
        while True:
            response = self._pool.request(
                method, url, body=data, headers=headers, preload_content=not stream, timeout=timeout
            )
            if response.status < 400:
                return response
            error = _error(response.status, response.data)
            if response.status != 429 or time.monotonic() > deadline:
                raise error
            time.sleep(float(response.headers.get("Retry-After", "1")))

    def _place(self, item: Object) -> tuple[_Resource, str, str]:
        metadata = item["metadata"]
        resource = self._resource(item["apiVersion"], item["kind"])
        return resource, metadata.get("namespace") or "default", metadata.get("name", "")

    def _resource(self, api_version: str, kind: str) -> _Resource:
        """Where a kind lives, by discovery; a kind unknown so far is given time to appear."""
        deadline = time.monotonic() + PATIENCE
        while (api_version, kind) not in self._resources:
            self._discover(api_version)
            if (api_version, kind) not in self._resources:
                if time.monotonic() > deadline:
                    raise ApiError(404, "NotFound", f"the API server serves no {kind} in {api_version}")
                time.sleep(0.2)
        return self._resources[api_version, kind]

    def _discover(self, api_version: str) -> None:
        prefix = f"apis/{api_version}" if "/" in api_version else f"api/{api_version}"
        try:
            resources = self.request("GET", prefix)["resources"]
        except ApiError as error:
            if error.status == 404:
                return
            raise
        for resource in resources:
            if "/" not in resource["name"]:
                found = _Resource(prefix, resource["name"], resource["namespaced"])
                self._resources[api_version, resource["kind"]] = found


def _log_in(context: ssl.SSLContext, user: dict[str, str]) -> None:
    # OpenSSL reads client certificates from files only.
    handle, path = tempfile.mkstemp()
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(base64.b64decode(user["client-certificate-data"]))
            file.write(base64.b64decode(user["client-key-data"]))
        context.load_cert_chain(path)
    finally:
        os.unlink(path)


def _error(status: int, data: bytes) -> ApiError:
    try:
        answer = json.loads(data)
        return ApiError(status, answer.get("reason", ""), answer.get("message", ""))
    except (ValueError, AttributeError):
        return ApiError(status, "", data.decode(errors="replace").strip())
