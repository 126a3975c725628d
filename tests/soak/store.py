"""An API server's memory: objects with versions and uids, and the news of every change in order."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

Body = dict[str, Any]
Key = tuple[str, str]


def stamp(seconds: float) -> str:
    """A moment as Kubernetes writes it."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class ExistsError(Exception):
    """409: that name is taken."""


class GoneError(Exception):
    """404, or another uid than the precondition's."""


class Store:
    """Bodies are never changed in place: a reader keeps what it read."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[Key, Body]] = {}
        self.news: list[tuple[str, bool, Body]] = []
        """(source, deleted, body), oldest first."""
        self._version = 0
        self._uid = 0

    def all(self, source: str) -> list[Body]:
        """Every object of a kind, by name."""
        return [body for _, body in sorted(self.objects.get(source, {}).items())]

    def get(self, source: str, key: Key) -> Body | None:
        """One object."""
        return self.objects.get(source, {}).get(key)

    def create(self, source: str, manifest: Body, now: float) -> Body:
        """A new object; ExistsError where the name is taken."""
        meta = manifest["metadata"]
        key = (meta.get("namespace") or "", meta["name"])
        if key in self.objects.setdefault(source, {}):
            raise ExistsError(key)
        self._uid += 1
        fresh = {"uid": f"u{self._uid}", "creationTimestamp": stamp(now), "generation": 1}
        return self.put(source, {**manifest, "metadata": {**meta, **fresh}})

    def put(self, source: str, body: Body) -> Body:
        """The object as it is from now on."""
        self._version += 1
        meta = {**body["metadata"], "resourceVersion": str(self._version)}
        new = {**body, "metadata": meta}
        self.objects.setdefault(source, {})[(meta.get("namespace") or "", meta["name"])] = new
        self.news.append((source, False, new))
        return new

    def change(self, source: str, body: Body, **fields: Any) -> Body:
        """The same object with other top-level fields; nothing happens where nothing changes."""
        if all(body.get(name) == value for name, value in fields.items()):
            return body
        return self.put(source, {**body, **fields})

    def drop(self, source: str, key: Key) -> None:
        """The object is no more."""
        body = self.objects.get(source, {}).pop(key, None)
        if body is not None:
            self._version += 1
            last = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self._version)}}
            self.news.append((source, True, last))

    @property
    def version(self) -> str:
        """What a list made now says."""
        return str(self._version)
