"""What a simulated pipeline is: intervals, costs and sizes in ms, and what breaks when."""

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
STAGES = ("joined", "trained", "published", "applied", "served")
Broken = Literal["joiner", "trainer", "redis", "kafka"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Everything an action meets on its way, in ms.

    Raises:
        ValueError: a trainer that cannot keep up, or a number that cannot be.
    """

    rows_per_s: float
    """Rows that are trained."""
    joiners: int = 1
    commit_interval_ms: float = 100.0
    way_ms: float = 5.0
    """From the action to the joiner that waits for it."""
    commit_ms: float = 16.0
    """Median of a transaction."""
    commit_spread: float = 0.0
    """Standard deviation of the logarithm of a transaction's time."""
    fetch_wait_ms: float = 20.0
    """A reader of committed messages looks so often."""
    batch_rows: int = 512
    max_wait_ms: float = 20.0
    step_ms: float = 10.0
    """Of a step, beside its rows."""
    row_ms: float = 0.05
    """Of a row of the global micro-batch."""
    step_spread: float = 0.0
    """As `commit_spread`."""
    publish_interval_ms: float = 1_000.0
    build_ms: float = 5.0
    """From the beginning of a publish until the snapshot is built; nothing is learned meanwhile."""
    store_ms: float = 10.0
    """Then until it is live: store, gate, pointer; nothing is learned meanwhile."""
    apply_ms: float = 20.0
    """Then until a ranker serves it."""
    full_every: int = 20
    full_build_ms: float = 50.0
    full_store_ms: float = 50.0
    full_apply_ms: float = 250.0
    request_ms: float = 20.0
    """Mean time between two requests to one ranker."""
    checkpoint_interval_ms: float = 10_000.0
    """What a trainer that died has to learn once more."""

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{one.name}: {value:g} is not allowed; at least 0")
        for name in ("rows_per_s", "joiners", "commit_interval_ms", "batch_rows", "publish_interval_ms", "full_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: 0 is not allowed; above 0")
        if self.utilisation >= 1:
            raise ValueError(
                f"rows_per_s: {self.rows_per_s:,.0f} is not allowed; the trainer learns {self.capacity:,.0f}"
            )

    @property
    def cycle_ms(self) -> float:
        """Mean time between two commits of a joiner."""
        return self.commit_interval_ms + self.commit_ms * float(np.exp(self.commit_spread**2 / 2))

    @property
    def publishing(self) -> float:
        """Share of its time that a trainer publishes."""
        fulls = 1 / self.full_every
        took_ms = (1 - fulls) * (self.build_ms + self.store_ms) + fulls * (self.full_build_ms + self.full_store_ms)
        return took_ms / max(self.publish_interval_ms, took_ms)

    @property
    def capacity(self) -> float:
        """Rows per second that the trainer can learn beside its publishing, in micro-batches of `batch_rows`."""
        slower = float(np.exp(self.step_spread**2 / 2))
        step_ms = (self.step_ms + self.batch_rows * self.row_ms) * slower
        return 1e3 * (1 - self.publishing) * self.batch_rows / step_ms if step_ms else float("inf")

    @property
    def utilisation(self) -> float:
        """Of the trainer, where its micro-batches fill."""
        return self.rows_per_s / self.capacity if self.capacity else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """Something that is away for a while."""

    broken: Broken
    """`joiner`: one of them; `trainer`: the job, which learns once more what came since its last checkpoint; `redis`:
    nothing is published; `kafka`: nothing is joined or read."""
    from_ms: float
    lasts_ms: float

    def holds(self, at: FloatArray) -> npt.NDArray[np.bool_]:
        """Tells which times lie in it."""
        within: npt.NDArray[np.bool_] = (at >= self.from_ms) & (at < self.until_ms)
        return within

    @property
    def until_ms(self) -> float:
        """When it is over."""
        return self.from_ms + self.lasts_ms
