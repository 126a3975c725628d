"""A bare asynchronous client of the API server: JSON over aiohttp, one session, watches that begin again by themselves.

Bare because it shares two cores with the API server that is being measured.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import ssl
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml

Object = dict[str, Any]


class ApiError(Exception):
    """The API server said no."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"{status}: {text}")
        self.status = status


class Client:
    """As one user, given by a kubeconfig (inline data or files; certificate or token)."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._url = cluster["server"].rstrip("/")
        self._tls = ssl.create_default_context(cadata=_data(cluster, "certificate-authority"))
        if certificate := _data(user, "client-certificate"):
            handle, path = tempfile.mkstemp()  # OpenSSL reads client certificates from files only
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(certificate + "\n" + _data(user, "client-key"))
                self._tls.load_cert_chain(path)
            finally:
                os.unlink(path)
        self._headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=64), headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10), read_bufsize=1 << 20,
        )  # fmt: skip
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session:
            await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        content_type: str = "application/json",
        **query: str,
    ) -> Object:
        """One request; ApiError for an answer of 400 and more. 429 is waited out."""
        assert self._session
        data = None if body is None else json.dumps(body)
        while True:
            async with self._session.request(
                method, self._url + path, data=data, params=query, headers={"Content-Type": content_type}
            ) as response:
                if response.status == 429:
                    await asyncio.sleep(float(response.headers.get("Retry-After", "1")))
                    continue
                text = await response.text()
                if response.status >= 400:
                    raise ApiError(response.status, text[:500])
                answer: Object = json.loads(text)
                return answer

    async def watch(self, path: str, *, selector: str = "") -> AsyncIterator[tuple[str, Object]]:
        """(ADDED, MODIFIED, DELETED or SYNCED, object) for ever. Objects that vanished while it was away come as DELETED."""
        query: dict[str, str] = {"labelSelector": selector} if selector else {}
        known: dict[str, Object] = {}
        while True:
            try:
                listed = await self.request("GET", path, None, **query)
                seen = {item["metadata"]["uid"]: item for item in listed["items"]}
                for uid in [uid for uid in known if uid not in seen]:
                    yield "DELETED", known.pop(uid)
                for uid, item in seen.items():
                    yield "MODIFIED" if uid in known else "ADDED", item
                    known[uid] = {"metadata": item["metadata"]}
                yield "SYNCED", {}
                version = listed["metadata"]["resourceVersion"]
                async for kind, item in self._stream(path, version, query):
                    uid = item["metadata"]["uid"]
                    known[uid] = {"metadata": item["metadata"]}
                    if kind == "DELETED":
                        known.pop(uid)
                    yield kind, item
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError):
                await asyncio.sleep(0.5)

    async def _stream(self, path: str, version: str, query: dict[str, str]) -> AsyncIterator[tuple[str, Object]]:
        assert self._session
        while True:
            parameters = {
                **query,
                "watch": "true",
                "resourceVersion": version,
                "allowWatchBookmarks": "true",
                "timeoutSeconds": "300",
            }
            async with self._session.get(self._url + path, params=parameters) as response:
                if response.status >= 400:
                    raise ApiError(response.status, await response.text())
                pending = bytearray()
                async for chunk in response.content.iter_any():
                    pending += chunk
                    *lines, rest = bytes(pending).split(b"\n")
                    pending = bytearray(rest)
                    for line in lines:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            return
                        version = event["object"]["metadata"]["resourceVersion"]
                        if event["type"] != "BOOKMARK":
                            yield event["type"], event["object"]

    async def exists(self, path: str) -> Object | None:
        """The object, or None."""
        try:
            return await self.request("GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise


def _data(section: Object, name: str) -> str:
    if inline := section.get(f"{name}-data"):
        return base64.b64decode(inline).decode()
    return Path(section[name]).read_text() if name in section else ""
