"""Ours without the log: the join core on decoded events, policy `wait`: each label at its close, as the peers give it.

As production has them, the items of a slate are one event; `--single` makes each item a slate of its own.
"""

import gc
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.events import END, GRACE_MS, ITEMS_PER_SLATE, OUT_OF_ORDERNESS_MS, WINDOW_MS, Event, read
from benchmarks.peers.meter import Job, Meter, write_rows
from stream.emission import Emission
from stream.join import JoinConfig, JoinCore
from stream.schema import Feedback, Impression, Items, SchemaConfig, TaskConfig

REPEATS = 5
SCHEMA = SchemaConfig(
    scenarios=("home",), tasks={"click": TaskConfig(action="click", window_ms=WINDOW_MS, policy="wait")}
)
CONFIG = JoinConfig(grace_ms=GRACE_MS, out_of_orderness_ms=OUT_OF_ORDERNESS_MS, max_ahead_ms=0, idle_ms=3_600_000)
_POLL = 500

Labels = tuple[Impression, Sequence[int], Sequence[int]]
"""Slate, positions of its items, their labels."""


def decoded(events: Sequence[Event], *, single: bool = False) -> list[Impression | Feedback]:
    """Returns the events in our schema: items of one slate that arrived together are one impression."""
    found: list[Impression | Feedback] = []
    waiting: list[Event] = []
    for event in events:
        request_id = event.key if single else event.request_id
        if event.kind == "feedback":
            found.append(Feedback(request_id, event.user_id, event.item_id, "click", event.ts, 1.0, event.event_id))
            continue
        waiting.append(event)
        if single or len(waiting) == ITEMS_PER_SLATE or event.key == END:
            ids = [item.item_id for item in waiting]
            found.append(Impression(request_id, event.user_id, "home", event.ts, Items(ids)))
            waiting.clear()
    return found


def rows_of(labels: Sequence[Labels], *, single: bool = False) -> list[tuple[str, int]]:
    """Returns (key, label) of each item."""
    return [
        (shown.request_id if single else f"{shown.request_id}/{shown.items.id[position]}", label)
        for shown, positions, values in labels
        for position, label in zip(positions, values, strict=True)
    ]


def join(events: Sequence[Impression | Feedback]) -> list[Labels]:
    """Returns the labels as they go out; the watermark moves after every 500 events, as after a poll."""
    core = JoinCore(SCHEMA, CONFIG)
    labels: list[Labels] = []
    newest_ms = 0
    for offset, event in enumerate(events):
        newest_ms = max(newest_ms, event.ts)
        if isinstance(event, Impression):
            emissions = core.observe_impression(event, offset)
        else:
            emissions = core.observe_feedback(event, offset)
        if offset % _POLL == 0:
            emissions += core.advance(newest_ms - OUT_OF_ORDERNESS_MS)
            core.oldest_needed(offset + 1, offset + 1)
        labels += [_labels(emission) for emission in emissions]
    labels += [_labels(emission) for emission in core.advance(2 * newest_ms)]
    return labels


def _labels(emission: Emission) -> Labels:
    return emission.impression, emission.rows, emission.columns["click"].label


def main() -> None:
    """Joins the events in memory."""
    job, single = Job.from_argv(), "--single" in sys.argv
    meter, events = Meter(job), decoded(read(Path(job.events)), single=single)
    gc.collect()
    gc.freeze()  # a stream does not hold its past in memory
    join(events)
    for _ in range(REPEATS):
        meter.start()
        labels = join(events)
        meter.stop()
    write_rows(job.rows, rows_of(labels, single=single))


if __name__ == "__main__":
    main()
