"""The exceptions Cotenant raises: only where there is no going on. "It does not fit" is an answer, not an exception."""

from __future__ import annotations


class CotenantError(Exception):
    """What a user may see; its text says what was being done and what to do about it."""


class InvalidSpec(CotenantError):
    """A spec the API server let through and we cannot act on.

    `path` names the field as a user writes it (`spec.models[1].share`), `reason` says what is wrong and what to do.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class ClusterError(CotenantError):
    """The API server did not do what was asked; the cause is chained. `status` is HTTP's, 0 = no answer."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class NotFound(ClusterError):
    """No such object (404)."""


class AlreadyExists(ClusterError):
    """An object of that name is there already (409)."""


class Conflict(ClusterError):
    """The object is another one, or has changed since it was read (409)."""


class Refused(ClusterError):
    """Authorization, admission, a quota or validation said no (400, 403, 422): the same request will fail again."""


class SettingsError(CotenantError):
    """The environment holds a setting that cannot be used; names the variable."""
