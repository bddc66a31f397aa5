"""Faust: one agent and a table of open items with its changelog topic, on Kafka.

Faust has no join and no timer in event time; a table keyed by item is what its documentation offers for state that
outlives the process (https://faust-streaming.github.io/faust/userguide/tables.html). The agent keeps its own watermark
and a queue of what is due, and writes the table at each change, which writes the changelog. Default settings: table in
memory, at least once; both topics are one, so that the order of arrival is kept.
"""

import asyncio
import heapq
from typing import Any

import faust

from benchmarks.peers.events import END, GRACE_MS, OUT_OF_ORDERNESS_MS, WINDOW_MS
from benchmarks.peers.meter import Job, Meter

CLOSE_AFTER_MS = WINDOW_MS + GRACE_MS


class Logged(faust.Record, serializer="json"):
    """One message of the log."""

    kind: str
    key: str
    request_id: str
    user_id: str
    item_id: str
    ts: int
    event_id: str


def main() -> None:
    """Runs a worker until it has read the whole log."""
    job = Job.from_argv()
    app = faust.App(
        f"{job.prefix}faust",
        broker=f"kafka://{job.broker}",
        store="memory://",
        topic_partitions=1,
        topic_replication_factor=1,
        web_enabled=False,
        datadir=job.folder,
    )
    log = app.topic(f"{job.prefix}events", value_type=Logged)
    labels = app.topic(f"{job.prefix}labels", value_serializer="json")
    open_items = app.Table("open", partitions=1)
    meter, ended = Meter(job), asyncio.Event()

    @app.agent(log)
    async def join(stream: Any) -> None:
        """Labels each item when its window closes."""
        due: list[tuple[int, str]] = []
        newest_ms = 0
        async for event in stream:
            if not newest_ms:
                meter.start()
            newest_ms = max(newest_ms, event.ts)
            watermark_ms = newest_ms - OUT_OF_ORDERNESS_MS
            if event.ts + CLOSE_AFTER_MS >= watermark_ms:
                known = open_items.get(event.key)
                now = known or {"shown": None, "clicked": []}
                if event.kind == "impression" and now["shown"] is None:
                    open_items[event.key] = {**now, "shown": event.ts}
                elif event.kind == "feedback" and event.ts not in now["clicked"]:
                    open_items[event.key] = {**now, "clicked": [*now["clicked"], event.ts]}
                if known is None:
                    heapq.heappush(due, (event.ts + CLOSE_AFTER_MS, event.key))
            while due and due[0][0] < watermark_ms:
                key = heapq.heappop(due)[1]
                closed = open_items.pop(key)
                if closed["shown"] is not None:
                    label = any(0 <= ts - closed["shown"] <= WINDOW_MS for ts in closed["clicked"])
                    await labels.send(key=key, value={"key": key, "label": int(label)})
            if event.key == END:
                await app.producer.flush()
                meter.stop()
                ended.set()

    async def run() -> None:
        app.finalize()
        await app.start()
        await ended.wait()
        await app.stop()

    asyncio.run(run())


if __name__ == "__main__":
    main()
