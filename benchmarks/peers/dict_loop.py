"""A plain dict loop on decoded events: what one writes first. The ceiling of speed, and what it leaves out in rows.

No duplicates, no click before its item, no recovery: dicts of what is open, one queue in order of arrival.
"""

from collections import deque
from pathlib import Path

from benchmarks.peers.events import GRACE_MS, OUT_OF_ORDERNESS_MS, WINDOW_MS, Event, read
from benchmarks.peers.meter import Job, Meter, write_rows

REPEATS = 5


def join(events: list[Event]) -> list[tuple[str, int]]:
    """Returns (key, label) in order of the closes."""
    rows: list[tuple[str, int]] = []
    clicked: dict[str, int] = {}
    shown_ms: dict[str, int] = {}
    order: deque[tuple[int, str]] = deque()
    newest_ms = 0
    for kind, key, _, _, _, ts, _ in events:
        if ts > newest_ms:
            newest_ms = ts
        if kind == "impression":
            shown_ms[key] = ts
            clicked[key] = 0
            order.append((ts, key))
        elif key in shown_ms and ts - shown_ms[key] <= WINDOW_MS:
            clicked[key] = 1
        while order and order[0][0] + WINDOW_MS + GRACE_MS + OUT_OF_ORDERNESS_MS < newest_ms:
            _, closed = order.popleft()
            if closed in shown_ms:
                del shown_ms[closed]
                rows.append((closed, clicked.pop(closed)))
    rows += [(key, clicked[key]) for key in shown_ms]
    return rows


def main() -> None:
    """Joins the events in memory."""
    job = Job.from_argv()
    meter, events = Meter(job), read(Path(job.events))
    join(events)
    for _ in range(REPEATS):
        meter.start()
        rows = join(events)
        meter.stop()
    write_rows(job.rows, rows)


if __name__ == "__main__":
    main()
