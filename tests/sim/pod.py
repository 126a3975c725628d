"""One pod on a simulated node, and its status as a kubelet would write it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

from tests.sim.engine import Engine, Exit

ROLE = "cotenant.dev/role"
Key = tuple[str, str]


class Stage(StrEnum):
    """Where its container is."""

    CREATING = "creating"
    BLOCKED = "blocked"
    """Waiting for an image or a secret."""
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True)
class SimPod:
    """What the simulated kubelet knows of one pod."""

    manifest: dict[str, Any]
    node: str
    role: str
    """engine, holder, preflight; empty = somebody else's, which KWOK plays."""
    stage: Stage = Stage.CREATING
    engine: Engine | None = None
    at: float = math.inf
    """When it does something next, the engine aside."""
    kill_at: float = math.inf
    deadline: float = math.inf
    """Startup or liveness probe: not ready by then = killed."""
    deleting: bool = False
    ready: bool = False
    blocked: tuple[str, str] = ("", "")
    ended: Exit | None = None
    output: str = ""
    """What a preflight printed."""
    restarts: int = 0
    began: float = 0.0
    """Unix seconds."""
    finished: float = 0.0
    ready_changed: float = 0.0
    created_at: float = 0.0
    faults: list[tuple[float, str]] = field(default_factory=list)
    """(when, fault) still to come."""
    applied: str = ""
    """The fault annotation already acted on."""
    sent: tuple[object, ...] | None = None
    """What the last status written was made from."""
    shown_ready: bool = False
    """What its Ready condition said when it was last seen."""
    removed: bool = False
    orphan: bool = False
    """Deleted by force while its node was cut off."""

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return self.manifest["metadata"]["namespace"], self.manifest["metadata"]["name"]

    @property
    def name(self) -> str:
        """`namespace/name`."""
        return "/".join(self.key)

    @property
    def uid(self) -> str:
        """Its uid."""
        return str(self.manifest["metadata"]["uid"])

    @property
    def spec(self) -> Mapping[str, Any]:
        """Its spec."""
        spec: Mapping[str, Any] = self.manifest["spec"]
        return spec

    @property
    def identity(self) -> tuple[str, ...]:
        """Which replica it is: two living pods of one identity are twins."""
        labels = self.manifest["metadata"].get("labels") or {}
        return (self.key[0], *(labels.get(f"cotenant.dev/{part}", "") for part in ("placement", "model", "replica")))

    @property
    def alive(self) -> bool:
        """Its processes may still hold something."""
        return self.stage is not Stage.ENDED and not self.removed

    @property
    def next_at(self) -> float:
        """When anything happens to it next."""
        engine = self.engine.next_at if self.engine else math.inf
        return min(self.at, self.kill_at, self.deadline, engine, self.faults[0][0] if self.faults else math.inf)

    @property
    def face(self) -> tuple[object, ...]:
        """All that its status depends on and that may change."""
        return (self.stage, self.ready, self.blocked, self.ended, self.restarts, self.began)

    def status(self) -> dict[str, Any]:
        """The status a kubelet would write now (a strategic merge: conditions of others stay)."""
        container = self.spec["containers"][0]
        phase, state, reason = self._state()
        body: dict[str, Any] = {
            "name": container["name"],
            "image": container.get("image", ""),
            "imageID": "" if self.stage in (Stage.CREATING, Stage.BLOCKED) else f"sim://{container.get('image', '')}",
            "ready": self.ready,
            "started": self.ready,
            "restartCount": self.restarts,
            "state": state,
        }
        if self.began:
            body["containerID"] = f"sim://{self.uid}-{self.restarts}"
        since = rfc3339(self.ready_changed or self.created_at)
        why = (
            {}
            if self.ready
            else {"reason": reason, "message": f"containers with unready status: [{container['name']}]"}
        )
        readiness = {"status": "True" if self.ready else "False", "lastTransitionTime": since, **why}
        created = rfc3339(self.created_at)
        return {
            "phase": phase,
            "conditions": [
                {"type": "Initialized", "status": "True", "lastTransitionTime": created},
                {"type": "Ready", **readiness},
                {"type": "ContainersReady", **readiness},
            ],
            "containerStatuses": [body],
            "hostIP": "127.0.0.1",
            "startTime": created,
        }

    def _state(self) -> tuple[str, dict[str, Any], str]:
        """(phase, container state, why it is not ready)."""
        if self.stage is Stage.CREATING:
            return "Pending", {"waiting": {"reason": "ContainerCreating"}}, "ContainersNotReady"
        if self.stage is Stage.BLOCKED:
            return "Pending", {"waiting": {"reason": self.blocked[0], "message": self.blocked[1]}}, "ContainersNotReady"
        if self.stage is Stage.RUNNING:
            return "Running", {"running": {"startedAt": rfc3339(self.began)}}, "ContainersNotReady"
        assert self.ended
        done = {
            "exitCode": self.ended.code,
            "reason": self.ended.reason,
            "startedAt": rfc3339(self.began),
            "finishedAt": rfc3339(self.finished),
        }
        if self.ended.message:
            done["message"] = self.ended.message
        good = self.ended.code == 0
        return "Succeeded" if good else "Failed", {"terminated": done}, "PodCompleted" if good else "PodFailed"

    def shown_as_ready(self) -> bool:
        """What its Ready condition says now; remembered."""
        conditions = (self.manifest.get("status") or {}).get("conditions") or ()
        self.shown_ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        return self.shown_ready

    def set_ready(self, ready: bool, unix: float) -> None:
        """Remember when readiness changed."""
        if ready != self.ready:
            self.ready, self.ready_changed = ready, unix

    def log(self) -> str:
        """What the container printed so far."""
        if self.engine:
            return "\n".join(self.engine.log) + "\n"
        return self.output


def rfc3339(unix: float) -> str:
    """As the API writes times."""
    return _rfc3339(int(unix))


@lru_cache(1024)
def _rfc3339(unix: int) -> str:
    return datetime.fromtimestamp(unix, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def message_of(text: str, policy: str, code: int) -> str:
    """The termination message: the log's last 2,048 bytes or 80 lines, where the policy asks for it and the exit is bad."""
    if policy != "FallbackToLogsOnError" or code == 0:
        return ""
    return "\n".join(text.splitlines()[-80:])[-2048:]
