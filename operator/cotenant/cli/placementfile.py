"""ModelPlacements from files, checked as the API server would check them, and put into a snapshot as if applied."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cotenant.api import placement
from cotenant.api.check import problems, without_nulls
from cotenant.api.meta import NAME
from cotenant.cli.datafile import called, documents
from cotenant.core.names import API_VERSION
from cotenant.core.snapshot import Invalid, Placement, Snapshot
from cotenant.errors import CotenantError, InvalidSpec

Body = dict[str, Any]
SUFFIXES = (".yaml", ".yml", ".json")
KIND = "ModelPlacement"
_TEXTS: Body = {"type": "object", "additionalProperties": {"type": "string"}}
METADATA: Body = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 253},
        "namespace": {"type": "string", "maxLength": 63, "pattern": NAME},
        "labels": _TEXTS,
        "annotations": _TEXTS,
        "finalizers": {"type": "array", "items": {"type": "string"}},
        "ownerReferences": {"type": "array", "items": {"type": "object"}},
        "managedFields": {"type": "array", "items": {"type": "object"}},
        "generation": {"type": "integer"},
        **{name: {"type": "string"} for name in ("generateName", "uid", "resourceVersion", "selfLink")},
        **{name: {} for name in ("creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds")},
    },
}
"""The fields of every object's metadata."""
UNKNOWN_UID = "known-once-applied"
"""Begins the uid of a placement that does not exist yet."""


class PlacementFileError(CotenantError):
    """A file that holds no usable ModelPlacement; the text names the file and the field."""


@dataclass(frozen=True, slots=True)
class Wish:
    """One ModelPlacement of a file."""

    body: Body
    file: str


def read(names: Iterable[str], namespace: str) -> list[Wish]:
    """Every ModelPlacement in these files (- = stdin, a folder = its YAML and JSON files); `namespace` where none is written."""
    wishes = [wish for name in names for wish in _in(name, namespace)]
    seen: dict[tuple[str, str], str] = {}
    for wish in wishes:
        key = (wish.body["metadata"]["namespace"], wish.body["metadata"]["name"])
        if key in seen:
            raise PlacementFileError(f"{wish.file}: {'/'.join(key)} is in {seen[key]} already")
        seen[key] = wish.file
    return wishes


def _in(name: str, namespace: str) -> list[Wish]:
    path = Path(name)
    files = [name]
    if path.is_dir():
        files = [str(file) for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
    found, wrong, others = [], [], []
    for file in files:
        for body, where in _objects(file):
            if not _is_meant(body, where):
                others.append(_kind(body))
                continue
            try:
                found.append(Wish(_checked(body, where, namespace), file))
            except PlacementFileError as error:
                wrong.append(str(error))
            except RecursionError as error:
                raise PlacementFileError(f"{where}: it is nested too deeply") from error
    if wrong:
        raise PlacementFileError("\n".join(wrong))
    if not found:
        told = f"; it holds {', '.join(sorted(set(others)))}" if others else ""
        raise PlacementFileError(f"{called(name)}: there is no ModelPlacement in it{told}")
    return found


def _objects(name: str) -> list[tuple[object, str]]:
    """Everything in a file, and where it stands; what is in a List by itself."""
    try:
        read = documents(name)
    except InvalidSpec as e:
        raise PlacementFileError(f"{e.path} {e.reason}" if e.path == called(name) else str(e)) from e
    found: list[tuple[object, str]] = []
    for document in read:
        if isinstance(document, dict) and str(document.get("kind", "")).endswith("List"):
            items = document.get("items") or []
            if not isinstance(items, list):
                raise PlacementFileError(f"{called(name)}: items: must be a list, not {items!r}")
            found += [(item, f"{called(name)}: items[{at}]") for at, item in enumerate(items)]
        elif document is not None:
            found.append((document, called(name)))
    return found


def _is_meant(body: object, where: str) -> bool:
    """Whether it is a ModelPlacement; one with a misspelt kind is told."""
    kind = body.get("kind") if isinstance(body, dict) else None
    if kind == KIND:
        return True
    ours = isinstance(body, dict) and body.get("apiVersion") == API_VERSION
    if isinstance(kind, str) and (ours or get_close_matches(kind, [KIND], 1, 0.85)):
        hint = f"; did you mean {KIND}?" if get_close_matches(kind.lower(), [KIND.lower()], 1) else ""
        if hint:
            raise PlacementFileError(f"{where}: there is no kind {kind}{hint}")
    return False


def _kind(body: object) -> str:
    if not isinstance(body, dict):
        return "no object"
    return str(body.get("kind") or "an object without kind")


def _checked(body: Any, where: str, namespace: str) -> Body:
    if body.get("apiVersion") != API_VERSION:
        raise PlacementFileError(f"{where}: apiVersion must be {API_VERSION}, not {body.get('apiVersion')!r}")
    body = without_nulls(body)
    metadata = body.get("metadata") or {}
    wrong = _about_metadata(metadata)
    if wrong:
        raise PlacementFileError(_told(where, wrong))
    wrong = [*_unknown_tops(body), *placement.check(body)]
    if wrong:
        raise PlacementFileError(_told(f"{where}: {metadata['name']}", wrong))
    return {**body, "metadata": {**metadata, "namespace": metadata.get("namespace") or namespace}}


def _told(where: str, wrong: list[Invalid]) -> str:
    """A line each."""
    return "\n".join(f"{where}: {one.path}: {one.reason}" for one in wrong)


def _about_metadata(metadata: Any) -> list[Invalid]:
    """What the API server would refuse of it."""
    if not isinstance(metadata, dict):
        return [Invalid("metadata", f"must be a mapping of fields, not {metadata!r}")]
    if not metadata.get("name"):
        return [Invalid("metadata.name", "is required")]
    found = problems(metadata, METADATA, "metadata", {}, strict=True)
    for field in ("labels", "annotations"):
        pairs = metadata.get(field)
        if isinstance(pairs, dict):
            found += [
                Invalid(f"metadata.{field}", f"{key!r} must be text") for key in pairs if not isinstance(key, str)
            ]
    return found


def _unknown_tops(body: Body) -> list[Invalid]:
    known = ("apiVersion", "kind", "metadata", "spec", "status")
    found = []
    for name in body:
        if name not in known:
            near = get_close_matches(str(name), known, 1)
            found.append(Invalid(str(name), "unknown field" + (f'; did you mean "{near[0]}"?' if near else "")))
    return found


# ------------------------------------------------------------------------------------------------------------ applying
def applied(seen: Snapshot, wishes: list[Wish]) -> Snapshot:
    """The snapshot as it would be right after these were applied."""
    there = {known.key: known for known in seen.placements}
    for wish in wishes:
        metadata = wish.body["metadata"]
        key = (metadata["namespace"], metadata["name"])
        there[key] = _applied(wish, there.get(key), seen.now)
    return replace(seen, placements=tuple(there[key] for key in sorted(there)))


def _applied(wish: Wish, before: Placement | None, now: float) -> Placement:
    metadata = wish.body["metadata"]
    told = {"name": metadata["name"], "namespace": metadata["namespace"]}
    # one each: pods are told apart by their owner's uid
    uid = before.uid if before else f"{UNKNOWN_UID}/{told['namespace']}/{told['name']}"
    found = placement.parse({"metadata": {**told, "uid": uid}, "spec": wish.body.get("spec") or {}})
    if found.invalid:
        raise PlacementFileError(f"{wish.file}: {told['name']}: {found.invalid.path}: {found.invalid.reason}")
    if before is None:
        return replace(found, created=now)
    same = replace(
        found,
        generation=before.generation,
        created=before.created,
        deleting=before.deleting,
        status=before.status,
    )
    return same if same == before else replace(same, generation=before.generation + 1)
