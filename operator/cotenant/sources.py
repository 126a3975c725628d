"""Where a model's config comes from: the hub, a folder, or the catalogue. Outside the core: this reads files and the network."""

from __future__ import annotations

import json
import logging
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from cotenant import catalogue
from cotenant.core.estimate.configparse import parse_config
from cotenant.core.estimate.modelconfig import ModelConfig
from cotenant.core.source import Source, SourceKind, source
from cotenant.errors import CotenantError

_LARGEST_FILE = 64 << 20
"""Bytes; configs are kilobytes, the longest index of tensors some 10 MB."""
_INDEX = "model.safetensors.index.json"


class SourceError(CotenantError):
    """A model's config could not be had; the text says why and what to do."""


def model_config(
    uri: str,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    cache_dir: str | None = None,
    offline: bool = False,
    timeout: float = 10.0,
) -> ModelConfig:
    """The config behind a model's URI, or behind a bare `org/name`.

    The hub is asked first (`token`, a mirror as `endpoint`, `HF_HOME` and `HF_HUB_OFFLINE` count), then its cache on disk,
    then the catalogue. SourceError says why none of them has it.
    """
    try:
        where = source(uri if "://" in uri else f"hf://{uri}")
    except ValueError as error:
        raise SourceError(str(error)) from error
    if where.kind is not SourceKind.HUB:
        raise SourceError(
            f"{uri} can only be read inside the cluster: give its share as a number; "
            "`cotenant estimate --config FILE` with its config.json says which"
        )
    try:
        return _from_hub(where, token, endpoint, cache_dir, offline, timeout)
    except _NotThereError as error:
        if known := catalogue.find(where.repository):
            return known
        raise SourceError(
            f"{where.repository}: {error}, and it is not in the catalogue: give its share as a number; "
            "`cotenant estimate --config FILE` with its config.json says which"
        ) from error


def read_file(path: str) -> ModelConfig:
    """The config in a file or in a model's folder, with the size of the weights beside it where there are any."""
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    config = _json(file)
    return _parsed(config, str(file), _checkpoint(file.parent))


class _NotThereError(Exception):
    """The hub and its cache do not have it; the text says why."""


def _from_hub(
    where: Source, token: str | None, endpoint: str | None, cache_dir: str | None, offline: bool, timeout: float
) -> ModelConfig:
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.constants import ENDPOINT as HF_ENDPOINT
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def fetch(name: str) -> Path:
        found = hf_hub_download(
            where.repository,
            name,
            revision=where.revision or None,
            token=token,
            endpoint=endpoint,
            cache_dir=cache_dir,
            local_files_only=offline,
            etag_timeout=timeout,
        )
        return Path(found)

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if not offline and not _answers(endpoint or HF_ENDPOINT, timeout):
        offline = True  # the hub's client would try for half a minute
    try:
        config = _json(fetch("config.json"))
    except GatedRepoError as error:
        raise _NotThereError("the hub wants a token that may read it") from error
    except RepositoryNotFoundError as error:
        raise _NotThereError("the hub has no such repository, or not for this token") from error
    except RevisionNotFoundError as error:
        raise _NotThereError(f'the hub has no revision "{where.revision}" of it') from error
    except LocalEntryNotFoundError as error:
        why = "the hub was not asked or cannot be reached, and its cache on disk does not have it"
        raise _NotThereError(why) from error
    except EntryNotFoundError as error:
        raise _NotThereError("its repository has no config.json") from error
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise _NotThereError(f"the hub cannot be asked ({type(error).__name__})") from error
    try:
        total = _index_size(_json(fetch(_INDEX)))
    except (EntryNotFoundError, HfHubHTTPError, httpx.HTTPError, OSError, SourceError):
        total = None  # one file, or none: the config alone will do
    revision = f"@{where.revision}" if where.revision else ""
    return _parsed(config, f"hf://{where.repository}{revision}", total)


def _answers(endpoint: str, timeout: float) -> bool:
    """Whether somebody listens there; where a proxy stands between, nobody knows before it is asked."""
    if getproxies():
        return True
    address = urlsplit(endpoint)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), timeout).close()
    except (OSError, ValueError):
        return False
    return True


def _parsed(config: Any, name: str, total: int | None) -> ModelConfig:
    try:
        return parse_config(config, checkpoint_bytes=total, source=name)
    except ValueError as error:
        raise SourceError(f"{name}: {error}") from error


def _json(file: Path) -> Any:
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise SourceError(f"{file} is larger than any config")
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file} is not JSON: {error}") from error


def _index_size(index: Any) -> int | None:
    """Bytes of all tensors, as an index of safetensors files says."""
    total = index.get("metadata", {}).get("total_size") if isinstance(index, Mapping) else None
    return int(total) if isinstance(total, int | float) and total > 0 else None


def _checkpoint(folder: Path) -> int | None:
    """Bytes of the tensors in a model's folder; None where there are none or they cannot be read."""
    if (folder / _INDEX).is_file():
        return _index_size(_json(folder / _INDEX))
    sizes = [_header_size(file) for file in sorted(folder.glob("model*.safetensors"))]
    return sum(sizes) or None


def _header_size(file: Path) -> int:
    """Bytes of the tensors of one safetensors file, by its header: 8 bytes of length, then JSON."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > _LARGEST_FILE:
                return 0
            header = json.loads(opened.read(length))
        return max((each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"), default=0)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error):
        return 0
