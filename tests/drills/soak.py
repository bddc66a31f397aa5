"""Load, publishes and kills together, for minutes: the latency table, and whether a single answer was wrong."""

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.drills.report import between, seen, wrong_answers
from tests.drills.run import Drilled

_KILL_EVERY_S = (8.0, 20.0)
_CALM_S = 30.0
"""At the end nobody is killed any more, so that all must be well when it is over."""
_MINUTE_S = 60.0
_RANKER_BACK_S = 60.0


def soak(drilled: Drilled, seconds: float, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns how a soak went: minute by minute what users saw, who was killed when, and what was not right.

    Calls without an answer, and answers without a model, count as the drill's own from a kill of the ranker until it
    answers again.
    """
    cluster, users, watch = drilled.cluster, drilled.users, drilled.watch
    rng = np.random.default_rng(seed)
    began_s = time.monotonic()
    began_version = watch.look.version or 0
    kills: list[tuple[float, str]] = []
    away: list[tuple[float, float]] = []
    while (left_s := began_s + seconds - time.monotonic()) > _CALM_S:
        cluster.wait(min(float(rng.uniform(*_KILL_EVERY_S)), left_s - _CALM_S))
        name = str(rng.choice(cluster.processes))
        killed_s = time.monotonic()
        kills.append((round(killed_s - began_s, 1), name))
        say(f"kill {name}")
        users.continuity.may_be_new |= name == "ranker"
        cluster.kill(name)
        if name == "ranker":
            cluster.wait(0.5)
            cluster.wait_for(lambda: watch.look.version, _RANKER_BACK_S)
            away.append((killed_s, time.monotonic() + 0.5))
            users.continuity.may_be_new = False
    cluster.wait(began_s + seconds - time.monotonic())
    is_well = cluster.wait_for(drilled.is_well, _CALM_S)
    ended_s = time.monotonic()
    replies = between(users.replies, began_s, ended_s)
    own = [reply for reply in replies if any(from_s <= reply.done_s <= until_s for from_s, until_s in away)]
    own_ids = {id(reply) for reply in own}
    foreign = [reply for reply in replies if id(reply) not in own_ids]
    problems = wrong_answers(replies)
    unanswered, errors = seen(foreign)["unanswered"], seen(replies)["errors"]
    if unanswered:
        problems.append(f"{unanswered} calls without an answer while no ranker had been killed")
    if errors:
        problems.append(f"HTTP errors: {errors}")
    if not is_well:
        problems += drilled.what_is_missing()
    minutes = np.arange(began_s, began_s + seconds, _MINUTE_S)
    return {
        "name": "soak",
        "seconds": round(ended_s - began_s, 1),
        "seed": seed,
        "kills": kills,
        "versions": (watch.look.version or 0) - began_version,
        "unanswered_own": seen(own)["unanswered"],
        "users": seen(replies),
        "minutes": [seen(between(replies, start_s, start_s + _MINUTE_S)) for start_s in minutes],
        "load": os.getloadavg()[0],
        "problems": problems,
    }
