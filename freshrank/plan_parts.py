"""How many of each process a load needs, what memory, and what goes over the network. Pure arithmetic on `Costs`.

Queues have room: joiners, ranks, brokers and links are busy for `Load.utilisation` of the time, rankers for
`Load.ranker_utilisation`.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from freshrank.plan_costs import Costs
from freshrank.plan_load import Load
from freshrank.plan_ranks import MAX_RANKS, Ranks, jobs
from freshrank.plan_rows import FLOAT_BYTES, SERVED_BYTES, TRAINED_BYTES, Rows, dense_bytes

GIB = 2**30
JOINER_MEMORY_BYTES = 4 * GIB
"""Of open slates that a joiner keeps in memory; what is more is spilled."""
MOST_SWAPPING = 0.5
"""Share of what a ranker may do that versions may take; beyond, rankers are bought to swap and not to rank."""
MOST_STEP = 0.1
"""Of the freshness that a training step may take."""
GRACE_S, DUPLICATE_S = 2.0, 10.0
"""`join.grace_ms` and `join.duplicate_ms`: for so long beyond its window a slate is remembered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joiners:
    """The joiners, one core each."""

    number: int
    event_us: float
    """CPU time per event."""
    spills: bool
    memory_bytes: float
    """Of each."""
    disk_bytes: float
    """Of each: the spilled state, and a snapshot of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rankers:
    """The rankers, one core each unless the load says otherwise."""

    number: int
    request_ms: float
    """CPU time of a request."""
    swapping: float
    """Share of its time that taking up versions takes."""
    memory_bytes: float
    """Of each."""


def per_slate_size(costs: Costs, name: str, slate: int) -> float:
    """Returns a cost per item of slates of this size: a part per slate and a part per item, from slates of 1 and 20."""
    single, of_20 = costs[f"{name}_single"], costs[f"{name}_of_20"]
    per_slate = max(0.0, (single - of_20) / (1 - 1 / 20))
    return per_slate / slate + max(0.0, single - per_slate)


def joiners_of(load: Load, costs: Costs) -> Joiners:
    """Returns the fewest joiners; a joiner waits while it commits, so its time is cut by that share."""
    per_item_bytes = per_slate_size(costs, "joiner.open", load.slate)
    open_items = load.items_per_s * (load.window_s + GRACE_S + DUPLICATE_S)
    event_us = per_slate_size(costs, "joiner.event", load.slate)
    committing = costs["joiner.commit"] / (load.commit_interval_ms + costs["joiner.commit"])
    free = load.utilisation * (1 - committing)
    number = max(1, math.ceil(load.events_per_s * event_us * 1e-6 / free))
    spills = open_items * per_item_bytes / number > JOINER_MEMORY_BYTES
    disk_bytes = 0.0
    if spills:
        closes_us = load.closes * costs["joiner.spilled_close"] * load.slates_per_s
        event_us += (closes_us + costs["joiner.spilled_feedback"] * load.actions_per_s) / load.events_per_s
        number = max(1, math.ceil(load.events_per_s * event_us * 1e-6 / free))
        disk_bytes = 2 * open_items * per_slate_size(costs, "joiner.disk", load.slate) / number
    state_bytes = min(open_items * per_item_bytes / number, JOINER_MEMORY_BYTES)
    return Joiners(
        number=number,
        event_us=event_us,
        spills=spills,
        memory_bytes=costs["joiner.base"] + state_bytes,
        disk_bytes=disk_bytes,
    )


def job_of(load: Load, costs: Costs, rows_per_s: float) -> tuple[Ranks, Ranks]:
    """Returns the fewest ranks that learn so many rows, with the smallest batch, and the job that learns most.

    The latter is both where no job learns so many. A step takes at most a tenth of the freshness.
    """
    longest_ms = 1e3 * load.freshness_s * MOST_STEP
    doubled = [2**power for power in range(MAX_RANKS.bit_length())]

    def of(sizes: Iterable[int]) -> Iterator[Ranks]:
        return jobs(costs, load.preset, sizes, longest_ms, width=load.width, judged_share=load.judged_share)

    fastest = max(of(doubled), key=lambda job: job.rows_per_s)
    if fastest.rows_per_s < rows_per_s:
        return fastest, fastest
    return next(job for job in of(range(1, MAX_RANKS + 1)) if job.rows_per_s >= rows_per_s), fastest


def rank_bytes(load: Load, costs: Costs, rows: Rows, ranks: int) -> float:
    """Returns the memory of one rank: its rows, the dense weights with gradients and two moments, a snapshot made."""
    own = rows.total / ranks * (FLOAT_BYTES * load.width + TRAINED_BYTES)
    return costs["trainer.base"] + own + 4 * dense_bytes(load.preset) + rows.full_bytes / ranks


def request_ms(load: Load, costs: Costs) -> float:
    """Returns the CPU time of a request: one part for all, one by its candidates (measured at 500)."""
    suffix = "" if load.preset == "small" else f"_{load.preset}"
    scored = costs[f"ranker.scored{suffix}"]
    return costs[f"ranker.request{suffix}"] - scored + scored * load.candidates / 500


def swap_ms(load: Load, costs: Costs, rows: Rows) -> tuple[float, float]:
    """Returns the CPU time that a ranker takes for a delta and for a full version."""
    return rows.delta * costs["apply.row"] * 1e-3, rows.hot * costs["apply.full_row"] * 1e-3


def swapping(load: Load, costs: Costs, rows: Rows, interval_s: float, full_every: int) -> float:
    """Returns the share of a ranker that taking up versions takes."""
    delta_ms, full_ms = swap_ms(load, costs, rows)
    return (delta_ms + (full_ms - delta_ms) / full_every) / (1e3 * interval_s * load.ranker_cores)


def rankers_of(load: Load, costs: Costs, rows: Rows, busy: float) -> Rankers:
    """Returns the fewest rankers, at least 2, where versions keep each busy for such a share of its time."""
    each_ms = request_ms(load, costs)
    free = load.ranker_cores * (load.ranker_utilisation - min(busy, MOST_SWAPPING * load.ranker_utilisation))
    tables = 2 * rows.hot * (FLOAT_BYTES * load.width + SERVED_BYTES)
    return Rankers(
        number=max(2, math.ceil(load.qps * each_ms * 1e-3 / free)),
        request_ms=each_ms,
        swapping=busy,
        memory_bytes=costs["ranker.base"] + tables + 2 * dense_bytes(load.preset) + rows.full_bytes,
    )


def snapshot_bytes_per_s(rows: Rows, interval_s: float, full_every: int) -> float:
    """Returns what one reader of snapshots fetches: deltas, and each so many versions a full one."""
    return (rows.delta_bytes + (rows.full_bytes - rows.delta_bytes) / full_every) / interval_s


def sequence_bytes(load: Load, costs: Costs) -> float:
    """Returns the bytes of one user's last actions."""
    return costs["wire.sequence"] * load.sequence_length / 100


def sequences_bytes_per_s(load: Load, costs: Costs) -> float:
    """Returns what goes over the network for sequences: a read per request, a read and a write per action."""
    return (load.qps + 2 * load.actions_per_s) * sequence_bytes(load, costs)


def partitions_of(load: Load, costs: Costs, joiners: int, ranks: int) -> int:
    """Returns a multiple of the ranks, at least twice the joiners and the ranks: even shares, and room to grow.

    And enough that no partition takes in more than it may.
    """
    for_bytes = math.ceil(sum(written_bytes_per_s(load, costs).values()) / costs["kafka.partition"])
    least = max(2, 2 * joiners, 2 * ranks, for_bytes)
    return ranks * math.ceil(least / ranks)


def written_bytes_per_s(load: Load, costs: Costs) -> dict[str, float]:
    """Returns what is written to each topic, before copies."""
    per_item = costs["wire.examples"] / 20
    return {
        "impressions": load.slates_per_s * costs["wire.impression"] * load.slate / 20,
        "feedback": load.actions_per_s * costs["wire.feedback"],
        "examples": load.rows_per_s * per_item,
    }
