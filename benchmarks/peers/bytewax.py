"""Bytewax: `join_window` on session windows in event time, files in and out, recovery on.

Of its windows only sessions follow the item: they start when it is shown and last until nothing came for a label
window. Final labels are asked for with `emit_mode="final"`, events in order of event time with `ordered=True`.
`to_system_utc` gives None, so that a log replayed faster than time passes wakes no timers; windows then close at the
end of the log, for each key has a clock of its own
(https://docs.bytewax.io/stable/api/bytewax/bytewax.operators.windowing.html).
"""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bytewax.operators as op
import bytewax.operators.windowing as win
from bytewax.connectors.files import FileSink, FileSource
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import run_main

from benchmarks.peers.events import OUT_OF_ORDERNESS_MS, WINDOW_MS
from benchmarks.peers.meter import Job, Meter

Sides = tuple[dict[str, Any] | None, dict[str, Any] | None]


def flow_of(job: Job) -> Dataflow:
    """Returns the dataflow: log file to label file."""
    flow = Dataflow("join")
    lines = op.input("log", flow, FileSource(job.events))
    keyed = op.key_on("key", op.map("decode", lines, json.loads), lambda event: event["key"])
    split = op.branch("split", keyed, lambda keyed: keyed[1]["kind"] == "impression")
    clock = win.EventClock(
        ts_getter=lambda event: datetime.fromtimestamp(event["ts"] / 1_000, UTC),
        wait_for_system_duration=timedelta(milliseconds=OUT_OF_ORDERNESS_MS),
        to_system_utc=lambda _: None,
    )
    windower = win.SessionWindower(gap=timedelta(milliseconds=WINDOW_MS))
    joined = win.join_window(
        "join", clock, windower, split.trues, split.falses, insert_mode="first", emit_mode="final", ordered=True
    )
    rows = op.filter_map("label", joined.down, row)
    op.output("labels", rows, FileSink(Path(job.rows)))
    return flow


def row(keyed: tuple[str, tuple[int, Sides]]) -> tuple[str, str] | None:
    """Returns the label of a session, keyed for the sink; None if the item was not shown."""
    key, (_, (shown, clicked)) = keyed
    if shown is None:
        return None
    label = int(clicked is not None and 0 <= clicked["ts"] - shown["ts"] <= WINDOW_MS)
    return key, f"{key},{label}"


def main() -> None:
    """Runs the dataflow in this process, on one worker."""
    job = Job.from_argv()
    recovery = Path(job.folder) / "recovery"
    recovery.mkdir()
    init_db_dir(recovery, 1)
    meter, flow = Meter(job), flow_of(job)
    meter.start()
    run_main(flow, recovery_config=RecoveryConfig(str(recovery)))
    meter.stop()


if __name__ == "__main__":
    main()
