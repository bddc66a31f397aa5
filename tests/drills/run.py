"""One drill from quiet to quiet: steady load, the blow, its end, and the time until all is well again."""

import os
import re
import time
from collections.abc import Callable
from typing import Any

import httpx

from freshrank.command import now_ms
from tests.drills.cluster import Cluster
from tests.drills.drills import Drill
from tests.drills.load import Users
from tests.drills.report import between, seen, wrong_answers
from tests.drills.watch import PROGRESS, Watch, scrape, started_s, total

_WARM_S = 120.0
_BEFORE_S = 8.0
_AFTER_S = 6.0
_LATE_S = 150.0
"""How long we wait for what should long have been well."""
_AGE_MS = 4_000
"""A model as old as this is fresh; the order's window is 6 s, but clicks are learned as they come."""
_NUMBER = re.compile(r"-?\d+")
_COUNTED = (
    ("ranker", "freshrank_ranker_impressions_dropped_total"),
    ("ranker", "freshrank_ranker_feedback_dropped_total"),
    ("ranker", "freshrank_ranker_delivery_failures_total"),
    ("joiner", "freshrank_joiner_impression_late_total"),
    ("joiner", "freshrank_joiner_feedback_late_total"),
    ("joiner", "freshrank_joiner_feedback_unmatched_total"),
    ("joiner", "freshrank_joiner_feedback_outside_window_total"),
    ("joiner", "freshrank_joiner_malformed_total"),
    ("joiner", "freshrank_joiner_clock_ahead_total"),
)
"""What may go missing, by counter; a process that was started again counts from 0."""


class Drilled:
    """A cluster under load, and its watch."""

    def __init__(self, cluster: Cluster, rate_per_s: float, seed: int, say: Callable[[str], None]) -> None:
        self.cluster, self._say = cluster, say
        self.watch = Watch(cluster.ranker, cluster.targets())
        self.users = Users(cluster.run, cluster.ranker, rate_per_s, seed, now_ms)

    def __enter__(self) -> "Drilled":
        """Starts watch and users; returns once the loop turns.

        Raises:
            RuntimeError: it does not.
        """
        self.watch.start()
        if not self.cluster.wait_for(lambda: self.watch.look.version, _WARM_S):
            raise RuntimeError(f"nothing is learned within {_WARM_S:g} s, see the logs in {self.cluster.folder}/logs")
        self.users.start()
        self.cluster.wait(_BEFORE_S)
        if not self.cluster.wait_for(self.is_well, _WARM_S):
            raise RuntimeError(f"not well within {_WARM_S:g} s: {self.what_is_missing()}")
        return self

    def __exit__(self, *_: object) -> None:
        self.users.close()
        self.watch.close()

    def is_well(self, since_version: int = 0, done_before: dict[str, float] | None = None) -> bool:
        """Returns whether a fresh version is served, nobody is degraded and everybody works."""
        return not self.what_is_missing(since_version, done_before)

    def what_is_missing(self, since_version: int = 0, done_before: dict[str, float] | None = None) -> list[str]:
        """Returns why not all is well: what the ranker does without, and who does not work."""
        look, missing = self.watch.look, []
        if look.version is None or look.degraded is None:
            return ["the ranker does not answer"]
        if look.degraded:
            missing.append(f"the ranker is degraded: {', '.join(look.degraded)}")
        if look.version <= since_version:
            missing.append(f"no version after {since_version}")
        if look.age_ms is None or not -_AGE_MS < look.age_ms < _AGE_MS:
            missing.append(f"the model is {look.age_ms} ms old")
        for name, found in self.watch.scrapes.items():
            if found is None:
                missing.append(f"{name} does not answer")
            elif name in PROGRESS and total(found, PROGRESS[name]) in (0.0, (done_before or {}).get(name)):
                missing.append(f"{name} does nothing")
        return missing

    def drill(self, drill: Drill) -> dict[str, Any]:
        """Does one drill; returns its row of the results."""
        cluster, watch, users = self.cluster, self.watch, self.users
        cluster.wait(_BEFORE_S)
        cluster.wait_for(self.is_well, _WARM_S)
        watch.expect()
        counts, restarts, skipped = self._counts(), cluster.num_restarts(), users.num_skipped
        users.continuity.may_be_new = drill.kills_ranker
        users.continuity.trusts_clock = not drill.moves_clock
        began_s = time.monotonic()
        self._say(f"{drill.name}: {drill.what}")
        drill.inflict(cluster)
        cluster.wait(drill.lasts_s)
        drill.mend(cluster)
        mended_s, since = time.monotonic(), watch.look.version or 0
        self._say(f"{drill.name}: mended")
        done = {name: total(watch.known.get(name), metric) for name, metric in PROGRESS.items()}
        training = None
        if drill.training_within_s is not None:
            training = self._until_training(began_s)
        cluster.wait(drill.settles_s or 0.3)  # nobody knows yet what has happened
        missing_until: dict[str, float] = {}

        def is_well() -> bool:
            missing = self.what_is_missing(since, done)
            after_s = round(time.monotonic() - mended_s, 1)
            missing_until.update({_NUMBER.sub("N", what): after_s for what in missing})
            return not missing

        is_mended = cluster.wait_for(is_well, _LATE_S)
        recovered_s = time.monotonic() - mended_s if is_mended else None
        missing = [] if is_mended else self.what_is_missing(since, done)
        well_s = time.monotonic()
        cluster.wait(_AFTER_S)
        users.continuity.may_be_new, users.continuity.trusts_clock = False, True
        row: dict[str, Any] = {
            "name": drill.name,
            "what": drill.what,
            "lasted_s": round(mended_s - began_s, 1),
            "recovered_s": None if recovered_s is None else round(recovered_s, 1),
            "limit_s": drill.within_s,
            "missing_until_s": missing_until,
            "training_again": training,
            "users": {
                "before": seen(between(users.replies, began_s - _BEFORE_S, began_s)),
                "during": seen(between(users.replies, began_s, well_s)),
                "after": seen(between(users.replies, well_s, well_s + _AFTER_S)),
            },
            "load": os.getloadavg()[0],
            "skipped": users.num_skipped - skipped,
            "alarms": {what: round(at_s - began_s, 1) for what, at_s in sorted(watch.raised.items())},
            "restarts": {name: n - restarts[name] for name, n in cluster.num_restarts().items() if n > restarts[name]},
            "counted": {name: value - counts[name] for name, value in self._counts().items() if value > counts[name]},
        }
        row["problems"] = [*missing, *_problems(drill, row), *wrong_answers(between(users.replies, began_s, well_s))]
        return row

    def _until_training(self, began_s: float) -> dict[str, float] | None:
        """Waits until a killed trainer has made a step of its own; returns how long that took, and of its CPU."""
        address, metric = self.cluster.targets()["trainer"], PROGRESS["trainer"]
        killed_s, seen_steps, cpu_s = started_s(self.watch.known.get("trainer")), [], 0.0
        with httpx.Client(timeout=1.0) as client:

            def trains() -> bool:
                nonlocal cpu_s
                found = scrape(client, address)
                if found is not None and started_s(found) != killed_s:
                    seen_steps.append(total(found, metric))  # it goes on counting where its checkpoint was
                    cpu_s = total(found, "process_cpu_seconds_total")
                return len(set(seen_steps)) > 1

            if not self.cluster.wait_for(trains, _LATE_S):
                return None
            return {"wall_s": round(time.monotonic() - began_s, 1), "cpu_s": round(cpu_s, 1)}

    def _counts(self) -> dict[str, float]:
        return {metric: total(self.watch.known.get(process), metric) for process, metric in _COUNTED}


def _problems(drill: Drill, row: dict[str, Any]) -> list[str]:
    """Returns what of a drill was not as it must be."""
    problems = []
    recovered_s, training, limit_s = row["recovered_s"], row["training_again"], drill.training_within_s
    if recovered_s is not None and recovered_s > drill.within_s:
        problems.append(f"well again after {recovered_s:g} s, at most {drill.within_s:g} s are allowed")
    if limit_s is not None and (training is None or training["wall_s"] > limit_s):
        problems.append(f"training again after {training}, at most {limit_s:g} s are allowed")
    if drill.alarm and not any(drill.alarm in what for what in row["alarms"]):
        problems.append(f"no alarm that says {drill.alarm!r}")
    for users in row["users"].values():
        if users["errors"]:
            problems.append(f"HTTP errors: {users['errors']}")
        if users["unanswered"] and not drill.kills_ranker:
            problems.append(f"{users['unanswered']} calls without an answer")
    return problems
