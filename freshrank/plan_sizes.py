"""What a load needs at one publish interval: how many of each, how long each snapshot takes, and the pipeline of it."""

import math
from dataclasses import dataclass

from freshrank.plan_costs import Costs
from freshrank.plan_load import Load
from freshrank.plan_parts import (
    Joiners,
    Rankers,
    job_of,
    joiners_of,
    rankers_of,
    snapshot_bytes_per_s,
    swap_ms,
    swapping,
)
from freshrank.plan_pipeline import Pipeline
from freshrank.plan_ranks import BATCHES, Ranks, speed
from freshrank.plan_rows import Rows, rows_of

PROBE_REQUESTS = 64
"""`trainer.gate.probe_requests`."""
MOST_JOINERS = 24
"""More joiners are simulated as so many: each has commits of its own, and their number hardly matters."""
POINTER_MS = 2.0
"""Round trips for the pointer, and the announcement that wakes the rankers."""
MOST_FETCHING = 0.25
"""Share of an interval that fetching a version may take: all rankers ask at once."""
MOST_PUBLISHING = 0.5
"""Share of its time that a trainer may publish."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What is needed at one publish interval. Where something gives way, it is what comes nearest."""

    interval_s: float
    full_every: int
    rows: Rows
    joiners: Joiners
    job: Ranks
    rankers: Rankers
    snapshot_nodes: int
    """Redis servers that hand out snapshots: the one that is written to, and copies of it."""
    publishing: float
    """Share of its time that the trainer publishes."""
    fastest: Ranks
    """The job that learns most."""
    training: float
    """Rows per second that are needed, with room, over those that the fastest job learns."""
    pipeline: Pipeline | None
    """None where the trainer would fall behind, or the rankers."""


def sizes_at(load: Load, costs: Costs, interval_s: float, full_every: int) -> Sizes:
    """Returns what is needed at a publish interval."""
    rows = rows_of(load, costs, interval_s)
    joiners = joiners_of(load, costs)
    rankers = rankers_of(load, costs, rows, swapping(load, costs, rows, interval_s, full_every))
    egress = rankers.number * snapshot_bytes_per_s(rows, interval_s, full_every)
    nodes = max(1, math.ceil(egress / (MOST_FETCHING * costs["network.link"])))
    job = speed(costs, load.preset, 1, BATCHES[0], width=load.width, judged_share=load.judged_share)
    for _ in range(3):  # more ranks gather longer, and while they gather they do not learn
        times = snapshot_ms(load, costs, rows, job, rankers.number / nodes)
        publishing = _share(times, "build", "store", interval_s, full_every)
        needed = load.rows_per_s / (load.utilisation * (1 - min(publishing, MOST_PUBLISHING)))
        job, fastest = job_of(load, costs, needed)
    times = snapshot_ms(load, costs, rows, job, rankers.number / nodes)
    training = needed / fastest.rows_per_s
    keeps_up = training <= 1 and publishing < MOST_PUBLISHING and _share(times, "apply", "", interval_s, full_every) < 1
    return Sizes(
        interval_s=interval_s,
        full_every=full_every,
        rows=rows,
        joiners=joiners,
        job=job,
        rankers=rankers,
        snapshot_nodes=nodes,
        publishing=publishing,
        fastest=fastest,
        training=training,
        pipeline=_pipeline(load, costs, joiners, job, rankers, times, interval_s, full_every) if keeps_up else None,
    )


def snapshot_ms(load: Load, costs: Costs, rows: Rows, job: Ranks, readers: float) -> dict[str, float]:
    """Returns how long a snapshot takes to build, to store and to take up, delta and `full_`, in ms.

    `readers`: rankers that fetch it from one server at the same time.
    """
    suffix = "" if load.preset == "small" else f"_{load.preset}"
    probe_ms = PROBE_REQUESTS * load.scenarios * load.slate * costs[f"ranker.probe{suffix}"] * 1e-3
    others = (job.size - 1) / job.size
    found: dict[str, float] = {}
    sizes = (("", rows.delta, rows.delta_bytes), ("full_", float(rows.hot), rows.full_bytes))
    for (name, num_rows, num_bytes), cpu_ms in zip(sizes, swap_ms(load, costs, rows), strict=True):
        gather_ms = 1e3 * num_bytes * others / costs["network.link"]
        one_reader_ms = num_bytes * costs["redis.byte"] * 1e-6
        fetch_ms = max(one_reader_ms, 1e3 * num_bytes * readers / costs["network.link"])
        found[f"{name}build_ms"] = gather_ms + num_rows * costs["publish.row"] * 1e-3
        found[f"{name}store_ms"] = one_reader_ms + probe_ms + POINTER_MS
        found[f"{name}apply_ms"] = POINTER_MS + fetch_ms + cpu_ms / (1 - load.ranker_utilisation)
    return found


def _share(times: dict[str, float], first: str, second: str, interval_s: float, full_every: int) -> float:
    """Returns the share of an interval that these parts of a snapshot take, over deltas and full versions."""
    names = [name for name in (first, second) if name]
    delta_ms = sum(times[f"{name}_ms"] for name in names)
    full_ms = sum(times[f"full_{name}_ms"] for name in names)
    return (delta_ms + (full_ms - delta_ms) / full_every) / (1e3 * interval_s)


def _pipeline(
    load: Load,
    costs: Costs,
    joiners: Joiners,
    job: Ranks,
    rankers: Rankers,
    times: dict[str, float],
    interval_s: float,
    full_every: int,
) -> Pipeline:
    return Pipeline(
        rows_per_s=load.rows_per_s,
        joiners=min(joiners.number, MOST_JOINERS),
        commit_interval_ms=load.commit_interval_ms,
        way_ms=costs["joiner.way"],
        commit_ms=costs["joiner.commit"],
        commit_spread=costs["joiner.commit_spread"],
        batch_rows=job.batch_rows,
        max_wait_ms=load.max_wait_ms,
        step_ms=job.step.fixed + job.step.network,
        row_ms=(job.step.rows + job.step.lead) / job.batch_rows,
        publish_interval_ms=1e3 * interval_s,
        full_every=full_every,
        request_ms=1e3 * rankers.number / load.qps,
        **times,
    )
