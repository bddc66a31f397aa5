"""What the users of a chaos run do: slates and feedback with duplicates and disorder, by arrival. Pure; seeded."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from stream.schema import Feedback, Impression, Items, SchemaConfig

Event = Impression | Feedback
LAST = "last-"
"""Starts the request ids of the events that end a run: they only carry the watermark over everything before."""


class Arrival(NamedTuple):
    """One message of the load: how long after the start it is sent."""

    at_ms: float
    event: Event


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficConfig:
    """How much happens, and how disorderly."""

    slates_per_s: float = 60.0
    """Slates shown per second; each makes about as much feedback."""
    duration_ms: int = 25_000
    """How long slates are shown."""
    num_users: int = 60
    """Users, spread over the partitions by the hash of their name."""
    max_items: int = 6
    """Slates hold 1 to this many items."""
    feedback_per_slate: float = 1.2
    """Mean of the Poisson number of actions on a slate."""
    duplicate_share: float = 0.05
    """Share of impressions, and of feedback, sent twice."""
    disorder_share: float = 0.10
    """Share of messages that arrive up to `disorder_ms` late; the others arrive as they happen."""
    disorder_ms: int = 1_500
    """Most that a message arrives after its event time."""


def arrivals(
    schema: SchemaConfig, config: TrafficConfig, start_ms: int, rng: np.random.Generator
) -> tuple[list[Arrival], list[Event]]:
    """Returns the load by arrival, and the events that end it: later than any window of it is open."""
    tasks = list(schema.tasks.values())
    longest_ms = schema.max_window_ms
    found: list[Arrival] = []

    def send(event: Event) -> None:
        for copy in range(1 + (rng.random() < config.duplicate_share)):
            delay_ms = rng.uniform(0, config.disorder_ms) if rng.random() < config.disorder_share else 0.0
            # A copy is dated like its original, so it is disorder by itself.
            found.append(Arrival(event.ts - start_ms + max(delay_ms, copy * rng.uniform(0, 300)), event))

    num_slates = int(config.slates_per_s * config.duration_ms / 1_000)
    for number, offset_ms in enumerate(np.sort(rng.uniform(0, config.duration_ms, num_slates))):
        request_id, user_id = f"r{number}", f"u{rng.integers(config.num_users)}"
        shown_ms = start_ms + int(offset_ms)
        items = [f"i{rank}" for rank in range(int(rng.integers(1, config.max_items + 1)))]
        send(Impression(request_id, user_id, schema.scenarios[0], shown_ms, Items(id=items)))
        for action in range(int(rng.poisson(config.feedback_per_slate))):
            task = tasks[int(rng.integers(len(tasks)))]
            # Most are early, some on the very edge of the window, some beyond it.
            edge = rng.choice([0, task.window_ms - 1, task.window_ms, task.window_ms + 1, longest_ms + 500])
            delay_ms = int(edge if rng.random() < 0.2 else min(rng.exponential(task.window_ms / 2), longest_ms))
            done_ms = shown_ms + delay_ms
            item_id = items[int(rng.integers(len(items)))]
            send(Feedback(request_id, user_id, item_id, task.action, done_ms, 1.0, f"{request_id}.{action}"))
    end_ms = max(arrival.event.ts for arrival in found) + 2 * longest_ms + 20_000
    ends: list[Event] = []
    for user in range(config.num_users):
        user_id = f"u{user}"
        ends.append(Impression(f"{LAST}{user_id}", user_id, schema.scenarios[0], end_ms, Items(id=["i0"])))
        ends.append(Feedback(f"{LAST}{user_id}", user_id, "i0", tasks[0].action, end_ms, 1.0, f"{LAST}{user_id}"))
    return sorted(found, key=lambda arrival: arrival.at_ms), ends
