"""The log that every peer joins: shown items and clicks as they arrive in production, seeded.

One event per shown item, so that each peer can key by item and none has to unnest; the items of one slate arrive
together. Standard library only: the peers' virtual environments hold nothing of ours.
"""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

WINDOW_MS = 5_000
GRACE_MS = 1_000
OUT_OF_ORDERNESS_MS = 1_000
"""No event arrives when one has been seen that is this much later."""
SLATES_PER_S = 200
ITEMS_PER_SLATE = 10
START_MS = 1_700_000_000_000
END_AFTER_MS = 60_000
"""How much later than all events the one is that closes every window in a log that never ends."""
END = "end"
"""Key of that event."""

_CLICKED = 0.10
_AGAIN = 0.05
_UNMATCHED = 0.01
_OUTSIDE = 0.03
_DUPLICATE = 0.05
_DISORDERED = 0.10
_USUAL_JITTER_MS = 50


class Event(NamedTuple):
    """One line of the log."""

    kind: Literal["impression", "feedback"]
    key: str
    """Slate and item: what is joined, and what a label is for."""
    request_id: str
    user_id: str
    item_id: str
    ts: int
    """Event time, ms."""
    event_id: str


def arrivals(num_slates: int, seed: int = 1) -> list[Event]:
    """Returns the events in order of arrival.

    A tenth of the items is clicked, some twice, 3 % of the clicks after the window, 1 % of them on nothing. Of all
    slates and clicks 10 % arrive up to a second after they happened, the rest within 50 ms: some clicks come before
    their slate. 5 % arrive twice.
    """
    rng = random.Random(seed)
    found: list[tuple[float, Event]] = []

    def arrive(*together: Event) -> None:
        for _ in range(1 + (rng.random() < _DUPLICATE)):
            late_ms = OUT_OF_ORDERNESS_MS - _USUAL_JITTER_MS if rng.random() < _DISORDERED else 0
            at_ms = together[0].ts + rng.random() * (_USUAL_JITTER_MS + late_ms)
            found.extend((at_ms, event) for event in together)

    for number in range(num_slates):
        slate_ms = START_MS + number * 1_000 // SLATES_PER_S
        request_id, user_id = f"r-{number:x}", f"user-{number % 5_000}"
        first, step = rng.randrange(50_000), rng.randrange(1, 1_000)
        items = [f"item-{first + index * step}" for index in range(ITEMS_PER_SLATE)]
        shown = [
            Event("impression", f"{request_id}/{item}", request_id, user_id, item, slate_ms, f"{request_id}/{item}")
            for item in items
        ]
        arrive(*shown)
        for item in items:
            for click in range((rng.random() < _CLICKED) * (1 + (rng.random() < _AGAIN))):
                delay_ms = min(20 + int(rng.expovariate(1 / 800)), WINDOW_MS)
                if rng.random() < _OUTSIDE:
                    delay_ms = WINDOW_MS + 1 + rng.randrange(WINDOW_MS)
                on = f"nothing-{number:x}" if rng.random() < _UNMATCHED else request_id
                event_id = f"{request_id}/{item}/{click}"
                arrive(Event("feedback", f"{on}/{item}", on, user_id, item, slate_ms + delay_ms, event_id))
    found.sort(key=lambda arrival: arrival[0])
    return [event for _, event in found]


def write(path: Path, events: Iterable[Event]) -> None:
    """Writes one JSON object per line."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(event._asdict()) + "\n" for event in events)


def read(path: Path) -> list[Event]:
    """Returns what `write` wrote."""
    with path.open(encoding="utf-8") as file:
        return [Event(**json.loads(line)) for line in file]
