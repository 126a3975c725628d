"""One random history: mishaps and edits, passes that may die between two writes, and what must hold after every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from cotenant import catalogue
from cotenant.controller.sources import PLACEMENTS, PODS
from cotenant.core.share import GIB
from cotenant.core.snapshot import EngineImage, Policy
from tests.soak import meddling
from tests.soak.controller import Controller, DiedError, Tally, Weather
from tests.soak.laws import Broken, check_rest, check_step
from tests.soak.physics import EVICT_AFTER, SIZES, Engine, Machine, Physics, Truth
from tests.soak.store import Store

BEGIN = 1_790_000_000.0
REST_PASSES = 900
"""Passes within which rest must be reached once nothing happens any more."""
REST_SECONDS = 6 * 3600.0
SMALL = ("10%", "15%", "20%", "25%", "30%", "10Gi", "18Gi")
NAMES = ("meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.1-8B-Instruct")
CONFIGS = (*(config for name in NAMES if (config := catalogue.find(name))), "its config could not be read")
LARGE = ("25%", "30%", "45%", "60%", "70%", "90%", "40Gi")
"""Shares of histories in which most fits, and of those in which much does not."""


@dataclass(slots=True)
class Outcome:
    """What came of one history."""

    seed: int
    steps: int = 0
    passes: int = 0
    writes: int = 0
    rest_passes: int = 0
    broken: str = ""
    told: list[str] = field(default_factory=list)


class History:
    """A cluster, its users and its mishaps, all from one seed. `skip` leaves out steps, to find the few that matter."""

    def __init__(
        self, seed: int, skip: frozenset[int] = frozenset(), *, tell: bool = False, rng: Random | None = None
    ) -> None:
        self.seed, self.skip, self._tell = seed, skip, tell
        self.rng = rng or Random(seed)
        self.steps = self.rng.randint(10, 40)
        reserve = self.rng.random() < 0.3
        self.policy = Policy(
            engines=(EngineImage("vllm", "vllm/vllm-openai:v0.33.0", "0.33.0"),),
            headroom=self.rng.choice((0, 500, 1000)),
            overrun=2 * GIB,
            reserve=reserve,
            preflight=self.rng.random() < 0.3,
            holder_idle=60.0,
            start_timeout=300.0,
            max_moves=self.rng.choice((0, 2, 8)),
        )
        self.store = Store()
        self.physics = Physics(self.store, Random(f"{seed}/physics"), BEGIN)
        if self.rng.random() < 0.3:
            self.physics.configs = CONFIGS
        self.tally = Tally()
        self._shares = self.rng.choice((SMALL, SMALL, LARGE))
        for number in range(self.rng.randint(1, 3)):
            self._add_machine(f"n{number}")
        self.weather = Weather()
        self.controllers = [self._controller("a")]
        self.outcome = Outcome(seed)
        self._names = 0
        self._doubled = False

    def _controller(self, name: str) -> Controller:
        return Controller(name, self.physics, self.policy, Random(f"{self.seed}/{name}"), self.tally)

    def _add_machine(self, name: str) -> None:
        self.physics.add_machine(name, self.rng.choice((1, 2, 4)), self.rng.choice(SIZES))

    # ---------------------------------------------------------------------------------------------------------- running
    def run(self) -> Outcome:
        """The whole of it; the outcome names the first thing that was not as it must be."""
        try:
            for step in range(self.steps):
                self.rng = Random(f"{self.seed}/{step}")
                if step not in self.skip:
                    self._step(step)
            self.come_to_rest()
        except Broken as broken:
            self.outcome.broken = str(broken)
        except Exception as error:
            self.outcome.broken = f"{type(error).__name__}: {error}"
            if self._tell:
                raise
        self.outcome.passes, self.outcome.writes = self.tally.passes, self.tally.writes
        return self.outcome

    def come_to_rest(self) -> None:
        """Nothing new happens any more; Broken where no lawful rest is reached within its bound."""
        self._calm()
        self._settle()
        check_step(self.physics)
        check_rest(self.physics, self.policy)

    def _step(self, step: int) -> None:
        self.outcome.steps += 1
        events = self.rng.choices(EVENTS, WEIGHTS, k=self.rng.choice((0, 1, 1, 2)))
        for event in events:
            said = event(self)
            if said:
                self._say(f"{step:3} {self.physics.now - BEGIN:7.0f}s {said}")
        self.physics.pass_time(self.rng.choice((0.0, 0.2, 1.0, 5.0, 20.0, 90.0)))
        for controller in self.controllers:
            self.decide(controller, self.rng.randint(0, 3) if self.rng.random() < 0.08 else None)
        self.check()

    def check(self) -> None:
        """Two controllers on old news can promise one GPU twice for a moment: then what they did must be put right."""
        if len(self.controllers) > 1:
            self._doubled = True
        try:
            check_step(self.physics)
            self._doubled = self._doubled and len(self.controllers) > 1
        except Broken:
            if not self._doubled:
                raise

    def decide(self, controller: Controller, dies_after: int | None) -> None:
        """One pass of one controller; it may be killed before its write of that number and begins anew."""
        try:
            controller.run(self.weather, dies_after)
        except DiedError:
            self._say(f"    {controller.name} dies before its write {dies_after}")
            controller.begin()
        self._tell_writes()
        self.check()

    def _tell_writes(self) -> None:
        for line in self.tally.log:
            self._say(f"    {self.physics.now - BEGIN:7.0f}s {line}")
        self.tally.log.clear()

    def _say(self, text: str) -> None:
        if self._tell:
            print(text, flush=True)

    def _calm(self) -> None:
        """Nothing new happens from here on, and the API server is well."""
        self.weather = Weather()
        self.rng = Random(f"{self.seed}/calm")
        del self.controllers[1:]
        for machine in self.physics.machines.values():
            machine.silent = False
            machine.proof = "good"
        if self.rng.random() < 0.5:
            self.physics.full.clear()
        for truth in self.physics.truths.values():
            truth.flaw = truth.flaw if truth.flaw != "secret" else ""
        if self.rng.random() < 0.5:
            self.controllers[0].begin()
        self._say(f"--- calm at {self.physics.now - BEGIN:.0f}s")

    def _settle(self) -> None:
        """Passes until nothing is left to do, jumping from one moment at which something may change to the next."""
        end = self.physics.now + REST_SECONDS
        quiet = 0
        while self.outcome.rest_passes < REST_PASSES and self.physics.now < end:
            self.outcome.rest_passes += 1
            before = self.tally.writes
            decision = self._decide()
            if self.tally.writes != before or self.physics.pending():
                quiet = 0
            elif decision.wake_at is None:
                quiet += 1
            if quiet >= 3:
                return
            self._wait(decision.wake_at, idle=self.tally.writes == before and not self.physics.pending())
        lately = "; ".join(self._waiting()[:5])
        raise Broken(
            f"no rest after {self.outcome.rest_passes} passes, {self.physics.now - end + REST_SECONDS:.0f} s: {lately}"
        )

    def _decide(self) -> Any:
        decision = self.controllers[0].run(self.weather)
        self._tell_writes()
        self.check()
        return decision

    def _wait(self, wake_at: float | None, *, idle: bool) -> None:
        now = self.physics.now
        if idle and wake_at is not None and wake_at > now:
            self.physics.pass_time(min(wake_at - now + 0.01, EVICT_AFTER * 2))
        elif self.physics.pending():
            self.physics.pass_time(5.0)
        else:
            self.physics.pass_time(1.0)
        self._evict()

    def _waiting(self) -> list[str]:
        said = []
        for placement in self.store.all(PLACEMENTS):
            for model in (placement.get("status") or {}).get("models", ()):
                for replica in model["replicas"]:
                    if replica["phase"] != "Ready":
                        said.append(f"{placement['metadata']['name']}/{model['name']}-{replica['index']} {replica['phase']} "
                                    f"{replica.get('reason')}: {str(replica.get('message'))[:200]}")  # fmt: skip
        return said

    def _evict(self) -> None:
        """Kubernetes asks the pods of a node that is long gone to leave; nobody there hears it."""
        for pod in self.store.all(PODS):
            machine = self.physics.machines.get(pod["spec"].get("nodeName") or "")
            if machine and not machine.up and self.physics.now - machine.since > EVICT_AFTER:
                self.physics.ask_to_leave(pod)

    # ----------------------------------------------------------------------------------------------------------- users
    def model(self, number: int) -> dict[str, Any]:
        """A model as a user would write it."""
        rng = self.rng
        share = "auto" if self.physics.configs and rng.random() < 0.2 else rng.choice(self._shares)
        model: dict[str, Any] = {
            "name": f"m{number}",
            "uri": f"hf://org/m{number}@{rng.randint(1, 2)}",
            "share": share,
            "replicas": rng.choice((1, 1, 1, 2, 3)),
            "tensorParallelSize": rng.choice((1, 1, 1, 1, 2)),
            "spread": rng.choice(("None", "None", "GPU", "Node")),
            "priority": rng.choice((0, 0, 0, 5)),
            "engine": {"maxModelLen": rng.choice((4096, 32768))},
            "resources": {"cpu": "1", "memory": "4Gi"} if rng.random() < 0.5 else {},
        }
        if rng.random() < 0.1:
            model["perNode"] = [{"selector": {"zone": "1"}, "share": rng.choice(self._shares)}]
        if rng.random() < 0.6:
            allow = [remedy for remedy in ("ReduceContext", "ReduceBatch", "GrowShare", "Move") if rng.random() < 0.7]
            model["onOutOfMemory"] = {
                "maxShare": rng.choice(("50%", "80%")),
                "maxAttempts": rng.choice((2, 4)),
                "allow": allow,
            }
        return model

    def create_placement(self) -> str:
        if len(self.store.all(PLACEMENTS)) >= 4:
            return ""
        self._names += 1
        name = f"p{self._names}"
        models = [self.model(number) for number in range(self.rng.choice((1, 1, 2, 3)))]
        for model in models:
            self._invent_truth(name, model["name"])
        spec: dict[str, Any] = {
            "models": models,
            "rollout": {
                "strategy": self.rng.choice(("Recreate", "SurgeIfRoom")),
                "maxUnavailable": self.rng.choice((1, 2)),
            },
        }
        if self.rng.random() < 0.2:
            spec["nodes"] = {"selector": {"zone": "0"}}
        manifest = {"apiVersion": "cotenant.dev/v1alpha1", "kind": "ModelPlacement", "spec": spec}
        meta = {"name": name, "namespace": self.rng.choice(("team-a", "team-a", "team-b"))}
        self.store.create(PLACEMENTS, {**manifest, "metadata": meta}, self.physics.now)
        return f"creates {name}: " + ", ".join(
            f"{m['name']} {m['share']} x{m['replicas']} tp{m['tensorParallelSize']} {m['spread']}" for m in models
        )

    def _invent_truth(self, placement: str, model: str) -> None:
        rng = self.rng
        flaw = rng.choices(("", "bad-flag", "secret"), (0.88, 0.06, 0.06))[0]
        self.physics.truths[(placement, model)] = Truth(
            base=rng.choice((2, 5, 5, 12, 30)) * GIB,
            per_token=rng.choice((1 << 14, 1 << 16, 1 << 18)),
            overrun=rng.choice((GIB // 2, GIB, 2 * GIB, 2 * GIB, 3 * GIB)),
            seconds=rng.choice((15.0, 40.0, 120.0)),
            flaw=flaw,
        )

    def edit_placement(self) -> str:
        placements = self.store.all(PLACEMENTS)
        if not placements:
            return ""
        body = self.rng.choice(placements)
        models = [dict(model) for model in body["spec"]["models"]]
        what = self.rng.choice(
            ("share", "replicas", "length", "revision", "remove", "add", "headroom", "priority", "break")
        )
        spec = {**body["spec"], "models": models}
        model = self.rng.choice(models) if models else None
        if what == "add" or model is None:
            fresh = self.model(self.rng.randint(3, 9))
            models[:] = [m for m in models if m["name"] != fresh["name"]] + [fresh]
            self._invent_truth(body["metadata"]["name"], fresh["name"])
        elif what == "remove":
            if len(models) > 1:  # the CRD refuses an empty list
                models.remove(model)
        elif what == "headroom":
            spec["headroom"] = self.rng.choice(("0%", "5%", "10%", "25%"))
        elif what == "break":
            model["engine"] = {**model["engine"], "extraArgs": ["--gpu-memory-utilization=0.9"]}
        else:
            change: dict[str, Callable[[], Any]] = {
                "share": lambda: self.rng.choice(("15%", "25%", "50%", "65%", "20Gi")),
                "replicas": lambda: self.rng.choice((0, 1, 2, 3)),
                "length": lambda: {"maxModelLen": self.rng.choice((2048, 8192, 65536))},
                "revision": lambda: f"hf://org/{model['name']}@{self.rng.randint(3, 99)}",
                "priority": lambda: self.rng.choice((0, 5, 10)),
            }
            name = {"length": "engine", "revision": "uri"}.get(what, what)
            model[name] = change[what]()
        meta = {**body["metadata"], "generation": body["metadata"]["generation"] + 1}
        self.store.put(PLACEMENTS, {**body, "spec": spec, "metadata": meta})
        return f"edits {what} of {meta['name']}" + (f"/{model['name']}: {model.get(what, '')}" if model else "")

    def delete_placement(self) -> str:
        placements = self.store.all(PLACEMENTS)
        if not placements:
            return ""
        meta = self.rng.choice(placements)["metadata"]
        self.store.drop(PLACEMENTS, (meta["namespace"], meta["name"]))
        if self.rng.random() < 0.3:  # and makes it anew at once, under another uid
            body = next(b for source, gone, b in reversed(self.store.news) if source == PLACEMENTS and gone)
            fresh = {"name": meta["name"], "namespace": meta["namespace"]}
            self.store.create(PLACEMENTS, {"spec": body["spec"], "metadata": fresh}, self.physics.now)
            return f"deletes and recreates {meta['name']}"
        return f"deletes {meta['name']}"

    # ---------------------------------------------------------------------------------------------------------- mishaps
    def _engine(self) -> Engine | None:
        engines = [engine for engine in self.physics.engines.values() if engine.dies is None]
        return self.rng.choice(engines) if engines else None

    def kill_engine(self) -> str:
        engine = self._engine()
        return f"{engine.key[1]} dies: {self.physics.crash(engine)}" if engine else ""

    def flap(self) -> str:
        serving = [engine for engine in self.physics.engines.values() if engine.serving and engine.dies is None]
        if not serving:
            return ""
        engine = self.rng.choice(serving)
        if self.physics.machines[engine.node].up:
            self.physics.flap(engine)
        return f"{engine.key[1]} fails its readiness probe for a while"

    def stranger(self) -> str:
        gpu = self.rng.choice(sorted(self.physics.gpus.values(), key=lambda g: g.uuid))
        if gpu.strangers:
            gpu.strangers.clear()
            return f"the stranger leaves {gpu.uuid}"
        free = gpu.memory - self.physics.used(gpu)
        gpu.strangers[4711] = min(max(free, 0), self.rng.choice((1, 4, 20)) * GIB)
        return f"a stranger takes {gpu.strangers[4711] >> 30} GiB of {gpu.uuid}"

    def _machine(self) -> Machine:
        return self.rng.choice(sorted(self.physics.machines.values(), key=lambda m: m.name))

    def lose_node(self) -> str:
        machine = self._machine()
        if machine.up:
            self.physics.lose(machine)
            return f"{machine.name} is lost"
        rebooted = self.rng.random() < 0.5
        self.physics.back(machine, rebooted)
        return f"{machine.name} is back{' after a reboot' if rebooted else ''}"

    def cordon(self) -> str:
        machine = self._machine()
        self.physics.cordon(machine, not machine.cordoned)
        return f"{machine.name} is {'cordoned' if machine.cordoned else 'uncordoned'}"

    def silence(self) -> str:
        machine = self._machine()
        machine.silent, machine.silent_since = not machine.silent, self.physics.now
        return f"the agent of {machine.name} is {'silent' if machine.silent else 'back'}"

    def doubt(self) -> str:
        """GPUs are not kept apart on a node, or are again; or the way they are given out changes for all."""
        if self.rng.random() < 0.3:
            self.physics.injection_version += "+"
            return "the RuntimeClass changes"
        machine = self._machine()
        machine.proof = self.rng.choice(("good", "blind", "leaky", "slow"))
        return f"a preflight on {machine.name} would be {machine.proof}"

    def sicken(self) -> str:
        gpu = self.rng.choice(sorted(self.physics.gpus.values(), key=lambda g: g.uuid))
        gpu.health = "Healthy" if gpu.health != "Healthy" else "Unhealthy/XID79"
        return f"{gpu.uuid} is {gpu.health}"

    def change_nodes(self) -> str:
        name = f"n{self.rng.randint(0, 4)}"
        if name not in self.physics.machines:
            self._add_machine(name)
            return f"{name} joins"
        if len(self.physics.machines) > 1:
            self.physics.remove_machine(name)
            return f"{name} is deleted"
        return ""

    def change_weather(self) -> str:
        self.weather = Weather(
            refuses=self.rng.choice((0.0, 0.0, 0.2)),
            loses=self.rng.choice((0.0, 0.0, 0.2)),
            lag=self.rng.choice((0, 0, 3, 12)),
            skew=self.rng.choice((0.0, 0.0, 0.0, -3600.0, 7200.0)),
        )
        return f"weather {self.weather}"

    def restart_controller(self) -> str:
        self.controllers[0].begin()
        return "the controller restarts"

    def second_controller(self) -> str:
        if len(self.controllers) > 1:
            del self.controllers[1:]
            return "one controller again"
        self.controllers.append(self._controller("b"))
        return "a second controller"


EVENTS: list[Callable[[History], str]] = [
    History.create_placement, History.edit_placement, History.delete_placement, meddling.delete_pod, meddling.copy_pod,
    History.kill_engine, History.stranger, History.lose_node, History.cordon, History.silence, History.sicken,
    History.change_nodes, History.change_weather, History.restart_controller, History.second_controller,
    meddling.strip_pod, meddling.delete_service, History.flap, History.doubt, meddling.relabel_pod, meddling.set_quota,
    meddling.hold_deletion,
]  # fmt: skip
WEIGHTS = [14, 10, 2, 4, 1, 12, 5, 4, 2, 2, 2, 2, 4, 3, 2, 1, 1, 2, 2, 1, 1, 1]
