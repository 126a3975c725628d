"""ModelPlacements from files, checked as the API server would check them, and put into a snapshot as if applied."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from cotenant.api import crd, placement
from cotenant.core.names import API_VERSION
from cotenant.core.snapshot import Placement, Snapshot
from cotenant.errors import CotenantError

Body = dict[str, Any]
SUFFIXES = (".yaml", ".yml", ".json")
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
    found = [Wish(_checked(body, file, namespace), file) for file in files for body in _documents(file)]
    if not found:
        raise PlacementFileError(f"{name}: there is no ModelPlacement in it")
    return found


def _documents(name: str) -> list[Body]:
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        documents = list(yaml.safe_load_all(text))
    except (OSError, UnicodeDecodeError) as e:
        raise PlacementFileError(f"{name} cannot be read: {getattr(e, 'strerror', None) or e}") from e
    except yaml.YAMLError as e:
        raise PlacementFileError(f"{name} is not YAML: {' '.join(str(e).split())}") from e
    items = [
        item
        for document in documents
        if isinstance(document, dict)
        for item in (document.get("items") or () if str(document.get("kind", "")).endswith("List") else (document,))
    ]
    return [item for item in items if isinstance(item, dict) and item.get("kind") == "ModelPlacement"]


def _checked(body: Body, file: str, namespace: str) -> Body:
    if body.get("apiVersion") != API_VERSION:
        raise PlacementFileError(f"{file}: apiVersion must be {API_VERSION}, not {body.get('apiVersion')!r}")
    metadata = body.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not isinstance(name, str) or not name:
        raise PlacementFileError(f"{file}: metadata.name is required")
    schema = crd.documents()["cotenant.dev_modelplacements.yaml"]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    if unknown := _unknown(body.get("spec") or {}, schema["properties"]["spec"], "spec"):
        raise PlacementFileError(f"{file}: {name}: {unknown}")
    for at, model in enumerate((body.get("spec") or {}).get("models") or ()):
        inner = model.get("name", "") if isinstance(model, dict) else ""
        if len(name) + len(str(inner)) > 56:
            raise PlacementFileError(
                f"{file}: {name}: spec.models[{at}].name: the names of the placement and of a model together may have "
                "56 characters: pods and Services are called <placement>-<model>"
            )
    return {**body, "metadata": {**metadata, "namespace": metadata.get("namespace") or namespace}}


def _unknown(value: Any, schema: Body, path: str) -> str:
    """The first field the API server would refuse as unknown."""
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return ""
    if isinstance(value, list):
        items = schema.get("items") or {}
        return next((said for at, one in enumerate(value) if (said := _unknown(one, items, f"{path}[{at}]"))), "")
    if not isinstance(value, dict):
        return ""
    if "additionalProperties" in schema:
        return ""
    known = schema.get("properties") or {}
    for key, inner in value.items():
        if key not in known:
            near = get_close_matches(str(key), list(known), 1)
            hint = f'; did you mean "{near[0]}"?' if near else f"; there are {', '.join(known)}"
            return f"{path}.{key}: unknown field{hint}"
        if said := _unknown(inner, known[key], f"{path}.{key}"):
            return said
    return ""


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
