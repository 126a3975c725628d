"""Where a model's files come from: the `uri` of the spec, parsed once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

MODELS = "/models"
"""Where a claim or an image with a model is mounted in the engine's container, read-only."""

HUB_CACHE = "/huggingface"
"""Where a claim that keeps hub downloads is mounted (HF_HOME); not under /tmp, where the mount would make folders of root's."""

_FORMS = 'write "hf://org/name@revision", "pvc://claim/path" or "oci://registry/image:tag"'
# huggingface_hub.utils.validate_repo_id: 1 to 96 of [A-Za-z0-9._-], no "--", no "..", no "-" or "." at either end
_HUB_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]{0,199}")
_CLAIM = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?")
_SEGMENT = re.compile(r"[A-Za-z0-9_@+=][A-Za-z0-9._@+=-]{0,254}")
_IMAGE = re.compile(
    r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?(?::[0-9]{1,5})?(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
LONGEST = 1024


class SourceKind(StrEnum):
    """The three schemes of a model's URI."""

    HUB = "hf"
    CLAIM = "pvc"
    IMAGE = "oci"


@dataclass(frozen=True, slots=True)
class Source:
    """A model's URI in its parts; those of the other kinds are empty."""

    kind: SourceKind
    repository: str = ""
    """hf: `org/name`."""
    revision: str = ""
    """hf: branch, tag or commit; empty = the hub's default."""
    claim: str = ""
    """pvc: the claim's name, in the placement's namespace."""
    path: str = ""
    """pvc: the folder inside the claim; empty = its root."""
    image: str = ""
    """oci: the reference of an image that holds the model's files at its root."""

    @property
    def model(self) -> str:
        """The MODEL argument of `vllm serve`."""
        if self.kind is SourceKind.HUB:
            return self.repository
        return f"{MODELS}/{self.path}" if self.path else MODELS


def source(uri: str) -> Source:
    """The parts of a model's URI; ValueError says what is wrong with it."""
    scheme, found, rest = uri.partition("://")
    if not found or len(uri) > LONGEST:
        raise ValueError(f'"{uri[:80]}" names no source of a model: {_FORMS}')
    if scheme == SourceKind.HUB:
        return _hub(uri, rest)
    if scheme == SourceKind.CLAIM:
        return _claim(uri, rest)
    if scheme == SourceKind.IMAGE:
        if not _IMAGE.fullmatch(rest):
            raise ValueError(
                f'"{uri}" names no image: write "oci://registry/image:tag" or "oci://registry/image@sha256:..."'
            )
        return Source(SourceKind.IMAGE, image=rest)
    raise ValueError(f'"{uri}" has the unknown scheme "{scheme}": {_FORMS}')


def _hub(uri: str, rest: str) -> Source:
    """`org/name` or `org/name@revision`."""
    repository, pinned, revision = rest.partition("@")
    names = repository.split("/")
    if len(names) > 2 or any(not _HUB_NAME.fullmatch(n) or "--" in n or ".." in n for n in names):
        raise ValueError(f'"{uri}" names no repository of the hub: write "hf://org/name" or "hf://org/name@revision"')
    if pinned and (not _REVISION.fullmatch(revision) or ".." in revision or revision.endswith("/")):
        raise ValueError(f'"{uri}" has no usable revision after "@": write a branch, a tag or a commit')
    return Source(SourceKind.HUB, repository=repository, revision=revision)


def _claim(uri: str, rest: str) -> Source:
    """`claim` or `claim/path/in/it`."""
    claim, _, path = rest.partition("/")
    path = path.removesuffix("/")
    if not _CLAIM.fullmatch(claim):
        raise ValueError(f'"{uri}" names no PersistentVolumeClaim: write "pvc://claim/path", the claim in lower case')
    if path and any(not _SEGMENT.fullmatch(segment) for segment in path.split("/")):
        raise ValueError(
            f'"{uri}" has no usable path in the claim: plain folder names between "/", none starting with "."'
        )
    return Source(SourceKind.CLAIM, claim=claim, path=path)
