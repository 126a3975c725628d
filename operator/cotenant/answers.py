"""What an API server's answer that is not a success means: try again, or which error to raise with which sentence."""

from __future__ import annotations

import json
from typing import Any

from cotenant.core.snapshot import Manifest
from cotenant.errors import AlreadyExists, ClusterError, Conflict, NotFound, Refused


def seconds(retry_after: str | None) -> float:
    """Retry-After as seconds; API servers send whole seconds, never dates."""
    return float(retry_after) if retry_after and retry_after.isdigit() else 0.0


def _status_of(data: bytes) -> dict[str, Any]:
    """The metav1.Status a failed request is answered with; {} where a proxy answered something else."""
    try:
        answer = json.loads(data)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) and answer.get("kind") == "Status" else {}


def is_transient(status: int, data: bytes, method: str, body: Manifest | None) -> bool:
    """Whether the same request may well succeed a moment later."""
    if status == 0 or status == 429 or status in (502, 503, 504):
        return True
    answer = _status_of(data)
    if status == 500:  # "try again" of the API server (a timeout in etcd) says so; a bug of a webhook does not
        return "retryAfterSeconds" in (answer.get("details") or {}) or answer.get("reason") in (
            None,
            "ServerTimeout",
            "Timeout",
        )
    # Two appliers met: without a resourceVersion of ours the next attempt merges onto what the other left. Or two
    # creates met at one ResourceQuota, which counts them one after the other.
    return (
        status == 409
        and method in ("PATCH", "POST")
        and answer.get("reason") == "Conflict"
        and "resourceVersion" not in (body or {}).get("metadata", {})
        and not (answer.get("details") or {}).get("causes")  # conflicts of field managers stay
    )


def problem(status: int, data: bytes, cause: Exception | None, doing: str, server: str) -> ClusterError:
    """What to raise when there is no going on."""
    if status == 0:
        text = str(cause) or type(cause).__name__
        return ClusterError(f"{doing}: no answer from {server} ({text})")
    answer = _status_of(data)
    message = answer.get("message") or data[:300].decode("utf-8", "replace").strip() or f"HTTP {status}"
    text = f"{doing}: {message}"
    if status == 404:
        return NotFound(text, status)
    if status == 409:
        return (AlreadyExists if answer.get("reason") == "AlreadyExists" else Conflict)(text, status)
    if status in (400, 403, 405, 413, 415, 422):
        return Refused(text, status)
    if status == 401:
        return ClusterError(f"{text}; the credentials are not accepted, renew them", status)
    return ClusterError(text, status)
