"""A plan as lines: what is needed, what one unit of it costs, where that was measured, and how far it is stretched."""

import math
from dataclasses import dataclass
from typing import Any

from freshrank.plan_costs import Costs
from freshrank.plan_failures import failures_of, with_failures
from freshrank.plan_load import Load
from freshrank.plan_parts import (
    partitions_of,
    rank_bytes,
    sequence_bytes,
    sequences_bytes_per_s,
    snapshot_bytes_per_s,
    written_bytes_per_s,
)
from freshrank.plan_rows import FLOAT_BYTES, KEY_BYTES
from freshrank.plan_sizes import Sizes
from freshrank.plan_solve import Plan

KEPT_FULLS, KEPT_S = 5, 60.0
"""`store.keep_fulls` and `store.retired_ttl_s`."""
VALUE_BYTES = 90
"""What Redis takes for a key of its own beside the value."""
DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One figure of the plan."""

    what: str
    value: float
    unit: str
    how: str
    """From what it follows."""
    rests_on: tuple[str, ...]
    """Names of costs."""
    beyond: float = 1.0
    """How many times more than what was run."""


def lines_of(plan: Plan, costs: Costs) -> list[Line]:
    """Returns the figures of a plan."""
    return [*_counts(plan.load, plan.sizes, costs), *_redis(plan.load, plan.sizes, costs), *_kafka(plan, costs)]


def _counts(load: Load, sizes: Sizes, costs: Costs) -> list[Line]:
    joiners, job, rankers = sizes.joiners, sizes.job, sizes.rankers
    partitions = partitions_of(load, costs, joiners.number, job.size)
    join_costs: tuple[str, ...] = ("joiner.event_single", "joiner.event_of_20", "joiner.commit")
    if joiners.spills:
        join_costs += ("joiner.spilled_close", "joiner.spilled_feedback")
    suffix = "" if load.preset == "small" else f"_{load.preset}"
    rank_costs: tuple[str, ...] = (
        "trainer.row",
        "trainer.read",
        "trainer.lead",
        f"trainer.step{suffix}",
        f"trainer.step_row{suffix}",
    )
    if job.size > 1:
        rank_costs += ("ranks.collective", "ranks.collectives", "ranks.lead_column", "ranks.distinct", "network.link")
    rank_costs += ("publish.row", "redis.byte", f"ranker.probe{suffix}")
    swap_costs = ("apply.row", "apply.full_row", "zipf.items", "zipf.users")
    spilled = Line(
        what="disk of a joiner", value=joiners.disk_bytes, unit="bytes",
        rests_on=("joiner.disk_single", "joiner.disk_of_20"), how="open slates and a snapshot of them",
    )  # fmt: skip
    cores = "cores" if load.ranker_cores == 1 else f"x {load.ranker_cores} cores"
    return [
        Line(
            what="partitions", value=partitions, unit="", rests_on=("kafka.partition",),
            how="a multiple of the ranks, twice the joiners and ranks or more",
        ),
        Line(
            what="joiners", value=joiners.number, unit="cores", rests_on=join_costs,
            beyond=joiners.number / costs["reach.joiners"],
            how=f"{load.events_per_s:,.0f} events/s at {joiners.event_us:.1f} us, {load.utilisation:.0%} busy",
        ),
        Line(
            what="memory of a joiner", value=joiners.memory_bytes, unit="bytes",
            rests_on=("joiner.base", "joiner.open_single", "joiner.open_of_20"),
            how=f"open slates of {load.window_s:,.0f} s" + (", the rest spilled" if joiners.spills else ""),
        ),
        *([spilled] if joiners.spills else []),
        Line(
            what="trainer ranks", value=job.size, unit="cores", rests_on=rank_costs,
            beyond=job.size / costs["reach.ranks"],
            how=f"{load.rows_per_s:,.0f} rows/s, {job.rows_per_s:,.0f} at full speed; {job.batch_rows} rows in a step "
            f"of {job.step.whole:.0f} ms: fixed {job.step.fixed:.0f}, rows {job.step.rows:.0f}, network "
            f"{job.step.network:.0f}, lead {job.step.lead:.0f}",
        ),
        Line(
            what="memory of a rank", value=rank_bytes(load, costs, sizes.rows, job.size), unit="bytes",
            rests_on=("trainer.base",), how=f"{sizes.rows.total:,} rows of width {load.width} over the ranks",
        ),
        Line(
            what="rankers", value=rankers.number, unit=cores,
            rests_on=(f"ranker.request{suffix}", f"ranker.scored{suffix}", *swap_costs),
            beyond=rankers.number / costs["reach.rankers"],
            how=f"{load.qps:,.0f} requests/s at {rankers.request_ms:.1f} ms, {load.ranker_utilisation:.0%} busy, "
            f"{rankers.swapping:.1%} of it with versions",
        ),
        Line(
            what="memory of a ranker", value=rankers.memory_bytes, unit="bytes", rests_on=("ranker.base",),
            how=f"{sizes.rows.hot:,} hot rows, twice, and a full version while it is taken up",
        ),
    ]  # fmt: skip


def _redis(load: Load, sizes: Sizes, costs: Costs) -> list[Line]:
    rows, interval_s, full_every = sizes.rows, sizes.interval_s, sizes.full_every
    kept = KEPT_FULLS * (rows.full_bytes + (full_every - 1) * rows.delta_bytes)
    kept += KEPT_S / interval_s * rows.delta_bytes
    sequences = load.users * (sequence_bytes(load, costs) + VALUE_BYTES)
    cold = (rows.total - rows.hot) * (KEY_BYTES + FLOAT_BYTES * load.width + VALUE_BYTES)
    read = sizes.rankers.number * snapshot_bytes_per_s(rows, interval_s, full_every)
    swapped = ("zipf.items", "zipf.users")
    return [
        Line(
            what="rows of a delta", value=rows.delta, unit="rows", rests_on=swapped,
            beyond=rows.delta / costs["reach.delta_rows"],
            how=f"different ids in {interval_s:g} s; {size(rows.delta_bytes)} with the dense weights",
        ),
        Line(
            what="Redis: snapshots", value=kept, unit="bytes", rests_on=swapped,
            how=f"{KEPT_FULLS} full ones of {size(rows.full_bytes)} with {full_every - 1} deltas each, and a minute's",
        ),
        Line(
            what="Redis: sequences", value=sequences, unit="bytes", rests_on=("wire.sequence",),
            how=f"{load.sequence_length} actions of every user",
        ),
        Line(
            what="Redis: row store", value=float(cold), unit="bytes", rests_on=(),
            how=f"{rows.total - rows.hot:,} rows that are not hot",
        ),
        Line(
            what="Redis: snapshots read", value=read, unit="bytes/s", rests_on=("network.link", *swapped),
            beyond=sizes.rankers.number / costs["reach.rankers"],
            how=f"by {sizes.rankers.number} rankers, from {sizes.snapshot_nodes} server(s)",
        ),
        Line(
            what="Redis: sequences read and written",
            value=sequences_bytes_per_s(load, costs), unit="bytes/s",
            rests_on=("wire.sequence",), how="one read per request, a read and a write per action",
        ),
    ]  # fmt: skip


def _kafka(plan: Plan, costs: Costs) -> list[Line]:
    load = plan.load
    topics = written_bytes_per_s(load, costs)
    written = sum(topics.values())
    read = topics["impressions"] + 2 * topics["feedback"] + 2 * topics["examples"]
    brokers = max(load.replication, math.ceil(load.replication * written / (load.utilisation * costs["kafka.broker"])))
    on_wire = ("wire.impression", "wire.feedback", "wire.examples")
    per_day = load.replication * written * DAY_S
    return [
        Line(
            what="Kafka: brokers", value=brokers, unit="", rests_on=("kafka.broker", *on_wire),
            how=f"{size(load.replication * written)}/s written with {load.replication} copies",
        ),
        Line(
            what="Kafka: written", value=written, unit="bytes/s", rests_on=on_wire,
            how=", ".join(f"{name} {size(value)}/s" for name, value in topics.items()) + ", before copies",
        ),
        Line(
            what="Kafka: read", value=read, unit="bytes/s", rests_on=on_wire, how="joiners, trainer and agents",
        ),
        Line(
            what="Kafka: disk per day", value=per_day, unit="bytes", rests_on=on_wire,
            how=f"{load.replication} copies; {size(load.retention_days * per_day)} in {load.retention_days:g} days",
        ),
    ]  # fmt: skip


def failures_as_json(plan: Plan, costs: Costs, seed: int = 0) -> dict[str, Any]:
    """Returns what failures do to the freshness; nothing where there is none."""
    pipeline = plan.sizes.pipeline
    if plan.freshness is None or pipeline is None:
        return {}
    failures = failures_of(costs, joiners=plan.sizes.joiners.number, ranks=plan.sizes.job.size)
    (p50, p99, p999), effects = with_failures(pipeline, plan.steady_A, failures, seed)
    return {
        "p50_ms": p50,
        "p99_ms": p99,
        "p999_ms": p999,
        "effects": [
            {
                "broken": effect.failure.broken,
                "per_day": effect.failure.per_day,
                "lasts_s": effect.failure.lasts_s,
                "longest_ms": effect.longest_ms,
                "share": effect.share,
                "rests_on": list(effect.failure.rests_on),
            }
            for effect in effects
        ],
    }


def size(num_bytes: float) -> str:
    """Returns bytes for people.

    >>> size(512), size(2.5e6), size(3e15)
    ('512 B', '2.5 MB', '3,000 TB')
    """
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= factor:
            value = num_bytes / factor
            return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
    return f"{num_bytes:.0f} B"
