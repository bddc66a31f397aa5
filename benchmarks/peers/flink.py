"""Flink: the SQL interval left join, which its documentation names for two streams within a time bound of each other.

    deduplicate both sides -> interval LEFT JOIN (an item not clicked comes when the watermark passes) -> first row

The rows per item are deduplicated once more, for two clicks make two joined rows. All of it runs in the JVM; a keyed
co-process function in PyFlink would send every event through a Python worker. Recommended settings: object reuse,
checkpoints (exactly once, every second), state that expires, one source for both sides so that they advance together
(https://nightlies.apache.org/flink/flink-docs-stable/docs/dev/table/sql/queries/joins/#interval-joins).
"""

from pathlib import Path

from pyflink.table import EnvironmentSettings, TableEnvironment, TableResult

from benchmarks.peers.events import OUT_OF_ORDERNESS_MS, WINDOW_MS, arrivals, write
from benchmarks.peers.meter import Job, Meter

REPEATS = 3
WARM_UP_SLATES = 10_000
"""A log of its own for the compiler of the JVM; it needs some seconds."""
SETTINGS = {
    "parallelism.default": "1",
    "pipeline.object-reuse": "true",
    "execution.checkpointing.interval": "1 s",
    "execution.checkpointing.mode": "EXACTLY_ONCE",
    "table.exec.state.ttl": "60 s",
}
SOURCE = """
CREATE TEMPORARY TABLE log (
  kind STRING, `key` STRING, request_id STRING, user_id STRING, item_id STRING, ts BIGINT, event_id STRING,
  happened AS TO_TIMESTAMP_LTZ(ts, 3), seen AS PROCTIME(),
  WATERMARK FOR happened AS happened - INTERVAL '{out_of_orderness_s}' SECOND
) WITH ('connector' = 'filesystem', 'path' = '{path}', 'format' = 'json')
"""
SINK = """
CREATE TEMPORARY TABLE labels (`key` STRING, label INT)
WITH ('connector' = 'filesystem', 'path' = '{path}', 'format' = 'csv')
"""
ONCE = """
CREATE TEMPORARY VIEW {name} AS SELECT `key`, happened FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY {by} ORDER BY seen) AS n FROM log WHERE kind = '{kind}'
) WHERE n = 1
"""
JOIN = """
INSERT INTO labels SELECT `key`, label FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY `key` ORDER BY PROCTIME()) AS n FROM (
    SELECT shown.`key`, CASE WHEN clicked.`key` IS NULL THEN 0 ELSE 1 END AS label
    FROM shown LEFT JOIN clicked ON shown.`key` = clicked.`key`
    AND clicked.happened BETWEEN shown.happened AND shown.happened + INTERVAL '{window_s}' SECOND
  )
) WHERE n = 1
"""


def submitted(environment: TableEnvironment, log: str, rows: str) -> TableResult:
    """Returns a job over one log that has been planned and handed to its cluster, which a local job starts anew."""
    for view in ("shown", "clicked"):
        environment.drop_temporary_view(view)
    for table in ("log", "labels"):
        environment.drop_temporary_table(table)
    environment.execute_sql(SOURCE.format(path=log, out_of_orderness_s=OUT_OF_ORDERNESS_MS // 1_000))
    environment.execute_sql(SINK.format(path=rows))
    environment.execute_sql(ONCE.format(name="shown", by="`key`", kind="impression"))
    environment.execute_sql(ONCE.format(name="clicked", by="event_id", kind="feedback"))
    return environment.execute_sql(JOIN.format(window_s=WINDOW_MS // 1_000))


def main() -> None:
    """Warms the JVM up on another log, measures what a job costs on a log of one event, and takes that off."""
    job = Job.from_argv()
    folder = Path(job.folder)
    environment = TableEnvironment.create(EnvironmentSettings.in_streaming_mode())
    for name, value in SETTINGS.items():
        environment.get_config().set(name, value)
    environment.get_config().set("execution.checkpointing.dir", (folder / "checkpoints").as_uri())
    meter = Meter(job)
    warm, one = folder / "warm.jsonl", folder / "one.jsonl"
    write(warm, arrivals(WARM_UP_SLATES, seed=2))
    write(one, arrivals(1)[:1])
    submitted(environment, str(warm), str(folder / "warm-up")).wait()
    cpu_s, wall_s = meter.time(submitted(environment, str(one), str(folder / "one")).wait)
    for run in range(1, REPEATS + 1):
        job_at_work = submitted(environment, job.events, job.rows if run == REPEATS else str(folder / f"run-{run}"))
        meter.start()
        job_at_work.wait()
        meter.stop(less_cpu_s=cpu_s, less_wall_s=wall_s)


if __name__ == "__main__":
    main()
