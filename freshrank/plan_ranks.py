"""How fast so many ranks train together: alpha-beta costs of the collectives, and what only the lead does.

One global micro-batch of B rows on R ranks takes

    step = fixed + B/R * row  +  C * alpha + dense + rows / beta  +  B * lead
           each rank             the network                         rank 0 alone, while the others wait

fixed: what a step costs beside its rows, on every rank (the dense optimiser); C collectives of latency alpha * log2 R;
dense: an all-reduce of the dense gradients, 2 (R-1)/R of their bytes; rows: the keys, weights and gradients of the
rows that other ranks own; lead: the columns it gathers of each row, and its metrics and gate. One rank has no network
and is its own lead. More ranks make B/R * row smaller and nothing else: B * lead bounds the rows per second of any
number of them.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from freshrank.plan_costs import Costs
from freshrank.plan_load import Preset
from freshrank.plan_rows import FLOAT_BYTES, KEY_BYTES, dense_bytes

BATCHES = (512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768, 65_536, 131_072)
MAX_RANKS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The parts of one global step, in ms."""

    fixed: float
    rows: float
    """The rows of one rank: read, looked up, learned."""
    network: float
    lead: float
    """What the others wait for."""

    @property
    def whole(self) -> float:
        """All of it."""
        return self.fixed + self.rows + self.network + self.lead


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """A training job."""

    size: int
    batch_rows: int
    step: Step
    rows_per_s: float
    """What it can learn when it does nothing else."""


def around(costs: Costs) -> float:
    """Returns by how much a whole trainer process costs more than the sum of its parts, at 512 rows.

    The client of the log, snapshots, checkpoints; all parts are taken that much dearer.
    """
    parts_us = costs["trainer.read"] + costs["trainer.lead"] + costs["trainer.step_row"]
    return max(1.0, costs["trainer.row"] / (parts_us + 1e3 * costs["trainer.step"] / 512))


def step_of(
    costs: Costs, preset: Preset, size: int, batch_rows: int, *, width: int = 16, judged_share: float = 1.0
) -> Step:
    """Returns the parts of a step of so many rows in all."""
    suffix = "" if preset == "small" else f"_{preset}"
    dearer = around(costs)
    own = batch_rows / size
    row_us = costs[f"trainer.step_row{suffix}"] + costs["trainer.read"]
    lead_us = costs["trainer.lead"] * judged_share
    network_ms = 0.0
    if size > 1:
        others = (size - 1) / size
        row_bytes = KEY_BYTES + 2 * FLOAT_BYTES * width
        exchanged = own * costs["ranks.distinct"] * row_bytes * others
        gathered = batch_rows * costs["ranks.lead_column"] * others * judged_share
        moved = 2 * others * dense_bytes(preset) + exchanged + gathered
        network_ms = costs["ranks.collectives"] * costs["ranks.collective"] * math.log2(size)
        network_ms += 1e3 * moved / costs["network.link"]
    return Step(
        fixed=dearer * costs[f"trainer.step{suffix}"],
        rows=dearer * own * row_us * 1e-3,
        network=network_ms,
        lead=dearer * batch_rows * lead_us * 1e-3,
    )


def speed(
    costs: Costs, preset: Preset, size: int, batch_rows: int, *, width: int = 16, judged_share: float = 1.0
) -> Ranks:
    """Returns a job of so many ranks."""
    step = step_of(costs, preset, size, batch_rows, width=width, judged_share=judged_share)
    return Ranks(size=size, batch_rows=batch_rows, step=step, rows_per_s=1e3 * batch_rows / step.whole)


def most_rows_per_s(costs: Costs, judged_share: float = 1.0) -> float:
    """Returns the bound that no number of ranks gets past."""
    lead_us = around(costs) * costs["trainer.lead"] + 1e6 * costs["ranks.lead_column"] / costs["network.link"]
    return 1e6 / (lead_us * judged_share)


def jobs(
    costs: Costs, preset: Preset, sizes: Iterable[int], longest_ms: float, *, width: int = 16, judged_share: float = 1.0
) -> Iterator[Ranks]:
    """Yields, for each size, the jobs whose steps take at most so long, or are of the smallest batch."""
    for size in sizes:
        for batch_rows in BATCHES:
            job = speed(costs, preset, size, batch_rows, width=width, judged_share=judged_share)
            if batch_rows == BATCHES[0] or job.step.whole <= longest_ms:
                yield job
