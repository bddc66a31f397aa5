"""What is done to a chaos run, and when. Pure; seeded."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

FaultKind = Literal["kill", "stall", "join", "leave", "broker"]


class Fault(NamedTuple):
    """One blow: how long after the start of the load, what, and for how long."""

    at_ms: float
    kind: FaultKind
    lasts_ms: float
    """Until a killed joiner is started again, a stalled one wakes up, a broker that is down is started."""
    is_hard: bool
    """Of the broker: SIGKILL instead of SIGTERM."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultConfig:
    """How many blows of each kind fall within a load of `duration_ms`."""

    duration_ms: int = 25_000
    num_kills: int = 4
    num_stalls: int = 2
    """The first is longer than the session of a group member (6 s), the others shorter."""
    num_joins: int = 2
    num_leaves: int = 2
    num_broker_restarts: int = 1


_SESSION_MS = 6_000
_MAX_PAUSE_MS = 3_000


def faults(config: FaultConfig, rng: np.random.Generator) -> list[Fault]:
    """Returns the blows in the order in which they fall, none in the first tenth of the load."""
    numbers: dict[FaultKind, int] = {
        "kill": config.num_kills,
        "stall": config.num_stalls,
        "join": config.num_joins,
        "leave": config.num_leaves,
        "broker": config.num_broker_restarts,
    }
    found = []
    for kind, number in numbers.items():
        for index in range(number):
            is_long = kind == "stall" and index == 0
            lasts_ms = rng.uniform(0, _MAX_PAUSE_MS) + (_SESSION_MS + 500 if is_long else 0)
            found.append(Fault(rng.uniform(0.1, 1.0) * config.duration_ms, kind, lasts_ms, bool(rng.random() < 0.5)))
    return sorted(found)
