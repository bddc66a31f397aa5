"""Quix Streams: `join_interval(how="left")`, its join of two topics within a time bound, on Kafka, exactly once.

Its left join answers at once, with no match for an item that has none yet, and again for each click: nothing comes at
the close of a window. A click that arrives before its item finds it only if it is not dated later. Both sides are
deduplicated by a stateful filter first, for the join takes each copy; the state is RocksDB with changelog topics,
commits every 5 s, the default (https://quix.io/docs/quix-streams/joins.html).
"""

from pathlib import Path
from typing import Any

from quixstreams import Application, State
from quixstreams.dataframe import StreamingDataFrame

from benchmarks.peers.events import GRACE_MS, OUT_OF_ORDERNESS_MS, WINDOW_MS
from benchmarks.peers.meter import Job, Meter

END_MESSAGES = 2


def is_first(event: dict[str, Any], state: State) -> bool:
    """Returns whether this event was not seen before under its key."""
    if state.exists(event["event_id"]):
        return False
    state.set(event["event_id"], True)
    return True


def event_time(value: Any, headers: Any, timestamp: int, timestamp_type: Any) -> int:
    """Returns the time of the event rather than of its message."""
    return int(value["ts"])


def row(shown: dict[str, Any] | None, clicked: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns what goes out of the join; None for a click that found no item."""
    return shown and {"key": shown["key"], "label": int(clicked is not None)}


def main() -> None:
    """Runs the application until it has read the whole log."""
    job = Job.from_argv()
    meter, num_read = Meter(job), 0

    def processed(topic: str, partition: int, offset: int) -> None:
        nonlocal num_read
        num_read += 1
        if num_read == 1:
            meter.start()
        if num_read == job.num_events + END_MESSAGES:
            application.stop()

    application = Application(
        broker_address=job.broker,
        consumer_group=f"{job.prefix}quix",
        auto_offset_reset="earliest",
        processing_guarantee="exactly-once",
        state_dir=Path(job.folder) / "state",
        on_message_processed=processed,
        loglevel="WARNING",
    )

    def side(name: str) -> StreamingDataFrame:
        topic = application.topic(job.prefix + name, value_deserializer="json", timestamp_extractor=event_time)
        return application.dataframe(topic).filter(is_first, stateful=True)

    joined = side("impressions").join_interval(
        side("feedback"),
        how="left",
        on_merge=row,
        forward_ms=WINDOW_MS,
        grace_ms=WINDOW_MS + GRACE_MS + OUT_OF_ORDERNESS_MS,
    )
    joined.filter(lambda value: value is not None).to_topic(
        application.topic(f"{job.prefix}labels", value_serializer="json")
    )
    application.run()
    meter.stop()


if __name__ == "__main__":
    main()
