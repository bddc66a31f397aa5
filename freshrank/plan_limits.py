"""What gives way first when a load grows: bounds that no number of processes moves."""

from dataclasses import dataclass

from freshrank.plan_costs import Costs
from freshrank.plan_load import Load
from freshrank.plan_parts import MOST_SWAPPING, sequences_bytes_per_s, snapshot_bytes_per_s
from freshrank.plan_rows import MAX_PAYLOAD_BYTES
from freshrank.plan_sizes import MOST_FETCHING, MOST_PUBLISHING, Sizes, snapshot_ms

MOST_NODES = 32
"""Redis servers for snapshots, copies included; more is another design."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One bound."""

    what: str
    share: float
    """Of the bound that this load takes; above 1 it gives way."""
    rests_on: tuple[str, ...]
    remedy: str

    @property
    def gives_way(self) -> bool:
        """Tells whether it does."""
        return self.share > 1


def limits_of(load: Load, costs: Costs, sizes: Sizes) -> list[Limit]:
    """Returns all bounds, the tightest first."""
    rows, interval_s, full_every = sizes.rows, sizes.interval_s, sizes.full_every
    egress = sizes.rankers.number * snapshot_bytes_per_s(rows, interval_s, full_every)
    times = snapshot_ms(load, costs, rows, sizes.job, sizes.rankers.number / sizes.snapshot_nodes)
    full_ms = times["full_apply_ms"] - times["apply_ms"]
    lead = sizes.fastest.step.lead / sizes.fastest.step.whole
    found = [
        Limit(
            what=f"one training job: at most {sizes.fastest.rows_per_s:,.0f} rows/s, the lead is {lead:.0%} of a step",
            share=sizes.training,
            rests_on=("trainer.lead", "trainer.row", "ranks.lead_column", "ranks.collective", "network.link"),
            remedy="trainer.judged_share below 1",
        ),
        Limit(
            what="publishing keeps the trainer from training",
            share=sizes.publishing / MOST_PUBLISHING,
            rests_on=("publish.row", "redis.byte", "ranker.probe", "network.link"),
            remedy="a longer publish interval, fewer full versions",
        ),
        Limit(
            what="rankers take up versions instead of ranking",
            share=sizes.rankers.swapping / (MOST_SWAPPING * load.ranker_utilisation),
            rests_on=("apply.row", "apply.full_row"),
            remedy="a longer publish interval, fewer full versions; one table for all cores of a host: not built",
        ),
        Limit(
            what="a ranker takes up a version within the interval",
            share=(times["apply_ms"] + full_ms / full_every) / (1e3 * interval_s),
            rests_on=("apply.row", "redis.byte", "network.link"),
            remedy="a longer publish interval",
        ),
        Limit(
            what=f"Redis hands every version to every ranker, with at most {MOST_NODES} copies",
            share=egress / (MOST_NODES * MOST_FETCHING * costs["network.link"]),
            rests_on=("network.link", "ranker.request"),
            remedy="fewer full versions; one fetch per host instead of one per process: not built",
        ),
        Limit(
            what="one Redis holds the sequences",
            share=sequences_bytes_per_s(load, costs) / (load.utilisation * costs["network.link"]),
            rests_on=("wire.sequence", "network.link"),
            remedy="shorter sequences (agents.sequence_length); spread over several: not built",
        ),
        Limit(
            what="a full version is one value of Redis (512 MiB)",
            share=rows.full_bytes / MAX_PAYLOAD_BYTES,
            rests_on=(),
            remedy="model.embedding.hot_rows: the others are in the row store",
        ),
    ]
    return sorted(found, key=lambda limit: -limit.share)
