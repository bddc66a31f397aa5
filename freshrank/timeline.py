"""What has happened in a run, as sentences: made by comparing what the page shows from one second to the next. Pure."""

from collections import deque
from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal["you", "fault", "well", "gate", "news"]
"""Somebody asked for it on the page; something went wrong; it is right again; the publish gate; anything else."""
State = Mapping[str, Any]
STALE_MS = 5_000
"""A model that has not seen so much is called behind, once it was fresh."""
FRESH_MS = 2_500
"""And fresh again from here on."""
KEEP = 60
"""Events remembered."""
_GATE = {
    "pass": "data and labels are in order",
    "warn": "data or labels are unusual",
    "block": "data or labels are not in order",
}


class Timeline:
    """The last events, in order."""

    def __init__(self) -> None:
        self._events: deque[dict[str, Any]] = deque(maxlen=KEEP)
        self._before: State | None = None
        self._down_ms: dict[str, int] = {}
        self._told: set[str] = set()
        self._was_fresh = False
        self._behind_ms: int | None = None
        self._behind_version = 0.0
        self._judged: str | None = None

    def note(self, now_ms: int, kind: Kind, text: str) -> None:
        """Adds an event."""
        self._events.append({"t_ms": now_ms, "kind": kind, "text": text})

    def events(self) -> list[dict[str, Any]]:
        """Returns the events, oldest first: when, of which kind, and a sentence."""
        return list(self._events)

    def observe(self, now_ms: int, state: State) -> None:
        """Takes up what the page shows now."""
        before, self._before = self._before, state
        self._freshness(now_ms, state)
        if before is None:
            return
        self._processes(now_ms, before, state)
        self._gate(now_ms, before, state)
        self._versions(now_ms, before, state)

    def _processes(self, now_ms: int, before: State, state: State) -> None:
        """Tells who does not answer, from the second time on: one that is only slow once is no news."""
        known = {process["name"]: process for process in before["processes"]}
        for new in state["processes"]:
            name = new["name"]
            old = known.get(name, new)  # one that is new has nothing to be compared with
            if old["up"] and not new["up"]:
                self._down_ms[name] = now_ms
            elif not new["up"] and name in self._down_ms and name not in self._told:
                self._told.add(name)
                self.note(self._down_ms[name], "fault", f"{name} does not answer")
                self._fall_behind(self._down_ms[name], before)
            if not new["up"]:
                continue
            seconds = (now_ms - self._down_ms.pop(name, now_ms)) / 1_000
            is_new = new["restarts"] > old["restarts"]
            if name in self._told:
                self._told.remove(name)
                how = "restarted" if is_new else "the same process"
                self.note(now_ms, "well", f"{name} answers again after {seconds:.1f} s, {how}")
            elif is_new:
                self.note(now_ms, "fault", f"{name} was restarted between two looks")
                self._fall_behind(now_ms, before)

    def _fall_behind(self, now_ms: int, before: State) -> None:
        """From now on a version is awaited that is newer than those of before, and fresh."""
        if self._was_fresh and self._behind_ms is None:
            self._behind_ms, self._behind_version = now_ms, before["model"]["version"] or 0.0

    def _freshness(self, now_ms: int, state: State) -> None:
        age_ms, version = state["model"]["age_ms"], state["model"]["version"] or 0.0
        if age_ms is None:
            return
        if self._behind_ms is None and self._was_fresh and age_ms > STALE_MS:
            self.note(now_ms, "fault", f"the model served has seen nothing of the last {age_ms / 1_000:.1f} s")
            self._behind_ms, self._behind_version = now_ms, version
        if age_ms > FRESH_MS or not all(process["up"] for process in state["processes"]):
            return
        if not self._was_fresh:
            self._was_fresh = True
            self.note(now_ms, "well", f"the first model serves, {age_ms / 1_000:.1f} s behind the events")
        elif self._behind_ms is not None and version > self._behind_version:
            seconds = (now_ms - self._behind_ms) / 1_000
            self.note(now_ms, "well", f"version {version:,.0f} is fresh again, {seconds:.1f} s after it began")
            self._behind_ms = None

    def _gate(self, now_ms: int, before: State, state: State) -> None:
        old, new = before["gate"], state["gate"]
        if new["state"] in _GATE and new["state"] != self._judged:
            if self._judged is not None or new["state"] != "pass":
                self.note(now_ms, "gate", _GATE[new["state"]])
            self._judged = new["state"]
        rejected = (new["rejected"] or 0) - (old["rejected"] or 0)
        if rejected > 0:
            self.note(now_ms, "gate", f"{_versions(rejected)} rejected, the one before goes on serving")
        for what, begun, over in (
            ("holding", "learning waits until data are in order", "learning goes on"),
            ("frozen", "publishing is frozen", "publishing goes on"),
        ):
            if bool(new[what]) != bool(old[what]) and new[what] is not None:
                self.note(now_ms, "gate", begun if new[what] else over)

    def _versions(self, now_ms: int, before: State, state: State) -> None:
        old, new = before["model"]["version"] or 0.0, state["model"]["version"] or 0.0
        if 0 < new < old:
            self.note(now_ms, "gate", f"rolled back: version {new:,.0f} serves in place of {old:,.0f}")
        for name in set(state["schema"]["added"]) - set(before["schema"]["added"]):
            self.note(now_ms, "news", f"scenario {name} has a part of the model of its own")
        for name, is_open in state["traffic"]["is_open"].items():
            if is_open and before["traffic"]["is_open"].get(name) is False:
                self.note(now_ms, "news", f"users come to scenario {name}")
        if before["traffic"]["bots"] and state["traffic"]["bots"] == 0:
            self.note(now_ms, "news", "the bots have left")
        weights = state["blender"]["version"], state["blender"]["share"]
        if None not in weights and (before["blender"]["version"], before["blender"]["share"]) not in (
            weights,
            (None, None),
        ):
            text = f"version {weights[0]:.0f} for {100 * weights[1]:.0f} % of the requests"
            self.note(now_ms, "news", f"weights: {text if weights[0] else 'those of the configuration serve'}")
        malformed = state["join"].get("malformed", 0) - before["join"].get("malformed", 0)
        if malformed > 0:
            self.note(now_ms, "fault", f"joiner: {malformed:.0f} messages were garbage, set aside")


def _versions(num: float) -> str:
    return "a version was" if num == 1 else f"{num:.0f} versions were"
